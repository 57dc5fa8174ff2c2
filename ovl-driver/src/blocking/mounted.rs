//! What is mounted for a layer, here or out of reach, and who holds it.

use std::io;
use std::path::Path;

use ovl_diff::DirHandle;
use ovl_layout::LayerId;
use ovl_mount::{Access, UnmountMode};

use super::Overlay2;
use super::home::OwnDirs;
use super::layer::Layer;
use super::mounting::BUSY_PAUSES;
use crate::error::Error;
use crate::files;
use crate::holds::Holds;
use crate::types::MountState;

/// What is mounted for a layer.
pub(super) enum Found {
    Nothing {
        /// Whether there is a note nevertheless, which is void.
        noted: bool,
    },
    /// A mount of this store, perhaps held by nobody any more.
    Ours(Holds),
    /// The same out of reach: in a mount namespace in which processes still run, or unmounted
    /// lazily while something uses it.
    Elsewhere(Holds),
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
        Ok(match self.read_mounted(&own, &layer.id)? {
            Found::Nothing { .. } => None,
            Found::Elsewhere(holds) if holds.is_detached() => None,
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

    /// Refuses a layer that is mounted, or `only` one that is mounted in this way.
    pub(super) fn refuse_mounted(&self, layer: &Layer, only: Option<Access>) -> Result<(), Error> {
        let Some(own) = self.own_dirs_if_any()? else {
            return Ok(());
        };
        let (id, found) = (&layer.id, self.read_mounted(&own, &layer.id)?);
        let access = match &found {
            Found::Nothing { .. } => return Ok(()),
            Found::Ours(holds) | Found::Elsewhere(holds) => holds.access,
            Found::Foreign { read_only: true } => Access::ReadOnly,
            Found::Foreign { read_only: false } => Access::Writable,
        };
        match found {
            _ if only.is_some_and(|only| only != access) => Ok(()),
            Found::Elsewhere(holds) => Err(holds.elsewhere(id)),
            _ => Err(Error::Mounted {
                id: id.clone(),
                target: self.layout.layer(id).merged().to_owned(),
            }),
        }
    }

    /// Who holds the layer's mount. One of ours that nobody holds is a leftover of a process that
    /// was killed, and taken away; one that is not ours, or out of reach, is left alone.
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
            Found::Elsewhere(holds) => return Err(holds.elsewhere(id)),
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

    /// What is mounted for a layer, here or in another mount namespace.
    pub(super) fn read_mounted(&self, own: &OwnDirs, id: &LayerId) -> Result<Found, Error> {
        let target = self.layout.layer(id).merged().to_owned();
        let mounted = self.is_mounted(&target)?;
        let path = self.holds_path(id);
        let contents = files::read(self.kernel.tree(), &own.holds, id.as_str())
            .map_err(|error| Error::io("read", &path, error))?;
        let noted = contents.is_some();
        let holds = contents.as_deref().map(Holds::parse);
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
                return Ok(Found::Nothing { noted });
            }
            let info = self.kernel.mount().mount_at(&target);
            let info = info.map_err(|error| Error::io("look for a mount at", &target, error))?;
            return Ok(
                info.map_or(Found::Nothing { noted }, |info| Found::Foreign {
                    read_only: info.read_only,
                }),
            );
        };
        let mut alive = Vec::with_capacity(holds.processes.len());
        for (process, count) in holds.processes {
            let running = self.kernel.system().is_alive(process);
            let running =
                running.map_err(|e| Error::io("look for a process holding", &target, e))?;
            alive.extend(running.then_some((process, count)));
        }
        holds.processes = alive;
        if mounted {
            return Ok(Found::Ours(holds));
        }
        let elsewhere = self.elsewhere(id, holds)?;
        Ok(elsewhere.map_or(Found::Nothing { noted }, Found::Elsewhere))
    }

    /// The note of a mount that is not to be seen here, if that is somewhere else.
    fn elsewhere(&self, id: &LayerId, holds: Holds) -> Result<Option<Holds>, Error> {
        let here = holds.namespace == self.namespace()?;
        if !here && !holds.is_detached() {
            let alive = self.kernel.system().is_namespace_alive(holds.namespace);
            let target = self.layout.layer(id).merged().to_owned();
            if alive.map_err(|e| Error::io("look for the mount namespace of", target, e))? {
                return Ok(Some(holds));
            }
        }
        if holds.access == Access::ReadOnly {
            return Ok(None);
        }
        // Processes in another user namespace hide theirs, and anybody may have unmounted it lazily;
        // the kernel knows. Whoever passes by keeps a mount for a moment.
        for pause in BUSY_PAUSES {
            if !self.is_upper_in_use(id)? {
                return Ok(None);
            }
            std::thread::sleep(pause);
        }
        Ok(Some(match here {
            // Nothing of it is left to unmount.
            true => Holds::detached(holds.boot),
            false => holds,
        }))
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
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(false),
                _ => Err(Error::io("ask for the mounts of", paths.diff(), error)),
            },
        }
    }
}
