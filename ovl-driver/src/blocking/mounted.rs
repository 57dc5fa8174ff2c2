//! What is mounted for a layer, here or out of reach, and who holds it.

use std::io;
use std::path::Path;

use ovl_diff::DirHandle;
use ovl_layout::LayerId;
use ovl_mount::{Access, UnmountMode};

use super::Overlay2;
use super::home::OwnDirs;
use super::layer::{Layer, is_no_directory};
use super::mounting::BUSY_PAUSES;
use crate::error::Error;
use crate::files;
use crate::holds::Holds;
use crate::system::LockKind;
use crate::types::MountState;

/// What a note and the mounts of this process say.
enum Noted {
    Found(Found),
    /// The kernel knows whether there is a mount of it elsewhere.
    NotHere(Holds),
}

/// What is mounted for a layer.
pub(super) enum Found {
    Nothing {
        /// Whether there is a note nevertheless, which is void.
        noted: bool,
    },
    /// A mount of this store, perhaps held by nobody any more.
    Ours(Holds),
    /// The same in another mount namespace, in which processes still run.
    Elsewhere(Holds),
    /// Something writes to the layer through a mount that is not to be seen any more: it was
    /// unmounted lazily, or something else is mounted over it.
    OutOfSight {
        /// Whether somebody has not let go of it.
        held: bool,
    },
    /// Something that this store did not mount.
    Foreign { read_only: bool },
}

impl Overlay2 {
    /// How a layer is mounted, as far as anybody holds it.
    pub(super) fn mount_state(&self, layer: &Layer) -> Result<Option<MountState>, Error> {
        let Some(own) = self.own_dirs_if_any()? else {
            return Ok(None);
        };
        let target = self.layout.layer(&layer.id).merged().to_owned();
        let state = |holds: Holds| MountState {
            target: target.clone(),
            access: holds.access,
            label: holds.label,
            options: holds.options,
            persistent: holds.persistent,
            processes: holds.processes,
        };
        Ok(match self.glance_at_mount(&own, &layer.id)? {
            Found::Nothing { .. } | Found::OutOfSight { .. } => None,
            Found::Ours(holds) | Found::Elsewhere(holds) => Some(state(holds)),
            Found::Foreign { read_only } => Some(MountState {
                target: target.clone(),
                access: match read_only {
                    true => Access::ReadOnly,
                    false => Access::Writable,
                },
                label: None,
                options: String::new(),
                persistent: 0,
                processes: Vec::new(),
            }),
        })
    }

    /// Refuses a layer that is mounted, or `only` one that is mounted in this way. The caller has
    /// locked it.
    pub(super) fn refuse_mounted(&self, layer: &Layer, only: Option<Access>) -> Result<(), Error> {
        let Some(own) = self.own_dirs_if_any()? else {
            return Ok(());
        };
        let (id, found) = (&layer.id, self.read_mounted(&own, &layer.id)?);
        let access = match &found {
            Found::Nothing { .. } => return Ok(()),
            Found::Ours(holds) | Found::Elsewhere(holds) => holds.access,
            Found::Foreign { read_only: true } => Access::ReadOnly,
            Found::Foreign { read_only: false } | Found::OutOfSight { .. } => Access::Writable,
        };
        match found {
            _ if only.is_some_and(|only| only != access) => Ok(()),
            Found::Elsewhere(_) => Err(Error::MountedElsewhere { id: id.clone() }),
            Found::OutOfSight { .. } => Err(Error::StillInUse { id: id.clone() }),
            _ => Err(Error::Mounted {
                id: id.clone(),
                target: self.layout.layer(id).merged().to_owned(),
            }),
        }
    }

    /// Who holds the layer's mount. One of ours that nobody holds is a leftover of a process that
    /// was killed, and taken away; one that is not ours, or out of reach, is left alone. The caller
    /// has locked the layer.
    pub(super) fn mounted(
        &self,
        own: &OwnDirs,
        id: &LayerId,
        dir: &DirHandle,
        mode: UnmountMode,
    ) -> Result<Option<Holds>, Error> {
        match self.read_mounted(own, id)? {
            Found::Nothing { noted: false } => return Ok(None),
            Found::Nothing { noted: true } => {}
            Found::Ours(holds) if holds.total() > 0 => return Ok(Some(holds)),
            Found::Ours(_) => {
                return match self.take_down(own, id, dir, mode)? {
                    false => Ok(None),
                    true => Err(Error::StillInUse { id: id.clone() }),
                };
            }
            Found::Elsewhere(_) => return Err(Error::MountedElsewhere { id: id.clone() }),
            Found::OutOfSight { .. } => return Err(Error::StillInUse { id: id.clone() }),
            Found::Foreign { .. } => {
                let target = self.layout.layer(id).merged().to_owned();
                return Err(Error::ForeignMount {
                    id: id.clone(),
                    target,
                });
            }
        }
        files::remove(self.kernel.tree(), &own.holds, id.as_str())
            .map_err(|error| Error::io("remove", self.holds_path(id), error))?;
        Ok(None)
    }

    /// Takes away a mount that nobody holds, of a layer that the caller has locked.
    pub(super) fn take_down_unheld(&self, id: &LayerId, dir: &DirHandle) -> Result<(), Error> {
        let Some(own) = self.own_dirs_if_any()? else {
            return Ok(());
        };
        match self.read_mounted(&own, id)? {
            Found::Ours(holds) if holds.total() == 0 => {
                // What lives on is noted, and refused by whoever looks.
                self.take_down(&own, id, dir, UnmountMode::Now).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Whether something is mounted at a path.
    pub(super) fn is_mounted(&self, target: &Path) -> Result<bool, Error> {
        let mounted = self.kernel.mount().is_mounted(target);
        mounted.map_err(|error| Error::io("look for a mount at", target, error))
    }

    /// What is mounted for a layer, here or out of reach. The caller has locked it: while the kernel
    /// is asked, the directory counts as in use, and a mount that is made in that moment never does.
    pub(super) fn read_mounted(&self, own: &OwnDirs, id: &LayerId) -> Result<Found, Error> {
        match self.read_note(own, id)? {
            Noted::Found(found) => Ok(found),
            Noted::NotHere(holds) => self.elsewhere(id, holds),
        }
    }

    /// The same of a layer that is not locked. While somebody mounts or unmounts it, it counts as
    /// mounted.
    pub(super) fn glance_at_mount(&self, own: &OwnDirs, id: &LayerId) -> Result<Found, Error> {
        let holds = match self.read_note(own, id)? {
            Noted::Found(found) => return Ok(found),
            Noted::NotHere(holds) => holds,
        };
        let system = self.kernel.system();
        match system.lock(&self.home, Some(id.as_ref()), LockKind::Shared, false) {
            Ok(Some(_lock)) => self.read_mounted(own, id),
            Ok(None) => Ok(Found::Elsewhere(holds)),
            // Nobody mounts what is not there.
            Err(error) if is_no_directory(&error) => self.read_mounted(own, id),
            Err(error) => Err(Error::io("lock", self.layout.layer(id).dir(), error)),
        }
    }

    fn read_note(&self, own: &OwnDirs, id: &LayerId) -> Result<Noted, Error> {
        let target = self.layout.layer(id).merged().to_owned();
        let mounted = self.is_mounted(&target)?;
        let path = self.holds_path(id);
        let contents = files::read(self.kernel.tree(), &own.holds, id.as_str())
            .map_err(|error| Error::io("read", &path, error))?;
        let noted = contents.is_some();
        // One that is still empty is of a mount that was never made.
        let written = contents.as_deref().filter(|contents| !contents.is_empty());
        let holds = written.map(Holds::parse);
        let boot = self.boot()?;
        let holds = match (holds, mounted) {
            // Not ours to read, and nothing that it could speak of.
            (Some(None), false) => None,
            (Some(None), true) => {
                let problem = "it does not say who holds the mount; unmount that with umount(8) if nobody uses it";
                return Err(Error::damaged(id, path, problem));
            }
            (holds, _) => holds.flatten().filter(|holds| holds.boot == boot),
        };
        let Some(mut holds) = holds else {
            if !mounted {
                return Ok(Noted::Found(Found::Nothing { noted }));
            }
            let info = self.kernel.mount().mount_at(&target);
            let info = info.map_err(|error| Error::io("look for a mount at", &target, error))?;
            let found = info.map_or(Found::Nothing { noted }, |info| Found::Foreign {
                read_only: info.read_only,
            });
            return Ok(Noted::Found(found));
        };
        let mut alive = Vec::with_capacity(holds.processes.len());
        for (process, count) in holds.processes {
            let running = self.kernel.system().is_alive(process);
            let running =
                running.map_err(|e| Error::io("look for a process holding", &target, e))?;
            alive.extend(running.then_some((process, count)));
        }
        holds.processes = alive;
        Ok(match mounted {
            true => Noted::Found(Found::Ours(holds)),
            false => Noted::NotHere(holds),
        })
    }

    /// Whether a mount that is noted, and not to be seen here, is somewhere else.
    fn elsewhere(&self, id: &LayerId, holds: Holds) -> Result<Found, Error> {
        let nothing = Found::Nothing { noted: true };
        let here = holds.namespace == self.namespace()?;
        if !here && !holds.is_detached() {
            let alive = self.kernel.system().is_namespace_alive(holds.namespace);
            let target = self.layout.layer(id).merged().to_owned();
            if alive.map_err(|e| Error::io("look for the mount namespace of", target, e))? {
                return Ok(Found::Elsewhere(holds));
            }
        }
        if holds.access == Access::ReadOnly {
            return Ok(nothing);
        }
        // Processes in another user namespace hide theirs, and anybody may have unmounted it lazily;
        // the kernel knows. Whoever passes by keeps a mount for a moment, and so does whoever asks.
        for pause in BUSY_PAUSES.map(Some).into_iter().chain([None]) {
            if !self.is_upper_in_use(id)? {
                return Ok(nothing);
            }
            pause.into_iter().for_each(std::thread::sleep);
        }
        Ok(match here || holds.is_detached() {
            true => Found::OutOfSight {
                held: holds.total() > 0,
            },
            false => Found::Elsewhere(holds),
        })
    }

    /// Whether an overlay mount writes to a layer, as far as the kernel says: whoever may not ask
    /// may not mount either.
    pub(super) fn is_upper_in_use(&self, id: &LayerId) -> Result<bool, Error> {
        let paths = self.layout.layer(id);
        match self.kernel.mount().is_upper_in_use(paths.diff()) {
            Ok(in_use) => Ok(in_use),
            Err(error) => match error.kind() {
                io::ErrorKind::PermissionDenied => Ok(false),
                // A damaged layer: nothing could be mounted over that either.
                _ if is_no_directory(&error) => Ok(false),
                _ => Err(Error::io("ask for the mounts of", paths.diff(), error)),
            },
        }
    }
}
