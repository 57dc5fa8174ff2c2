use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use ovl_diff::{DirHandle, FileHandle, Node};
use ovl_layout::{LayerId, names};
use ovl_mount::{Access, MountError, MountPlan, OverlaySpec, Strategy, UnmountMode};

use super::Overlay2;
use super::home::OwnDirs;
use super::layer::{Below, Contents, Layer, contents_problem};
use crate::error::Error;
use crate::files;
use crate::holds::{Holds, describe};
use crate::system::{Lock, LockKind, ProcessId};
use crate::types::{Hold, MountRequest};

/// How long an unmount waits before it calls a mount busy.
pub(super) const BUSY_PAUSES: [Duration; 4] = [
    Duration::from_millis(1),
    Duration::from_millis(2),
    Duration::from_millis(5),
    Duration::from_millis(10),
];

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
    /// [`Error::InFlight`] for an open layer on which a child is being made; [`Error::StillInUse`]
    /// and [`Error::MountedElsewhere`] for one that is mounted out of reach; [`Error::Plan`];
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
        if let Some(mut holds) = self.mounted(&own, id, &layer.dir, UnmountMode::Now)? {
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
        let (below, plan) = self.plan_to_mount(&layer, request)?;
        self.refuse_dirty_below(&below)?;
        let writable = plan.access() == Access::Writable && !layer.chain.is_empty();
        let volatile = writable && request.options.volatile;
        if volatile {
            self.refuse_without_record(&layer)?;
        }
        let look_at_work = || self.look_at_work(&layer);
        let work = writable.then(look_at_work).transpose()?;
        let settled = self.settle_dirty(&layer, request.dirty, work.as_ref())?;
        let over_quota = |error| self.explain_mount(id, error);
        let work = match writable || (settled && !layer.chain.is_empty()) {
            true => {
                let work = work.map_or_else(look_at_work, Ok)?;
                Some(self.clear_work(&layer, work).map_err(over_quota)?).filter(|_| writable)
            }
            false => None,
        };
        let holds = Holds {
            boot: self.boot()?,
            namespace: self.namespace()?,
            access: plan.access(),
            label,
            options,
            persistent: 0,
            processes: Vec::new(),
        };
        let noted = layer.record.as_ref().and_then(|r| r.volatile.as_ref());
        let note = match volatile {
            true => Some(&holds.boot),
            false => noted.filter(|_| !settled),
        };
        let result = self
            .note_volatile(&layer, note.cloned())
            .and_then(|()| self.attach(&own, &layer, &plan, work.as_ref(), &holds, process));
        if result.is_err() && note != noted {
            self.take_note_back(&layer);
        }
        result.map(|()| target)
    }

    /// Mounts what is planned, and notes it with its first hold.
    fn attach(
        &self,
        own: &OwnDirs,
        layer: &Layer,
        plan: &MountPlan,
        work: Option<&DirHandle>,
        holds: &Holds,
        process: Option<ProcessId>,
    ) -> Result<(), Error> {
        let (tree, id, target) = (self.kernel.tree(), &layer.id, plan.target());
        let over_quota = |error| self.explain_mount(id, error);
        files::make_dir(tree, &layer.dir, names::MERGED, 0o700)
            .and_then(|_| {
                let merged = Node::Entry(&layer.dir, OsStr::new(names::MERGED));
                self.owners.give_to_root(tree, merged)
            })
            .map_err(|error| over_quota(Error::io("create", target, error)))?;
        let result = self.write_first_holds(own, id, holds).and_then(|note| {
            let mounted = self.kernel.mount().mount(plan);
            mounted.map_err(|source| self.refused_mount(id, source))?;
            let given = self.give_work_to_root(layer, work);
            let held = given.and_then(|()| self.add_first_hold(id, holds, &note, process));
            held.inspect_err(|_| {
                // Nobody could ever release it.
                let _ = self.kernel.mount().unmount(target, UnmountMode::Lazy);
            })
        });
        // While everything is there that takes room.
        let result = result.map_err(over_quota);
        if result.is_err() {
            // The first error is the one to report; what stays harms nobody.
            let _ = tree.remove_dir(&layer.dir, OsStr::new(names::MERGED));
            let _ = files::remove(tree, &own.holds, id.as_str());
        }
        result
    }

    /// A layer that cannot be opened for what has become of it is damage.
    fn refused_mount(&self, id: &LayerId, source: MountError) -> Error {
        if let MountError::Layer { layer, source, .. } = &source
            && let Some(problem) = contents_problem(source)
        {
            let below = layer.strip_prefix(self.home()).ok();
            let name = below.and_then(|path| path.iter().next());
            let damaged = name.and_then(|name| LayerId::from_file_name(name).ok());
            let damaged = damaged.as_ref().unwrap_or(id);
            return Error::damaged(damaged, layer.clone(), problem);
        }
        Error::Mount {
            id: id.clone(),
            source,
        }
    }

    /// Releases one hold of a layer's mount, and unmounts it with the last. Gives the holds left.
    ///
    /// The mount point goes too, which takes copies of the mount in other mount namespaces away.
    /// Whoever is inside such a copy, as a container that has it as its root, keeps it: the unmount
    /// succeeds, and the layer is not mounted, changed or made a parent until that is over
    /// ([`Error::StillInUse`]). The kernel tells of it where something is below the layer. A layer
    /// with nothing below is a bind mount, of which it tells nothing: whoever kept a copy of that can
    /// write to the layer even when others stand on it.
    ///
    /// Where there is no `ustat(2)` (elsewhere than on `x86_64`, or by a filter of system calls), each
    /// unmount leaves a line in the kernel's log.
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
        let holds = match self.mounted(&own, id, &dir, mode) {
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
        if !self.take_down(&own, id, &dir, mode)? {
            self.note_synced(id, &dir, &holds, mode);
        }
        Ok(0)
    }

    /// Takes away every mount of a layer, whoever holds it, and gives the ids. Only mounts on
    /// `<id>/merged` count: never the home itself, and nothing else that is mounted in it. Those of
    /// other programs count too: in a home that a running Docker uses, they are the roots of its
    /// containers.
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
                let lives_on = self.take_down(&own, &id, &dir, mode)?;
                if let Some(holds) = holds.filter(|_| !lives_on) {
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
        self.plan_on(&layer, &self.below(&layer, Contents::Opened)?, request)
    }

    /// The same for a mount that follows. Where that gives layers to the kernel one by one, it opens
    /// them by itself.
    fn plan_to_mount(
        &self,
        layer: &Layer,
        request: &MountRequest,
    ) -> Result<(Below, MountPlan), Error> {
        let by_fd = Strategy::LayersByFd;
        // What throws contents away is not done on layers that are not known to be in order.
        let is_likely = request.strategy.is_none_or(|strategy| strategy == by_fd)
            && request.dirty.is_none()
            && !layer.chain.is_empty()
            && self.features()?.lack(by_fd).is_none();
        if is_likely {
            let below = self.below(layer, Contents::LeftToMount)?;
            let plan = self.plan_on(layer, &below, request)?;
            if plan.strategy() == Some(by_fd) {
                return Ok((below, plan));
            }
        }
        let below = self.below(layer, Contents::Opened)?;
        let plan = self.plan_on(layer, &below, request)?;
        Ok((below, plan))
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
        let plan = OverlaySpec::new(&layer.id, &layer.chain, access)
            .max_depth(self.settings.max_depth)
            .lower_ids(&below.ids)
            .options(options)
            .label(request.label.as_ref())
            .strategy(request.strategy)
            .plan(&self.layout, &self.features()?)
            .map_err(|source| Error::Plan {
                id: layer.id.clone(),
                source,
            })?;
        self.refuse_covered(layer, below, &plan)?;
        Ok(plan)
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

    /// Unmounts and removes what belongs to the mount. True when something still writes through it,
    /// out of sight, as far as the kernel says; that is noted.
    pub(super) fn take_down(
        &self,
        own: &OwnDirs,
        id: &LayerId,
        dir: &DirHandle,
        mode: UnmountMode,
    ) -> Result<bool, Error> {
        let target = self.layout.layer(id).merged().to_owned();
        let device = self.device_of_mount(dir);
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
        // Whoever keeps another mount namespace with a copy of it has it until the mount point goes;
        // whoever is inside keeps it for longer, and an unmount does not fail for that.
        let may_live_on = match mode {
            UnmountMode::Lazy => true,
            UnmountMode::Now => device.is_some_and(|device| {
                let alive = self.kernel.mount().is_file_system_alive(device);
                !matches!(alive, Ok(Some(false)))
            }),
        };
        // Where the kernel does not answer, the next one to look asks again.
        if may_live_on && self.is_upper_in_use(id).unwrap_or(true) {
            self.write_holds(own, id, &Holds::detached(self.boot()?))?;
            return Ok(true);
        }
        files::remove(tree, &own.holds, id.as_str())
            .map_err(|error| Error::io("remove", self.holds_path(id), error))?;
        Ok(false)
    }

    /// The device number of what is mounted for a layer, where it is a file system of its own.
    fn device_of_mount(&self, dir: &DirHandle) -> Option<(u32, u32)> {
        let device = |node| Some(self.kernel.tree().metadata(node).ok()?.dev);
        let mounted = device(Node::Entry(dir, OsStr::new(names::MERGED)))?;
        (device(Node::Dir(dir))? != mounted).then_some((mounted.major, mounted.minor))
    }

    /// Notes a mount that is about to be made, still without a hold: what a kill leaves behind is
    /// known to be ours. A kill may leave an empty note, which says nothing.
    fn write_first_holds(
        &self,
        own: &OwnDirs,
        id: &LayerId,
        holds: &Holds,
    ) -> Result<FileHandle, Error> {
        let _noting = self.lock_holds(own, LockKind::Shared)?;
        let (tree, contents) = (self.kernel.tree(), holds.to_string());
        files::create(
            tree,
            &own.holds,
            id.as_str(),
            0o600,
            contents.as_bytes(),
            false,
        )
        .map_err(|error| Error::io("write", self.holds_path(id), error))
    }

    fn write_holds(&self, own: &OwnDirs, id: &LayerId, holds: &Holds) -> Result<(), Error> {
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

    pub(super) fn holds_path(&self, id: &LayerId) -> PathBuf {
        self.layout.store_dir().join(names::HOLDS).join(id.as_str())
    }

    pub(super) fn boot(&self) -> Result<String, Error> {
        let boot = self.kernel.system().boot_id();
        boot.map_err(|error| Error::io("read the boot id for", self.home(), error))
    }

    pub(super) fn namespace(&self) -> Result<u64, Error> {
        let namespace = self.kernel.system().mount_namespace();
        namespace.map_err(|error| Error::io("find the mount namespace for", self.home(), error))
    }

    fn process(&self) -> Result<ProcessId, Error> {
        let process = self.kernel.system().this_process();
        process.map_err(|error| Error::io("identify the process that uses", self.home(), error))
    }
}
