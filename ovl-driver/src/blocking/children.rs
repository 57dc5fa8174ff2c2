//! Which layers stand on which: `.ovl/children/<parent>/<link of the child>`, one empty file each.
//!
//! A child's file is made before the child can be seen, and goes after it has gone: what the index
//! does not name is no child. It holds as long as the time of `l/` is the one noted, since every
//! program that makes or removes layers writes there; after that one scan brings it up to date.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;

use ovl_diff::{DirHandle, Node, Timestamp};
use ovl_layout::{LayerId, LayerRecord, Layout, LinkId, LowerChain, names, parse_link_target};

use super::Overlay2;
use super::create::Locked;
use super::home::OwnDirs;
use super::layer::Layer;
use crate::error::Error;
use crate::files;
use crate::system::LockKind;

/// Its time is that of `l/` when the index was last known to be whole. No layer has such a name.
const STAMP: &str = ".current";

/// The same, when nothing was missing but what layers have below that are damaged, or that another
/// program made: of those nobody can tell whether they are finished.
const SEEN: &str = ".seen";

/// How often a scan is tried again when layers come and go meanwhile.
const SCANS: usize = 3;

/// How often a note is tried again when its directory goes meanwhile.
const NOTES: usize = 16;

/// What a layer stands on, as far as that can be told.
enum Stands {
    Alone,
    On(LayerId),
    Unknown,
}

/// What stands on a layer.
#[derive(Debug, Default)]
pub(super) struct Children {
    known: Vec<LayerId>,
    /// A layer of which nobody can tell what it stands on.
    unknown: Option<Error>,
}

impl Overlay2 {
    /// The layers that keep `id` from being removed, which the caller has locked and found not to be
    /// in flight.
    pub(super) fn children(
        &self,
        own: &OwnDirs,
        id: &LayerId,
        link: Option<LinkId>,
    ) -> Result<Vec<LayerId>, Error> {
        let mut found = self.look_for_children(own, id, link)?;
        self.leave_out_those_below(id, &mut found)?;
        match found.unknown {
            Some(error) if found.known.is_empty() => Err(error),
            _ => Ok(found.known),
        }
    }

    /// The same for a layer that can be read. One of ours that is open has no children, unless it
    /// lost its mark: a layer that nobody can read is no reason to think so. Docker's old versions
    /// made no marks, so that theirs tell nothing.
    pub(super) fn known_children(
        &self,
        own: &OwnDirs,
        layer: &Layer,
    ) -> Result<Vec<LayerId>, Error> {
        let mut found = self.look_for_children(own, &layer.id, Some(layer.link))?;
        self.leave_out_those_below(&layer.id, &mut found)?;
        match found.unknown {
            Some(error)
                if found.known.is_empty() && (layer.committed || layer.record.is_none()) =>
            {
                Err(error)
            }
            _ => Ok(found.known),
        }
    }

    /// Layers that lead back to each other by their records could never be removed. One that hides all
    /// of its parent misses nothing when that goes.
    fn leave_out_those_below(&self, id: &LayerId, found: &mut Children) -> Result<(), Error> {
        for child in std::mem::take(&mut found.known) {
            let hides = self.layer(&child).is_ok_and(|layer| layer.root_opaque());
            if !hides || self.named_below(id, &child)?.is_none() {
                found.known.push(child);
            }
        }
        Ok(())
    }

    fn look_for_children(
        &self,
        own: &OwnDirs,
        id: &LayerId,
        link: Option<LinkId>,
    ) -> Result<Children, Error> {
        if self.is_current(own)?
            && let Some(known) = self.noted_children(own, id)?
        {
            let unknown = None;
            return Ok(Children { known, unknown });
        }
        self.scan(own, id, link)
    }

    /// Seals an open layer that has children nevertheless. The caller has locked it and found it not
    /// to be in flight: a scan would forget a child that cannot be seen yet.
    pub(super) fn seal_parent(&self, own: &OwnDirs, mut layer: Layer) -> Result<Layer, Error> {
        if layer.committed {
            return Ok(layer);
        }
        // A layer that nobody can read, and so nobody can mount, is no reason against this mount. What
        // another program is still making it would have marked, unless it is too old to know of ours.
        let noted = match layer.record.is_some() && self.is_seen(own)? {
            true => self.noted_children(own, &layer.id)?,
            false => None,
        };
        let known = match noted {
            Some(noted) => noted,
            None => {
                let link = Some(layer.link);
                self.look_for_children(own, &layer.id, link)?.known
            }
        };
        if !known.is_empty() {
            self.seal(&layer.id, Locked::ByCaller)?;
            layer.committed = true;
            if let Some(record) = &mut layer.record
                && let Some(now) = readable_record(self, &layer.dir)
            {
                *record = now;
            }
        }
        Ok(layer)
    }

    /// Notes that the layer with this link will stand on `parent`.
    pub(super) fn note_child(
        &self,
        own: &OwnDirs,
        parent: &LayerId,
        link: LinkId,
    ) -> Result<(), Error> {
        let tree = self.kernel.tree();
        let mut tries = 0;
        loop {
            let made = files::ensure_dir(tree, &own.children, parent.as_str(), 0o700)
                .and_then(|dir| tree.create_file(&dir, OsStr::new(link.as_str()), 0o600));
            tries += 1;
            match made {
                // A scan notes without a lock, and a removal may have taken the directory away.
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries < NOTES => {}
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(self.index_error("note a child in", error));
                }
                _ => return Ok(()),
            }
        }
    }

    /// Forgets a child that is gone.
    pub(super) fn forget_child(
        &self,
        own: &OwnDirs,
        parent: &LayerId,
        link: LinkId,
    ) -> Result<(), Error> {
        let tree = self.kernel.tree();
        let failed = |error| self.index_error("forget a child in", error);
        match files::open_dir(tree, &own.children, parent.as_str()).map_err(failed)? {
            Some(dir) => files::remove(tree, &dir, link.as_str()).map_err(failed),
            None => Ok(()),
        }
    }

    /// Forgets a layer before it goes, but not what names it as its parent nevertheless: that stands on
    /// the next layer of this id. The caller has locked it.
    pub(super) fn forget_parent(&self, own: &OwnDirs, id: &LayerId) -> Result<(), Error> {
        let tree = self.kernel.tree();
        let failed = |error| self.index_error("forget a parent in", error);
        let Some(dir) = files::open_dir(tree, &own.children, id.as_str()).map_err(failed)? else {
            return Ok(());
        };
        for entry in tree.read_dir(&dir).map_err(failed)? {
            if self.noted_child(id, &entry.name).is_some() {
                continue;
            }
            match tree.unlink(&dir, &entry.name) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
        match tree.remove_dir(&own.children, id.as_ref()) {
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
                ) =>
            {
                Err(failed(error))
            }
            _ => Ok(()),
        }
    }

    /// Changes `l/` such that the index stays as current as it was.
    pub(super) fn change_links<T>(
        &self,
        own: &OwnDirs,
        change: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let _lock = self.lock_index(own)?;
        let stamp = match self.is_current(own)? {
            true => Some(STAMP),
            false => self.is_stamped(own, SEEN)?.then_some(SEEN),
        };
        let changed = change()?;
        if let Some(stamp) = stamp {
            self.stamp(own, stamp, self.set_links_back()?)?;
        }
        Ok(changed)
    }

    fn lock_index(&self, own: &OwnDirs) -> Result<crate::system::Lock, Error> {
        let system = self.kernel.system();
        loop {
            let lock = system.lock(&own.children, None, LockKind::Exclusive, true);
            if let Some(lock) = lock.map_err(|error| self.index_error("lock", error))? {
                return Ok(lock);
            }
        }
    }

    fn links_time(&self) -> Result<Timestamp, Error> {
        let found = self.kernel.tree().metadata(Node::Dir(&self.links));
        let found = found.map_err(|error| Error::io("look at", self.layout.link_dir(), error))?;
        Ok(found.mtime)
    }

    /// Gives `l/` a time that no change of it can have from now on.
    fn set_links_back(&self) -> Result<Timestamp, Error> {
        let time = self.links_time()?;
        let past = Timestamp {
            secs: time.secs.saturating_sub(1),
            ..time
        };
        match self.kernel.tree().set_mtime(Node::Dir(&self.links), past) {
            // Not ours: the time that it has must do.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(time),
            Err(error) => Err(Error::io("set the time of", self.layout.link_dir(), error)),
            // As the file system stores it.
            Ok(()) => self.links_time(),
        }
    }

    pub(super) fn is_current(&self, own: &OwnDirs) -> Result<bool, Error> {
        self.is_stamped(own, STAMP)
    }

    /// Whether the index names all that stands on a layer of ours.
    fn is_seen(&self, own: &OwnDirs) -> Result<bool, Error> {
        Ok(self.is_current(own)? || self.is_stamped(own, SEEN)?)
    }

    fn is_stamped(&self, own: &OwnDirs, stamp: &str) -> Result<bool, Error> {
        let stamp = Node::Entry(&own.children, OsStr::new(stamp));
        match self.kernel.tree().metadata(stamp) {
            Ok(found) => Ok(found.mtime == self.links_time()?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.index_error("look at", error)),
        }
    }

    fn stamp(&self, own: &OwnDirs, stamp: &str, time: Timestamp) -> Result<(), Error> {
        let (tree, name) = (self.kernel.tree(), OsStr::new(stamp));
        let made = match tree.create_file(&own.children, name, 0o600) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => tree.set_mtime(Node::Entry(&own.children, name), time),
        };
        made.map_err(|error| self.index_error("write", error))
    }

    /// The children that the index names; `None` when it names something that a scan must explain.
    fn noted_children(&self, own: &OwnDirs, id: &LayerId) -> Result<Option<Vec<LayerId>>, Error> {
        let tree = self.kernel.tree();
        let failed = |error| self.index_error("read", error);
        let mut children = Vec::new();
        let Some(dir) = files::open_dir(tree, &own.children, id.as_str()).map_err(failed)? else {
            return Ok(Some(children));
        };
        for entry in tree.read_dir(&dir).map_err(failed)? {
            match self.noted_child(id, &entry.name) {
                Some(child) => children.push(child),
                None => return Ok(None),
            }
        }
        children.sort();
        Ok(Some(children))
    }

    /// The layer that a note of a child of `id` speaks of, if that says the same.
    fn noted_child(&self, id: &LayerId, note: &OsStr) -> Option<LayerId> {
        // No link: the child went, and its maker or remover was killed before it forgot it.
        let target = self.kernel.tree().read_link(&self.links, note).ok()?;
        let child = parse_link_target(target.as_encoded_bytes()).ok()?;
        let parent = self.parent_of(&self.layer(&child).ok()?).ok()?;
        (parent.as_ref() == Some(id)).then_some(child)
    }

    /// Looks at all layers, brings the index up to date and gives the children of one.
    fn scan(&self, own: &OwnDirs, id: &LayerId, link: Option<LinkId>) -> Result<Children, Error> {
        let tree = self.kernel.tree();
        let mut tries = 0;
        loop {
            let before = self.set_links_back()?;
            let ids: HashSet<LayerId> = self.layer_ids()?.into_iter().collect();
            let (mut whole, mut seen) = (true, true);
            let (mut children, mut links) = (Vec::new(), HashSet::new());
            let mut unknown = None;
            // It stays, perhaps, and the index is current for its parent as well.
            if let Ok(layer) = self.layer(id)
                && let Ok(Some(parent)) = self.parent_of(&layer)
            {
                self.note_child(own, &parent, layer.link)?;
            }
            for other in ids.iter().filter(|other| *other != id) {
                let layer = match self.layer(other) {
                    Ok(layer) => layer,
                    // Removed meanwhile.
                    Err(Error::LayerNotFound { .. }) => continue,
                    Err(error @ (Error::Damaged { .. } | Error::Unsupported { .. })) => {
                        whole = false;
                        match self.stands_on(other)? {
                            Stands::On(parent) => {
                                if parent == *id {
                                    children.push(other.clone());
                                }
                                seen &= self.is_noted(own, &parent, other)?;
                            }
                            Stands::Alone => {}
                            // Nobody can tell whether removing `id` would lose what it shows.
                            Stands::Unknown => unknown = Some(error),
                        }
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                // What is wrong with its links is told by whoever uses the layer.
                let parent = self.parent_of(&layer).ok().flatten();
                let below = link.is_some_and(|link| layer.chain.links().contains(&link));
                if parent.as_ref() == Some(id) || below {
                    children.push(other.clone());
                    links.insert(layer.link);
                }
                match parent {
                    Some(parent) => {
                        self.note_child(own, &parent, layer.link)?;
                        // Of a missing parent nobody knows what it stood on.
                        whole &= ids.contains(&parent);
                    }
                    None => whole &= layer.chain.is_empty(),
                }
                // Docker writes `lower` when the link has long been there: what it is still making
                // looks like a base layer.
                whole &= layer.record.is_some();
            }
            let found = |known| Children { known, unknown };
            children.sort();
            self.forget_others(own, id, &links)?;
            if !whole {
                // The next removal has to look again.
                files::remove(tree, &own.children, STAMP)
                    .map_err(|error| self.index_error("write", error))?;
            }
            let _lock = self.lock_index(own)?;
            tries += 1;
            if self.links_time()? == before {
                match (whole, seen) {
                    (true, _) => self.stamp(own, STAMP, before)?,
                    (false, true) => self.stamp(own, SEEN, before)?,
                    (false, false) => {}
                }
                return Ok(found(children));
            }
            if tries == SCANS || !whole {
                // Others are busy; but nothing new can stand on a layer that is locked.
                return Ok(found(children));
            }
        }
    }

    /// Whether the index names a damaged layer, whose link is not read for that, as a child.
    fn is_noted(&self, own: &OwnDirs, parent: &LayerId, child: &LayerId) -> Result<bool, Error> {
        let tree = self.kernel.tree();
        let failed = |error| self.index_error("read", error);
        let Some(dir) = files::open_dir(tree, &own.children, parent.as_str()).map_err(failed)?
        else {
            return Ok(false);
        };
        let target = Layout::link_target(child);
        let leads = |name: &OsStr| {
            tree.read_link(&self.links, name)
                .is_ok_and(|found| found == target.as_os_str())
        };
        let noted = tree.read_dir(&dir).map_err(failed)?;
        Ok(noted.iter().any(|entry| leads(&entry.name)))
    }

    /// Forgets what the index names as children of `id` and a scan did not find.
    fn forget_others(
        &self,
        own: &OwnDirs,
        id: &LayerId,
        found: &HashSet<LinkId>,
    ) -> Result<(), Error> {
        let tree = self.kernel.tree();
        let failed = |error| self.index_error("read", error);
        let Some(dir) = files::open_dir(tree, &own.children, id.as_str()).map_err(failed)? else {
            return Ok(());
        };
        for entry in tree.read_dir(&dir).map_err(failed)? {
            let link = LinkId::parse_file(entry.name.as_encoded_bytes());
            if link.is_ok_and(|link| found.contains(&link)) {
                continue;
            }
            // A child that is being made cannot be seen yet, but has its link.
            let linked = files::exists(tree, &self.links, &entry.name.to_string_lossy());
            if linked.map_err(failed)? {
                continue;
            }
            match tree.unlink(&dir, &entry.name) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
        Ok(())
    }

    fn index_error(&self, operation: &'static str, error: io::Error) -> Error {
        Error::io(
            operation,
            self.layout.store_dir().join(names::CHILDREN),
            error,
        )
    }

    /// The layer that names `wanted` as its parent, of `from` and all that it stands on: also what an
    /// opaque root hides, which no chain tells.
    pub(super) fn named_below(
        &self,
        from: &LayerId,
        wanted: &LayerId,
    ) -> Result<Option<LayerId>, Error> {
        let (mut next, mut seen) = (from.clone(), HashSet::new());
        while seen.insert(next.clone()) {
            let Stands::On(parent) = self.stands_on(&next)? else {
                return Ok(None);
            };
            if parent == *wanted {
                return Ok(Some(next));
            }
            next = parent;
        }
        Ok(None)
    }

    /// What a layer stands on, however damaged it is otherwise.
    fn stands_on(&self, id: &LayerId) -> Result<Stands, Error> {
        let (tree, paths) = (self.kernel.tree(), self.layout.layer(id));
        let failed = |error| Error::io("read", paths.dir(), error);
        let Some(dir) = files::open_dir(tree, &self.home, id.as_str()).map_err(failed)? else {
            return Ok(Stands::Alone);
        };
        let link = files::read(tree, &dir, names::LINK).ok().flatten();
        let link = link.and_then(|contents| LinkId::parse_file(&contents).ok());
        if let Some(record) = readable_record(self, &dir)
            && link.is_none_or(|link| link == record.link)
            && record.parent.as_ref() != Some(id)
        {
            return Ok(record.parent.map_or(Stands::Alone, Stands::On));
        }
        if !files::exists(tree, &dir, names::LOWER).map_err(failed)? {
            return Ok(Stands::Alone);
        }
        let contents = files::read(tree, &dir, names::LOWER).ok().flatten();
        let chain = contents.and_then(|contents| LowerChain::parse_file(&contents).ok());
        let parent = chain.and_then(|chain| chain.parent());
        let parent = parent.and_then(|link| self.resolve(id, link).ok());
        Ok(parent.map_or(Stands::Unknown, Stands::On))
    }
}

/// Our record of a layer. Whatever is in the way of reading it, there is none then.
pub(super) fn readable_record(store: &Overlay2, dir: &DirHandle) -> Option<LayerRecord> {
    let contents = files::read(store.kernel.tree(), dir, names::RECORD);
    LayerRecord::parse_file(&contents.ok().flatten()?).ok()
}
