use std::ffi::{CString, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ovl_layout::{LayerId, Layout, LowerChain};

use crate::backend::MountFeatures;
use crate::call::{Base, Calls};
use crate::label::MountLabel;
use crate::options::OverlayOptions;

/// Lower layers that the kernel stacks in one mount (`OVL_MAX_STACK`).
pub const KERNEL_MAX_LOWERS: usize = 500;

/// Longest string value that `fsconfig(2)` takes, in bytes without the terminating NUL.
pub const MAX_SETTING_LEN: usize = 255;

/// Longest mount data string, in bytes without the terminating NUL.
///
/// `mount(2)` copies at most one page and drops the rest without an error, so a longer string can
/// mount another layer than the one meant. Nothing longer ever leaves this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DataLimit(usize);

impl DataLimit {
    /// The limit of a kernel with pages of `page_size` bytes: 4,095 for 4 KiB.
    #[must_use]
    pub const fn for_page_size(page_size: usize) -> Self {
        Self(page_size.saturating_sub(1))
    }

    /// The limit in bytes, without the terminating NUL.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.0
    }
}

/// Whether a mount can be written through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Changes go to the layer's `diff`.
    Writable,
    /// The layer's `diff` is the uppermost lower layer.
    ReadOnly,
}

/// The way in which the kernel is told about an overlay's layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Strategy {
    /// One open directory a layer through `fsconfig(2)` (Linux 6.13): nothing is escaped, no length
    /// is limited, and the kernel follows no link. Needs the ids of the layers below, see
    /// [`OverlaySpec::lower_ids`].
    LayersByFd,
    /// One `lowerdir+` setting a layer through `fsconfig(2)` (Linux 6.8): no length limit over all.
    LowerdirPlus,
    /// One `mount(2)` data string with absolute paths: the form Docker uses first.
    MountAbsolute,
    /// One `mount(2)` data string with paths relative to the home: the form Docker uses when the
    /// absolute one is too long.
    MountRelative,
}

impl Strategy {
    /// Every strategy, in the order in which a plan prefers them.
    pub const ALL: [Self; 4] = [
        Self::LayersByFd,
        Self::LowerdirPlus,
        Self::MountAbsolute,
        Self::MountRelative,
    ];

    /// The name used in options and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LayersByFd => "layers-by-fd",
            Self::LowerdirPlus => "lowerdir-plus",
            Self::MountAbsolute => "mount-absolute",
            Self::MountRelative => "mount-relative",
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Strategy {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL
            .into_iter()
            .find(|strategy| strategy.as_str() == text)
            .ok_or(())
    }
}

/// What the caller wants mounted.
///
/// ```
/// use ovl_layout::{LayerId, Layout, LinkId, LowerChain};
/// use ovl_mount::{Access, DataLimit, MountFeatures, OverlaySpec, Strategy};
///
/// let layout = Layout::new("/h");
/// let id: LayerId = "top".parse()?;
/// let chain: LowerChain = [LinkId::from_entropy([0; 17])].into_iter().collect();
/// let features = MountFeatures::new(DataLimit::for_page_size(4096)).index(true);
///
/// let plan = OverlaySpec::new(&id, &chain, Access::Writable).plan(&layout, &features)?;
/// assert_eq!(plan.strategy(), Some(Strategy::MountAbsolute));
/// assert_eq!(
///     plan.to_string(),
///     "overlay index=off,lowerdir=/h/l/AAAAAAAAAAAAAAAAAAAAAAAAAA,\
///      upperdir=/h/top/diff,workdir=/h/top/work",
/// );
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct OverlaySpec<'a> {
    pub(crate) id: &'a LayerId,
    pub(crate) chain: &'a LowerChain,
    pub(crate) lower_ids: Option<&'a [LayerId]>,
    pub(crate) access: Access,
    pub(crate) options: OverlayOptions,
    pub(crate) label: Option<&'a MountLabel>,
    max_depth: usize,
    strategy: Option<Strategy>,
}

impl<'a> OverlaySpec<'a> {
    /// The layer `id` over the layers of `chain`.
    #[must_use]
    pub fn new(id: &'a LayerId, chain: &'a LowerChain, access: Access) -> Self {
        let options = OverlayOptions::default();
        Self {
            id,
            chain,
            lower_ids: None,
            access,
            options,
            label: None,
            max_depth: KERNEL_MAX_LOWERS,
            strategy: None,
        }
    }

    /// Sets the ids of the chain's layers, uppermost first, without which there is no
    /// [`Strategy::LayersByFd`]. That they are the layers of the chain's links is the caller's to
    /// have checked; here only their number is.
    #[must_use]
    pub fn lower_ids(self, lower_ids: &'a [LayerId]) -> Self {
        Self {
            lower_ids: Some(lower_ids),
            ..self
        }
    }

    /// Sets how many layers may be below, as far as the caller says: the kernel's own limit, which
    /// counts the `diff` of a read-only layer too, holds besides.
    #[must_use]
    pub fn max_depth(self, max_depth: usize) -> Self {
        Self { max_depth, ..self }
    }

    /// Sets the options.
    #[must_use]
    pub fn options(self, options: OverlayOptions) -> Self {
        Self { options, ..self }
    }

    /// Sets the SELinux context.
    #[must_use]
    pub fn label(self, label: Option<&'a MountLabel>) -> Self {
        Self { label, ..self }
    }

    /// Insists on one strategy instead of taking the best that the kernel has and that fits.
    #[must_use]
    pub fn strategy(self, strategy: Option<Strategy>) -> Self {
        Self { strategy, ..self }
    }

    /// Decides how to mount: the first strategy of [`Strategy::ALL`] that the kernel has and whose
    /// limits the strings fit. A layer with nothing below it is a bind mount of its `diff`.
    ///
    /// A pure function of its arguments.
    ///
    /// # Errors
    ///
    /// [`PlanError`] with the numbers of the last strategy tried; never a plan that the kernel would
    /// cut short.
    pub fn plan(&self, layout: &Layout, features: &MountFeatures) -> Result<MountPlan, PlanError> {
        let home = layout.home();
        if home.as_os_str().as_bytes().contains(&0) {
            return Err(PlanError::Nul {
                path: home.to_owned(),
            });
        }
        let paths = layout.layer(self.id);
        let action = if self.chain.is_empty() {
            if self.label.is_some() {
                return Err(PlanError::LabelOnBind);
            }
            MountAction::Bind {
                source: paths.diff().to_owned(),
            }
        } else {
            MountAction::Overlay(self.overlay(layout, features)?)
        };
        let target = paths.merged().to_owned();
        Ok(MountPlan {
            target,
            access: self.access,
            options: self.options,
            action,
        })
    }

    fn overlay(&self, layout: &Layout, features: &MountFeatures) -> Result<OverlayCall, PlanError> {
        let (depth, max_depth) = (self.chain.depth(), self.max_depth);
        let own = usize::from(self.access == Access::ReadOnly);
        let lowers = depth + own;
        if lowers > KERNEL_MAX_LOWERS {
            return Err(PlanError::TooManyLowers {
                lowers,
                limit: KERNEL_MAX_LOWERS,
            });
        }
        if depth > max_depth {
            return Err(PlanError::TooDeep { depth, max_depth });
        }
        if let Some(ids) = self.lower_ids.map(<[_]>::len)
            && ids != self.chain.depth()
        {
            let lowers = self.chain.depth();
            return Err(PlanError::LowerIds { ids, lowers });
        }
        let calls = Calls::new(layout, self, features);
        let mut last = None;
        for strategy in Strategy::ALL {
            let wanted = self.strategy.is_none_or(|wanted| wanted == strategy);
            if !wanted || !features.offers(strategy) {
                continue;
            }
            let attempt = match strategy {
                Strategy::LayersByFd => match self.lower_ids {
                    Some(ids) => Ok(calls.layers(ids)),
                    None => Err(PlanError::NoLowerIds),
                },
                Strategy::LowerdirPlus => calls.settings(),
                Strategy::MountAbsolute => calls.data(Base::Absolute),
                Strategy::MountRelative => calls.data(Base::Home),
            };
            match attempt {
                Ok(call) => return Ok(call),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| PlanError::NoStrategy {
            wanted: self.strategy,
            offered: features.strategies().collect(),
        }))
    }
}

/// What will be done: printable and checkable without privileges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPlan {
    target: PathBuf,
    access: Access,
    options: OverlayOptions,
    action: MountAction,
}

impl MountPlan {
    /// The mount point.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Whether the mount is to be writable.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// The options, of which `nodev`, `nosuid` and `noexec` belong to the mount and the others are
    /// already part of the action.
    #[must_use]
    pub fn options(&self) -> OverlayOptions {
        self.options
    }

    /// What is mounted.
    #[must_use]
    pub fn action(&self) -> &MountAction {
        &self.action
    }

    /// The strategy of an overlay, `None` for a bind mount.
    #[must_use]
    pub fn strategy(&self) -> Option<Strategy> {
        match &self.action {
            MountAction::Bind { .. } => None,
            MountAction::Overlay(OverlayCall::Layers { .. }) => Some(Strategy::LayersByFd),
            MountAction::Overlay(OverlayCall::Settings { .. }) => Some(Strategy::LowerdirPlus),
            MountAction::Overlay(OverlayCall::Data {
                working_dir: None, ..
            }) => Some(Strategy::MountAbsolute),
            MountAction::Overlay(OverlayCall::Data { .. }) => Some(Strategy::MountRelative),
        }
    }
}

/// The action and its strings, unreadable bytes replaced; the target is not part of it.
impl fmt::Display for MountPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.action {
            MountAction::Bind { source } => write!(f, "bind {}", source.display()),
            MountAction::Overlay(OverlayCall::Data { data, .. }) => {
                write!(f, "overlay {}", String::from_utf8_lossy(data.as_bytes()))
            }
            MountAction::Overlay(
                OverlayCall::Settings { settings, .. } | OverlayCall::Layers { settings, .. },
            ) => {
                f.write_str("overlay")?;
                settings
                    .iter()
                    .try_for_each(|setting| write!(f, " {setting}"))
            }
        }
    }
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountAction {
    /// An overlay of the layer and what is below it.
    Overlay(OverlayCall),
    /// The layer's `diff` itself: nothing is below it.
    Bind {
        /// The directory.
        source: PathBuf,
    },
}

impl fmt::Display for MountAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overlay(_) => f.write_str("overlay"),
            Self::Bind { source } => write!(f, "bind of {}", source.display()),
        }
    }
}

/// What the kernel is told about an overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OverlayCall {
    /// `mount(2)` with a data string.
    Data {
        /// The string.
        data: MountData,
        /// Paths in the string are relative to this directory; absolute when `None`.
        working_dir: Option<PathBuf>,
    },
    /// `fsconfig(2)`, one setting a call, in this order.
    Settings {
        /// The settings.
        settings: Vec<Setting>,
        /// Paths in the settings are relative to this directory; absolute when `None`.
        working_dir: Option<PathBuf>,
    },
    /// `fsconfig(2)`, one setting a call, in this order; the layers as open directories.
    Layers {
        /// The directory that the layers are opened below.
        home: PathBuf,
        /// The settings.
        settings: Vec<Setting>,
    },
}

impl OverlayCall {
    /// The directory that relative paths start at.
    #[must_use]
    pub fn working_dir(&self) -> Option<&Path> {
        match self {
            Self::Data { working_dir, .. } | Self::Settings { working_dir, .. } => {
                working_dir.as_deref()
            }
            Self::Layers { home, .. } => Some(home),
        }
    }
}

/// A `mount(2)` data string that fits its limit and holds no NUL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountData(pub(crate) CString);

impl MountData {
    /// The string without the terminating NUL.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The string for the kernel.
    #[must_use]
    pub fn as_c_str(&self) -> &std::ffi::CStr {
        &self.0
    }
}

/// One `fsconfig(2)` call.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Setting {
    /// A key alone.
    Flag(&'static str),
    /// A key with a string of at most [`MAX_SETTING_LEN`] bytes.
    Text(&'static str, OsString),
    /// A key with an open directory, by its path below [`OverlayCall::Layers::home`]. No symbolic
    /// link is followed on the way, and no mount point crossed.
    Directory(&'static str, PathBuf),
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(key) => f.write_str(key),
            Self::Text(key, value) => write!(f, "{key}={}", Path::new(value).display()),
            Self::Directory(key, path) => write!(f, "{key}=<fd of {}>", path.display()),
        }
    }
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The data string would be cut by the kernel.
    #[error(
        "the mount data for {lowers} lower layers has {len} bytes, {strategy} takes {limit}; use a shorter home path, fewer layers or another strategy"
    )]
    #[non_exhaustive]
    DataTooLong {
        /// The strategy it was built for.
        strategy: Strategy,
        /// Bytes in the string, without the terminating NUL.
        len: usize,
        /// Most bytes allowed, without the terminating NUL.
        limit: usize,
        /// Lower layers in the string.
        lowers: usize,
    },
    /// A value is longer than `fsconfig(2)` takes.
    #[error("the mount setting {key} has {len} bytes, the kernel takes {limit}")]
    #[non_exhaustive]
    SettingTooLong {
        /// The setting.
        key: &'static str,
        /// Bytes in its value.
        len: usize,
        /// Most bytes allowed.
        limit: usize,
    },
    /// More layers than the kernel stacks.
    #[error("{lowers} lower layers in one mount, the kernel stacks {limit}")]
    #[non_exhaustive]
    TooManyLowers {
        /// Lower layers, with the layer's own `diff` where it is read-only.
        lowers: usize,
        /// Most layers allowed.
        limit: usize,
    },
    /// More layers below than the caller allows.
    #[error(
        "{depth} layers are below it, this store allows {max_depth}; mount it in a store that is made with a larger depth"
    )]
    #[non_exhaustive]
    TooDeep {
        /// Layers below.
        depth: usize,
        /// Most layers allowed.
        max_depth: usize,
    },
    /// The strategy asked for is not offered by this kernel.
    #[error(
        "this kernel does not offer the mount strategy {}; it offers {}",
        wanted.map_or("asked for", Strategy::as_str),
        Names(offered)
    )]
    #[non_exhaustive]
    NoStrategy {
        /// The strategy.
        wanted: Option<Strategy>,
        /// Those that the kernel offers.
        offered: Vec<Strategy>,
    },
    /// Layers by fd were asked for without the layers' ids.
    #[error("layers are mounted by fd only where the ids of the lower layers are given")]
    NoLowerIds,
    /// The ids given are not one a layer of the chain.
    #[error("{ids} ids were given for {lowers} lower layers")]
    #[non_exhaustive]
    LowerIds {
        /// Ids given.
        ids: usize,
        /// Layers in the chain.
        lowers: usize,
    },
    /// A label needs a file system of its own to stick to.
    #[error("a layer without a parent is a bind mount, which takes no label")]
    LabelOnBind,
    /// A path holds a NUL byte.
    #[error("the path {} holds a NUL byte", path.display())]
    #[non_exhaustive]
    Nul {
        /// The path.
        path: PathBuf,
    },
}

struct Names<'a>(&'a [Strategy]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, strategy) in self.0.iter().enumerate() {
            let before = match index {
                0 => "",
                _ if index + 1 == self.0.len() => " and ",
                _ => ", ",
            };
            write!(f, "{before}{strategy}")?;
        }
        Ok(())
    }
}
