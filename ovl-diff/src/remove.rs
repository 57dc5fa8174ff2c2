use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Context as _, TreeError};
use crate::tree::{DirEntry, DirHandle, FileKind, RenameMode, TreeBackend};

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
/// mount, whatever the depth.
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
                    tree.remove_dir(&above.dir, &done.name)
                        .on("remove", &path)?;
                    path.pop();
                }
                continue;
            };
            path.push(&entry.name);
            if entry.kind != FileKind::Directory {
                tree.unlink(&level.dir, &entry.name).on("remove", &path)?;
                path.pop();
                continue;
            }
            if depth >= MAX_OPEN {
                move_up(tree, &level.dir, &entry.name, &top, &mut moved).on("move", &path)?;
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
        match tree.remove_dir(parent, name) {
            Ok(()) => return Ok(()),
            // What was moved up, or put there meanwhile.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            Err(error) => return Err(TreeError::new("remove", &path, error)),
        }
    }
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
