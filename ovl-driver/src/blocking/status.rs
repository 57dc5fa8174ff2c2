//! What a home and a kernel can do.

use std::io;
use std::ops::Range;
use std::path::Path;

use ovl_diff::DirHandle;
use ovl_layout::{DOCKER_MAX_DEPTH, HomeSettings, XattrNamespace};
use ovl_mount::{MountFeatures, Strategy};
use ovl_quota::Enforcement;

use super::Overlay2;
use super::home::own_xattrs;
use super::quota::probe;
use crate::error::Error;
use crate::kernel::Kernel;
use crate::system::{FsType, Identity};
use crate::types::{Answer, OpenOptions, Status};

impl Overlay2 {
    /// What this home and this kernel can do. Nothing is written or mounted, and layers are not
    /// listed.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    #[doc(alias = "Status")]
    pub fn status(&self) -> Result<Status, Error> {
        status_of(&self.kernel, self.home(), &self.home, self.settings.clone())
    }

    /// What a home at `home`, an absolute path, and this kernel can do, whether or not the home is
    /// there: where it is not, what one made with the default settings could. Nothing is made.
    ///
    /// A file system that cannot hold a home is no error here but an answer.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open) for a home that is there and cannot be opened; [`Error::Io`],
    /// also where the directory that the home would be made in is missing.
    pub fn probe(kernel: Kernel, home: &Path) -> Result<Status, Error> {
        match Self::open(kernel.clone(), home, OpenOptions::new()) {
            Ok(store) => return store.status(),
            Err(Error::HomeNotFound { .. } | Error::NoDType { .. }) => {}
            Err(error) => return Err(error),
        }
        let tree = kernel.tree();
        let parent = home.parent().unwrap_or(home);
        let (path, dir) = match tree.open_root(home) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (parent, tree.open_root(parent))
            }
            result => (home, result),
        };
        let dir = dir.map_err(|error| Error::io("open", path, error))?;
        let identity = kernel.system().identity();
        let identity = identity.map_err(|error| Error::io("read the ids of", home, error))?;
        let mut status = status_of(
            &kernel,
            path,
            &dir,
            HomeSettings::new(own_xattrs(&identity)),
        )?;
        status.home = home.to_owned();
        Ok(status)
    }

    /// What the kernel offers for mounting this home's layers.
    pub(super) fn features(&self) -> Result<MountFeatures, Error> {
        features_for(&self.kernel, self.home(), self.settings.xattrs)
    }
}

/// Overlayfs takes entries for what they are not where their types are not told.
pub(super) fn refuse_without_d_type(
    kernel: &Kernel,
    path: &Path,
    dir: &DirHandle,
) -> Result<(), Error> {
    let (fs_type, answer) = d_type(kernel, path, dir)?;
    if answer.yes {
        return Ok(());
    }
    Err(Error::NoDType {
        path: path.to_owned(),
        fs_type,
        advice: answer.reason,
    })
}

/// Overlayfs mounts all the same, and fails when it has to mark that something is hidden.
pub(super) fn refuse_without_xattrs(
    kernel: &Kernel,
    path: &Path,
    dir: &DirHandle,
    namespace: XattrNamespace,
) -> Result<(), Error> {
    let failed = |error| Error::io("look at the attributes of", path, error);
    let system = kernel.system();
    if system.keeps_xattrs(dir, namespace).map_err(failed)? {
        return Ok(());
    }
    Err(Error::NoXattrs {
        path: path.to_owned(),
        fs_type: system.fs_type(dir).map_err(failed)?,
        prefix: namespace.prefix(),
    })
}

fn d_type(kernel: &Kernel, path: &Path, dir: &DirHandle) -> Result<(FsType, Answer), Error> {
    let failed = |error| Error::io("look at", path, error);
    let fs_type = kernel.system().fs_type(dir).map_err(failed)?;
    let answer = match (kernel.system().has_d_type(dir).map_err(failed)?, fs_type) {
        (true, _) => Answer::new(true, "its directory entries tell their types"),
        (false, FsType::XFS) => Answer::new(
            false,
            "make the file system anew with `mkfs.xfs -n ftype=1`",
        ),
        (false, FsType::EXT) => Answer::new(
            false,
            "set it with `tune2fs -O filetype` and check the file system with `e2fsck -f`, or make it anew",
        ),
        (false, _) => Answer::new(false, "use another file system, such as ext4 or XFS"),
    };
    Ok((fs_type, answer))
}

fn features_for(
    kernel: &Kernel,
    path: &Path,
    xattrs: XattrNamespace,
) -> Result<MountFeatures, Error> {
    let features = kernel.mount().features();
    let features = features.map_err(|error| Error::io("probe mounts for", path, error))?;
    Ok(features.user_namespace(xattrs == XattrNamespace::User))
}

fn mounts_by(features: &MountFeatures, strategy: Strategy) -> Answer {
    match (features.lack(strategy), strategy) {
        (Some(lack), _) => Answer::new(false, lack.as_str()),
        (None, Strategy::MountAbsolute | Strategy::MountRelative) => {
            Answer::new(true, "where the names of the layers fit the mount data")
        }
        (None, _) => Answer::new(true, "the kernel takes one layer after the other"),
    }
}

fn owners(identity: &Identity) -> Answer {
    let count = |ids: &[Range<u64>]| -> u64 {
        ids.iter()
            .map(|ids| ids.end.saturating_sub(ids.start))
            .sum()
    };
    match (identity.user_namespace, identity.uid) {
        (false, 0) => Answer::new(true, "every id is there"),
        (false, _) => Answer::new(false, "only root gives files away"),
        (true, _) if count(&identity.uids) > 1 && count(&identity.gids) > 1 => Answer::new(
            true,
            "as far as the user namespace maps ids; archives with others are refused unless all is given to root (--squash)",
        ),
        (true, _) => Answer::new(
            false,
            "the user namespace has a single user or group id; archives with others are refused unless all is given to root (--squash); newuidmap with /etc/subuid and /etc/subgid gives more",
        ),
    }
}

fn devices(identity: &Identity) -> Answer {
    match (identity.user_namespace, identity.uid) {
        (true, _) => Answer::new(
            false,
            "no user namespace makes device nodes; archives with them are refused unless they are left out (--skip-devices)",
        ),
        (false, 0) => Answer::new(true, "the caller is root"),
        (false, _) => Answer::new(false, "only root makes device nodes"),
    }
}

fn redirects(features: &MountFeatures) -> Answer {
    let known = features.redirect_dir && features.metacopy;
    match (features.user_namespace, known) {
        (true, _) => Answer::new(
            false,
            "the kernel takes neither redirect_dir=on nor metacopy=on beside userxattr",
        ),
        (false, true) => Answer::new(true, "where they are asked for"),
        (false, false) => Answer::new(
            false,
            "the kernel does not know metacopy, which came with Linux 4.19, or redirect_dir=nofollow; mounts do not name what it does not know",
        ),
    }
}

fn status_of(
    kernel: &Kernel,
    path: &Path,
    dir: &DirHandle,
    settings: HomeSettings,
) -> Result<Status, Error> {
    let features = features_for(kernel, path, settings.xattrs)?;
    let mounting: Vec<_> = Strategy::ALL
        .map(|how| (how, mounts_by(&features, how)))
        .into();
    let strategies = mounting.iter().filter(|(_, answer)| answer.yes);
    let strategies = strategies.map(|(strategy, _)| *strategy).collect();
    let around = kernel.mount().mount_of(path);
    let around = around.map_err(|error| Error::io("look for the mount of", path, error))?;
    let (backing_fs, d_type) = d_type(kernel, path, dir)?;
    let identity = kernel.system().identity();
    let identity = identity.map_err(|error| Error::io("read the ids of", path, error))?;
    let quota = match kernel.quota().enforcement(path) {
        // The caller or the home may still be what is in the way.
        Ok(Enforcement::Enforced) => match probe(kernel, path, &settings) {
            Ok(_) => Ok(Enforcement::Enforced),
            Err(error) => Err(error.to_string()),
        },
        result => result.map_err(|error| error.to_string()),
    };
    Ok(Status {
        home: path.to_owned(),
        backing_fs,
        strategies,
        mounting,
        features,
        owners: owners(&identity),
        devices: devices(&identity),
        redirects: redirects(&features),
        private_mounts: match around.is_some_and(|mount| mount.shared) {
            false => Answer::new(true, "what is mounted in the home appears nowhere else"),
            true => Answer::new(
                false,
                "the home lies on a shared mount, so that every mount in it appears in that mount's peers too, as in other mount namespaces; with nothing mounted, `mount --bind HOME HOME && mount --make-private HOME` ends that",
            ),
        },
        user_namespace: identity.user_namespace,
        xattrs: settings.xattrs,
        d_type,
        metacopy: Answer::new(
            false,
            "mounts say metacopy=off unless asked otherwise; only over layers of another program the kernel's default holds",
        ),
        docker: match settings.max_depth > DOCKER_MAX_DEPTH {
            true => Answer::new(
                false,
                "layers with more than 128 below are allowed here; check names those that there are",
            ),
            false => Answer::new(true, "no layer has more than 128 below"),
        },
        native_diff: Answer::new(
            true,
            "diffs read redirects, metacopy files and opaque directories in the layers themselves, whatever the kernel's settings",
        ),
        userxattr: match settings.xattrs {
            XattrNamespace::User => Answer::new(true, "the home belongs to a user namespace"),
            XattrNamespace::Trusted => Answer::new(false, "the home belongs to root"),
        },
        settings,
        quota,
    })
}
