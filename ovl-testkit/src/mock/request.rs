//! What overlayfs is asked for, read as the kernel reads it.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use ovl_mount::{KERNEL_MAX_LOWERS, MAX_SETTING_LEN, RedirectDir, Setting};
use rustix::io::Errno;

use super::KernelProfile;
use super::inode::{Ino, Result};

/// What overlayfs is asked for.
#[derive(Default)]
pub(super) struct Request {
    pub(super) lowers: Vec<Directory>,
    pub(super) upper: Option<Directory>,
    pub(super) work: Option<Directory>,
    pub(super) userxattr: bool,
    pub(super) volatile: bool,
    redirect: Option<RedirectDir>,
    metacopy: Option<bool>,
    pub(super) working_dir: Option<PathBuf>,
}

/// A directory for a mount.
pub(super) enum Directory {
    Named(PathBuf),
    /// On that mount.
    Open(u64, Ino),
}

impl Request {
    fn set(&mut self, key: &[u8], value: Option<&[u8]>, profile: &KernelProfile) -> Result<()> {
        let path = |bytes: &[u8]| Directory::Named(OsString::from_vec(unescape(bytes)).into());
        match (key, value) {
            (b"userxattr", None) if profile.userxattr => self.userxattr = true,
            (b"volatile", None) if profile.volatile => self.volatile = true,
            (b"index", Some(b"on" | b"off")) if profile.index => {}
            (b"redirect_dir", Some(value)) if profile.redirect_dir => {
                self.redirect = Some(match value {
                    b"on" => RedirectDir::On,
                    b"follow" => RedirectDir::Follow,
                    b"nofollow" => RedirectDir::NoFollow,
                    // Not written; followed all the same where that is the default.
                    b"off" if profile.default_redirect == RedirectDir::NoFollow => {
                        RedirectDir::NoFollow
                    }
                    b"off" => RedirectDir::Follow,
                    _ => return Err(Errno::INVAL),
                });
            }
            (b"metacopy", Some(b"on")) if profile.metacopy => self.metacopy = Some(true),
            (b"metacopy", Some(b"off")) if profile.metacopy => self.metacopy = Some(false),
            (b"xino", Some(b"on" | b"off" | b"auto")) if profile.xino => {}
            (b"upperdir", Some(value)) => self.upper = Some(path(value)),
            (b"workdir", Some(value)) => self.work = Some(path(value)),
            // Also a label: no security module is active here.
            _ => return Err(Errno::INVAL),
        }
        Ok(())
    }

    /// What becomes of redirects and metacopy files: `ovl_fs_params_verify`. They depend on each
    /// other, and a mount for everybody's attributes has neither: anybody could write them.
    pub(super) fn extras(&self, profile: &KernelProfile) -> Result<(RedirectDir, bool)> {
        let mut redirect = self.redirect.unwrap_or(profile.default_redirect);
        let mut metacopy = self.metacopy.unwrap_or(profile.default_metacopy);
        if self.upper.is_none() && redirect == RedirectDir::Follow {
            redirect = RedirectDir::On;
        }
        if metacopy && redirect != RedirectDir::On {
            match (self.redirect, self.metacopy) {
                (Some(_), Some(_)) => return Err(Errno::INVAL),
                (Some(_), None) => metacopy = false,
                (None, _) => redirect = RedirectDir::On,
            }
        }
        if self.userxattr {
            let asked = self.redirect.is_some() && redirect != RedirectDir::NoFollow;
            if asked || self.metacopy == Some(true) {
                return Err(Errno::INVAL);
            }
            (redirect, metacopy) = (RedirectDir::NoFollow, false);
        }
        Ok((redirect, metacopy))
    }

    /// As the kernel reads the data of `mount(2)`.
    pub(super) fn from_data(data: &[u8], profile: &KernelProfile) -> Result<Self> {
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
                        .map(|path| Directory::Named(OsString::from_vec(unescape(path)).into()))
                        .collect();
                }
                (key, value) => request.set(key, value, profile)?,
            }
        }
        Ok(request)
    }

    /// As the kernel reads one `fsconfig(2)` call after the other; `open` opens directories.
    pub(super) fn from_settings(
        settings: &[Setting],
        profile: &KernelProfile,
        open: impl Fn(&Path) -> Result<(u64, Ino)>,
    ) -> std::result::Result<Self, Refusal> {
        if !profile.lowerdir_plus {
            return Err(Errno::NOSYS.into());
        }
        let mut request = Self::default();
        for setting in settings {
            match setting {
                Setting::Flag(key) => request.set_or_say(key, None, profile)?,
                Setting::Text(_, value) if value.len() > MAX_SETTING_LEN => {
                    return Err(Errno::INVAL.into());
                }
                Setting::Text("lowerdir+", value) => {
                    request.add_lower(Directory::Named(PathBuf::from(value)))?;
                }
                Setting::Text(key, value) => {
                    request.set_or_say(key, Some(value.as_bytes()), profile)?;
                }
                Setting::Directory(key, path) => {
                    let (mount, dir) =
                        open(path).map_err(|errno| Refusal::Layer(path.clone(), errno))?;
                    if !profile.layers_by_fd {
                        return Err(Errno::INVAL.into());
                    }
                    let opened = Directory::Open(mount, dir);
                    match *key {
                        "lowerdir+" => request.add_lower(opened)?,
                        "upperdir" => request.upper = Some(opened),
                        "workdir" => request.work = Some(opened),
                        _ => return Err(Errno::INVAL.into()),
                    }
                }
                _ => return Err(Errno::INVAL.into()),
            }
        }
        Ok(request)
    }

    fn add_lower(&mut self, lower: Directory) -> std::result::Result<(), Refusal> {
        if self.lowers.len() == KERNEL_MAX_LOWERS {
            let said = format!("overlay: too many lower directories, limit is {KERNEL_MAX_LOWERS}");
            return Err(Refusal::Said(Errno::INVAL, said));
        }
        self.lowers.push(lower);
        Ok(())
    }

    /// As the new system calls do, which have a log.
    fn set_or_say(
        &mut self,
        key: &str,
        value: Option<&[u8]>,
        profile: &KernelProfile,
    ) -> std::result::Result<(), Refusal> {
        self.set(key.as_bytes(), value, profile)
            .map_err(|errno| Refusal::Said(errno, format!("overlay: Unknown parameter '{key}'")))
    }
}

/// Why nothing is mounted.
pub(super) enum Refusal {
    Errno(Errno),
    /// With a line in the log of the file system context.
    Said(Errno, String),
    /// A directory that cannot be opened.
    Layer(PathBuf, Errno),
    /// What came up is not what was planned.
    WrongAccess,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
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
