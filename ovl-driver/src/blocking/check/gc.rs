//! Taking away what nobody needs any more.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;

use ovl_diff::RenameMode;
use ovl_layout::{LayerId, names};

use super::{FindingKind, without_size};
use crate::blocking::Overlay2;
use crate::blocking::home::OwnDirs;
use crate::blocking::layer::is_no_directory;
use crate::blocking::mounted::Found;
use crate::error::Error;
use crate::files::{self, TEMPORARY};
use crate::findings::{Finding, Garbage, Remedy, UpkeepOptions};
use crate::system::LockKind;

impl Overlay2 {
    /// Takes away what nobody needs any more: removed layers, layers that were never finished,
    /// mounts that nobody holds, and links to nothing. Layers stay, whether used or not.
    ///
    /// What other programs may have left goes only with
    /// [`docker_stopped`](UpkeepOptions::docker_stopped); what is not understood never goes.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] for the first thing that cannot be taken away, after all others were.
    pub fn gc(&self, options: UpkeepOptions) -> Result<Garbage, Error> {
        let report = self.check()?;
        let garbage = report.findings.into_iter();
        let garbage = garbage.filter(|finding| finding.remedy == Remedy::Reclaim);
        let (items, kept) = garbage.partition(|item| item.ours || options.docker_stopped);
        let garbage = Garbage { items, kept };
        if options.dry_run || garbage.items.is_empty() {
            return Ok(garbage);
        }
        // Takes away what is left in staging, if this is the first use.
        let own = self.own_dirs()?;
        let mut failed = self.recover(&own).err();
        // What is gone, or different, at a third look is somebody's work.
        let still = self.look()?.1.findings;
        let still: BTreeSet<Finding> = still.iter().map(without_size).collect();
        let mut gone = Garbage {
            items: Vec::new(),
            kept: garbage.kept,
        };
        for item in garbage.items {
            let as_a_whole = matches!(item.kind, FindingKind::Staging | FindingKind::Trash);
            if !as_a_whole && !still.contains(&without_size(&item)) {
                continue;
            }
            match self.take_away(&own, &item) {
                Ok(()) => gone.items.push(item),
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        if let Err(error) = self.reclaim() {
            failed.get_or_insert(error);
        }
        failed.map_or(Ok(gone), Err)
    }

    fn take_away(&self, own: &OwnDirs, item: &Finding) -> Result<(), Error> {
        let tree = self.kernel.tree();
        let name = item.path.file_name().unwrap_or_default();
        let failed = |error| Error::io("remove", &item.path, error);
        let gone = |result: io::Result<()>| match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        };
        match item.kind {
            FindingKind::StaleHolds => {
                let text = name.to_string_lossy();
                let id = text.strip_prefix(TEMPORARY).unwrap_or(&text).parse();
                // Whoever holds the lock may be about to mount. Where there is nothing to lock, a
                // new layer waits with its first note.
                let lock = id.map(|id| self.lock_layer(&id, LockKind::Exclusive));
                let _lock = match lock {
                    Ok(Err(Error::LayerNotFound { id, .. })) => {
                        let notes = self.lock_holds(own, LockKind::Exclusive)?;
                        let made = files::exists(tree, &self.home, id.as_str());
                        if made.map_err(failed)? {
                            return Ok(());
                        }
                        Some(notes)
                    }
                    Err(_) => None,
                    Ok(result) => Some(result?),
                };
                match self.is_stale_hold(own, name, Self::read_mounted)? {
                    true => gone(tree.unlink(&own.holds, name)),
                    false => Ok(()),
                }
            }
            // Whoever writes such a file has locked the layer.
            FindingKind::Unfinished => match &item.layer {
                Some(id) => match self.lock_layer(id, LockKind::Exclusive) {
                    // It went with the layer.
                    Err(Error::LayerNotFound { .. }) => Ok(()),
                    lock => gone(tree.unlink(&self.locked_dir(id, &lock?)?, name)),
                },
                None => Ok(()),
            },
            FindingKind::UnheldMount => match &item.layer {
                Some(id) => self.unmount_unheld(id),
                None => Ok(()),
            },
            FindingKind::DanglingLink | FindingKind::SecondLink => {
                self.change_links(own, || gone(tree.unlink(&self.links, name)))
            }
            FindingKind::HalfLayer => match &item.layer {
                Some(id) => self.throw_half_away(own, id, failed),
                None => Ok(()),
            },
            // Only Docker makes directories of such names.
            FindingKind::Probe => {
                let to = self.trash_name(None)?;
                let mode = RenameMode::NoReplace;
                gone(tree.rename(&self.home, name, &own.trash, &to, mode))
            }
            FindingKind::Staging if item.path.parent() == Some(&self.layout.store_dir()) => {
                let store = files::open_dir(tree, &self.home, names::STORE_DIR);
                match store.map_err(failed)? {
                    Some(store) => gone(tree.unlink(&store, name)),
                    None => Ok(()),
                }
            }
            // Staging and trash go as a whole.
            _ => Ok(()),
        }
    }

    /// Throws a directory away that is no layer. Meanwhile its name may have become that of one.
    fn throw_half_away(
        &self,
        own: &OwnDirs,
        id: &LayerId,
        failed: impl Fn(io::Error) -> Error,
    ) -> Result<(), Error> {
        let lock = match self.lock_layer(id, LockKind::Exclusive) {
            Err(Error::LayerNotFound { .. }) => return Ok(()),
            result => result?,
        };
        let seen = self.look_into(id, &self.locked_dir(id, &lock)?)?;
        if !seen.is_worthless() {
            return Ok(());
        }
        let to = self.trash_name(None)?;
        let mode = RenameMode::NoReplace;
        let moved = self
            .kernel
            .tree()
            .rename(&self.home, id.as_ref(), &own.trash, &to, mode);
        moved.map_err(failed)
    }

    /// Whether somebody has locked the layer of a note of holds, as for a mount that takes its time.
    pub(super) fn is_busy(&self, name: &OsStr) -> Result<bool, Error> {
        let text = name.to_string_lossy();
        let Ok(id) = text
            .strip_prefix(TEMPORARY)
            .unwrap_or(&text)
            .parse::<LayerId>()
        else {
            return Ok(false);
        };
        let system = self.kernel.system();
        match system.lock(&self.home, Some(id.as_ref()), LockKind::Shared, false) {
            Ok(lock) => Ok(lock.is_none()),
            Err(error) if is_no_directory(&error) => Ok(false),
            Err(error) => Err(Error::io("lock", self.layout.layer(&id).dir(), error)),
        }
    }

    /// Whether a note of holds speaks of nothing that is mounted, as far as `read` finds.
    pub(super) fn is_stale_hold(
        &self,
        own: &OwnDirs,
        name: &OsStr,
        read: impl FnOnce(&Self, &OwnDirs, &LayerId) -> Result<Found, Error>,
    ) -> Result<bool, Error> {
        let Ok(id) = LayerId::from_file_name(name) else {
            // A file that was never finished.
            return Ok(files::is_temporary(name));
        };
        let exists = files::exists(self.kernel.tree(), &own.holds, id.as_str());
        let path = self.layout.store_dir().join(names::HOLDS).join(name);
        if !exists.map_err(|error| Error::io("look at", path, error))? {
            return Ok(false);
        }
        match read(self, own, &id) {
            Ok(Found::Nothing { .. }) => Ok(true),
            // Told where the layer is looked at.
            Err(Error::Damaged { .. }) => Ok(false),
            result => result.map(|_| false),
        }
    }

    /// Whether a note of holds is of a mount that was unmounted lazily in this boot: nobody was
    /// killed, and the next mount looks whether it is over.
    pub(super) fn notes_detached(&self, own: &OwnDirs, name: &OsStr) -> Result<bool, Error> {
        let id = LayerId::from_file_name(name).ok();
        Ok(match id.and_then(|id| self.noted_holds(own, &id)) {
            Some(holds) => holds.is_detached() && holds.boot == self.boot()?,
            None => false,
        })
    }

    /// Takes away a layer's mount that nobody holds.
    pub(in crate::blocking) fn unmount_unheld(&self, id: &LayerId) -> Result<(), Error> {
        if !self.is_mounted(self.layout.layer(id).merged())? {
            return Ok(());
        }
        let _lock = match self.lock_layer(id, LockKind::Exclusive) {
            Err(Error::LayerNotFound { .. }) => return Ok(()),
            result => result?,
        };
        self.take_down_unheld(id, &self.layer_dir(id)?)
    }
}
