//! Taking away what nobody needs any more.

use std::ffi::OsStr;
use std::io;

use ovl_diff::RenameMode;
use ovl_layout::{LayerId, names};
use ovl_mount::UnmountMode;

use super::FindingKind;
use crate::blocking::Overlay2;
use crate::blocking::home::OwnDirs;
use crate::blocking::mounting::Found;
use crate::error::Error;
use crate::files;
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
        for item in &garbage.items {
            if let Err(error) = self.take_away(&own, item) {
                failed.get_or_insert(error);
            }
        }
        if let Err(error) = self.reclaim() {
            failed.get_or_insert(error);
        }
        failed.map_or(Ok(garbage), Err)
    }

    fn take_away(&self, own: &OwnDirs, item: &Finding) -> Result<(), Error> {
        let tree = self.kernel.tree();
        let name = item.path.file_name().unwrap_or_default();
        match item.kind {
            FindingKind::StaleHolds => {
                let id = LayerId::from_file_name(name).ok();
                let lock = id.map(|id| self.lock_layer(&id, LockKind::Exclusive));
                let _lock = match lock {
                    Some(Err(Error::LayerNotFound { .. })) | None => None,
                    Some(result) => Some(result?),
                };
                match self.is_stale_hold(own, name)? {
                    true => files::remove(tree, &own.holds, &name.to_string_lossy())
                        .map_err(|error| Error::io("remove", &item.path, error)),
                    false => Ok(()),
                }
            }
            FindingKind::UnheldMount => match &item.layer {
                Some(id) => self.unmount_unheld(own, id),
                None => Ok(()),
            },
            FindingKind::DanglingLink | FindingKind::SecondLink => {
                let (_, report) = self.look()?;
                if !report.findings.contains(item) {
                    return Ok(());
                }
                self.change_links(own, || match tree.unlink(&self.links, name) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        Err(Error::io("remove", &item.path, error))
                    }
                    _ => Ok(()),
                })
            }
            FindingKind::Probe | FindingKind::HalfLayer => {
                let (_, report) = self.look()?;
                if !report.findings.contains(item) {
                    return Ok(());
                }
                let to = self.trash_name(None)?;
                let mode = RenameMode::NoReplace;
                match tree.rename(&self.home, name, &own.trash, &to, mode) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        Err(Error::io("remove", &item.path, error))
                    }
                    _ => Ok(()),
                }
            }
            FindingKind::Staging if item.path.parent() == Some(&self.layout.store_dir()) => {
                let failed = |error| Error::io("remove", &item.path, error);
                let store = files::open_dir(tree, &self.home, names::STORE_DIR);
                match store.map_err(failed)? {
                    Some(store) => {
                        files::remove(tree, &store, &name.to_string_lossy()).map_err(failed)
                    }
                    None => Ok(()),
                }
            }
            // Staging and trash go as a whole.
            _ => Ok(()),
        }
    }

    /// Whether a note of holds speaks of nothing that is mounted.
    pub(super) fn is_stale_hold(&self, own: &OwnDirs, name: &OsStr) -> Result<bool, Error> {
        let Ok(id) = LayerId::from_file_name(name) else {
            // A file that was never finished.
            return Ok(name.to_string_lossy().starts_with(".tmp-"));
        };
        let exists = files::exists(self.kernel.tree(), &own.holds, id.as_str());
        let path = self.layout.store_dir().join(names::HOLDS).join(name);
        if !exists.map_err(|error| Error::io("look at", path, error))? {
            return Ok(false);
        }
        match self.read_mounted(own, &id) {
            Ok(Found::Nothing) => Ok(true),
            // Told where the layer is looked at.
            Err(Error::Damaged { .. }) => Ok(false),
            result => result.map(|_| false),
        }
    }

    /// Whether something is mounted at a path.
    pub(super) fn is_mounted(&self, target: &std::path::Path) -> Result<bool, Error> {
        let mounted = self.kernel.mount().mount_at(target);
        let mounted = mounted.map_err(|e| Error::io("look for a mount at", target, e))?;
        Ok(mounted.is_some())
    }

    fn unmount_unheld(&self, own: &OwnDirs, id: &LayerId) -> Result<(), Error> {
        let _lock = match self.lock_layer(id, LockKind::Exclusive) {
            Err(Error::LayerNotFound { .. }) => return Ok(()),
            result => result?,
        };
        let dir = self.kernel.tree().open_dir(&self.home, id.as_ref());
        let dir = dir.map_err(|e| Error::io("open", self.layout.layer(id).dir(), e))?;
        match self.read_mounted(own, id)? {
            Found::Ours(holds) if holds.total() == 0 => {
                self.take_down(own, id, &dir, UnmountMode::Now)
            }
            _ => Ok(()),
        }
    }
}
