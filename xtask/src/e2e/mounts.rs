//! What is mounted in this mount namespace.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use rustix::mount::{UnmountFlags, unmount};

/// The mounts below a directory, in the order in which they were made.
pub(super) fn mounts_below(path: &Path) -> Result<Vec<PathBuf>> {
    let table = std::fs::read("/proc/self/mountinfo").context("cannot read the mount table")?;
    let targets = targets(&table).into_iter();
    Ok(targets
        .filter(|target| target != path && target.starts_with(path))
        .collect())
}

/// Takes away what a failure has left, the last first.
pub(super) fn unmount_below(path: &Path) -> Result<()> {
    for target in mounts_below(path)?.into_iter().rev() {
        unmount(&target, UnmountFlags::DETACH)
            .with_context(|| format!("cannot unmount {}", target.display()))?;
    }
    Ok(())
}

/// Fails unless what is at the path is mounted there, and of this kind. Whoever writes without
/// asking writes into the file system below when a mount has failed.
pub(super) fn assert_mounted(path: &Path, magic: rustix::fs::FsWord) -> Result<()> {
    let found = rustix::fs::statfs(path)?.f_type;
    ensure!(
        found == magic,
        "{} shows a file system of type {found:#x}, not {magic:#x}",
        path.display()
    );
    let table = std::fs::read("/proc/self/mountinfo").context("cannot read the mount table")?;
    ensure!(
        targets(&table).iter().any(|target| target == path),
        "nothing is mounted at {}",
        path.display()
    );
    Ok(())
}

/// The fifth field of each line, where a space, tab, newline or backslash is written in octal.
fn targets(table: &[u8]) -> Vec<PathBuf> {
    table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(|field| PathBuf::from(OsString::from_vec(unescaped(field))))
        .collect()
}

fn unescaped(mut field: &[u8]) -> Vec<u8> {
    let mut found = Vec::with_capacity(field.len());
    while let Some((first, rest)) = field.split_first() {
        let octal = rest.first_chunk().and_then(|digits: &[u8; 3]| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        match octal.filter(|_| *first == b'\\') {
            Some(byte) => {
                found.push(byte);
                field = &rest[3..];
            }
            None => {
                found.push(*first);
                field = rest;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_their_spaces() {
        let table =
            b"36 35 98:0 / /mnt/a\\040b\\134c rw - xfs /dev/x rw\n37 35 0:1 / /d rw - tmpfs t rw\n";
        assert_eq!(targets(table), [Path::new("/mnt/a b\\c"), Path::new("/d")]);
    }
}
