use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ovl_diff::{DirHandle, FileHandle, Node};
use ovl_layout::{LayerId, names};
use ovl_mount::{Access, MountError, MountPlan, OverlaySpec, UnmountMode};

use super::Overlay2;
use super::home::OwnDirs;
use super::layer::{Below, Layer};
use crate::error::Error;
use crate::files;
use crate::holds::{Holds, describe};
use crate::system::{Lock, LockKind, ProcessId};
use crate::types::{Hold, MountRequest, MountState};

/// How long an unmount waits before it calls a mount busy.
const BUSY_PAUSES: [Duration; 4] = [
    Duration::from_millis(1),
    Duration::from_millis(2),
    Duration::from_millis(5),
    Duration::from_millis(10),
];

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
    /// Mounts a layer, or adds a hold to its mount, and gives the path.
    ///
    /// A sealed layer mounts read-only, an open one writable. A layer without a parent is a bind
    /// mount of its own contents. The mount stays until as many [`unmount`](Self::unmount)s as
    /// mounts were made, in whatever processes.
    ///
    /// # Errors
    ///
    /// [`Error::LayerNotFound`]; [`Error::Damaged`] for a stack that cannot be trusted;
    /// [`Error::Dirty`] for one with a layer that was mounted volatile when the machine stopped,
    /// unless the request says what to do with this layer; [`Error::Unsupported`] for a volatile
    /// mount of a layer that another program wrote; [`Error::Sealed`] for a discarded sealed layer;
    /// [`Error::MountedDifferently`] for another label or other options than those of the mount;
    /// [`Error::InFlight`] for an open layer on which a child is being made; [`Error::Plan`];
    /// [`Error::OverQuota`] for a layer at its limit, where there is no room for the mount point or
    /// for what the kernel makes; [`Error::Mount`]. Nothing is left mounted.
    ///
    /// # Privileges
    ///
    /// `CAP_SYS_ADMIN` in the user namespace that owns the mount namespace.
    #[doc(alias = "Get")]
    pub fn mount(&self, id: &LayerId, request: &MountRequest) -> Result<PathBuf, Error> {
        let own = self.own_dirs()?;
        let lock = self.lock_layer(id, LockKind::Exclusive)?;
        // In this order: a child seals its parent before it leaves staging.
        let in_flight = self.is_in_flight(id, None)?;
        let layer = self.locked_layer(id, &lock)?;
        let target = self.layout.layer(id).merged().to_owned();
        let label = request
            .label
            .as_ref()
            .map(|label| label.as_str().to_owned());
        let options = request.options.to_string();
        let process = match request.hold {
            Hold::Persistent => None,
            Hold::Process => Some(self.process()?),
        };
        if let Some(mut holds) = self.mounted(&own, id, &layer.dir)? {
            if (&holds.label, &holds.options) != (&label, &options) {
                return Err(Error::MountedDifferently {
                    id: id.clone(),
                    present: describe(holds.label.as_deref(), &holds.options),
                    wanted: describe(label.as_deref(), &options),
                });
            }
            holds.add(process);
            self.write_holds(&own, id, &holds)?;
            return Ok(target);
        }
        if !layer.committed && in_flight {
            return Err(Error::InFlight { id: id.clone() });
        }
        let layer = self.seal_parent(&own, layer)?;
        self.confirm_home()?;
        let below = self.below(&layer)?;
        self.refuse_dirty_below(&below)?;
        let plan = self.plan_on(&layer, &below, request)?;
        let writable = plan.access() == Access::Writable && !layer.chain.is_empty();
        let volatile = writable && request.options.volatile;
        if volatile {
            self.refuse_without_record(&layer)?;
        }
        let look_at_work = || self.look_at_work(&layer);
        let work = writable.then(look_at_work).transpose()?;
        let settled = self.settle_dirty(&layer, request.dirty, work.as_ref())?;
        let tree = self.kernel.tree();
        let over_quota = |error| self.explain_mount(id, error);
        let work = match writable || (settled && !layer.chain.is_empty()) {
            true => {
                let work = work.map_or_else(look_at_work, Ok)?;
                Some(self.clear_work(&layer, work).map_err(over_quota)?).filter(|_| writable)
            }
            false => None,
        };
        if volatile {
            self.note_volatile(&layer, Some(self.boot()?))?;
        } else if settled {
            self.note_volatile(&layer, None)?;
        }
        files::make_dir(tree, &layer.dir, names::MERGED, 0o700)
            .and_then(|_| {
                let merged = Node::Entry(&layer.dir, OsStr::new(names::MERGED));
                self.owners.give_to_root(tree, merged)
            })
            .map_err(|error| over_quota(Error::io("create", &target, error)))?;
        let holds = Holds {
            boot: self.boot()?,
            namespace: self.namespace()?,
            access: plan.access(),
            label,
            options,
            persistent: 0,
            processes: Vec::new(),
        };
        // Without a hold, but before the mount: what a kill leaves behind is known to be ours.
        let noting = self.lock_holds(&own, LockKind::Shared)?;
        let note = self.write_holds(&own, id, &holds)?;
        drop(noting);
        let result = self
            .kernel
            .mount()
            .mount(&plan)
            .map_err(|source| Error::Mount {
                id: id.clone(),
                source,
            })
            .and_then(|()| {
                let given = self.give_work_to_root(&layer, work.as_ref());
                let held = given.and_then(|()| self.add_first_hold(id, &holds, &note, process));
                held.inspect_err(|_| {
                    // Nobody could ever release it.
                    let _ = self.kernel.mount().unmount(&target, UnmountMode::Lazy);
                })
            });
        // While everything is there that takes room.
        let result = result.map_err(over_quota);
        if result.is_err() {
            // The first error is the one to report; what stays harms nobody.
            let _ = tree.remove_dir(&layer.dir, OsStr::new(names::MERGED));
            let _ = files::remove(tree, &own.holds, id.as_str());
        }
        result.map(|()| target)
    }

    /// Releases one hold of a layer's mount, and unmounts it with the last. Gives the holds left.
    ///
    /// The mount point goes too, which takes copies of the mount in other mount namespaces away.
    ///
    /// # Errors
    ///
    /// [`Error::LayerNotFound`]; [`Error::NotMounted`]; [`Error::Mount`] with
    /// [`MountError::Busy`] while the mount is in use, unless `mode` is [`UnmountMode::Lazy`]: the
    /// hold stays then; [`Error::HeldByProcess`] when only other processes hold it.
    #[doc(alias = "Put")]
    pub fn unmount(&self, id: &LayerId, mode: UnmountMode) -> Result<u64, Error> {
        let not_mounted = || Error::NotMounted { id: id.clone() };
        let lock = self.lock_layer(id, LockKind::Exclusive)?;
        // Whatever has become of its small files.
        let dir = self.locked_dir(id, &lock)?;
        let own = match self.own_dirs_if_any()? {
            Some(own) => own,
            // Made whole again, should a part be gone.
            None if self.has_own_dir()? => self.own_dirs()?,
            None => return Err(not_mounted()),
        };
        let holds = match self.mounted(&own, id, &dir) {
            Err(Error::StillInUse { .. }) => None,
            result => result?,
        };
        let mut holds = holds.ok_or_else(not_mounted)?;
        // Only asked for where one of them may be this one.
        let process = match holds.processes[..] {
            [] => None,
            _ => Some(self.process()?),
        };
        if !holds.release(process) {
            let processes = holds.processes.iter();
            return Err(Error::HeldByProcess {
                id: id.clone(),
                processes: processes.map(|(process, _)| process.pid).collect(),
            });
        }
        if holds.total() > 0 {
            self.write_holds(&own, id, &holds)?;
            return Ok(holds.total());
        }
        self.take_down(&own, id, &dir, mode)?;
        self.note_synced(id, &dir, &holds, mode);
        Ok(0)
    }

    /// Takes away every mount of a layer, whoever holds it, and gives the ids. Only mounts on
    /// `<id>/merged` count: never the home itself, and nothing else that is mounted in it.
    ///
    /// # Errors
    ///
    /// The first failure, after all layers were tried. With [`UnmountMode::Now`] a busy mount is
    /// one, and keeps its holds.
    #[doc(alias = "Cleanup")]
    pub fn unmount_all(&self, mode: UnmountMode) -> Result<Vec<LayerId>, Error> {
        let mounts = self.kernel.mount().mounts_below(self.home());
        let mounts = mounts.map_err(|e| Error::io("look for mounts in", self.home(), e))?;
        if mounts.is_empty() {
            return Ok(Vec::new());
        }
        let own = self.own_dirs()?;
        let (mut unmounted, mut failed) = (Vec::new(), None);
        for id in self.layer_ids()? {
            let target = self.layout.layer(&id).merged().to_owned();
            match self.is_mounted(&target) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    failed.get_or_insert(error);
                    continue;
                }
            }
            let result = self.lock_layer(&id, LockKind::Exclusive).and_then(|_lock| {
                let dir = self.layer_dir(&id)?;
                let holds = self.noted_holds(&own, &id);
                self.take_down(&own, &id, &dir, mode)?;
                if let Some(holds) = holds {
                    self.note_synced(&id, &dir, &holds, mode);
                }
                Ok(())
            });
            match result {
                Ok(()) => unmounted.push(id),
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        failed.map_or(Ok(unmounted), Err)
    }

    /// How a layer would be mounted: a pure answer that needs no privileges.
    ///
    /// # Errors
    ///
    /// [`Error::LayerNotFound`], [`Error::Damaged`], [`Error::Plan`].
    pub fn plan(&self, id: &LayerId, request: &MountRequest) -> Result<MountPlan, Error> {
        let layer = self.layer(id)?;
        self.plan_on(&layer, &self.below(&layer)?, request)
    }

    fn plan_on(
        &self,
        layer: &Layer,
        below: &Below,
        request: &MountRequest,
    ) -> Result<MountPlan, Error> {
        let access = if layer.committed {
            Access::ReadOnly
        } else {
            Access::Writable
        };
        // Another driver's layers may hold redirects, which the explicit options would cut off.
        let options = match below.recorded {
            true => request.options.explicit(),
            false => request.options,
        };
        OverlaySpec::new(&layer.id, &layer.chain, access)
            .lower_ids(&below.ids)
            .options(options)
            .label(request.label.as_ref())
            .strategy(request.strategy)
            .plan(&self.layout, &self.features()?)
            .map_err(|source| Error::Plan {
                id: layer.id.clone(),
                source,
            })
    }

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
    fn mounted(
        &self,
        own: &OwnDirs,
        id: &LayerId,
        dir: &DirHandle,
    ) -> Result<Option<Holds>, Error> {
        match self.read_mounted(own, id)? {
            Found::Nothing { noted: false } => return Ok(None),
            Found::Nothing { noted: true } => {}
            Found::Ours(holds) if holds.total() > 0 => return Ok(Some(holds)),
            Found::Ours(_) => self.take_down(own, id, dir, UnmountMode::Now)?,
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
                self.take_down(&own, id, dir, UnmountMode::Now)
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
        Ok(if self.is_elsewhere(id, &holds)? {
            Found::Elsewhere(holds)
        } else {
            Found::Nothing { noted }
        })
    }

    /// Whether a mount that is not to be seen here is somewhere else.
    fn is_elsewhere(&self, id: &LayerId, holds: &Holds) -> Result<bool, Error> {
        if holds.namespace == self.namespace()? {
            return Ok(false);
        }
        if !holds.is_detached() {
            let alive = self.kernel.system().is_namespace_alive(holds.namespace);
            let target = self.layout.layer(id).merged().to_owned();
            if alive.map_err(|e| Error::io("look for the mount namespace of", target, e))? {
                return Ok(true);
            }
        }
        if holds.access == Access::ReadOnly {
            return Ok(false);
        }
        // Processes in another user namespace hide theirs; the kernel knows. Whoever passes by
        // keeps a mount for a moment.
        let is_in_use = |pause: &Duration| {
            let in_use = self.is_upper_in_use(id);
            if in_use {
                std::thread::sleep(*pause);
            }
            in_use
        };
        Ok(BUSY_PAUSES.iter().all(is_in_use))
    }

    /// Whether an overlay mount writes to a layer, as far as the kernel says: whoever may not ask
    /// may not mount either.
    fn is_upper_in_use(&self, id: &LayerId) -> bool {
        let paths = self.layout.layer(id);
        let answer = self.kernel.mount().is_upper_in_use(paths.diff());
        answer.unwrap_or(false)
    }

    /// Mounts go by path; everything else by the directory that was opened.
    fn confirm_home(&self) -> Result<(), Error> {
        let (tree, home) = (self.kernel.tree(), self.home());
        let look = |node| {
            tree.metadata(node)
                .map_err(|error| Error::io("look at", home, error))
        };
        let now = tree.open_root(home);
        let now = now.map_err(|error| Error::io("open", home, error))?;
        let (now, opened) = (look(Node::Dir(&now))?, look(Node::Dir(&self.home))?);
        match (now.ino, now.dev) == (opened.ino, opened.dev) {
            true => Ok(()),
            false => Err(Error::HomeReplaced {
                home: home.to_owned(),
            }),
        }
    }

    /// Unmounts and removes what belongs to the mount.
    pub(super) fn take_down(
        &self,
        own: &OwnDirs,
        id: &LayerId,
        dir: &DirHandle,
        mode: UnmountMode,
    ) -> Result<(), Error> {
        let target = self.layout.layer(id).merged().to_owned();
        let mut pauses = BUSY_PAUSES.iter();
        loop {
            match self.kernel.mount().unmount(&target, mode) {
                Ok(()) | Err(MountError::NotMounted { .. }) => break,
                // A reader that passes by, or a child process that is about to close its copies of
                // this one's files, keeps a mount busy for a moment.
                Err(source) => match (&source, pauses.next()) {
                    (MountError::Busy { .. }, Some(pause)) => std::thread::sleep(*pause),
                    _ => {
                        return Err(Error::Mount {
                            id: id.clone(),
                            source,
                        });
                    }
                },
            }
        }
        let tree = self.kernel.tree();
        match tree.remove_dir(dir, OsStr::new(names::MERGED)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &target, error));
            }
            _ => {}
        }
        if mode == UnmountMode::Lazy && self.is_upper_in_use(id) {
            self.write_holds(own, id, &Holds::detached(self.boot()?))?;
            return Ok(());
        }
        files::remove(tree, &own.holds, id.as_str())
            .map_err(|error| Error::io("remove", self.holds_path(id), error))
    }

    fn write_holds(&self, own: &OwnDirs, id: &LayerId, holds: &Holds) -> Result<FileHandle, Error> {
        let contents = holds.to_string();
        // Void after the next boot, so nothing needs to reach the disk.
        files::replace(
            self.kernel.tree(),
            &own.holds,
            id.as_str(),
            0o600,
            contents.as_bytes(),
            false,
        )
        .map_err(|error| Error::io("write", self.holds_path(id), error))
    }

    /// Adds a hold to a note that names none. Readers see the note with it or without: the length of
    /// a file grows when the few bytes are there.
    fn add_first_hold(
        &self,
        id: &LayerId,
        noted: &Holds,
        note: &FileHandle,
        process: Option<ProcessId>,
    ) -> Result<(), Error> {
        let (tree, end) = (self.kernel.tree(), noted.to_string().len() as u64);
        tree.write_at(note, end, Holds::line_of_first(process).as_bytes())
            .map_err(|error| Error::io("write", self.holds_path(id), error))
    }

    /// Keeps the first note of a layer's mount apart from looking whether notes are of layers that
    /// are gone.
    pub(super) fn lock_holds(&self, own: &OwnDirs, kind: LockKind) -> Result<Lock, Error> {
        self.lock_own(&own.holds, names::HOLDS, kind)
    }

    fn holds_path(&self, id: &LayerId) -> PathBuf {
        self.layout.store_dir().join(names::HOLDS).join(id.as_str())
    }

    pub(super) fn boot(&self) -> Result<String, Error> {
        let boot = self.kernel.system().boot_id();
        boot.map_err(|error| Error::io("read the boot id for", self.home(), error))
    }

    fn namespace(&self) -> Result<u64, Error> {
        let namespace = self.kernel.system().mount_namespace();
        namespace.map_err(|error| Error::io("find the mount namespace for", self.home(), error))
    }

    fn process(&self) -> Result<ProcessId, Error> {
        let process = self.kernel.system().this_process();
        process.map_err(|error| Error::io("identify the process that uses", self.home(), error))
    }
}
