use std::path::{Path, PathBuf};

use crate::{LayerId, LayerIdError, LinkId};

/// The file names of a home. The first group is Docker's, the second ours.
pub mod names {
    /// Holds one symbolic link per layer.
    pub const LINK_DIR: &str = "l";
    /// The layer's own contents; the upper directory of its writable mount.
    pub const DIFF: &str = "diff";
    /// Scratch space of the kernel, beside `diff` in a layer with a parent.
    pub const WORK: &str = "work";
    /// Where a layer is mounted; exists only while it is.
    pub const MERGED: &str = "merged";
    /// File with the layer's link id.
    pub const LINK: &str = "link";
    /// File with the links of the layers below; absent in a base layer.
    pub const LOWER: &str = "lower";
    /// Empty file: the layer is sealed and mounts read-only.
    pub const COMMITTED: &str = "committed";
    /// Block device node that Docker's quota code keeps in the home.
    pub const BACKING_DEVICE: &str = "backingFsBlockDev";

    /// Our directory in a home: settings, staging, trash, holds.
    pub const STORE_DIR: &str = ".ovl";
    /// The home's format stamp and settings, in [`STORE_DIR`].
    pub const SETTINGS: &str = "settings";
    /// Layers being built, in [`STORE_DIR`].
    pub const STAGING: &str = "staging";
    /// Layers being removed, in [`STORE_DIR`].
    pub const TRASH: &str = "trash";
    /// Who holds which mount, in [`STORE_DIR`].
    pub const HOLDS: &str = "holds";
    /// Which layers stand on which, in [`STORE_DIR`].
    pub const CHILDREN: &str = "children";
    /// Our record in a layer's directory.
    pub const RECORD: &str = ".ovl-layer";

    /// What a layer's directory may hold.
    pub const LAYER: [&str; 7] = [DIFF, WORK, MERGED, LINK, LOWER, COMMITTED, RECORD];
    /// Names in a home that are not layers.
    pub const RESERVED: [&str; 2] = [LINK_DIR, BACKING_DEVICE];
    /// Prefixes of the directories in which Docker's probes work.
    pub const PROBE_PREFIXES: [&str; 4] = [
        "check-overlayfs-support",
        "metacopy-check",
        "opaque-bug-check",
        "userxattr-check",
    ];
}

/// The paths of one home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    home: PathBuf,
}

impl Layout {
    /// The layout of the home at `home`. The path is taken as it is.
    #[must_use]
    pub fn new(home: impl Into<PathBuf>) -> Self {
        Self { home: home.into() }
    }

    /// The home.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The directory of links, `<home>/l`.
    #[must_use]
    pub fn link_dir(&self) -> PathBuf {
        self.home.join(names::LINK_DIR)
    }

    /// One link, `<home>/l/<link>`.
    #[must_use]
    pub fn link(&self, link: LinkId) -> PathBuf {
        self.link_dir().join(link.as_str())
    }

    /// What the link of a layer points to: `../<id>/diff`.
    #[must_use]
    pub fn link_target(id: &LayerId) -> PathBuf {
        ["..", id.as_str(), names::DIFF].iter().collect()
    }

    /// Our directory, `<home>/.ovl`.
    #[must_use]
    pub fn store_dir(&self) -> PathBuf {
        self.home.join(names::STORE_DIR)
    }

    /// The paths of one layer.
    #[must_use]
    pub fn layer(&self, id: &LayerId) -> LayerPaths {
        let dir = self.home.join(id.as_str());
        LayerPaths {
            diff: dir.join(names::DIFF),
            work: dir.join(names::WORK),
            merged: dir.join(names::MERGED),
            dir,
        }
    }
}

/// The paths of one layer. None is checked to exist.
#[derive(Clone, Debug, PartialEq, Eq)]
#[doc(alias = "GetMetadata")]
pub struct LayerPaths {
    dir: PathBuf,
    diff: PathBuf,
    work: PathBuf,
    merged: PathBuf,
}

impl LayerPaths {
    /// The layer's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The layer's own contents.
    #[must_use]
    #[doc(alias = "UpperDir")]
    pub fn diff(&self) -> &Path {
        &self.diff
    }

    /// The kernel's scratch space.
    #[must_use]
    #[doc(alias = "WorkDir")]
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// The mount point.
    #[must_use]
    #[doc(alias = "MergedDir")]
    pub fn merged(&self) -> &Path {
        &self.merged
    }
}

/// Reads what a link under `l/` points to, and gives the layer it names.
///
/// ```
/// let id = ovl_layout::parse_link_target(b"../base/diff")?;
/// assert_eq!(id.as_str(), "base");
/// assert!(ovl_layout::parse_link_target(b"../../etc").is_err());
/// # Ok::<(), ovl_layout::LinkTargetError>(())
/// ```
///
/// # Errors
///
/// [`LinkTargetError`] for anything but `../<layer id>/diff`.
pub fn parse_link_target(target: &[u8]) -> Result<LayerId, LinkTargetError> {
    let shape = || LinkTargetError::Shape {
        target: String::from_utf8_lossy(target).into(),
    };
    let suffix = [b"/", names::DIFF.as_bytes()].concat();
    let id = target
        .strip_prefix(b"../")
        .and_then(|rest| rest.strip_suffix(suffix.as_slice()))
        .ok_or_else(shape)?;
    let id = std::str::from_utf8(id).map_err(|_| shape())?;
    id.parse().map_err(|source| LinkTargetError::Id { source })
}

/// Why a link under `l/` cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinkTargetError {
    /// Not of the form `../<id>/diff`.
    #[error("the link points to {target:?}, not to ../<layer>/diff")]
    #[non_exhaustive]
    Shape {
        /// What it points to.
        target: String,
    },
    /// The middle part is not a layer id.
    #[error("the link does not point to a layer")]
    #[non_exhaustive]
    Id {
        /// What is wrong with it.
        source: LayerIdError,
    },
}
