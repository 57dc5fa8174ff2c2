use std::path::PathBuf;

use ovl_diff::{ApplySummary, DiffPolicy, LayerSize, Timestamp};
use ovl_layout::{
    DOCKER_MAX_DEPTH, Durability, HomeSettings, IdMaps, LayerId, LayerPaths, LinkId, XattrNamespace,
};
use ovl_mount::{Access, MountFeatures, MountLabel, OverlayOptions, Strategy};
use ovl_quota::{Bytes, Enforcement, Limits, ProjectId, Usage};

use crate::system::{FsType, ProcessId};

/// How a store is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpenOptions {
    /// Makes a home where there is none.
    pub create: bool,
    /// What is on disk when an operation returns; as the home's settings say where this does not.
    pub durability: Option<Durability>,
    /// Bytes that a writable layer may take, where its maker does not say; as the home's settings
    /// say where this does not.
    pub size: Option<Bytes>,
    /// The id maps that the home must have; none means any. A home that is made here gets them.
    pub id_maps: Option<IdMaps>,
}

impl OpenOptions {
    /// An existing home, durable layers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a home where there is none: `home` with mode 0710 and `home/l` with mode 0700, in an
    /// existing directory.
    #[must_use]
    pub fn create(self, create: bool) -> Self {
        Self { create, ..self }
    }

    /// Sets what is on disk when an operation returns.
    #[must_use]
    pub fn durability(self, durability: impl Into<Option<Durability>>) -> Self {
        Self {
            durability: durability.into(),
            ..self
        }
    }

    /// Sets the bytes that a writable layer may take, where its maker does not say.
    #[must_use]
    pub fn size(self, size: Option<Bytes>) -> Self {
        Self { size, ..self }
    }

    /// Sets the id maps that the home must have: opening one with others fails.
    #[must_use]
    pub fn id_maps(self, id_maps: Option<IdMaps>) -> Self {
        Self { id_maps, ..self }
    }
}

/// The settings with which a home is made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InitOptions {
    /// Layers that may stand below a layer: 1 to 499. Docker cannot use a layer with more than 128.
    pub max_depth: usize,
    /// What is on disk when an operation returns.
    pub durability: Durability,
    /// Whose owners stand on disk for the owners inside containers.
    pub id_maps: IdMaps,
    /// Bytes that a writable layer may take, where its maker does not say.
    pub size: Option<Bytes>,
    /// The project id after which the home's own begin.
    pub project_base: Option<ProjectId>,
}

impl Default for InitOptions {
    fn default() -> Self {
        Self {
            max_depth: DOCKER_MAX_DEPTH,
            durability: Durability::default(),
            id_maps: IdMaps::default(),
            size: None,
            project_base: None,
        }
    }
}

impl InitOptions {
    /// Docker's depth, durable layers, no id maps, no limits.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many layers may stand below a layer.
    #[must_use]
    pub fn max_depth(self, max_depth: usize) -> Self {
        Self { max_depth, ..self }
    }

    /// Sets what is on disk when an operation returns.
    #[must_use]
    pub fn durability(self, durability: Durability) -> Self {
        Self { durability, ..self }
    }

    /// Sets whose owners stand on disk for the owners inside containers.
    #[must_use]
    pub fn id_maps(self, id_maps: IdMaps) -> Self {
        Self { id_maps, ..self }
    }

    /// Sets the bytes that a writable layer may take, where its maker does not say.
    #[must_use]
    pub fn size(self, size: Option<Bytes>) -> Self {
        Self { size, ..self }
    }

    /// Sets the project id after which the home's own begin.
    #[must_use]
    pub fn project_base(self, project_base: Option<ProjectId>) -> Self {
        Self {
            project_base,
            ..self
        }
    }

    pub(crate) fn settings(&self, xattrs: XattrNamespace) -> HomeSettings {
        let mut settings = HomeSettings::new(xattrs);
        settings.max_depth = self.max_depth;
        settings.durability = self.durability;
        settings.id_maps = self.id_maps.clone();
        settings.size = self.size.map(Bytes::get);
        settings.project_base = self.project_base.map(ProjectId::get);
        settings
    }
}

/// A layer to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CreateLayer {
    /// Its id.
    pub id: LayerId,
    /// The layer that it stands on.
    pub parent: Option<LayerId>,
    /// What it may take. Only writable layers can be limited.
    pub limits: Limits,
}

impl CreateLayer {
    /// A base layer without limits of its own.
    #[must_use]
    pub fn new(id: LayerId) -> Self {
        Self {
            id,
            parent: None,
            limits: Limits::UNLIMITED,
        }
    }

    /// Puts it on another layer.
    #[must_use]
    pub fn parent(self, parent: Option<LayerId>) -> Self {
        Self { parent, ..self }
    }

    /// Sets the bytes that it may take; without them, those of the home.
    #[must_use]
    pub fn size(self, size: Option<Bytes>) -> Self {
        let limits = self.limits.bytes(size);
        Self { limits, ..self }
    }

    /// Sets the files, directories and other inodes that it may take, itself included.
    #[must_use]
    pub fn inodes(self, inodes: Option<u64>) -> Self {
        let limits = self.limits.inodes(inodes);
        Self { limits, ..self }
    }
}

/// How an archive becomes a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImportOptions {
    /// Gives what nobody here can own to root instead of refusing it.
    pub squash: bool,
    /// Leaves out devices that this user cannot make instead of refusing them.
    pub skip_devices: bool,
}

impl ImportOptions {
    /// Refuses what cannot be made as it is.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets whether foreign owners become root.
    #[must_use]
    pub fn squash(self, squash: bool) -> Self {
        Self { squash, ..self }
    }

    /// Sets whether devices are left out.
    #[must_use]
    pub fn skip_devices(self, skip_devices: bool) -> Self {
        Self {
            skip_devices,
            ..self
        }
    }
}

/// How a layer becomes an archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportOptions {
    /// What of the objects is written.
    pub policy: DiffPolicy,
    /// Later times of modification become this one; `None` leaves all as they are.
    pub clamp_mtime: Option<Timestamp>,
}

impl ExportOptions {
    /// Everything, as it is.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets what of the objects is written.
    #[must_use]
    pub fn policy(self, policy: DiffPolicy) -> Self {
        Self { policy, ..self }
    }

    /// Sets what later times of modification become: `SOURCE_DATE_EPOCH`, for one.
    #[must_use]
    pub fn clamp_mtime(self, clamp_mtime: Option<Timestamp>) -> Self {
        Self {
            clamp_mtime,
            ..self
        }
    }
}

/// What an import or apply has done.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Applied {
    /// What was read and made.
    pub summary: ApplySummary,
    /// The layer's size afterwards: the number that Docker's `ApplyDiff` returns.
    pub size: LayerSize,
}

/// What a layer is compared with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Base {
    /// Its parent: what the layer itself holds.
    #[default]
    Parent,
    /// Another layer with everything below it.
    Layer(LayerId),
    /// Nothing: everything that the layer shows.
    Empty,
}

/// How a layer is mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MountRequest {
    /// The SELinux context of everything in the mount.
    pub label: Option<MountLabel>,
    /// Options beyond those that the store sets by itself.
    pub options: OverlayOptions,
    /// Insists on one way to tell the kernel about the layers.
    pub strategy: Option<Strategy>,
    /// How long the hold lasts.
    pub hold: Hold,
    /// What to do with contents of which nobody knows what is missing; without an answer they are
    /// [`Error::Dirty`](crate::Error::Dirty).
    pub dirty: Option<Dirty>,
}

/// What becomes of a layer that was mounted volatile when the machine stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dirty {
    /// What is there is the layer's contents from now on, whole or not.
    Accept,
    /// The layer is emptied. Not for sealed layers: others may stand on them.
    Discard,
}

impl MountRequest {
    /// No label, no options, a hold that lasts.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the label.
    #[must_use]
    pub fn label(self, label: Option<MountLabel>) -> Self {
        Self { label, ..self }
    }

    /// Sets the options.
    #[must_use]
    pub fn options(self, options: OverlayOptions) -> Self {
        Self { options, ..self }
    }

    /// Sets the strategy.
    #[must_use]
    pub fn strategy(self, strategy: Option<Strategy>) -> Self {
        Self { strategy, ..self }
    }

    /// Says what to do with contents of which nobody knows what is missing. It changes nothing
    /// about other layers.
    #[must_use]
    pub fn dirty(self, dirty: Option<Dirty>) -> Self {
        Self { dirty, ..self }
    }

    /// Sets how long the hold lasts.
    #[must_use]
    pub fn hold(self, hold: Hold) -> Self {
        Self { hold, ..self }
    }
}

/// How long a mount is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hold {
    /// Until it is unmounted, or the machine restarts: Docker's counting.
    #[default]
    Persistent,
    /// Until it is unmounted, or the calling process is gone.
    Process,
}

/// Where and how a layer is mounted, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MountState {
    /// The mount point.
    pub target: PathBuf,
    /// Whether it can be written through.
    pub access: Access,
    /// Its SELinux context.
    pub label: Option<String>,
    /// Its options, as text.
    pub options: String,
    /// Holds that last.
    pub persistent: u64,
    /// Holds of living processes.
    pub processes: Vec<(ProcessId, u64)>,
}

impl MountState {
    /// All holds.
    #[must_use]
    pub fn holds(&self) -> u64 {
        self.persistent + self.processes.iter().map(|(_, count)| count).sum::<u64>()
    }
}

/// One line of the list of layers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayerSummary {
    /// The id.
    pub id: LayerId,
    /// The layer that it stands on.
    pub parent: Option<LayerId>,
    /// Layers below it.
    pub depth: usize,
    /// Whether its contents are final.
    pub sealed: bool,
    /// Whether it is mounted, as far as the store knows.
    pub mounted: bool,
}

/// A layer that the list cannot describe.
#[derive(Debug)]
#[non_exhaustive]
pub struct BrokenLayer {
    /// The name of its directory.
    pub id: LayerId,
    /// Why.
    pub error: crate::Error,
}

/// What a home holds.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct LayerList {
    /// The layers, by id.
    pub layers: Vec<LayerSummary>,
    /// Layers that cannot be read.
    pub broken: Vec<BrokenLayer>,
}

/// Everything about one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayerInfo {
    /// The id.
    pub id: LayerId,
    /// Its short name.
    pub link: LinkId,
    /// The layer that it stands on.
    pub parent: Option<LayerId>,
    /// The layers below it, uppermost first.
    pub chain: Vec<LayerId>,
    /// Whether its contents are final.
    pub sealed: bool,
    /// Whether it hides everything below its own contents.
    pub root_opaque: bool,
    /// Whose owners stand on disk for the owners inside containers: the home's.
    pub id_maps: IdMaps,
    /// Whether this program wrote it; another driver's layers mount with that driver's options.
    pub recorded: bool,
    /// Whether Docker can use it.
    pub docker: Answer,
    /// Its paths.
    pub paths: LayerPaths,
    /// What it takes.
    pub size: LayerSize,
    /// Its mount.
    pub mount: Option<MountState>,
    /// Its project, where it has one.
    pub quota: Option<LayerQuota>,
}

/// The project of a layer, and what that may take.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayerQuota {
    /// The project.
    pub project: ProjectId,
    /// What it takes and may take, or why the file system does not tell.
    pub usage: Result<Usage, String>,
}

/// What a home and this kernel can do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// The home.
    pub home: PathBuf,
    /// What holds for the whole home.
    pub settings: HomeSettings,
    /// The file system below.
    pub backing_fs: FsType,
    /// The mount strategies of this kernel, best first.
    pub strategies: Vec<Strategy>,
    /// Every strategy, best first: whether this kernel and the caller's filters have it, and why not.
    pub mounting: Vec<(Strategy, Answer)>,
    /// What the kernel offers for mounting.
    pub features: MountFeatures,
    /// Whether the caller is in a user namespace.
    pub user_namespace: bool,
    /// Where overlay's private attributes are kept.
    pub xattrs: XattrNamespace,
    /// Whether the entries of a directory tell their types. Without it no home is opened.
    pub d_type: Answer,
    /// Whether mounts copy up attributes without contents.
    pub metacopy: Answer,
    /// Whether Docker can use all of the home's layers.
    pub docker: Answer,
    /// Whether diffs are made from a layer's own directory instead of comparing two mounts.
    pub native_diff: Answer,
    /// Whether mounts take the option `userxattr`.
    pub userxattr: Answer,
    /// Whether owners of archives can be kept that are not root.
    pub owners: Answer,
    /// Whether device nodes of archives can be made.
    pub devices: Answer,
    /// Whether mounts take `redirect_dir=on` and `metacopy=on` where they are asked for.
    pub redirects: Answer,
    /// Whether the home lies on a private mount, so that nothing that is mounted in it appears
    /// elsewhere.
    #[doc(alias = "propagation")]
    pub private_mounts: Answer,
    /// Whether project quotas are enforced; an error where they cannot be used all the same, or that
    /// is not known.
    pub quota: Result<Enforcement, String>,
}

/// Yes or no, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer {
    /// Yes or no.
    pub yes: bool,
    /// Why.
    pub reason: &'static str,
}

impl Answer {
    pub(crate) fn new(yes: bool, reason: &'static str) -> Self {
        Self { yes, reason }
    }
}

/// What reclaiming has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reclaimed {
    /// Removed layers whose space is free again.
    pub layers: u64,
}
