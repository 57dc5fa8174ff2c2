//! Whether two mounted trees are the same in everything that can be seen of them.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use ovl_diff::{DirEntry, DirHandle, EscapedPath, FileHandle, FileKind, Node, TreeBackend};

use crate::fail::Failure;

pub(super) struct Compared {
    pub(super) objects: u64,
    pub(super) differences: Vec<String>,
}

const BUFFER_LEN: usize = 128 * 1024;

pub(super) fn compare(
    tree: &dyn TreeBackend,
    one: &Path,
    other: &Path,
) -> Result<Compared, Failure> {
    let failed = |error: io::Error| Failure::io("compare", one, &error);
    let roots = (
        tree.open_root(one).map_err(failed)?,
        tree.open_root(other).map_err(failed)?,
    );
    let mut compared = Compared {
        objects: 0,
        differences: Vec::new(),
    };
    let mut pending = vec![(PathBuf::new(), roots.0, roots.1)];
    while let Some((path, one, other)) = pending.pop() {
        let nodes = (Node::Dir(&one), Node::Dir(&other));
        object(tree, &path, nodes, &mut compared).map_err(failed)?;
        let mut names = by_name(tree.read_dir(&one).map_err(failed)?);
        let others = by_name(tree.read_dir(&other).map_err(failed)?);
        for (name, kind) in others {
            let inner = path.join(&name);
            match names.remove(&name) {
                None => compared.differ(&inner, "is in the second only"),
                Some(found) if found != kind => compared.differ(&inner, "is of another type"),
                Some(FileKind::Directory) => {
                    let open = |dir| tree.open_dir(dir, &name).map_err(failed);
                    pending.push((inner, open(&one)?, open(&other)?));
                }
                Some(kind) => {
                    let nodes = (Node::Entry(&one, &name), Node::Entry(&other, &name));
                    object(tree, &inner, nodes, &mut compared).map_err(failed)?;
                    let same = contents(tree, kind, (&one, &other), &name).map_err(failed)?;
                    if !same {
                        compared.differ(&inner, "has other contents");
                    }
                }
            }
        }
        for name in names.into_keys() {
            compared.differ(&path.join(name), "is in the first only");
        }
    }
    Ok(compared)
}

impl Compared {
    fn differ(&mut self, path: &Path, how: &str) {
        self.differences
            .push(format!("/{} {how}", EscapedPath(path)));
    }
}

fn by_name(entries: Vec<DirEntry>) -> BTreeMap<OsString, FileKind> {
    entries
        .into_iter()
        .map(|entry| (entry.name, entry.kind))
        .collect()
}

fn object(
    tree: &dyn TreeBackend,
    path: &Path,
    (one, other): (Node<'_>, Node<'_>),
    compared: &mut Compared,
) -> io::Result<()> {
    compared.objects += 1;
    let (first, second) = (tree.metadata(one)?, tree.metadata(other)?);
    let is_dir = first.is_dir();
    for (same, what) in [
        (
            (first.uid, first.gid) == (second.uid, second.gid),
            "has another owner",
        ),
        (first.mode == second.mode, "has another mode"),
        (first.mtime == second.mtime, "has another time"),
        (first.rdev == second.rdev, "is another device"),
        (
            is_dir || first.nlink == second.nlink,
            "has another number of links",
        ),
        (is_dir || first.size == second.size, "has another size"),
        (
            xattrs(tree, one)? == xattrs(tree, other)?,
            "has other attributes",
        ),
    ] {
        if !same {
            compared.differ(path, what);
        }
    }
    Ok(())
}

fn xattrs(
    tree: &dyn TreeBackend,
    node: Node<'_>,
) -> io::Result<BTreeMap<OsString, Option<Vec<u8>>>> {
    let names = tree.list_xattrs(node)?.into_iter();
    names
        .map(|name| Ok((name.clone(), tree.xattr(node, &name)?)))
        .collect()
}

fn contents(
    tree: &dyn TreeBackend,
    kind: FileKind,
    (one, other): (&DirHandle, &DirHandle),
    name: &OsStr,
) -> io::Result<bool> {
    match kind {
        FileKind::Symlink => Ok(tree.read_link(one, name)? == tree.read_link(other, name)?),
        FileKind::Regular => {
            let files = (tree.open_file(one, name)?, tree.open_file(other, name)?);
            let (mut first, mut second) = (vec![0; BUFFER_LEN], vec![0; BUFFER_LEN]);
            let mut offset = 0;
            loop {
                let len = fill(tree, &files.0, offset, &mut first)?;
                if fill(tree, &files.1, offset, &mut second)? != len
                    || first[..len] != second[..len]
                {
                    return Ok(false);
                }
                if len < BUFFER_LEN {
                    return Ok(true);
                }
                offset += len as u64;
            }
        }
        _ => Ok(true),
    }
}

fn fill(
    tree: &dyn TreeBackend,
    file: &FileHandle,
    offset: u64,
    buffer: &mut [u8],
) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match tree.read_at(file, offset + filled as u64, &mut buffer[filled..])? {
            0 => break,
            len => filled += len,
        }
    }
    Ok(filled)
}
