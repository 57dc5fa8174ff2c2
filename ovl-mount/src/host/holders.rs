//! Who uses a mount, from `/proc`. What the caller may not see, or what goes away meanwhile, is
//! passed over: the answer helps a person, and nothing is decided by it.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxFlags};

use crate::backend::{HeldAs, Holder, MAX_HOLDERS, MountInfo};

/// Most open files and bytes of mappings that are looked at in one process.
const MAX_FILES: usize = 16 * 1024;
const MAX_MAPS: u64 = 4 << 20;

/// At most [`MAX_HOLDERS`] processes, by number.
pub(super) fn of(mount: &MountInfo) -> io::Result<Vec<Holder>> {
    let mut pids: Vec<u32> = fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    let holders = pids.into_iter().filter_map(|pid| {
        let process = Path::new("/proc").join(pid.to_string());
        let held_as = held_by(&process, mount)?;
        let comm = fs::read(process.join("comm")).unwrap_or_default();
        let comm = String::from_utf8_lossy(comm.trim_ascii_end());
        Some(Holder::new(pid, comm, held_as))
    });
    Ok(holders.take(MAX_HOLDERS).collect())
}

fn held_by(process: &Path, mount: &MountInfo) -> Option<HeldAs> {
    let leads_in = |name| mount_id(&process.join(name)) == Some(mount.id);
    if leads_in("cwd") {
        return Some(HeldAs::WorkingDirectory);
    }
    if leads_in("root") {
        return Some(HeldAs::Root);
    }
    if opens(process, mount.id).unwrap_or(false) {
        return Some(HeldAs::OpenFile);
    }
    let maps = maps(process, &mount.target).unwrap_or(false);
    maps.then_some(HeldAs::Mapping)
}

/// The mount that one of the links of `/proc` leads to, without asking that file system.
fn mount_id(link: &Path) -> Option<u64> {
    let flags = AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let status = rustix::fs::statx(CWD, link, flags, StatxFlags::MNT_ID).ok()?;
    (status.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(status.stx_mnt_id)
}

/// `fdinfo` names the mount of every open file, whatever the file is.
fn opens(process: &Path, mount: u64) -> io::Result<bool> {
    for entry in fs::read_dir(process.join("fdinfo"))?.take(MAX_FILES) {
        let Ok(info) = fs::read(entry?.path()) else {
            continue;
        };
        let mut lines = info.split(|&byte| byte == b'\n');
        let id = lines.find_map(|line| line.strip_prefix(b"mnt_id:"));
        let id = id.and_then(|id| std::str::from_utf8(id.trim_ascii()).ok()?.parse().ok());
        if id == Some(mount) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Mappings name no mount, only a path, in which a newline is written in octal.
fn maps(process: &Path, target: &Path) -> io::Result<bool> {
    let target = target.as_os_str().as_bytes();
    let mut prefix = Vec::with_capacity(target.len() + 1);
    for &byte in target {
        match byte {
            b'\n' => prefix.extend_from_slice(b"\\012"),
            byte => prefix.push(byte),
        }
    }
    prefix.push(b'/');
    let maps = fs::File::open(process.join("maps"))?.take(MAX_MAPS);
    for line in BufReader::new(maps).split(b'\n') {
        let line = line?;
        // `from-to mode offset major:minor inode    path`
        let path = line.iter().position(|&byte| byte == b'/');
        if path.is_some_and(|at| line[at..].starts_with(&prefix)) {
            return Ok(true);
        }
    }
    Ok(false)
}
