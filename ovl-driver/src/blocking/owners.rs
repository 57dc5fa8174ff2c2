use std::io;
use std::ops::Range;

use ovl_diff::{Node, TreeBackend};
use ovl_layout::IdMaps;

use crate::error::Error;
use crate::system::Identity;

/// Who owns the directories of a home. Without id maps that is whoever makes them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owners(Option<Mapped>);

#[derive(Clone, Copy, Debug)]
struct Mapped {
    /// The user that the calling process is.
    process: u32,
    /// The container's root, on disk.
    root: (u32, u32),
}

impl Owners {
    /// Checks that the caller can give files to the container's root.
    pub(super) fn new(identity: &Identity, maps: &IdMaps) -> Result<Self, Error> {
        if maps.is_identity() {
            return Ok(Self(None));
        }
        let root @ (uid, gid) = (maps.uids.root(), maps.gids.root());
        if identity.user_namespace {
            has(&identity.uids, "uid", uid)?;
            has(&identity.gids, "gid", gid)?;
        }
        let process = identity.uid;
        Ok(Self(Some(Mapped { process, root })))
    }

    /// Gives an object to the container's root.
    pub(super) fn give_to_root(self, tree: &dyn TreeBackend, node: Node<'_>) -> io::Result<()> {
        self.0.map_or(
            Ok(()),
            |Mapped {
                 root: (uid, gid), ..
             }| { tree.set_owner(node, uid, gid) },
        )
    }

    /// Lets the container's root through a directory that stays the process's.
    pub(super) fn let_root_in(self, tree: &dyn TreeBackend, node: Node<'_>) -> io::Result<()> {
        self.0.map_or(
            Ok(()),
            |Mapped {
                 process,
                 root: (_, gid),
             }| { tree.set_owner(node, process, gid) },
        )
    }

    /// The group that [`let_root_in`](Self::let_root_in) gives.
    pub(super) fn group(self) -> Option<u32> {
        self.0.map(|mapped| mapped.root.1)
    }
}

fn has(ranges: &[Range<u64>], kind: &str, id: u32) -> Result<(), Error> {
    if ranges.iter().any(|range| range.contains(&u64::from(id))) {
        return Ok(());
    }
    let ranges: Vec<String> = ranges
        .iter()
        .map(|range| format!("{} to {}", range.start, range.end.saturating_sub(1)))
        .collect();
    Err(Error::Unsupported {
        what: "a home with these id maps",
        reason: format!(
            "the container's root is {kind} {id} on disk, and this user namespace has {}; \
             run as root, or in a namespace that maps {id}",
            ranges.join(", ")
        ),
    })
}
