use std::sync::Arc;

use ovl_diff::{HostTree, TreeBackend};
use ovl_mount::{HostMount, MountBackend};
use ovl_quota::{HostQuota, QuotaBackend};

use crate::host_system::HostSystem;
use crate::system::SystemBackend;

/// Everything that the store asks of a kernel, as four backends. Each can be replaced by itself.
///
/// Clones share the backends.
#[derive(Clone, Debug)]
pub struct Kernel {
    tree: Arc<dyn TreeBackend>,
    mount: Arc<dyn MountBackend>,
    quota: Arc<dyn QuotaBackend>,
    system: Arc<dyn SystemBackend>,
}

impl Kernel {
    /// The running kernel.
    #[must_use]
    pub fn host() -> Self {
        Self {
            tree: Arc::new(HostTree::default()),
            mount: Arc::new(HostMount::default()),
            quota: Arc::new(HostQuota::default()),
            system: Arc::new(HostSystem::default()),
        }
    }

    /// One backend for everything, as a mock kernel is.
    #[must_use]
    pub fn from_backend<K>(backend: K) -> Self
    where
        K: TreeBackend + MountBackend + QuotaBackend + SystemBackend,
    {
        let backend = Arc::new(backend);
        Self {
            tree: backend.clone(),
            mount: backend.clone(),
            quota: backend.clone(),
            system: backend,
        }
    }

    /// Replaces the tree backend.
    #[must_use]
    pub fn with_tree(self, tree: impl TreeBackend + 'static) -> Self {
        Self {
            tree: Arc::new(tree),
            ..self
        }
    }

    /// Replaces the mount backend.
    #[must_use]
    pub fn with_mount(self, mount: impl MountBackend) -> Self {
        Self {
            mount: Arc::new(mount),
            ..self
        }
    }

    /// Replaces the quota backend.
    #[must_use]
    pub fn with_quota(self, quota: impl QuotaBackend) -> Self {
        Self {
            quota: Arc::new(quota),
            ..self
        }
    }

    /// Replaces the system backend.
    #[must_use]
    pub fn with_system(self, system: impl SystemBackend) -> Self {
        Self {
            system: Arc::new(system),
            ..self
        }
    }

    /// Directory trees.
    #[must_use]
    pub fn tree(&self) -> &dyn TreeBackend {
        &*self.tree
    }

    /// Mounts.
    #[must_use]
    pub fn mount(&self) -> &dyn MountBackend {
        &*self.mount
    }

    /// Project quotas.
    #[must_use]
    pub fn quota(&self) -> &dyn QuotaBackend {
        &*self.quota
    }

    pub(crate) fn shared_quota(&self) -> Arc<dyn QuotaBackend> {
        Arc::clone(&self.quota)
    }

    /// Locks, processes, randomness.
    #[must_use]
    pub fn system(&self) -> &dyn SystemBackend {
        &*self.system
    }
}
