//! The store as plain blocking code, usable without an async runtime.

mod archives;
mod check;
mod children;
mod create;
mod guard;
mod home;
mod known;
mod layer;
mod mounting;
mod owners;
mod query;
mod quota;
mod remove;
mod staging;
mod status;
mod volatile;
mod work;

use std::path::Path;
use std::sync::{Mutex, OnceLock};

use ovl_diff::{DirHandle, Node, View};
use ovl_layout::{Durability, HomeSettings, LayerId, Layout};
use ovl_quota::{Bytes, QuotaControl};

use crate::error::Error;
use crate::kernel::Kernel;
pub use guard::MountGuard;

/// A store of layers in one home, in the on-disk format of Docker's `overlay2` driver.
///
/// All methods take `&self`; threads and processes may use one home at once. What an operation
/// publishes is whole: after an error, or a kill at any point, a layer is there with all of its
/// contents or not at all.
///
/// # Open files
///
/// Reading or changing the contents of a layer keeps one descriptor for each layer below it, and a
/// diff against an unrelated layer one for each of both stacks, beside less than 300 of its own. A
/// program that works on stacks of hundreds of layers, or on several at once, should raise its soft
/// limit (`RLIMIT_NOFILE`, 1024 by default) to the hard one, as `ovl` does; the library never changes
/// it.
///
/// ```
/// use std::path::Path;
/// use ovl_driver::{CreateLayer, Kernel, OpenOptions, blocking::Overlay2};
/// # let scratch = tempfile::tempdir()?;
/// # let home = scratch.path().join("home");
///
/// let store = Overlay2::open(Kernel::host(), &home, OpenOptions::new().create(true))?;
/// store.create(&CreateLayer::new("base".parse()?))?;
/// store.create(&CreateLayer::new("work".parse()?).parent(Some("base".parse()?)))?;
///
/// let layers = store.layers()?.layers;
/// assert_eq!(layers[1].parent.as_ref().unwrap().as_str(), "base");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Overlay2 {
    kernel: Kernel,
    layout: Layout,
    home: DirHandle,
    links: DirHandle,
    settings: HomeSettings,
    owners: owners::Owners,
    durability: Durability,
    /// What a writable layer may take, where its maker does not say.
    size: Option<Bytes>,
    /// The quotas of the home, or why they cannot be used.
    quotas: OnceLock<Result<QuotaControl, String>>,
    /// Our own directory, opened or made when it is first needed.
    own: Mutex<Option<home::OwnDirs>>,
    known_lowers: known::KnownLowers,
}

impl Overlay2 {
    /// The home.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.layout.home()
    }

    /// The paths of the home.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What holds for the whole home.
    #[must_use]
    pub fn settings(&self) -> &HomeSettings {
        &self.settings
    }

    /// The kernel that the store works on.
    #[must_use]
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    fn view(&self) -> View<'_> {
        View::new(self.kernel.tree(), self.settings.xattrs)
    }

    /// Waits until the home's names are on disk, after the change that everybody sees.
    fn sync_home(&self, what: &'static str, id: &LayerId) -> Result<(), Error> {
        if !self.durable() {
            return Ok(());
        }
        let synced = self.kernel.tree().sync(Node::Dir(&self.home));
        synced.map_err(|source| Error::NotDurable {
            what,
            id: id.clone(),
            path: self.home().to_owned(),
            source,
        })
    }

    fn durable(&self) -> bool {
        self.durability != Durability::None
    }
}
