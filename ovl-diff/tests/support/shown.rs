//! Everything that can be seen of a stack of layers.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use ovl_diff::{
    DeviceNumber, DirHandle, FileKind, Found, Metadata, Node, Timestamp, TreeBackend, View, ViewDir,
};
use ovl_layout::XattrNamespace;

/// One object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) kind: FileKind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) rdev: DeviceNumber,
    pub(crate) mtime: Timestamp,
    /// As the user of a mount sees them.
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// A file's contents or a link's text.
    pub(crate) contents: Vec<u8>,
    /// The first visible name of the same inode.
    pub(crate) linked_to: PathBuf,
}

impl Seen {
    pub(crate) fn is_dir(&self) -> bool {
        self.kind == FileKind::Directory
    }

    pub(crate) fn owner(&self) -> (u32, u32) {
        (self.uid, self.gid)
    }

    pub(crate) fn xattr(&self, name: &str) -> Option<&[u8]> {
        self.xattrs.get(name.as_bytes()).map(Vec::as_slice)
    }
}

/// The objects by path; the root is the empty path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shown(pub(crate) BTreeMap<PathBuf, Seen>);

impl Shown {
    /// What the layers show.
    pub(crate) fn of(view: View<'_>, root: &ViewDir) -> Self {
        Self::read(view, root, Some(view.xattrs().prefix().as_bytes()))
    }

    /// What is in a tree that the kernel has merged.
    pub(crate) fn of_mount(tree: &dyn TreeBackend, root: DirHandle) -> Self {
        let view = View::new(tree, XattrNamespace::Trusted);
        Self::read(view, &ViewDir::new(vec![root]), None)
    }

    fn read(view: View<'_>, root: &ViewDir, private: Option<&[u8]>) -> Self {
        let mut shown = Self::default();
        let mut links = HashMap::new();
        if let Some(top) = root.parts().first() {
            let node = Node::Dir(top);
            let metadata = view.tree().metadata(node).unwrap();
            let xattrs = xattrs(view.tree(), node, private);
            shown.add(&metadata, Path::new(""), xattrs, Vec::new(), &mut links);
        }
        let mut pending = vec![(root.clone(), PathBuf::new())];
        while let Some((dir, path)) = pending.pop() {
            let mut dirs = Vec::new();
            for name in view.names(&dir).unwrap() {
                let path = path.join(&name);
                match view.lookup(&dir, &name).unwrap() {
                    Found::Nothing => {}
                    Found::Directory(inner, metadata) => {
                        let node = Node::Dir(&inner.parts()[0]);
                        let xattrs = xattrs(view.tree(), node, private);
                        shown.add(&metadata, &path, xattrs, Vec::new(), &mut links);
                        dirs.push((inner, path));
                    }
                    Found::Object(holder, metadata) => {
                        let contents = contents(view, &dir, &holder, &name, &metadata);
                        let node = Node::Entry(&holder, &name);
                        let xattrs = xattrs(view.tree(), node, private);
                        shown.add(&metadata, &path, xattrs, contents, &mut links);
                    }
                }
            }
            pending.extend(dirs.into_iter().rev());
        }
        shown
    }

    fn add(
        &mut self,
        metadata: &Metadata,
        path: &Path,
        xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
        contents: Vec<u8>,
        links: &mut HashMap<(DeviceNumber, u64), PathBuf>,
    ) {
        let &Metadata {
            kind,
            mode,
            uid,
            gid,
            rdev,
            mtime,
            ..
        } = metadata;
        let linked_to = match kind {
            FileKind::Directory => path.to_owned(),
            _ => links
                .entry((metadata.dev, metadata.ino))
                .or_insert(path.to_owned())
                .clone(),
        };
        let seen = Seen {
            kind,
            mode,
            uid,
            gid,
            rdev,
            mtime,
            xattrs,
            contents,
            linked_to,
        };
        self.0.insert(path.to_owned(), seen);
    }

    /// The names of a directory; of the root for an empty path.
    pub(crate) fn names(&self, dir: &str) -> Vec<String> {
        let dir = Path::new(dir);
        let inner = self.0.keys().filter(|path| path.parent() == Some(dir));
        inner
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect()
    }

    /// What is at a path.
    #[track_caller]
    pub(crate) fn at(&self, path: &str) -> &Seen {
        self.0
            .get(Path::new(path))
            .unwrap_or_else(|| panic!("{path} does not show: {self:#?}"))
    }

    /// The same without the times of directories, which an archive of changes does not carry.
    pub(crate) fn without_dir_times(mut self) -> Self {
        for seen in self.0.values_mut().filter(|seen| seen.is_dir()) {
            seen.mtime = Timestamp::default();
        }
        self
    }

    /// The same without sockets, which an archive cannot hold.
    pub(crate) fn without_sockets(mut self) -> Self {
        self.0.retain(|_, seen| seen.kind != FileKind::Socket);
        self
    }

    /// Says in words where the other differs.
    pub(crate) fn difference(&self, other: &Self) -> Option<String> {
        let mut paths: Vec<&PathBuf> = self.0.keys().chain(other.0.keys()).collect();
        paths.sort();
        paths.dedup();
        let mut words = String::new();
        for path in paths
            .into_iter()
            .filter(|path| self.0.get(*path) != other.0.get(*path))
        {
            let _ = writeln!(words, "/{}:", path.display());
            let _ = writeln!(words, "  {:?}\n  {:?}", self.0.get(path), other.0.get(path));
        }
        (!words.is_empty()).then_some(words)
    }
}

/// The attributes, of private ones only those behind the kernel's escape, and without it.
fn xattrs(
    tree: &dyn TreeBackend,
    node: Node<'_>,
    private: Option<&[u8]>,
) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut found = BTreeMap::new();
    for stored in tree.list_xattrs(node).unwrap() {
        let bytes = stored.as_bytes();
        // How XFS itself keeps access control lists, which are there under their own names too.
        if bytes.starts_with(b"trusted.SGI_ACL_") {
            continue;
        }
        let rest = private.and_then(|prefix| bytes.strip_prefix(prefix));
        let seen = match rest.map(|rest| rest.strip_prefix(b"overlay.")) {
            None => bytes.to_vec(),
            Some(None) => continue,
            Some(Some(own)) => [private.unwrap_or_default(), own].concat(),
        };
        found.insert(seen, tree.xattr(node, &stored).unwrap().unwrap());
    }
    found
}

fn contents(
    view: View<'_>,
    merged: &ViewDir,
    dir: &DirHandle,
    name: &OsStr,
    metadata: &Metadata,
) -> Vec<u8> {
    let tree = view.tree();
    match metadata.kind {
        FileKind::Symlink => tree.read_link(dir, name).unwrap().into_encoded_bytes(),
        FileKind::Regular => {
            let file = view.open_file(merged, name).unwrap();
            let (mut contents, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
            loop {
                match tree
                    .read_at(&file, contents.len() as u64, &mut buffer)
                    .unwrap()
                {
                    0 => return contents,
                    len => contents.extend_from_slice(&buffer[..len]),
                }
            }
        }
        _ => Vec::new(),
    }
}
