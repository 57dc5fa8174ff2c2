//! Small files and directories of a home, as single steps of a tree backend.

use std::ffi::{OsStr, OsString};
use std::io;

use ovl_diff::{DirHandle, FileHandle, FileKind, Node, RenameMode, TreeBackend};
use ovl_layout::names;

/// None of the store's own files is longer: a `lower` file of 499 entries has 14,471 bytes.
const MAX_FILE_LEN: usize = 64 * 1024;

/// Holds contents that are still to be folded into those of a staged layer.
pub(crate) const SCRATCH: &str = "incoming";
/// What the names of files begin with until they are put in place.
pub(crate) const TEMPORARY: &str = ".tmp-";
/// Names the layer that a staged one will be swapped with.
pub(crate) const REPLACES: &str = "replaces";

/// The contents of a small file, `None` when there is none.
pub(crate) fn read(
    tree: &dyn TreeBackend,
    dir: &DirHandle,
    name: &str,
) -> io::Result<Option<Vec<u8>>> {
    // Each of the files shows it when it is cut short.
    match tree.read_small_file(dir, OsStr::new(name), MAX_FILE_LEN) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// Creates a file that must not exist, and gives it open for writing.
pub(crate) fn create(
    tree: &dyn TreeBackend,
    dir: &DirHandle,
    name: &str,
    mode: u32,
    contents: &[u8],
    sync: bool,
) -> io::Result<FileHandle> {
    let file = tree.create_file(dir, OsStr::new(name), mode)?;
    tree.write_at(&file, 0, contents)?;
    if sync {
        tree.sync(Node::File(&file))?;
    }
    Ok(file)
}

/// Puts a file in place of another or none: readers see the old contents or the new.
pub(crate) fn replace(
    tree: &dyn TreeBackend,
    dir: &DirHandle,
    name: &str,
    mode: u32,
    contents: &[u8],
    sync: bool,
) -> io::Result<()> {
    let temporary = format!("{TEMPORARY}{name}");
    let write = || create(tree, dir, &temporary, mode, contents, sync);
    let written = match write() {
        // The caller holds a lock, so a leftover of this name is from a process that is gone.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            remove(tree, dir, &temporary).and_then(|()| write())
        }
        result => result,
    };
    let result = written.and_then(|_| {
        let (from, to) = (OsStr::new(&temporary), OsStr::new(name));
        tree.rename(dir, from, dir, to, RenameMode::Replace)
    });
    if result.is_err() {
        // The first error is the one to report.
        let _ = remove(tree, dir, &temporary);
    }
    result
}

/// Whether a layer's directory can have such a name: one of a layer store, or of what only a layer
/// has that is being built, or of a file that was never [put in place](replace). The machine may
/// have stopped before the disk had it otherwise.
pub(crate) fn is_of_layer(name: &OsStr) -> bool {
    let text = name.to_string_lossy();
    let text = text.strip_prefix(TEMPORARY).unwrap_or(&text);
    names::LAYER.contains(&text) || [SCRATCH, REPLACES].contains(&text)
}

/// Whether a file was to be [put in place](replace).
pub(crate) fn is_temporary(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(TEMPORARY.as_bytes())
}

/// Removes a file; none is fine.
pub(crate) fn remove(tree: &dyn TreeBackend, dir: &DirHandle, name: &str) -> io::Result<()> {
    match tree.unlink(dir, OsStr::new(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Creates a directory, or opens the one that is there.
pub(crate) fn ensure_dir(
    tree: &dyn TreeBackend,
    dir: &DirHandle,
    name: &str,
    mode: u32,
) -> io::Result<DirHandle> {
    make_dir(tree, dir, name, mode)?;
    tree.open_dir(dir, OsStr::new(name))
}

/// Creates a directory where there is none, and says whether it did.
pub(crate) fn make_dir(
    tree: &dyn TreeBackend,
    dir: &DirHandle,
    name: &str,
    mode: u32,
) -> io::Result<bool> {
    match tree.create_dir(dir, OsStr::new(name), mode) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        result => result.map(|()| true),
    }
}

/// Opens a directory, `None` when there is nothing of that name.
pub(crate) fn open_dir(
    tree: &dyn TreeBackend,
    dir: &DirHandle,
    name: &str,
) -> io::Result<Option<DirHandle>> {
    match tree.open_dir(dir, OsStr::new(name)) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The names of the directories in a directory.
pub(crate) fn dirs(tree: &dyn TreeBackend, dir: &DirHandle) -> io::Result<Vec<OsString>> {
    let entries = tree.read_dir(dir)?.into_iter();
    Ok(entries
        .filter(|entry| entry.kind == FileKind::Directory)
        .map(|entry| entry.name)
        .collect())
}

/// Whether a name is taken.
pub(crate) fn exists(tree: &dyn TreeBackend, dir: &DirHandle, name: &str) -> io::Result<bool> {
    match tree.metadata(Node::Entry(dir, OsStr::new(name))) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
