//! What the program prints: lines for people, JSON for programs.
//!
//! JSON objects only ever gain fields. Paths are strings; bytes that are not UTF-8, control bytes
//! and backslashes are escaped as `\xHH`, `\n` and so on, as in the lines for people.

mod quota;
mod status;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use ovl_diff::{Change, ChangeKind, EscapedPath, LayerSize};
use ovl_driver::{Applied, Finding, Garbage, LayerInfo, LayerList, MountState, Remedy, Repaired};
use ovl_layout::{IdMap, LayerId};
use ovl_mount::{
    Access, MAX_SETTING_LEN, MountAction, MountFeatures, MountPlan, OverlayCall, Setting,
};
use serde_json::{Map, Value, json};

use crate::fail::Failure;

/// Standard output, in one of two forms.
pub(crate) struct Report {
    pub(crate) json: bool,
    /// Where the root of the mount namespace is seen by others, when it is not theirs.
    pub(crate) root: Option<PathBuf>,
    /// Why the program runs in no user namespace, though its user is not root.
    pub(crate) namespace: Option<String>,
}

impl Report {
    /// Prints a value as JSON, or lines as they are.
    fn print(
        &self,
        value: impl FnOnce() -> Value,
        lines: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        let mut output = io::stdout().lock();
        let written = match self.json {
            true => writeln!(output, "{}", value()),
            false => output.write_all(lines().as_bytes()),
        };
        written
            .and_then(|()| output.flush())
            .map_err(|error| Failure::output(&error))
    }

    pub(crate) fn applied(&self, id: &str, applied: &Applied) -> Result<(), Failure> {
        let summary = &applied.summary;
        let archive = &summary.archive;
        for warning in &archive.warnings {
            eprintln!("ovl: warning: {warning}");
        }
        for (count, what) in [
            (summary.squashed, "entries given to root"),
            (summary.skipped_devices, "devices left out"),
            (summary.skipped_xattrs, "extended attributes left out"),
            (summary.copied_links, "hard links made into copies"),
            (
                summary.clamped_times,
                "times changed to what the file system can hold",
            ),
        ] {
            if count > 0 {
                eprintln!("ovl: {count} {what}");
            }
        }
        let value = || {
            json!({
                "id": id,
                "diff_id": archive.diff_id.to_string(),
                "entries": archive.entries,
                "bytes": summary.payload,
                "uncompressed_bytes": archive.uncompressed_bytes,
                "compressed_bytes": archive.compressed_bytes,
                "compression": archive.compression.to_string(),
                "size": size(&applied.size),
                "squashed": summary.squashed,
                "skipped_devices": summary.skipped_devices,
                "skipped_xattrs": summary.skipped_xattrs,
                "copied_links": summary.copied_links,
                "clamped_times": summary.clamped_times,
                "warnings": archive.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
            })
        };
        let lines = || {
            let (diff_id, entries, bytes) = (&archive.diff_id, archive.entries, summary.payload);
            format!("{diff_id}\nentries {entries}\nbytes {bytes}\n")
        };
        self.print(value, lines)
    }

    pub(crate) fn changes(&self, changes: &[Change], null: bool) -> Result<(), Failure> {
        if null && !self.json {
            let mut output = io::stdout().lock();
            let mut write = || {
                for change in changes {
                    write!(output, "{} /", change.kind().symbol())?;
                    output.write_all(change.path().as_os_str().as_encoded_bytes())?;
                    output.write_all(&[0])?;
                }
                output.flush()
            };
            return write().map_err(|error: io::Error| Failure::output(&error));
        }
        let value = || {
            let one = |change: &Change| {
                let kind = match change.kind() {
                    ChangeKind::Added => "added",
                    ChangeKind::Modified => "modified",
                    ChangeKind::Deleted => "deleted",
                };
                json!({ "kind": kind, "path": format!("/{}", EscapedPath(change.path())) })
            };
            Value::Array(changes.iter().map(one).collect())
        };
        self.print(value, || {
            changes.iter().map(|change| format!("{change}\n")).collect()
        })
    }

    pub(crate) fn size(&self, found: &LayerSize) -> Result<(), Failure> {
        self.print(|| size(found), || format!("{}\n", found.apparent))
    }

    pub(crate) fn mounted(&self, id: &str, path: &Path) -> Result<(), Failure> {
        let path = self.reachable(path);
        self.print(|| json!({ "id": id, "path": path }), || format!("{path}\n"))
    }

    /// The path of a mount, for whoever runs the program.
    pub(crate) fn reachable(&self, path: &Path) -> String {
        match (&self.root, path.strip_prefix("/")) {
            (Some(root), Ok(below)) => text(&root.join(below)),
            _ => text(path),
        }
    }

    pub(crate) fn unmounted(&self, id: &str, holds: u64) -> Result<(), Failure> {
        self.print(|| json!({ "id": id, "holds": holds }), String::new)
    }

    fn mount(&self, state: &MountState) -> Value {
        let process = |(process, count): &(ovl_driver::ProcessId, u64)| json!({ "pid": process.pid, "holds": count });
        json!({
            "path": self.reachable(&state.target),
            "access": access(state.access),
            "label": state.label,
            "options": state.options,
            "persistent_holds": state.persistent,
            "process_holds": state.processes.iter().map(process).collect::<Vec<_>>(),
        })
    }

    /// Ids, one a line.
    pub(crate) fn ids(&self, what: &str, ids: &[LayerId]) -> Result<(), Failure> {
        let value = || json!({ what: ids.iter().map(LayerId::as_str).collect::<Vec<_>>() });
        self.print(value, || ids.iter().map(|id| format!("{id}\n")).collect())
    }

    pub(crate) fn list(&self, list: &LayerList) -> Result<(), Failure> {
        for broken in &list.broken {
            eprintln!("ovl: {}", Failure::chain(&broken.error));
        }
        let value = || {
            let layers: Vec<Value> = list
                .layers
                .iter()
                .map(|layer| {
                    json!({
                        "id": layer.id.as_str(),
                        "parent": layer.parent.as_ref().map(|id| id.as_str()),
                        "depth": layer.depth,
                        "sealed": layer.sealed,
                        "mounted": layer.mounted,
                    })
                })
                .collect();
            let broken: Vec<Value> = list
                .broken
                .iter()
                .map(|broken| json!({ "id": broken.id.as_str(), "problem": Failure::chain(&broken.error) }))
                .collect();
            json!({ "layers": layers, "broken": broken })
        };
        let lines = || {
            let width = list
                .layers
                .iter()
                .map(|layer| layer.id.as_str().len())
                .max()
                .unwrap_or(0);
            let width = width.max("LAYER".len());
            let mut lines = format!(
                "{:width$}  {:>5}  {:9}  {:7}  PARENT\n",
                "LAYER", "DEPTH", "STATE", "MOUNTED"
            );
            for layer in &list.layers {
                let state = if layer.sealed { "sealed" } else { "open" };
                let mounted = if layer.mounted { "yes" } else { "no" };
                let parent = layer.parent.as_ref().map_or("-", |id| id.as_str());
                let (id, depth) = (layer.id.as_str(), layer.depth);
                lines += &format!("{id:width$}  {depth:>5}  {state:9}  {mounted:7}  {parent}\n");
            }
            lines
        };
        self.print(value, lines)
    }

    pub(crate) fn layer(&self, info: &LayerInfo) -> Result<(), Failure> {
        let ids = || info.chain.iter().map(|id| id.as_str()).collect::<Vec<_>>();
        let value = || {
            let pairs = info.docker_pairs().into_iter();
            let docker: Map<String, Value> = pairs
                .map(|(key, value)| (key.to_owned(), text(Path::new(&value)).into()))
                .collect();
            json!({
                "id": info.id.as_str(),
                "link": info.link.as_str(),
                "parent": info.parent.as_ref().map(|id| id.as_str()),
                "chain": ids(),
                "depth": info.chain.len(),
                "sealed": info.sealed,
                "root_opaque": info.root_opaque,
                "recorded": info.recorded,
                "docker_can_use": info.docker.yes,
                "uid_map": id_map(&info.id_maps.uids),
                "gid_map": id_map(&info.id_maps.gids),
                "paths": {
                    "dir": text(info.paths.dir()),
                    "diff": text(info.paths.diff()),
                    "work": text(info.paths.work()),
                    "merged": text(info.paths.merged()),
                },
                "docker": docker,
                "size": size(&info.size),
                "mount": info.mount.as_ref().map(|state| self.mount(state)),
                "quota": info.quota.as_ref().map(quota::json),
            })
        };
        let lines = || {
            let mut lines = format!("layer     {}\nlink      {}\n", info.id, info.link);
            let mut line = |key: &str, value: &str| lines += &format!("{key:9} {value}\n");
            line("parent", info.parent.as_ref().map_or("-", |id| id.as_str()));
            line(
                "chain",
                &if info.chain.is_empty() {
                    "-".into()
                } else {
                    ids().join(" ")
                },
            );
            line("state", if info.sealed { "sealed" } else { "open" });
            line(
                "written",
                if info.recorded {
                    "by ovl"
                } else {
                    "by another program"
                },
            );
            if !info.docker.yes {
                line("docker", &format!("cannot use it: {}", info.docker.reason));
            }
            line("diff", &text(info.paths.diff()));
            line("work", &text(info.paths.work()));
            line("merged", &text(info.paths.merged()));
            for (key, map) in [
                ("uid map", &info.id_maps.uids),
                ("gid map", &info.id_maps.gids),
            ] {
                if let Some(map) = id_map(map) {
                    line(key, &map);
                }
            }
            line("bytes", &info.size.apparent.to_string());
            line("allocated", &info.size.allocated.to_string());
            line("inodes", &info.size.inodes.to_string());
            if let Some(quota) = &info.quota {
                line("project", &quota.project.to_string());
                let usage = quota.usage.as_ref();
                line(
                    "quota",
                    &usage.map_or_else(Clone::clone, ToString::to_string),
                );
            }
            match &info.mount {
                None => line("mounted", "no"),
                Some(state) => {
                    line("mounted", access(state.access));
                    line("at", &self.reachable(&state.target));
                    line("label", state.label.as_deref().unwrap_or("-"));
                    line(
                        "options",
                        if state.options.is_empty() {
                            "-"
                        } else {
                            &state.options
                        },
                    );
                    line("holds", &format!("{} that last", state.persistent));
                    for (process, count) in &state.processes {
                        line("", &format!("{count} of process {}", process.pid));
                    }
                }
            }
            lines
        };
        self.print(value, lines)
    }

    pub(crate) fn check(&self, repaired: &Repaired) -> Result<(), Failure> {
        let left = &repaired.left;
        let value = || {
            json!({
                "layers": left.layers,
                "sound": left.is_sound(),
                "mended": repaired.mended.iter().map(finding).collect::<Vec<_>>(),
                "findings": left.findings.iter().map(finding).collect::<Vec<_>>(),
            })
        };
        let lines = || {
            let mended = repaired.mended.iter();
            let mut lines: String = mended
                .map(|one| format!("mended: {}: {}\n", text(&one.path), one.problem))
                .collect();
            for one in &left.findings {
                lines += &line(one);
            }
            lines
        };
        self.print(value, lines)
    }

    pub(crate) fn garbage(&self, garbage: &Garbage, dry_run: bool) -> Result<(), Failure> {
        let value = || {
            json!({
                "dry_run": dry_run,
                "bytes": garbage.bytes(),
                "items": garbage.items.iter().map(finding).collect::<Vec<_>>(),
                "kept": garbage.kept.iter().map(finding).collect::<Vec<_>>(),
            })
        };
        let lines = || {
            let what = if dry_run { "would go" } else { "gone" };
            let items = garbage.items.iter();
            let mut lines: String = items
                .map(|one| {
                    format!(
                        "{what}: {}: {} ({} bytes)\n",
                        text(&one.path),
                        one.problem,
                        one.bytes
                    )
                })
                .collect();
            for one in &garbage.kept {
                let path = text(&one.path);
                lines += &format!(
                    "kept: {path}: {}; --docker-stopped takes it away\n",
                    one.problem
                );
            }
            lines + &format!("bytes {}\n", garbage.bytes())
        };
        self.print(value, lines)
    }

    pub(crate) fn plan(&self, plan: &MountPlan, features: &MountFeatures) -> Result<(), Failure> {
        let (kind, strategy) = match plan.strategy() {
            Some(strategy) => ("overlay", strategy.as_str()),
            None => ("bind", "bind"),
        };
        let limit = features.data_limit.bytes();
        let call = match plan.action() {
            MountAction::Overlay(call) => Some(call),
            MountAction::Bind { .. } => None,
        };
        let working_dir = call.and_then(OverlayCall::working_dir);
        let value = || {
            let mut value = json!({
                "kind": kind,
                "strategy": strategy,
                "target": text(plan.target()),
                "access": access(plan.access()),
                "working_dir": working_dir.map(text),
            });
            match (plan.action(), call) {
                (_, Some(OverlayCall::Data { data, .. })) => {
                    let bytes = String::from_utf8_lossy(data.as_bytes());
                    value["data"] =
                        json!({ "text": bytes, "len": data.as_bytes().len(), "limit": limit });
                }
                (
                    _,
                    Some(
                        OverlayCall::Settings { settings, .. }
                        | OverlayCall::Layers { settings, .. },
                    ),
                ) => {
                    let one = |setting: &Setting| match setting {
                        Setting::Directory(key, path) => json!({
                            "key": key, "directory": text(path),
                        }),
                        Setting::Text(key, value) => json!({
                            "key": key, "value": text(Path::new(value)), "len": value.len(), "limit": MAX_SETTING_LEN,
                        }),
                        Setting::Flag(key) => json!({ "key": key }),
                        _ => Value::Null,
                    };
                    value["settings"] = settings.iter().map(one).collect();
                }
                (MountAction::Bind { source }, _) => value["source"] = text(source).into(),
                _ => {}
            }
            value
        };
        let lines = || {
            let mut lines = format!("strategy  {strategy}\ntarget    {}\n", text(plan.target()));
            lines += &format!("access    {}\n", access(plan.access()));
            if let Some(dir) = working_dir {
                lines += &format!("in        {}\n", text(dir));
            }
            match (plan.action(), call) {
                (_, Some(OverlayCall::Data { data, .. })) => {
                    let bytes = data.as_bytes();
                    lines += &format!("length    {} of {limit} bytes\n", bytes.len());
                    lines += &format!(
                        "data      {}\n",
                        EscapedPath(Path::new(&*String::from_utf8_lossy(bytes)))
                    );
                }
                (
                    _,
                    Some(
                        OverlayCall::Settings { settings, .. }
                        | OverlayCall::Layers { settings, .. },
                    ),
                ) => {
                    for setting in settings {
                        lines += &match setting {
                            Setting::Directory(key, path) => {
                                format!("{key:9} {} (opened)\n", text(path))
                            }
                            Setting::Text(key, value) => format!(
                                "{key:9} {} ({} of {MAX_SETTING_LEN} bytes)\n",
                                text(Path::new(value)),
                                value.len()
                            ),
                            setting => format!("{setting}\n"),
                        };
                    }
                }
                (MountAction::Bind { source }, _) => {
                    lines += &format!("source    {}\n", text(source));
                }
                _ => {}
            }
            lines
        };
        self.print(value, lines)
    }
}

/// `None` where every id stands for itself.
fn id_map(map: &IdMap) -> Option<String> {
    (!map.is_identity()).then(|| map.to_string())
}

/// A finding and what mends it.
fn line(found: &Finding) -> String {
    let advice = match (found.remedy, found.ours) {
        (Remedy::Repair, true) => "; check --repair mends it",
        (Remedy::Repair, false) => "; check --repair --docker-stopped mends it",
        (Remedy::Reclaim, true) => "; gc takes it away",
        (Remedy::Reclaim, false) => "; gc --docker-stopped takes it away",
        (Remedy::Nothing, _) => "",
    };
    format!("{found}{advice}\n")
}

fn finding(found: &Finding) -> Value {
    json!({
        "kind": found.kind.as_str(),
        "severity": found.severity().to_string(),
        "layer": found.layer.as_ref().map(LayerId::as_str),
        "path": text(&found.path),
        "problem": found.problem,
        "remedy": found.remedy.to_string(),
        "ours": found.ours,
        "bytes": found.bytes,
    })
}

fn size(size: &LayerSize) -> Value {
    json!({ "bytes": size.apparent, "allocated_bytes": size.allocated, "inodes": size.inodes })
}

fn access(access: Access) -> &'static str {
    match access {
        Access::Writable => "writable",
        Access::ReadOnly => "read-only",
    }
}

fn text(path: &Path) -> String {
    EscapedPath(path).to_string()
}
