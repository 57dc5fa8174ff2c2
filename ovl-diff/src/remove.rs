use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Context as _, TreeError};
use crate::tree::{DirEntry, DirHandle, FileKind, Node, RenameMode, TreeBackend};

/// Directories held open on the way down. Deeper ones are moved up first, so that the depth of a
/// tree costs neither descriptors nor long paths.
const MAX_OPEN: usize = 64;

impl TreeError {
    /// The same error, seen from a directory further up.
    pub(crate) fn below(mut self, parent: &Path) -> Self {
        self.path = parent.join(&self.path);
        self
    }
}

struct Level {
    dir: DirHandle,
    name: OsString,
    entries: Vec<DirEntry>,
}

/// Removes the directory `name` and everything in it, without following any link or entering any
/// mount, whatever the depth. Immutable files and directories go as well, with
/// `CAP_LINUX_IMMUTABLE`.
///
/// # Errors
///
/// The first step that fails; what was removed before stays removed, and calling again goes on.
pub fn remove_tree(
    tree: &dyn TreeBackend,
    parent: &DirHandle,
    name: &OsStr,
) -> Result<(), TreeError> {
    let mut path = PathBuf::from(name);
    let top = tree.open_dir(parent, name).on("open", &path)?;
    let mut moved = 0_u64;
    loop {
        let entries = tree.read_dir(&top).on("list", &path)?;
        let mut levels = vec![Level {
            dir: top.clone(),
            name: name.to_owned(),
            entries,
        }];
        loop {
            let depth = levels.len();
            let Some(level) = levels.last_mut() else {
                break;
            };
            let Some(entry) = level.entries.pop() else {
                let Some(done) = levels.pop() else { break };
                if let Some(above) = levels.last() {
                    let remove = || tree.remove_dir(&above.dir, &done.name);
                    unprotected(tree, &above.dir, &done.name, remove).on("remove", &path)?;
                    path.pop();
                }
                continue;
            };
            path.push(&entry.name);
            if entry.kind != FileKind::Directory {
                let remove = || tree.unlink(&level.dir, &entry.name);
                unprotected(tree, &level.dir, &entry.name, remove).on("remove", &path)?;
                path.pop();
                continue;
            }
            if depth >= MAX_OPEN {
                let mut move_up = || move_up(tree, &level.dir, &entry.name, &top, &mut moved);
                let result = match move_up() {
                    Err(error) if is_protected(&error) => {
                        tree.unprotect(Node::Dir(&top)).on("unprotect", &path)?;
                        unprotected(tree, &level.dir, &entry.name, &mut move_up)
                    }
                    result => result,
                };
                result.on("move", &path)?;
                path.pop();
                continue;
            }
            let dir = tree.open_dir(&level.dir, &entry.name).on("open", &path)?;
            let entries = tree.read_dir(&dir).on("list", &path)?;
            levels.push(Level {
                dir,
                name: entry.name,
                entries,
            });
        }
        let remove = || tree.remove_dir(parent, name);
        match unprotected(tree, parent, name, remove) {
            Ok(()) => return Ok(()),
            // What was moved up, or put there meanwhile.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            Err(error) => return Err(TreeError::new("remove", &path, error)),
        }
    }
}

/// Takes an entry away, also when it, or the directory that it is in, is immutable.
fn unprotected(
    tree: &dyn TreeBackend,
    dir: &DirHandle,
    name: &OsStr,
    mut remove: impl FnMut() -> io::Result<()>,
) -> io::Result<()> {
    match remove() {
        Err(error) if is_protected(&error) => {
            let entry = tree.unprotect(Node::Entry(dir, name));
            let above = tree.unprotect(Node::Dir(dir));
            match matches!(entry, Ok(true)) || matches!(above, Ok(true)) {
                true => remove(),
                false => Err(error),
            }
        }
        result => result,
    }
}

fn is_protected(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

fn move_up(
    tree: &dyn TreeBackend,
    dir: &DirHandle,
    name: &OsStr,
    top: &DirHandle,
    moved: &mut u64,
) -> io::Result<()> {
    loop {
        *moved += 1;
        let new_name = OsString::from(format!(".ovl-deep-{moved}"));
        match tree.rename(dir, name, top, &new_name, RenameMode::NoReplace) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => return result,
        }
    }
}
