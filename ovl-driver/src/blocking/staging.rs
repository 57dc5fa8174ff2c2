//! Layers being built: out of sight until they are whole.
//!
//! A staging directory is a layer's directory under another name. Its maker holds a lock on it for
//! its life, so that a leftover can be told from work in progress, and its record names the parent,
//! which counts as in use.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use ovl_diff::{
    DirHandle, FileKind, Node, RenameMode, TreeError, copy_root_attributes, remove_tree, sync_layer,
};
use ovl_layout::{
    LINK_ID_ENTROPY, LayerId, LayerRecord, Layout, LinkId, LowerChain, names, parse_link_target,
};
use ovl_quota::KeepsToLimits;

use super::Overlay2;
use super::children::readable_record;
use super::create::Locked;
use super::home::OwnDirs;
use super::layer::Layer;
use super::quota::Project;
use crate::error::Error;
use crate::files;
use crate::system::{Lock, LockKind};

/// How often a new directory is made again when it goes at once.
const TRIES: usize = 16;

/// A layer under construction; dropping it takes it away again.
pub(super) struct Staged<'a> {
    store: &'a Overlay2,
    own: OwnDirs,
    pub(super) record: LayerRecord,
    pub(super) chain: LowerChain,
    name: OsString,
    dir: DirHandle,
    pub(super) diff: DirHandle,
    id: LayerId,
    published: bool,
    linked: bool,
    /// Whether it has a project that goes with it.
    releases: bool,
    lock: Option<Lock>,
    _keeps: KeepsToLimits,
}

/// What a staged layer will be.
pub(super) struct Plan<'a> {
    pub(super) id: &'a LayerId,
    /// What it stands on; locked by the caller.
    pub(super) parent: Option<&'a Parent>,
    pub(super) chain: LowerChain,
    /// The link of the present layer of this id, with which it will be swapped; locked by the
    /// caller, in use from the moment that the new one is staged.
    pub(super) replaces: Option<LinkId>,
    pub(super) project: Project,
}

/// What a new layer stands on.
pub(super) struct Parent {
    pub(super) layer: Layer,
    /// Its own `diff`.
    pub(super) upper: DirHandle,
}

impl Overlay2 {
    /// Begins a layer.
    pub(super) fn stage(&self, plan: Plan<'_>) -> Result<Staged<'_>, Error> {
        let own = self.own_dirs()?;
        let tree = self.kernel.tree();
        let path = self.layout.store_dir().join(names::STAGING);
        let mut tries = 0;
        let (link, lock) = loop {
            let link = self.random_link()?;
            let name = OsStr::new(link.as_str());
            let taken = files::exists(tree, &self.links, link.as_str())
                .map_err(|error| Error::io("look at", self.layout.link(link), error))?;
            if taken {
                continue;
            }
            match tree.create_dir(&own.staging, name, 0o700) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                // A process that cleans up may take the directory away before it is locked, even
                // before its mode is set.
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries < TRIES => {
                    tries += 1;
                    continue;
                }
                result => result.map_err(|error| Error::io("create", path.join(name), error))?,
            }
            let kind = LockKind::Exclusive;
            let lock = match self
                .kernel
                .system()
                .lock(&own.staging, Some(name), kind, false)
            {
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                result => result.map_err(|error| Error::io("lock", path.join(name), error))?,
            };
            let Some(lock) = lock else {
                // Who only looked at it leaves it to us.
                let _ = tree.remove_dir(&own.staging, name);
                continue;
            };
            match tree.metadata(Node::Entry(&own.staging, name)) {
                Ok(found) if found.ino == lock.ino() => break (link, lock),
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("look at", path.join(name), error));
                }
                _ => {}
            }
        };
        let name = OsString::from(link.as_str());
        let parent_id = plan.parent.map(|parent| parent.layer.id.clone());
        let link = plan.replaces.unwrap_or(link);
        let record = LayerRecord::new(link, parent_id, &plan.chain);
        let made = self.fill(&own, &name, &record, &plan);
        let releases = matches!(plan.project, Project::Own(_));
        let (dir, diff, keeps) = match made {
            Ok(made) => made,
            Err(error) => {
                let path = path.join(&name);
                let error = self.explain(plan.id, &path, error);
                // The first error is the one to report; what is left is cleaned up at the next open.
                if releases {
                    let _ = self.release_project(&own, &path);
                }
                let _ = self.remove_staged(&own, &name);
                return Err(error);
            }
        };
        Ok(Staged {
            store: self,
            own,
            record,
            chain: plan.chain,
            name,
            dir,
            diff,
            id: plan.id.clone(),
            published: false,
            linked: false,
            releases,
            lock: Some(lock),
            _keeps: keeps,
        })
    }

    fn fill(
        &self,
        own: &OwnDirs,
        name: &OsStr,
        record: &LayerRecord,
        plan: &Plan<'_>,
    ) -> Result<(DirHandle, DirHandle, KeepsToLimits), Error> {
        let tree = self.kernel.tree();
        let path = self.layout.store_dir().join(names::STAGING).join(name);
        let failed = |error| Error::io("create", &path, error);
        let dir = tree.open_dir(&own.staging, name).map_err(failed)?;
        files::create(
            tree,
            &dir,
            names::RECORD,
            0o644,
            record.to_string().as_bytes(),
            false,
        )
        .map_err(failed)?;
        if plan.replaces.is_some() {
            let id = plan.id.as_str().as_bytes();
            files::create(tree, &dir, files::REPLACES, 0o600, id, false).map_err(failed)?;
        }
        let keeps = self.tag(own, plan.id, &path, plan.project)?;
        let diff = files::ensure_dir(tree, &dir, names::DIFF, 0o755).map_err(failed)?;
        match plan.parent {
            Some(parent) => copy_root_attributes(self.view(), &parent.upper, &diff)
                .map_err(|error| Error::tree(&path.join(names::DIFF), error))?,
            None => self
                .owners
                .give_to_root(tree, Node::Dir(&diff))
                .map_err(failed)?,
        }
        Ok((dir, diff, keeps))
    }

    /// The directory `name` in a layer's directory, made with mode 0700 where it is missing, that
    /// the container's root owns.
    pub(super) fn ensure_dir_of_root(
        &self,
        layer: &DirHandle,
        name: &str,
    ) -> io::Result<DirHandle> {
        let tree = self.kernel.tree();
        let dir = files::ensure_dir(tree, layer, name, 0o700)?;
        self.owners.give_to_root(tree, Node::Dir(&dir))?;
        Ok(dir)
    }

    fn random_link(&self) -> Result<LinkId, Error> {
        let mut entropy = [0; LINK_ID_ENTROPY];
        self.kernel
            .system()
            .fill_random(&mut entropy)
            .map_err(|error| Error::io("draw a link id for", self.layout.home(), error))?;
        Ok(LinkId::from_entropy(entropy))
    }

    /// Whether somebody is building a layer on `id`, or one that will replace it, right now. What
    /// `own_work` builds does not count.
    pub(super) fn is_in_flight(
        &self,
        id: &LayerId,
        own_work: Option<&Staged<'_>>,
    ) -> Result<bool, Error> {
        let Some(own) = self.own_dirs_if_any()? else {
            return Ok(false);
        };
        let tree = self.kernel.tree();
        let path = self.layout.store_dir().join(names::STAGING);
        for name in files::dirs(tree, &own.staging).map_err(|e| Error::io("list", &path, e))? {
            let dir = match tree.open_dir(&own.staging, &name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                result => result.map_err(|error| Error::io("open", path.join(&name), error))?,
            };
            if own_work.is_some_and(|staged| staged.name == name) {
                continue;
            }
            let read = |file| {
                files::read(tree, &dir, file)
                    .map_err(|error| Error::io("read", path.join(&name).join(file), error))
            };
            let parent = read(names::RECORD)?
                .and_then(|contents| LayerRecord::parse_file(&contents).ok())
                .and_then(|record| record.parent);
            let replaced = read(files::REPLACES)?;
            let concerns =
                parent.as_ref() == Some(id) || replaced.as_deref() == Some(id.as_str().as_bytes());
            if !concerns {
                continue;
            }
            // Whoever builds it holds the lock.
            match self
                .kernel
                .system()
                .lock(&own.staging, Some(&name), LockKind::Shared, false)
            {
                Ok(None) => return Ok(true),
                Ok(Some(_)) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io("lock", path.join(&name), error)),
            }
        }
        Ok(false)
    }

    /// Takes away what processes that are gone have left in staging, and nothing else. What cannot be
    /// taken away does not keep the others: the first error is given at the end.
    pub(super) fn recover(&self, own: &OwnDirs) -> Result<(), Error> {
        let path = self.layout.store_dir().join(names::STAGING);
        let entries = self.kernel.tree().read_dir(&own.staging);
        let mut failed = None;
        for entry in entries.map_err(|error| Error::io("list", &path, error))? {
            let kind = entry.kind;
            if let Err(error) = self.recover_one(own, &path, &entry.name, kind) {
                failed.get_or_insert(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn recover_one(
        &self,
        own: &OwnDirs,
        path: &Path,
        name: &OsStr,
        kind: FileKind,
    ) -> Result<(), Error> {
        let (tree, system) = (self.kernel.tree(), self.kernel.system());
        if kind != FileKind::Directory {
            let removed = files::remove(tree, &own.staging, &name.to_string_lossy());
            return removed.map_err(|error| Error::io("remove", path.join(name), error));
        }
        let lock = match system.lock(&own.staging, Some(name), LockKind::Exclusive, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result.map_err(|error| Error::io("lock", path.join(name), error))?,
        };
        if lock.is_none() {
            return Ok(());
        }
        self.unlink_staged(own, name)?;
        if self.has_own_project(own, name) {
            self.release_project(own, &path.join(name))?;
        }
        match self.remove_staged(own, name) {
            Err(TreeError { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(|error| Error::tree(path, error)),
        }
    }

    /// Takes a staging directory away. From the start it is in no layer's way, although it is locked
    /// for as long as that takes.
    fn remove_staged(&self, own: &OwnDirs, name: &OsStr) -> Result<(), TreeError> {
        let tree = self.kernel.tree();
        if let Ok(dir) = tree.open_dir(&own.staging, name) {
            for file in [names::RECORD, files::REPLACES] {
                // It goes with the rest, or its error is told there.
                let _ = tree.unlink(&dir, OsStr::new(file));
            }
        }
        remove_tree(tree, &own.staging, name)
    }

    /// Whether the project of a leftover goes with it. Not so where the layer that it should have
    /// replaced, or has been replaced by, is in the same.
    fn has_own_project(&self, own: &OwnDirs, name: &OsStr) -> bool {
        let tree = self.kernel.tree();
        let Ok(dir) = tree.open_dir(&own.staging, name) else {
            return false;
        };
        let of = |dir: &Path| self.kernel.quota().project_of(dir).ok().flatten();
        let replaced = files::read(tree, &dir, files::REPLACES).ok().flatten();
        let replaced = replaced.and_then(|id| String::from_utf8(id).ok()?.parse().ok());
        match replaced {
            Some(id) => {
                let staged = self.layout.store_dir().join(names::STAGING).join(name);
                of(&staged) != of(self.layout.layer(&id).dir())
            }
            None => readable_record(self, &dir)
                .is_some_and(|record| OsStr::new(record.link.as_str()) == name),
        }
    }

    /// Removes the link of a layer that was never published; a link that leads to a layer stays.
    /// After an error its directory has to stay as well: nothing else says whose the link is.
    pub(super) fn unlink_staged(&self, own: &OwnDirs, name: &OsStr) -> Result<(), Error> {
        let tree = self.kernel.tree();
        let target = match tree.read_link(&self.links, name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result
                .map_err(|error| Error::io("read", self.layout.link_dir().join(name), error))?,
        };
        let published = match parse_link_target(target.as_encoded_bytes()) {
            Err(_) => return Ok(()),
            Ok(id) => {
                let link = match files::open_dir(tree, &self.home, id.as_str()) {
                    Ok(Some(dir)) => files::read(tree, &dir, names::LINK),
                    Ok(None) => Ok(None),
                    Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(None),
                    Err(error) => Err(error),
                };
                let path = self.layout.layer(&id).dir().to_owned();
                let link = link.map_err(|error| Error::io("look at", path, error))?;
                link.as_deref() == Some(name.as_encoded_bytes())
            }
        };
        if published {
            return Ok(());
        }
        self.change_links(own, || match tree.unlink(&self.links, name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(
                "remove",
                self.layout.link_dir().join(name),
                error,
            )),
            _ => Ok(()),
        })
    }
}

impl Staged<'_> {
    /// Says which project is at its limit, where that is why a step failed.
    pub(super) fn explain(&self, error: Error) -> Error {
        self.store.explain(&self.id, &self.path(), error)
    }

    fn path(&self) -> PathBuf {
        let staging = self.store.layout.store_dir().join(names::STAGING);
        staging.join(&self.name)
    }

    fn failed(&self, operation: &'static str) -> impl Fn(io::Error) -> Error + use<> {
        let path = self.path();
        move |error| Error::io(operation, &path, error)
    }

    /// Writes the small files and makes everything durable. `sealed` layers mount read-only from
    /// the start.
    pub(super) fn complete(&mut self, sealed: bool) -> Result<(), Error> {
        let (tree, durable) = (self.store.kernel.tree(), self.store.durable());
        let write = self.failed("write");
        let replaces = self.record.link.as_str() != self.name;
        self.record.depth = self.chain.depth();
        self.record.unsynced = !durable;
        if !self.chain.is_empty() {
            self.store
                .ensure_dir_of_root(&self.dir, names::WORK)
                .map_err(&write)?;
            let lower = self.chain.to_string();
            files::create(
                tree,
                &self.dir,
                names::LOWER,
                0o644,
                lower.as_bytes(),
                false,
            )
            .map_err(&write)?;
        }
        if sealed {
            files::create(tree, &self.dir, names::COMMITTED, 0o600, b"", false).map_err(&write)?;
        }
        let link = self.record.link;
        files::create(
            tree,
            &self.dir,
            names::LINK,
            0o644,
            link.as_str().as_bytes(),
            false,
        )
        .map_err(&write)?;
        if durable {
            sync_layer(tree, &self.dir).map_err(|error| Error::tree(&self.path(), error))?;
        }
        // Who publishes a new layer seals its parent, which does the same.
        if let Some(parent) = self.record.parent.as_ref().filter(|_| durable && replaces) {
            self.store.sync_unsynced(parent, Locked::ByNobody, None)?;
        }
        // The record comes last: with it on disk, so is everything before it.
        let record = self.record.to_string();
        files::replace(
            tree,
            &self.dir,
            names::RECORD,
            0o644,
            record.as_bytes(),
            durable,
        )
        .map_err(&write)?;
        let own = Node::Dir(&self.dir);
        self.store.owners.let_root_in(tree, own).map_err(&write)?;
        tree.set_mode(own, 0o710).map_err(&write)?;
        if durable {
            tree.sync(Node::Dir(&self.dir))
                .map_err(self.failed("sync"))?;
        }
        Ok(())
    }

    /// An empty directory beside the layer's own, for contents that are still to be folded in.
    pub(super) fn scratch(&self) -> Result<DirHandle, Error> {
        files::ensure_dir(self.store.kernel.tree(), &self.dir, files::SCRATCH, 0o755)
            .map_err(self.failed("create"))
    }

    /// Takes the directory of [`scratch`](Self::scratch) away.
    pub(super) fn remove_scratch(&self) -> Result<(), Error> {
        remove_tree(
            self.store.kernel.tree(),
            &self.dir,
            OsStr::new(files::SCRATCH),
        )
        .map_err(|error| self.failed(error.operation)(error.source))
    }

    /// Makes the complete layer visible as `id`, or says that the id is taken.
    pub(super) fn publish(mut self, id: &LayerId) -> Result<(), Error> {
        let store = self.store;
        let (tree, durable) = (store.kernel.tree(), store.durable());
        let sync = |dir: &DirHandle, path: &std::path::Path| match durable {
            true => tree
                .sync(Node::Dir(dir))
                .map_err(|error| Error::io("sync", path, error)),
            false => Ok(()),
        };
        if let Some(parent) = &self.record.parent {
            // A seal stays: not for a layer that cannot be.
            store.refuse_existing(id)?;
            store.seal(parent, Locked::ByNobody)?;
            store.note_child(&self.own, parent, self.record.link)?;
        }
        let target = Layout::link_target(id);
        let link = store.layout.link(self.record.link);
        // Before: what comes after the link may fail, too.
        self.linked = true;
        store.change_links(&self.own, || {
            tree.create_symlink(&store.links, &self.name, target.as_os_str())
                .map_err(|error| Error::io("create", link, error))
        })?;
        sync(&store.links, &store.layout.link_dir())?;
        let mode = RenameMode::NoReplace;
        match tree.rename(
            &self.own.staging,
            &self.name,
            &store.home,
            id.as_ref(),
            mode,
        ) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::AlreadyExists { id: id.clone() });
            }
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                return Err(store.not_movable(id, error));
            }
            result => {
                let path = store.layout.layer(id).dir().to_owned();
                result.map_err(|error| Error::io("publish", path, error))?;
            }
        }
        self.published = true;
        store.sync_home("published", id)
    }

    /// Swaps the complete layer with the layer `id`, whose link it has taken over, and leaves the
    /// old one to be removed. `lock` is that of `id`.
    pub(super) fn exchange(mut self, id: &LayerId, lock: Lock) -> Result<(), Error> {
        let store = self.store;
        let (tree, path) = (store.kernel.tree(), store.layout.layer(id).dir().to_owned());
        files::remove(tree, &self.dir, files::REPLACES).map_err(self.failed("remove"))?;
        let mode = RenameMode::Exchange;
        tree.rename(
            &self.own.staging,
            &self.name,
            &store.home,
            id.as_ref(),
            mode,
        )
        .map_err(|error| Error::io("replace", &path, error))?;
        // It locks what is the layer now; what is left here is the old one.
        self.lock = None;
        self.releases = false;
        // Nobody waits for the disk and for the removal of the old contents.
        drop(lock);
        store.sync_home("replaced", id)
    }
}

impl Drop for Staged<'_> {
    /// Nobody is left to tell about an error; what stays is cleaned up at the next open.
    fn drop(&mut self) {
        if self.published {
            return;
        }
        if self.linked && self.store.unlink_staged(&self.own, &self.name).is_err() {
            return;
        }
        if self.releases {
            let _ = self.store.release_project(&self.own, &self.path());
        }
        let _ = self.store.remove_staged(&self.own, &self.name);
    }
}
