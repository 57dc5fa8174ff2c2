//! What is wrong in a home, and what mends it.

mod gc;
mod repair;
mod scan;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::PathBuf;

use ovl_diff::{DirHandle, FileKind, Node};
use ovl_layout::{DOCKER_MAX_DEPTH, LINK_ID_LEN, LayerId, LinkId, names};

use super::Overlay2;
use super::home::NEW_SETTINGS;
use super::layer::STANDS_ON_ITSELF;
use super::mounted::Found;
use crate::error::Error;
use crate::files;
use crate::findings::{CheckReport, Finding, FindingKind, Remedy, Severity};
use scan::{Part, Scan, Seen};

/// Looks after the first one, at most, for as long as each shows other damage.
const LOOKS: usize = 4;

impl Overlay2 {
    /// Looks at everything in the home but the layers' contents, and says what is wrong. Nothing is
    /// changed. What other threads and processes are doing meanwhile is never taken for damage.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] for what the system refuses. Damage is no error here.
    pub fn check(&self) -> Result<CheckReport, Error> {
        let (_, mut report) = self.look()?;
        for look in 1..=LOOKS {
            if report.is_clean() {
                break;
            }
            // What is gone, or different, at another look was somebody's work.
            let again = self.look()?.1;
            let seen: BTreeSet<Finding> = report.findings.iter().map(without_size).collect();
            let is_new = |finding: &Finding| {
                finding.severity() == Severity::Damage && !seen.contains(&without_size(finding))
            };
            if look == LOOKS || !again.findings.iter().any(is_new) {
                let again: BTreeSet<Finding> = again.findings.iter().map(without_size).collect();
                let is_still_there = |finding: &Finding| again.contains(&without_size(finding));
                report.findings.retain(is_still_there);
                break;
            }
            // Or something could not be read for once, and looked like other damage.
            report = again;
        }
        Ok(report)
    }

    fn look(&self) -> Result<(Scan, CheckReport), Error> {
        let scan = self.scan_home()?;
        let mut found = Findings {
            store: self,
            scan: &scan,
            list: Vec::new(),
        };
        found.layers()?;
        found.links();
        found.home()?;
        found.own()?;
        let mut findings = found.list;
        findings.sort_by(|one, other| {
            (one.severity(), &one.layer, one).cmp(&(other.severity(), &other.layer, other))
        });
        let layers = scan.layers.len() as u64;
        Ok((scan, CheckReport { layers, findings }))
    }

    /// Bytes on disk below a directory; what cannot be read does not count.
    fn allocated(&self, parent: &DirHandle, name: &OsStr) -> u64 {
        let dir = self.kernel.tree().open_dir(parent, name);
        let size = dir.map(|dir| ovl_diff::size(self.view(), &dir));
        size.ok()
            .and_then(Result::ok)
            .map_or(0, |size| size.allocated)
    }
}

/// What tells a finding from others: its size may not be readable, or grow.
pub(super) fn without_size(finding: &Finding) -> Finding {
    Finding {
        bytes: 0,
        ..finding.clone()
    }
}

struct Findings<'a> {
    store: &'a Overlay2,
    scan: &'a Scan,
    list: Vec<Finding>,
}

impl Findings<'_> {
    fn add(
        &mut self,
        kind: FindingKind,
        layer: Option<&LayerId>,
        path: PathBuf,
        problem: impl Into<String>,
        remedy: Remedy,
    ) -> &mut Finding {
        let seen = layer.and_then(|id| self.scan.layers.get(id));
        self.list.push(Finding {
            kind,
            layer: layer.cloned(),
            path,
            problem: problem.into(),
            remedy,
            ours: seen.is_some_and(|seen| seen.valid_record().is_some()),
            bytes: 0,
        });
        let last = self.list.len() - 1;
        &mut self.list[last]
    }

    fn layers(&mut self) -> Result<(), Error> {
        let scan = self.scan;
        let parents: BTreeSet<&LayerId> = scan
            .layers
            .keys()
            .filter_map(|id| scan.parent(id).filter(|parent| *parent != id))
            .collect();
        for (id, seen) in &scan.layers {
            let dir = self.store.layout.layer(id).dir().to_owned();
            if seen.is_half() && scan.leading_to(id).is_empty() && !parents.contains(id) {
                self.half(id, seen, dir);
                continue;
            }
            self.link(id, seen);
            self.lower(id, seen);
            self.record(id, seen);
            if let Some(problem) = &seen.contents {
                let path = dir.join(names::DIFF);
                self.add(
                    FindingKind::Contents,
                    Some(id),
                    path,
                    problem,
                    Remedy::Nothing,
                );
            }
            let imported = seen
                .valid_record()
                .is_some_and(|record| record.sealed.is_some());
            if !seen.committed && (parents.contains(id) || imported) {
                let problem = match parents.contains(id) {
                    true => "the file is missing, and other layers stand on this one",
                    false => "the file is missing, and the layer was made as a sealed one",
                };
                let path = dir.join(names::COMMITTED);
                self.add(
                    FindingKind::Unmarked,
                    Some(id),
                    path,
                    problem,
                    Remedy::Repair,
                );
            }
            for (name, mode) in &seen.writable {
                let problem = format!("others may write to it (mode {mode:04o})");
                self.add(
                    FindingKind::Writable,
                    Some(id),
                    dir.join(name),
                    problem,
                    Remedy::Nothing,
                );
            }
            if seen.newline {
                let problem = "it ends with a newline, which no layer store writes";
                let path = dir.join(names::LOWER);
                self.add(
                    FindingKind::Unknown,
                    Some(id),
                    path,
                    problem,
                    Remedy::Nothing,
                );
            }
            self.mount(id, seen)?;
        }
        Ok(())
    }

    /// A directory that is not, or not yet, or no longer a layer.
    fn half(&mut self, id: &LayerId, seen: &Seen, dir: PathBuf) {
        if !seen.holds_only_a_layer() {
            let problem = "not a layer: it has no link file, and holds what no layer store knows";
            self.add(FindingKind::Unknown, None, dir, problem, Remedy::Nothing);
            return;
        }
        let kind = FindingKind::HalfLayer;
        if !seen.is_worthless() {
            let problem =
                "no layer: the link file is missing, and no link leads to it; it has contents";
            self.add(kind, Some(id), dir, problem, Remedy::Nothing);
            return;
        }
        let problem = "no layer: the link file is missing, and no link leads to it";
        let bytes = self.store.allocated(&self.store.home, id.as_ref());
        self.add(kind, Some(id), dir, problem, Remedy::Reclaim)
            .bytes = bytes;
    }

    fn link(&mut self, id: &LayerId, seen: &Seen) {
        let (scan, layout) = (self.scan, &self.store.layout);
        let path = layout.layer(id).dir().join(names::LINK);
        match &seen.link {
            Part::Good(link) if scan.owner(*link) != Some(id) => {
                let owner = scan.owner(*link).map_or("another layer", LayerId::as_str);
                let problem = format!("it says {link}, which is the link of {owner}");
                let remedy = self.remedy(scan.right_link(id, seen).is_some());
                self.add(FindingKind::Link, Some(id), path, problem, remedy);
            }
            Part::Good(link) => {
                let entry = layout.link(*link);
                // Our record or another layer's chain vouches for the link file.
                let record = seen.record.good();
                let vouched = record.is_some_and(|record| record.link == *link)
                    || scan.chained.contains(link);
                let mut others = scan.leading_to(id).iter();
                let other = others.find(|&&other| other != *link && scan.owner(other).is_none());
                let leads = scan.leading_to(id).contains(link);
                if let Some(other) = other.filter(|_| !leads && !vouched) {
                    let problem =
                        format!("it says {link}, but the link that leads here is {other}");
                    let right = scan
                        .right_link(id, seen)
                        .is_some_and(|right| right != *link);
                    self.add(
                        FindingKind::Link,
                        Some(id),
                        path,
                        problem,
                        self.remedy(right),
                    );
                    return;
                }
                let problem = match scan.links.get(OsStr::new(link.as_str())) {
                    Some(Part::Good(target)) if target == id => return,
                    Some(Part::Good(target)) => format!("it leads to {target}, not to {id}"),
                    Some(Part::Bad(problem) | Part::Newer(problem)) => problem.clone(),
                    Some(Part::Missing) | None => format!("the link of {id} is missing"),
                };
                let kind = FindingKind::LinkEntry;
                self.add(kind, Some(id), entry, problem, Remedy::Repair);
            }
            bad => {
                let remedy = self.remedy(scan.right_link(id, seen).is_some());
                self.add(FindingKind::Link, Some(id), path, bad.problem(), remedy);
            }
        }
    }

    fn remedy(&self, known: bool) -> Remedy {
        match known {
            true => Remedy::Repair,
            false => Remedy::Nothing,
        }
    }

    fn lower(&mut self, id: &LayerId, seen: &Seen) {
        let scan = self.scan;
        let path = self.store.layout.layer(id).dir().join(names::LOWER);
        let recorded = seen.valid_record().map(|record| record.depth);
        let remedy = self.remedy(scan.recorded_chain(id).is_some());
        let chain = match &seen.lower {
            Part::Bad(problem) | Part::Newer(problem) => {
                self.add(FindingKind::Lower, Some(id), path, problem, remedy);
                return;
            }
            Part::Missing => match recorded {
                None | Some(0) => return,
                Some(depth) => {
                    let problem =
                        format!("the file is missing, and {depth} layers were below this one");
                    self.add(FindingKind::Lower, Some(id), path, problem, remedy);
                    return;
                }
            },
            Part::Good(chain) => chain,
        };
        if chain.depth() > DOCKER_MAX_DEPTH {
            let found = chain.depth();
            let problem = format!(
                "it names {found} layers, and Docker mounts at most {DOCKER_MAX_DEPTH}: it cannot use this one"
            );
            let kind = FindingKind::TooDeepForDocker;
            self.add(kind, Some(id), path.clone(), problem, Remedy::Nothing)
                .ours = true;
        }
        if let Some(depth) = recorded
            && depth != chain.depth()
        {
            let found = chain.depth();
            let problem = format!("it names {found} layers, {depth} were below when it was made");
            self.add(FindingKind::Lower, Some(id), path, problem, remedy);
            return;
        }
        for (index, link) in chain.links().iter().enumerate() {
            let Some(below) = scan.owner(*link) else {
                // A link file that cannot be read is told where it is.
                let entry = scan.links.get(OsStr::new(link.as_str()));
                let target = entry
                    .and_then(Part::good)
                    .and_then(|id| scan.layers.get(id));
                if target.is_some_and(|seen| seen.link.good().is_none()) {
                    continue;
                }
                let problem = format!("layer {} below, {link}, does not exist", index + 1);
                self.add(FindingKind::Lower, Some(id), path, problem, Remedy::Nothing);
                return;
            };
            if below == id {
                let problem = "the layer stands on itself";
                self.add(FindingKind::Lower, Some(id), path, problem, remedy);
                return;
            }
            let parent = scan
                .layers
                .get(below)
                .and_then(|seen| scan.trusted_chain(seen));
            let rest = &chain.links()[index + 1..];
            if parent.is_some_and(|parent| parent.links() != rest) {
                let problem = format!("what it names below {below} is not what {below} stands on");
                let remedy = match scan.recorded_chain(id) {
                    Some(right) if right != *chain => Remedy::Repair,
                    _ => Remedy::Nothing,
                };
                self.add(FindingKind::Lower, Some(id), path, problem, remedy);
                return;
            }
        }
    }

    fn record(&mut self, id: &LayerId, seen: &Seen) {
        let path = self.store.layout.layer(id).dir().join(names::RECORD);
        match &seen.record {
            Part::Bad(problem) | Part::Newer(problem) => {
                let remedy = self.remedy(self.store.right_record(self.scan, id).is_some());
                let finding = self.add(FindingKind::Record, Some(id), path, problem, remedy);
                // Nobody else makes such files.
                finding.ours = true;
            }
            Part::Good(record) if seen.valid_record().is_none() => {
                let free = self.scan.owner(record.link).is_none();
                let led = self.scan.leading_to(id).contains(&record.link);
                // Damage of the link file is told where that is looked at.
                if !(free && led) {
                    let problem =
                        "void: another program has written the layer anew, under another link";
                    self.add(
                        FindingKind::Rewritten,
                        Some(id),
                        path,
                        problem,
                        Remedy::Nothing,
                    );
                }
            }
            Part::Good(record) if record.parent.as_ref() == Some(id) => {
                let remedy = self.remedy(self.store.right_record(self.scan, id).is_some());
                let kind = FindingKind::Record;
                self.add(kind, Some(id), path, STANDS_ON_ITSELF, remedy);
            }
            Part::Good(_) if self.scan.circular.contains(id) => {
                let problem = match self.scan.opening(id) {
                    None => format!("{STANDS_ON_ITSELF}: its parents lead back to it"),
                    Some((first, child)) => format!(
                        "{STANDS_ON_ITSELF}: its parents lead back to it; {first} can be removed first, \
                         since {child}, which names it as its parent, shows nothing of it"
                    ),
                };
                self.add(
                    FindingKind::Record,
                    Some(id),
                    path,
                    problem,
                    Remedy::Nothing,
                );
            }
            _ => {}
        }
    }

    fn mount(&mut self, id: &LayerId, seen: &Seen) -> Result<(), Error> {
        let store = self.store;
        let target = store.layout.layer(id).merged().to_owned();
        let mounted = seen.names.contains(OsStr::new(names::MERGED));
        let paths = store.layout.layer(id);
        let noted = seen.valid_record();
        let dirty = match noted.and_then(|record| record.volatile.as_ref()) {
            Some(boot) => (*boot != store.boot()?).then(|| paths.dir().join(names::RECORD)),
            None => seen
                .volatile
                .then(|| paths.work().join("work/incompat/volatile")),
        };
        if let Some(path) = dirty
            && !(mounted && store.is_mounted(&target)?)
        {
            let problem = "the machine stopped while the layer was mounted volatile: what was written is not whole";
            self.add(
                FindingKind::Volatile,
                Some(id),
                path,
                problem,
                Remedy::Nothing,
            );
        }
        if !mounted {
            return Ok(());
        }
        let Some(own) = store.own_dirs_if_any()? else {
            return Ok(());
        };
        match store.glance_at_mount(&own, id) {
            Ok(Found::Ours(holds)) if holds.total() == 0 => {
                let problem = "mounted, and nobody holds it: whoever mounted it was killed";
                let kind = FindingKind::UnheldMount;
                self.add(kind, Some(id), target, problem, Remedy::Reclaim)
                    .ours = true;
            }
            Err(Error::Damaged { file, problem, .. }) => {
                let kind = FindingKind::Holds;
                self.add(kind, Some(id), file, problem, Remedy::Nothing)
                    .ours = true;
            }
            result => {
                result?;
            }
        }
        Ok(())
    }

    /// The entries of `l/` that no layer has.
    fn links(&mut self) {
        let scan = self.scan;
        for (name, target) in &scan.links {
            let path = self.store.layout.link_dir().join(name);
            let Ok(link) = LinkId::parse_file(name.as_encoded_bytes()) else {
                let problem = "its name is not a link id";
                self.add(FindingKind::Unknown, None, path, problem, Remedy::Nothing);
                continue;
            };
            if scan.owner(link).is_some() || scan.in_flight.contains(name) {
                continue;
            }
            match target {
                Part::Good(id) if scan.layers.contains_key(id) => {
                    let seen = &scan.layers[id];
                    // Else it is what mends the layer.
                    let leads = seen
                        .link
                        .good()
                        .is_some_and(|own| scan.leading_to(id).contains(own));
                    if leads {
                        let problem = format!("a second link to {id}");
                        // Kept where another layer's chain needs it.
                        let remedy = match scan.chained.contains(&link) {
                            true => Remedy::Nothing,
                            false => Remedy::Reclaim,
                        };
                        self.add(FindingKind::SecondLink, None, path, problem, remedy);
                    }
                }
                // It goes with what staging or trash holds of that layer.
                Part::Good(_) if self.is_leftover_of_ours(name) => {}
                Part::Good(id) => {
                    let problem = format!("it leads to {id}, which does not exist");
                    // It is all that is left of what that chain names.
                    let remedy = match scan.chained.contains(&link) {
                        true => Remedy::Nothing,
                        false => Remedy::Reclaim,
                    };
                    self.add(FindingKind::DanglingLink, None, path, problem, remedy);
                }
                bad => {
                    let problem = bad.problem();
                    self.add(FindingKind::Unknown, None, path, problem, Remedy::Nothing);
                }
            }
        }
    }

    /// Whether staging or trash say that a link is that of a layer of ours.
    fn is_leftover_of_ours(&self, name: &OsStr) -> bool {
        let in_trash = |trash: &std::ffi::OsString| {
            trash.as_encoded_bytes().get(..LINK_ID_LEN) == Some(name.as_encoded_bytes())
        };
        self.scan.staging.contains(name) || self.scan.trash.iter().any(in_trash)
    }

    /// What else is in the home.
    fn home(&mut self) -> Result<(), Error> {
        let store = self.store;
        self.entrance()?;
        for (name, kind) in &self.scan.others {
            let path = store.home().join(name);
            let text = name.to_string_lossy();
            let probe = names::PROBE_PREFIXES
                .iter()
                .any(|prefix| text.starts_with(prefix));
            if probe && *kind == FileKind::Directory {
                let mounted = store.kernel.mount().mounts_below(&path);
                let mounted = mounted.map_err(|e| Error::io("look for mounts in", &path, e))?;
                let problem = "left behind by Docker, which tried out the kernel here";
                let (bytes, remedy) = match mounted.is_empty() {
                    true => (store.allocated(&store.home, name), Remedy::Reclaim),
                    false => (0, Remedy::Nothing),
                };
                self.add(FindingKind::Probe, None, path, problem, remedy)
                    .bytes = bytes;
            } else {
                let problem = "no layer store puts this here";
                self.add(FindingKind::Unknown, None, path, problem, Remedy::Nothing);
            }
        }
        Ok(())
    }

    /// One closed door, the home's or each layer's, is enough.
    fn entrance(&mut self) -> Result<(), Error> {
        let home = self.store.home().to_owned();
        let found = self
            .store
            .kernel
            .tree()
            .metadata(Node::Dir(&self.store.home));
        let mode = found.map_err(|error| Error::io("read", &home, error))?.mode & 0o7777;
        let layers = self.scan.layers.values();
        let open = layers.filter(|seen| seen.enterable).count();
        if mode & 0o001 != 0 && open > 0 {
            let problem = format!(
                "others may enter it (mode {mode:04o}) and {open} of its layers, and run setuid \
                 programs in them; chmod o-x takes that away"
            );
            let kind = FindingKind::Enterable;
            self.add(kind, None, home, problem, Remedy::Nothing);
        }
        Ok(())
    }

    /// What is in our own directory.
    fn own(&mut self) -> Result<(), Error> {
        let store = self.store;
        let Some(own) = store.own_dirs_if_any()? else {
            return Ok(());
        };
        let path = store.layout.store_dir();
        let trees = [
            (
                FindingKind::Staging,
                names::STAGING,
                &own.staging,
                &self.scan.staging,
            ),
            (
                FindingKind::Trash,
                names::TRASH,
                &own.trash,
                &self.scan.trash,
            ),
        ];
        for (kind, part, dir, names) in trees {
            let problem = match kind {
                FindingKind::Staging => "a layer that was never finished; its maker is gone",
                _ => "a removed layer that still takes space",
            };
            for name in names {
                let finding = self.add(
                    kind,
                    None,
                    path.join(part).join(name),
                    problem,
                    Remedy::Reclaim,
                );
                (finding.ours, finding.bytes) = (true, store.allocated(dir, name));
            }
        }
        for name in &self.scan.holds {
            if !store.is_busy(name)?
                && !store.notes_detached(&own, name)?
                && store.is_stale_hold(&own, name, Overlay2::glance_at_mount)?
            {
                let path = path.join(names::HOLDS).join(name);
                let problem = "it speaks of a mount that is gone";
                let kind = FindingKind::StaleHolds;
                self.add(kind, None, path, problem, Remedy::Reclaim).ours = true;
            }
        }
        for (id, seen) in &self.scan.layers {
            let names = seen.names.iter().filter(|name| files::is_temporary(name));
            for name in names.filter(|name| files::is_of_layer(name)) {
                if seen.record.good().is_none() || store.is_busy(id.as_ref())? {
                    continue;
                }
                let path = store.layout.layer(id).dir().join(name);
                let problem = "a file that was never put in place; its maker is gone";
                let kind = FindingKind::Unfinished;
                let finding = self.add(kind, Some(id), path, problem, Remedy::Reclaim);
                finding.ours = true;
            }
        }
        for name in &self.scan.own_others {
            if name.to_string_lossy().starts_with(NEW_SETTINGS) {
                let problem = "settings that were never finished; their maker is gone";
                let (kind, path) = (FindingKind::Staging, path.join(name));
                self.add(kind, None, path, problem, Remedy::Reclaim).ours = true;
                continue;
            }
            let problem = "not a part of the store";
            self.add(
                FindingKind::Unknown,
                None,
                path.join(name),
                problem,
                Remedy::Nothing,
            );
        }
        Ok(())
    }
}
