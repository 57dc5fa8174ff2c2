//! Paths, followed through mounts and symbolic links.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use rustix::io::Errno;

use super::State;
use super::inode::{Body, ROOT, Result};
use super::mounts::Use;
use super::tree::{At, MockDir};

/// Symbolic links that one path may lead through.
const MAX_LINKS: usize = 40;

impl State {
    /// Follows an absolute path through mounts and symbolic links to a directory.
    pub(super) fn walk(&self, path: &Path, pid: u32) -> Result<MockDir> {
        let root = self.mounts.first().ok_or(Errno::NOENT)?;
        let mut stack = vec![MockDir {
            mount: Use::new(root, pid),
            at: At::Plain(ROOT),
            _held: None,
        }];
        let mut pending: Vec<OsString> = path.iter().rev().map(OsStr::to_owned).collect();
        let mut links = 0;
        while let Some(name) = pending.pop() {
            match name.as_encoded_bytes() {
                b"/" => stack.truncate(1),
                b"." => {}
                b".." => stack.truncate(stack.len().saturating_sub(1).max(1)),
                _ => {
                    let here = &stack[stack.len() - 1];
                    let ino = here.lookup(self, &name)?.ok_or(Errno::NOENT)?;
                    match &self.inode(ino)?.body {
                        Body::Directory(_) => {
                            let inner = self.covered(here.enter(&name, ino), pid);
                            stack.push(inner);
                        }
                        Body::Symlink(target) => {
                            links += 1;
                            if links > MAX_LINKS {
                                return Err(Errno::LOOP);
                            }
                            pending.extend(Path::new(target).iter().rev().map(OsStr::to_owned));
                        }
                        _ => return Err(Errno::NOTDIR),
                    }
                }
            }
        }
        stack.pop().ok_or(Errno::NOENT)
    }

    /// Whatever is mounted on a directory covers it, and that may be covered in turn.
    pub(super) fn covered(&self, mut found: MockDir, pid: u32) -> MockDir {
        while let Some(mount) = self.covering(&found) {
            found = MockDir::root_of(mount, pid);
        }
        found
    }
}
