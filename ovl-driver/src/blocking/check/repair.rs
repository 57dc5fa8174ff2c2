//! Mending what has one right answer.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;

use ovl_diff::{DirHandle, Node};
use ovl_layout::{LayerId, LayerRecord, Layout, LinkId, LowerChain, names};

use super::scan::{Part, Scan, Seen};
use crate::blocking::Overlay2;
use crate::blocking::create::Locked;
use crate::blocking::home::OwnDirs;
use crate::error::Error;
use crate::files;
use crate::findings::{Finding, FindingKind, Remedy, Repaired, UpkeepOptions};
use crate::system::LockKind;

/// In this order: the later ones rely on the earlier.
const ORDER: [FindingKind; 5] = [
    FindingKind::Link,
    FindingKind::LinkEntry,
    FindingKind::Record,
    FindingKind::Lower,
    FindingKind::Unmarked,
];

impl Overlay2 {
    /// Mends what [`check`](Self::check) finds and what has one right answer: links, `lower` files,
    /// records and marks. Nothing is removed that cannot be made again. A second run finds nothing
    /// more to do.
    ///
    /// Layers that other programs wrote are only touched with
    /// [`docker_stopped`](UpkeepOptions::docker_stopped).
    ///
    /// # Errors
    ///
    /// [`Error::Io`], and those of [`check`](Self::check). What was mended before stays mended.
    pub fn repair(&self, options: UpkeepOptions) -> Result<Repaired, Error> {
        let mut repaired = Repaired::default();
        let mut tried = BTreeSet::new();
        loop {
            let report = self.check()?;
            let order = |finding: &Finding| ORDER.iter().position(|kind| *kind == finding.kind);
            let mut next: Vec<(usize, Finding)> = report
                .findings
                .iter()
                .filter(|finding| finding.remedy == Remedy::Repair)
                .filter(|finding| finding.ours || options.docker_stopped)
                .filter(|finding| !tried.contains(*finding))
                .filter_map(|finding| Some((order(finding)?, finding.clone())))
                .collect();
            next.sort();
            let Some(first) = next.first().map(|(order, _)| *order) else {
                repaired.left = report;
                return Ok(repaired);
            };
            next.retain(|(order, _)| *order == first);
            if options.dry_run {
                repaired
                    .mended
                    .extend(next.into_iter().map(|(_, finding)| finding));
                repaired.left = report;
                return Ok(repaired);
            }
            for (_, finding) in next {
                if self.mend(&finding)? {
                    repaired.mended.push(finding.clone());
                }
                tried.insert(finding);
            }
        }
    }

    /// Mends one finding, if it is still there.
    fn mend(&self, finding: &Finding) -> Result<bool, Error> {
        let Some(id) = &finding.layer else {
            return Ok(false);
        };
        let own = self.own_dirs()?;
        let lock = match self.lock_layer(id, LockKind::Exclusive) {
            Err(Error::LayerNotFound { .. }) => return Ok(false),
            result => result?,
        };
        let (scan, report) = self.look()?;
        let dir = self.locked_dir(id, &lock)?;
        let Some(seen) = scan
            .layers
            .get(id)
            .filter(|_| report.findings.contains(finding))
        else {
            return Ok(false);
        };
        match finding.kind {
            FindingKind::Link => match scan.right_link(id, seen) {
                Some(link) => {
                    self.put(id, &dir, names::LINK, Some(link.as_str().to_owned()))?;
                }
                None => return Ok(false),
            },
            FindingKind::LinkEntry => match seen.link.good() {
                Some(link) => self.put_link(&own, id, *link)?,
                None => return Ok(false),
            },
            FindingKind::Lower => match scan.recorded_chain(id) {
                Some(chain) => {
                    let contents = (!chain.is_empty()).then(|| chain.to_string());
                    self.put(id, &dir, names::LOWER, contents)?;
                }
                None => return Ok(false),
            },
            FindingKind::Record => match self.right_record(&scan, id) {
                Some(record) => {
                    self.put(id, &dir, names::RECORD, Some(record.to_string()))?;
                }
                None => return Ok(false),
            },
            FindingKind::Unmarked => self.seal(id, Locked::ByCaller)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Puts a small file in place, or takes it away.
    fn put(
        &self,
        id: &LayerId,
        dir: &DirHandle,
        name: &str,
        contents: Option<String>,
    ) -> Result<(), Error> {
        let (tree, durable) = (self.kernel.tree(), self.durable());
        let path = self.layout.layer(id).dir().join(name);
        let failed = |error| Error::io("repair", &path, error);
        // A directory is in the way of a rename, and goes if nothing is in it.
        match tree.remove_dir(dir, OsStr::new(name)) {
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Err(failed(error));
            }
            _ => {}
        }
        match contents {
            None => files::remove(tree, dir, name).map_err(failed)?,
            Some(contents) => {
                files::replace(tree, dir, name, 0o644, contents.as_bytes(), durable)
                    .map_err(failed)?;
            }
        }
        match durable {
            true => tree.sync(Node::Dir(dir)).map_err(failed),
            false => Ok(()),
        }
    }

    fn put_link(&self, own: &OwnDirs, id: &LayerId, link: LinkId) -> Result<(), Error> {
        let tree = self.kernel.tree();
        let path = self.layout.link(link);
        let failed = |error| Error::io("repair", &path, error);
        let name = OsStr::new(link.as_str());
        self.change_links(own, || {
            match tree.unlink(&self.links, name) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
            let target = Layout::link_target(id);
            tree.create_symlink(&self.links, name, target.as_os_str())
                .map_err(failed)
        })?;
        match self.durable() {
            true => tree.sync(Node::Dir(&self.links)).map_err(failed),
            false => Ok(()),
        }
    }

    /// What our record of a layer must have said, when everything else about the layer agrees. One
    /// that can be read and names a wrong parent is believed in all else.
    pub(super) fn right_record(&self, scan: &Scan, id: &LayerId) -> Option<LayerRecord> {
        let seen = scan.layers.get(id)?;
        let link = *seen.link.good()?;
        if matches!(seen.record, Part::Newer(_)) {
            return None;
        }
        let chain = match &seen.lower {
            Part::Missing => LowerChain::default(),
            Part::Good(chain) => chain.clone(),
            Part::Bad(_) | Part::Newer(_) => return None,
        };
        let old = seen.valid_record();
        if old.is_some_and(|old| old.depth != chain.depth()) {
            return None;
        }
        let again = |parent| made_again(old, link, parent, &chain);
        if let Some(parent) = chain.parent() {
            let parent = scan.owner(parent)?;
            let below = scan.trusted_chain(scan.layers.get(parent)?)?;
            let right = below.links() == &chain.links()[1..];
            return right.then(|| again(Some(parent.clone())));
        }
        // A base layer, unless the index knows a parent: then its `lower` is lost, or its root is
        // opaque. The kernel's scratch space tells of layers below as well.
        let own = self.own_dirs_if_any().ok()??;
        if !self.is_current(&own).ok()?
            || seen.names.contains(OsStr::new(names::WORK))
            || old.is_some_and(|old| old.root_opaque)
        {
            return None;
        }
        let noted = scan.layers.keys().any(|parent| {
            let noted = files::open_dir(self.kernel.tree(), &own.children, parent.as_str());
            let noted = noted.ok().flatten();
            noted.is_some_and(|dir| {
                files::exists(self.kernel.tree(), &dir, link.as_str()).unwrap_or(false)
            })
        });
        (!noted).then(|| again(None))
    }
}

/// Nobody knows what a lost record said of the disk, or what was written after a wrong one.
fn made_again(
    old: Option<&LayerRecord>,
    link: LinkId,
    parent: Option<LayerId>,
    chain: &LowerChain,
) -> LayerRecord {
    // A volatile mount that it notes is a question still.
    let mut record = match old {
        Some(old) => old.clone(),
        None => LayerRecord::new(link, None, chain),
    };
    record.parent = parent;
    record.unsynced = true;
    record
}

impl Scan {
    /// The one link that a layer without a right one can have.
    pub(super) fn right_link(&self, id: &LayerId, seen: &Seen) -> Option<LinkId> {
        let free = |link: &LinkId| self.owner(*link).is_none_or(|owner| owner == id);
        if let Some(record) = seen.record.good()
            && free(&record.link)
        {
            return Some(record.link);
        }
        let leading: Vec<LinkId> = self.leading_to(id).iter().copied().filter(free).collect();
        if let [link] = leading[..] {
            return Some(link);
        }
        // The one by which others know it.
        let known = leading.iter().filter(|link| self.chained.contains(link));
        let known: BTreeSet<LinkId> = known.copied().collect();
        let mut known = known.into_iter();
        known.next().filter(|_| known.next().is_none())
    }
}
