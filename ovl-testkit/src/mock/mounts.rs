//! The mount table, and mounting as the kernel does it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ovl_driver::Identity;
use ovl_layout::XattrNamespace;
use ovl_mount::{
    Access, DataLimit, KERNEL_MAX_LOWERS, MAX_SETTING_LEN, MountAction, MountBackend, MountError,
    MountFeatures, MountInfo, MountPlan, OverlayCall, Setting, UnmountMode,
};
use rustix::io::Errno;

use super::inode::{Ino, ROOT, Result};
use super::overlay::{Overlay, Redirect};
use super::{KernelProfile, MockKernel, State};

/// One mount. Whoever has something open on it shares it, which is what makes it busy.
#[derive(Debug)]
pub(super) struct Mount {
    pub(super) id: u64,
    pub(super) target: PathBuf,
    /// The directory it covers.
    point: Ino,
    pub(super) read_only: bool,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// Directories of the file system itself, from this one down.
    Plain(Ino),
    Overlay(Overlay),
}

impl Mount {
    pub(super) fn root() -> Self {
        let target = PathBuf::from("/");
        Self {
            id: 1,
            target,
            point: 0,
            read_only: false,
            kind: Kind::Plain(ROOT),
        }
    }
}

impl State {
    pub(super) fn is_mount_point(&self, ino: Ino) -> bool {
        self.mounts.iter().any(|mount| mount.point == ino)
    }

    /// The mount that covers a directory.
    pub(super) fn mounted_on(&self, ino: Ino) -> Option<&Arc<Mount>> {
        self.mounts.iter().rev().find(|mount| mount.point == ino)
    }

    /// Follows a path over plain directories. Layers of overlays are there.
    fn plain_dir(&self, path: &Path) -> Result<Ino> {
        let mut links = 0;
        let mut pending: Vec<OsString> = path.iter().rev().map(OsStr::to_owned).collect();
        let mut stack = vec![ROOT];
        while let Some(name) = pending.pop() {
            match name.as_bytes() {
                b"/" => stack.truncate(1),
                b"." => {}
                b".." => stack.truncate(stack.len().saturating_sub(1).max(1)),
                _ => {
                    let dir = stack[stack.len() - 1];
                    let ino = self.child(dir, &name)?.ok_or(Errno::NOENT)?;
                    match &self.inode(ino)?.body {
                        super::inode::Body::Directory(_) => stack.push(ino),
                        super::inode::Body::Symlink(target) if links < 40 => {
                            links += 1;
                            pending.extend(Path::new(target).iter().rev().map(OsStr::to_owned));
                        }
                        super::inode::Body::Symlink(_) => return Err(Errno::LOOP),
                        _ => return Err(Errno::NOTDIR),
                    }
                }
            }
        }
        Ok(stack[stack.len() - 1])
    }

    fn overlay(
        &mut self,
        request: &Request,
        profile: &KernelProfile,
        identity: &Identity,
    ) -> Result<Overlay> {
        let find = |path: &Path| match path.is_absolute() {
            true => self.plain_dir(path),
            false => {
                let base = request.working_dir.as_deref().ok_or(Errno::NOENT)?;
                self.plain_dir(&base.join(path))
            }
        };
        let mut lowers = Vec::new();
        for path in &request.lowers {
            let ino = find(path)?;
            if lowers.contains(&ino) {
                return Err(Errno::LOOP);
            }
            lowers.push(ino);
        }
        let minimum = if request.upper.is_some() { 1 } else { 2 };
        if lowers.len() < minimum || lowers.len() > KERNEL_MAX_LOWERS {
            return Err(Errno::INVAL);
        }
        let xattrs = match request.userxattr {
            true => XattrNamespace::User,
            // It would not see the attributes it has written.
            false if identity.user_namespace => return Err(Errno::PERM),
            false => XattrNamespace::Trusted,
        };
        let (redirect, metacopy) = request.extras()?;
        let upper = match (&request.upper, &request.work) {
            (None, None) => None,
            (Some(upper), Some(work)) => Some((find(upper)?, find(work)?)),
            _ => return Err(Errno::INVAL),
        };
        if let Some((upper, work)) = upper {
            if upper == work || lowers.contains(&upper) {
                return Err(Errno::LOOP);
            }
            // Linux only warns of this; nothing good comes of it.
            if self
                .mounts
                .iter()
                .any(|mount| mount.uses(upper) || mount.uses(work))
            {
                return Err(Errno::BUSY);
            }
            match self.child(work, OsStr::new("work"))? {
                None => {
                    let body = super::inode::Body::Directory(BTreeMap::new());
                    self.add(work, OsStr::new("work"), body, 0)?;
                }
                // Linux makes it anew.
                Some(ino) => {
                    let inode = self.inode_mut(ino)?;
                    (inode.uid, inode.gid, inode.mode) = (0, 0, 0);
                }
            }
        }
        let _ = profile;
        Ok(Overlay {
            upper: upper.map(|(upper, _)| upper),
            work: upper.map(|(_, work)| work),
            lowers,
            xattrs,
            redirect,
            metacopy,
        })
    }
}

impl Mount {
    /// Whether the mount writes to this directory.
    fn uses(&self, ino: Ino) -> bool {
        match &self.kind {
            Kind::Overlay(overlay) => overlay.upper == Some(ino) || overlay.work == Some(ino),
            Kind::Plain(_) => false,
        }
    }
}

/// What overlayfs is asked for.
#[derive(Default)]
struct Request {
    lowers: Vec<PathBuf>,
    upper: Option<PathBuf>,
    work: Option<PathBuf>,
    userxattr: bool,
    redirect: Option<Redirect>,
    metacopy: Option<bool>,
    working_dir: Option<PathBuf>,
}

impl Request {
    fn set(&mut self, key: &[u8], value: Option<&[u8]>, profile: &KernelProfile) -> Result<()> {
        let path = |bytes: &[u8]| PathBuf::from(OsString::from_vec(unescape(bytes)));
        match (key, value) {
            (b"userxattr", None) => self.userxattr = true,
            (b"index", Some(b"on" | b"off")) if profile.index => {}
            (b"redirect_dir", Some(b"on")) => self.redirect = Some(Redirect::On),
            (b"redirect_dir", Some(b"follow")) => self.redirect = Some(Redirect::Follow),
            (b"redirect_dir", Some(b"off" | b"nofollow")) => {
                self.redirect = Some(Redirect::NoFollow);
            }
            (b"metacopy", Some(b"on")) => self.metacopy = Some(true),
            (b"metacopy", Some(b"off")) => self.metacopy = Some(false),
            (b"xino", Some(b"on" | b"off" | b"auto")) => {}
            (b"upperdir", Some(value)) => self.upper = Some(path(value)),
            (b"workdir", Some(value)) => self.work = Some(path(value)),
            // Also a label: no security module is active here.
            _ => return Err(Errno::INVAL),
        }
        Ok(())
    }

    /// What becomes of redirects and metacopy files. They depend on each other, and a mount for
    /// everybody's attributes has neither: anybody could write them.
    fn extras(&self) -> Result<(Redirect, bool)> {
        let (redirect, metacopy) = (self.redirect, self.metacopy.unwrap_or_default());
        match redirect {
            Some(Redirect::On | Redirect::Follow) if self.userxattr => Err(Errno::INVAL),
            _ if metacopy && self.userxattr => Err(Errno::INVAL),
            Some(Redirect::Follow) if metacopy && self.upper.is_none() => Ok((Redirect::On, true)),
            Some(Redirect::Follow | Redirect::NoFollow) if metacopy => Err(Errno::INVAL),
            None if metacopy => Ok((Redirect::On, true)),
            redirect => Ok((redirect.unwrap_or_default(), metacopy)),
        }
    }

    /// As the kernel reads the data of `mount(2)`.
    fn from_data(data: &[u8], profile: &KernelProfile) -> Result<Self> {
        if data.len() >= profile.page_size {
            // Linux cuts it here and mounts whatever that names.
            return Err(Errno::INVAL);
        }
        let mut request = Self::default();
        for option in split(data, b',') {
            let (key, value) = match option.iter().position(|&byte| byte == b'=') {
                Some(at) => (&option[..at], Some(&option[at + 1..])),
                None => (option, None),
            };
            match (key, value) {
                (b"lowerdir", Some(value)) => {
                    let paths = split(value, b':').into_iter();
                    request.lowers = paths
                        .map(|path| PathBuf::from(OsString::from_vec(unescape(path))))
                        .collect();
                }
                (key, value) => request.set(key, value, profile)?,
            }
        }
        Ok(request)
    }

    fn from_settings(settings: &[Setting], profile: &KernelProfile) -> Result<Self> {
        if !profile.lowerdir_plus {
            return Err(Errno::NOSYS);
        }
        let mut request = Self::default();
        for setting in settings {
            match setting {
                Setting::Flag(key) => request.set(key.as_bytes(), None, profile)?,
                Setting::Text(_, value) if value.len() > MAX_SETTING_LEN => {
                    return Err(Errno::INVAL);
                }
                Setting::Text("lowerdir+", value) => request.lowers.push(PathBuf::from(value)),
                Setting::Text(key, value) => {
                    request.set(key.as_bytes(), Some(value.as_bytes()), profile)?;
                }
                _ => return Err(Errno::INVAL),
            }
        }
        Ok(request)
    }
}

/// Splits at separators that no backslash precedes.
fn split(bytes: &[u8], separator: u8) -> Vec<&[u8]> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (at, &byte) in bytes.iter().enumerate() {
        if byte == separator && !escaped {
            parts.push(&bytes[start..at]);
            start = at + 1;
        }
        escaped = byte == b'\\' && !escaped;
    }
    parts.push(&bytes[start..]);
    parts
}

fn unescape(bytes: &[u8]) -> Vec<u8> {
    let (mut plain, mut escaped) = (Vec::with_capacity(bytes.len()), false);
    for &byte in bytes {
        if byte == b'\\' && !escaped {
            escaped = true;
        } else {
            plain.push(byte);
            escaped = false;
        }
    }
    plain
}

impl MockKernel {
    fn try_mount(&self, plan: &MountPlan) -> Result<()> {
        let profile = self.profile();
        let mut state = self.state();
        let point = state.plain_dir(plan.target())?;
        let (kind, read_only) = match plan.action() {
            MountAction::Bind { source } => (
                Kind::Plain(state.plain_dir(source)?),
                plan.access() == Access::ReadOnly,
            ),
            MountAction::Overlay(call) => {
                let mut request = match call {
                    OverlayCall::Data { data, .. } => Request::from_data(data.as_bytes(), profile)?,
                    OverlayCall::Settings { settings, .. } => {
                        Request::from_settings(settings, profile)?
                    }
                };
                request.working_dir = call.working_dir().map(Path::to_owned);
                let overlay = state.overlay(&request, profile, &profile.identity)?;
                let read_only = overlay.upper.is_none();
                (Kind::Overlay(overlay), read_only)
            }
        };
        let id = state.next_mount;
        state.next_mount += 1;
        let target = plan.target().to_owned();
        state.mounts.push(Arc::new(Mount {
            id,
            target,
            point,
            read_only,
            kind,
        }));
        Ok(())
    }
}

impl MountBackend for MockKernel {
    fn features(&self) -> io::Result<MountFeatures> {
        let profile = self.profile();
        Ok(
            MountFeatures::new(DataLimit::for_page_size(profile.page_size))
                .lowerdir_plus(profile.lowerdir_plus)
                .index(profile.index)
                .user_namespace(profile.identity.user_namespace),
        )
    }

    fn mount(&self, plan: &MountPlan) -> std::result::Result<(), MountError> {
        self.try_mount(plan)
            .map_err(|errno| MountError::mount(plan, Vec::new(), errno.into()))
    }

    fn unmount(&self, target: &Path, mode: UnmountMode) -> std::result::Result<(), MountError> {
        let mut state = self.state();
        let Some(at) = state
            .mounts
            .iter()
            .rposition(|mount| mount.target == target && mount.id > 1)
        else {
            return Err(MountError::unmount(target, Errno::INVAL.into()));
        };
        if mode == UnmountMode::Now && Arc::strong_count(&state.mounts[at]) > 1 {
            return Err(MountError::unmount(target, Errno::BUSY.into()));
        }
        state.mounts.remove(at);
        Ok(())
    }

    fn mount_at(&self, path: &Path) -> io::Result<Option<MountInfo>> {
        let state = self.state();
        Ok(state
            .mounts
            .iter()
            .rev()
            .find(|mount| mount.target == path)
            .map(|mount| info(mount)))
    }

    fn mounts_below(&self, path: &Path) -> io::Result<Vec<MountInfo>> {
        let state = self.state();
        let below = |mount: &&Arc<Mount>| mount.target != path && mount.target.starts_with(path);
        Ok(state
            .mounts
            .iter()
            .filter(below)
            .map(|mount| info(mount))
            .collect())
    }
}

fn info(mount: &Mount) -> MountInfo {
    let fs_type = match mount.kind {
        Kind::Plain(_) => "mock",
        Kind::Overlay(_) => "overlay",
    };
    MountInfo::new(
        mount.id,
        mount.target.clone(),
        fs_type.to_owned(),
        mount.read_only,
    )
}
