use std::ffi::{OsStr, OsString};
use std::io;

use ovl_diff::{FileKind, Node, RenameMode, TreeError, remove_tree};
use ovl_layout::{Durability, LINK_ID_LEN, LayerId, LinkId, names, parse_link_target};
use ovl_mount::UnmountMode;

use super::Overlay2;
use super::children::readable_record;
use super::home::OwnDirs;
use super::mounted::Found;
use crate::error::Error;
use crate::files;
use crate::system::LockKind;
use crate::types::Reclaimed;

impl Overlay2 {
    /// Removes a layer: it is gone at once and as a whole. Its space is free after
    /// [`reclaim`](Self::reclaim).
    ///
    /// With `force` a mounted layer is unmounted first, lazily when it is busy, whoever holds it or
    /// mounted it: in a home that a running Docker uses too, that is the root of a container. So is a
    /// layer whose mount is out of reach, and whoever uses that keeps what is left. A layer that
    /// others stand on is never removed; but one on which it stands itself, and which hides all of
    /// it, is none of those.
    ///
    /// # Errors
    ///
    /// [`Error::LayerNotFound`]; [`Error::Mounted`]; [`Error::MountedElsewhere`] and
    /// [`Error::StillInUse`] for a mount that is out of reach; [`Error::HasChildren`];
    /// [`Error::InFlight`]; [`Error::Io`]; [`Error::NotDurable`] for a layer that is gone, unless the
    /// power fails.
    ///
    /// # Compatibility
    ///
    /// Docker's `Remove` says nothing of unknown layers, and removes layers that others stand on.
    #[doc(alias = "Remove")]
    pub fn remove(&self, id: &LayerId, force: bool) -> Result<(), Error> {
        let own = self.own_dirs()?;
        let lock = self.lock_layer(id, LockKind::Exclusive)?;
        let tree = self.kernel.tree();
        // First, since a child seals its parent before it leaves staging.
        if self.is_in_flight(id, None)? {
            return Err(Error::InFlight { id: id.clone() });
        }
        // A damaged layer can be removed too: what cannot be read is only left out of the checks.
        let layer = match self.layer(id) {
            Ok(layer) => Some(layer),
            Err(error @ Error::Damaged { .. }) => {
                if self.is_no_layer(id)? {
                    return Err(error);
                }
                None
            }
            Err(error) => return Err(error),
        };
        let link = match &layer {
            Some(layer) => Some(layer.link),
            None => self.readable_link(id)?,
        };
        let children = match &layer {
            Some(layer) => self.known_children(&own, layer)?,
            None => self.children(&own, id, link)?,
        };
        if !children.is_empty() {
            return Err(Error::HasChildren {
                id: id.clone(),
                children,
            });
        }
        let parent = match &layer {
            // What cannot be found out is found out by the next scan.
            Some(layer) => self.parent_of(layer).ok().flatten(),
            None => None,
        };
        let target = self.layout.layer(id).merged().to_owned();
        let mounted = self.is_mounted(&target)?;
        if !force {
            let found = match self.read_mounted(&own, id) {
                // Whoever takes a damaged layer away need not read who held it.
                Err(Error::Damaged { .. }) if layer.is_none() && !mounted => None,
                found => Some(found?),
            };
            match found {
                // Ours without a hold is what a killed process left.
                Some(Found::Ours(holds)) if holds.total() == 0 => {}
                Some(Found::Elsewhere(_)) => {
                    return Err(Error::MountedElsewhere { id: id.clone() });
                }
                // What everybody has let go of loses nothing that anybody could find again.
                Some(Found::OutOfSight { held: true }) => {
                    return Err(Error::StillInUse { id: id.clone() });
                }
                _ if mounted => {
                    return Err(Error::Mounted {
                        id: id.clone(),
                        target,
                    });
                }
                _ => {}
            }
        }
        if mounted {
            let mode = match force {
                true => UnmountMode::Lazy,
                false => UnmountMode::Now,
            };
            let unmounted = self.kernel.mount().unmount(&target, mode);
            unmounted.map_err(|source| Error::Mount {
                id: id.clone(),
                source,
            })?;
        }
        self.forget_parent(&own, id)?;
        let trash_name = self.trash_name(link)?;
        let mode = RenameMode::NoReplace;
        let path = self.layout.layer(id).dir().to_owned();
        // The lock ends with the name: after that the holds may be those of a new layer of this id.
        files::remove(tree, &own.holds, id.as_str())
            .map_err(|error| Error::io("remove the holds of", &path, error))?;
        tree.rename(&self.home, id.as_ref(), &own.trash, &trash_name, mode)
            .map_err(|error| Error::io("remove", &path, error))?;
        // Nobody waits for the disk but whoever removes.
        drop(lock);
        self.sync_home("removed", id)?;
        if let Some(link) = link {
            // The layer is gone. What stays is looked at before it is believed, and goes with what
            // is in the trash or by the next scan.
            let _ = self.unlink_layer(&own, id, link);
            if let Some(parent) = parent {
                let _ = self.forget_child(&own, &parent, link);
            }
        }
        if self.durability == Durability::Full {
            let trash = self.layout.store_dir().join(names::TRASH);
            for (dir, path) in [(&self.links, self.layout.link_dir()), (&own.trash, trash)] {
                let synced = tree.sync(Node::Dir(dir));
                synced.map_err(|source| Error::NotDurable {
                    what: "removed",
                    id: id.clone(),
                    path,
                    source,
                })?;
            }
        }
        Ok(())
    }

    /// Whether a directory has nothing of a layer: somebody has put it into the home.
    fn is_no_layer(&self, id: &LayerId) -> Result<bool, Error> {
        let (tree, path) = (self.kernel.tree(), self.layout.layer(id).dir().to_owned());
        let failed = |error| Error::io("look at", &path, error);
        let dir = match tree.open_dir(&self.home, id.as_ref()) {
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(true),
            result => result.map_err(failed)?,
        };
        let entries = tree.read_dir(&dir).map_err(failed)?;
        let named = |wanted: &str| entries.iter().any(|entry| entry.name == wanted);
        Ok(!named(names::LINK)
            && !named(names::RECORD)
            && entries.iter().any(|entry| !files::is_of_layer(&entry.name)))
    }

    /// Frees the space of removed layers, and their projects. Several callers share the work.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] for the first thing that cannot be removed, after all others were.
    pub fn reclaim(&self) -> Result<Reclaimed, Error> {
        let (mut reclaimed, mut failed) = (Reclaimed::default(), None);
        let own = self.own_dirs()?;
        let (tree, path) = (
            self.kernel.tree(),
            self.layout.store_dir().join(names::TRASH),
        );
        for entry in tree
            .read_dir(&own.trash)
            .map_err(|e| Error::io("list", &path, e))?
        {
            let name = entry.name;
            if entry.kind != FileKind::Directory {
                match tree.unlink(&own.trash, &name) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        failed.get_or_insert(Error::io("remove", path.join(&name), error));
                    }
                    _ => {}
                }
                continue;
            }
            // A kill may have come between the layer and its link.
            let link = name.as_encoded_bytes().get(..LINK_ID_LEN);
            if let Some(link) = link.and_then(|bytes| LinkId::parse_file(bytes).ok())
                && let Err(error) = self.unlink_staged(&own, OsStr::new(link.as_str()))
            {
                failed.get_or_insert(error);
                continue;
            }
            if let Err(error) = self.release_project(&own, &path.join(&name)) {
                failed.get_or_insert(error);
            }
            match remove_tree(tree, &own.trash, &name) {
                Ok(()) => reclaimed.layers += 1,
                // Somebody else was there first.
                Err(TreeError { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    failed.get_or_insert(Error::tree(&path, error));
                }
            }
        }
        failed.map_or(Ok(reclaimed), Err)
    }

    /// The link of a damaged layer, where at least that can be read.
    fn readable_link(&self, id: &LayerId) -> Result<Option<LinkId>, Error> {
        let (tree, path) = (self.kernel.tree(), self.layout.layer(id).dir().to_owned());
        let dir = tree.open_dir(&self.home, id.as_ref());
        let dir = dir.map_err(|error| Error::io("open", &path, error))?;
        let contents = files::read(tree, &dir, names::LINK).ok().flatten();
        let link = contents.and_then(|contents| LinkId::parse_file(&contents).ok());
        Ok(link.or_else(|| readable_record(self, &dir).map(|record| record.link)))
    }

    /// Removes a layer's link, if that is the layer the link leads to.
    fn unlink_layer(&self, own: &OwnDirs, id: &LayerId, link: LinkId) -> Result<(), Error> {
        let (tree, name) = (self.kernel.tree(), OsStr::new(link.as_str()));
        let target = match tree.read_link(&self.links, name) {
            Ok(target) => target,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io("read", self.layout.link(link), error)),
        };
        if parse_link_target(target.as_encoded_bytes()).as_ref() != Ok(id) {
            return Ok(());
        }
        self.change_links(own, || {
            files::remove(tree, &self.links, link.as_str())
                .map_err(|error| Error::io("remove", self.layout.link(link), error))
        })
    }

    /// A name that nothing in the trash has.
    pub(super) fn trash_name(&self, link: Option<LinkId>) -> Result<OsString, Error> {
        let mut random = [0; 8];
        self.kernel
            .system()
            .fill_random(&mut random)
            .map_err(|error| Error::io("draw a name in the trash of", self.home(), error))?;
        let link = link.map_or(String::new(), |link| link.to_string());
        Ok(OsString::from(format!(
            "{link}-{:016x}",
            u64::from_ne_bytes(random)
        )))
    }
}
