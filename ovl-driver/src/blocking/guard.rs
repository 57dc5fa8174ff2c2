//! A mount that ends with the value that stands for it.

use std::path::{Path, PathBuf};

use ovl_layout::LayerId;
use ovl_mount::UnmountMode;

use super::Overlay2;
use crate::error::Error;
use crate::types::{Hold, MountRequest};

/// One hold of this process on a layer's mount, from [`Overlay2::mount_guarded`]. Dropping it
/// releases the hold.
///
/// What cannot be unmounted then, because something uses it, stays mounted: a drop has nobody to
/// tell. The hold counts until this process ends, and the next operation on the layer takes such a
/// mount away. Call [`unmount`](Self::unmount) to learn of it.
#[derive(Debug)]
#[must_use = "the mount ends with the guard"]
pub struct MountGuard<'a> {
    store: &'a Overlay2,
    id: LayerId,
    path: PathBuf,
    held: bool,
}

impl MountGuard<'_> {
    /// The layer.
    #[must_use]
    pub fn id(&self) -> &LayerId {
        &self.id
    }

    /// Where the layer is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Releases the hold, and unmounts with the last. Gives the holds left.
    ///
    /// # Errors
    ///
    /// As [`Overlay2::unmount`]; the hold stays then, until this process ends.
    pub fn unmount(mut self, mode: UnmountMode) -> Result<u64, Error> {
        self.held = false;
        self.store.unmount(&self.id, mode)
    }
}

impl Drop for MountGuard<'_> {
    fn drop(&mut self) {
        if self.held {
            // Nobody could be told, and what stays is taken away once this process is gone.
            let _ = self.store.unmount(&self.id, UnmountMode::Now);
        }
    }
}

impl Overlay2 {
    /// Mounts a layer for as long as the guard lives, or this process: a kill leaves no hold behind.
    /// The request's [`hold`](MountRequest::hold) is [`Hold::Process`], whatever it says.
    ///
    /// ```
    /// use ovl_driver::{CreateLayer, MountRequest, OpenOptions, blocking::Overlay2};
    /// use ovl_testkit::{KernelProfile, MockKernel};
    ///
    /// let kernel = MockKernel::new(KernelProfile::modern());
    /// let store = Overlay2::open(kernel.kernel(), "/home".as_ref(), OpenOptions::new().create(true))?;
    /// let id = "work".parse()?;
    /// store.create(&CreateLayer::new("work".parse()?))?;
    ///
    /// let mount = store.mount_guarded(&id, &MountRequest::new())?;
    /// kernel.write_file(&mount.path().join("hello"), b"from a mock")?;
    /// drop(mount);
    /// assert!(store.inspect(&id)?.mount.is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`mount`](Self::mount).
    ///
    /// # Privileges
    ///
    /// As [`mount`](Self::mount).
    pub fn mount_guarded(
        &self,
        id: &LayerId,
        request: &MountRequest,
    ) -> Result<MountGuard<'_>, Error> {
        let request = request.clone().hold(Hold::Process);
        let path = self.mount(id, &request)?;
        Ok(MountGuard {
            store: self,
            id: id.clone(),
            path,
            held: true,
        })
    }
}
