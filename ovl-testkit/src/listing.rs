//! A tree as text, a line for each object, to keep beside a test and compare with.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{lgetxattr, major, minor};
use rustix::io::Errno;

/// Lists what is below a directory, in the order of the paths: type, mode, owner, modification time
/// in seconds, capability, and contents, target, device number or the first name of the same inode.
///
/// Only what every archive of the tree keeps is listed: no root, no link counts, no fractions of a
/// second, and of the extended attributes only `security.capability`.
///
/// # Errors
/// Any error of the file system, and file contents that are not UTF-8.
pub fn listing_at(root: &Path) -> io::Result<BTreeMap<PathBuf, String>> {
    let mut found = BTreeMap::new();
    let mut next = vec![PathBuf::new()];
    while let Some(dir) = next.pop() {
        for entry in fs::read_dir(root.join(&dir))? {
            let path = dir.join(entry?.file_name());
            let metadata = fs::symlink_metadata(root.join(&path))?;
            if metadata.is_dir() {
                next.push(path.clone());
            }
            found.insert(path, metadata);
        }
    }
    let mut first: HashMap<(u64, u64), PathBuf> = HashMap::new();
    let mut lines = BTreeMap::new();
    for (path, metadata) in found {
        let inode = (metadata.dev(), metadata.ino());
        let line = match first.get(&inode) {
            Some(name) => format!("same as {name:?}"),
            None => line(&root.join(&path), &metadata)?,
        };
        if !metadata.is_dir() {
            first.entry(inode).or_insert_with(|| path.clone());
        }
        lines.insert(path, line);
    }
    Ok(lines)
}

fn line(path: &Path, metadata: &Metadata) -> io::Result<String> {
    let kind = metadata.file_type();
    let name = if kind.is_dir() {
        "dir"
    } else if kind.is_file() {
        "file"
    } else if kind.is_symlink() {
        "symlink"
    } else if kind.is_fifo() {
        "fifo"
    } else if kind.is_char_device() {
        "char"
    } else if kind.is_block_device() {
        "block"
    } else {
        "socket"
    };
    let (mode, uid, gid) = (metadata.mode() & 0o7777, metadata.uid(), metadata.gid());
    let mut line = format!("{name} {mode:04o} {uid}:{gid} {}", metadata.mtime());
    let mut add = |what: String| {
        // Writing to a string cannot fail.
        let _ = write!(line, " {what}");
    };
    let mut capability = [0; 64];
    match lgetxattr(path, "security.capability", &mut capability) {
        Ok(len) => add(format!("capability {:02x?}", &capability[..len])),
        Err(Errno::NODATA | Errno::NOTSUP) => {}
        Err(error) => return Err(error.into()),
    }
    match name {
        "file" => add(format!("{:?}", fs::read_to_string(path)?)),
        "symlink" => add(format!("{:?}", fs::read_link(path)?)),
        "char" | "block" => {
            let device = metadata.rdev();
            add(format!("{}:{}", major(device), minor(device)));
        }
        _ => {}
    }
    Ok(line)
}
