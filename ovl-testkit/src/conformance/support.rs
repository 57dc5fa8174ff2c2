//! Short words for what the cases do.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use ovl_diff::{DirHandle, Metadata, Node, NodeKind, RenameMode, TreeBackend, remove_tree};
use ovl_driver::blocking::Overlay2;
use ovl_driver::{
    Applied, Base, CreateLayer, Durability, Error, ImportOptions, MountRequest, OpenOptions,
};
use ovl_layout::LayerId;
use ovl_mount::UnmountMode;
use rustix::io::Errno;

use super::{Skip, Subject};
use crate::snapshot::{Snapshot, differences, snapshot_at};

pub(super) fn id(text: &str) -> LayerId {
    text.parse().expect("the case uses a valid id")
}

pub(super) fn layer(text: &str, parent: Option<&str>) -> CreateLayer {
    CreateLayer::new(id(text)).parent(parent.map(id))
}

impl Subject {
    /// A new home in the subject's directory.
    pub(super) fn store(&self) -> Overlay2 {
        self.open("home").expect("a new home can be made")
    }

    pub(super) fn open(&self, name: &str) -> Result<Overlay2, Error> {
        let options = OpenOptions::new().create(true).durability(Durability::None);
        Overlay2::open(self.kernel().clone(), &self.dir().join(name), options)
    }

    pub(super) fn tree(&self) -> &dyn TreeBackend {
        self.kernel().tree()
    }

    fn parent<'p>(&self, path: &'p Path) -> (DirHandle, &'p OsStr) {
        let parent = path.parent().expect("the case uses paths with a parent");
        let dir = self.tree().open_root(parent);
        let dir = dir.unwrap_or_else(|error| panic!("open {}: {error}", parent.display()));
        (
            dir,
            path.file_name().expect("the case uses paths with a name"),
        )
    }

    pub(super) fn write(&self, path: &Path, contents: &[u8]) {
        let (dir, name) = self.parent(path);
        let file = self.tree().create_file(&dir, name, 0o644);
        let file = file.unwrap_or_else(|error| panic!("create {}: {error}", path.display()));
        self.tree()
            .write_at(&file, 0, contents)
            .expect("a new file can be written");
    }

    pub(super) fn rewrite(&self, path: &Path, contents: &[u8]) {
        self.unlink(path);
        self.write(path, contents);
    }

    pub(super) fn read(&self, path: &Path) -> Vec<u8> {
        let (dir, name) = self.parent(path);
        let file = self.tree().open_file(&dir, name);
        let file = file.unwrap_or_else(|error| panic!("open {}: {error}", path.display()));
        let len = self
            .tree()
            .metadata(Node::File(&file))
            .expect("an open file has metadata")
            .size;
        let mut contents = vec![0; usize::try_from(len).expect("cases use small files")];
        let mut filled = 0;
        while filled < contents.len() {
            let offset = filled as u64;
            match self
                .tree()
                .read_at(&file, offset, &mut contents[filled..])
                .expect("readable")
            {
                0 => break,
                len => filled += len,
            }
        }
        contents.truncate(filled);
        contents
    }

    pub(super) fn mkdir(&self, path: &Path, mode: u32) {
        let (dir, name) = self.parent(path);
        let made = self.tree().create_dir(&dir, name, mode);
        made.unwrap_or_else(|error| panic!("mkdir {}: {error}", path.display()));
    }

    pub(super) fn rmdir(&self, path: &Path) {
        let (dir, name) = self.parent(path);
        let gone = self.tree().remove_dir(&dir, name);
        gone.unwrap_or_else(|error| panic!("rmdir {}: {error}", path.display()));
    }

    pub(super) fn unlink(&self, path: &Path) {
        let (dir, name) = self.parent(path);
        let gone = self.tree().unlink(&dir, name);
        gone.unwrap_or_else(|error| panic!("unlink {}: {error}", path.display()));
    }

    pub(super) fn remove_tree(&self, path: &Path) {
        let (dir, name) = self.parent(path);
        let gone = remove_tree(self.tree(), &dir, name);
        gone.unwrap_or_else(|error| panic!("remove {}: {error}", path.display()));
    }

    pub(super) fn symlink(&self, path: &Path, target: &str) {
        let (dir, name) = self.parent(path);
        let made = self.tree().create_symlink(&dir, name, OsStr::new(target));
        made.unwrap_or_else(|error| panic!("symlink {}: {error}", path.display()));
    }

    pub(super) fn fifo(&self, path: &Path) {
        let (dir, name) = self.parent(path);
        let made = self.tree().create_node(&dir, name, NodeKind::Fifo, 0o600);
        made.unwrap_or_else(|error| panic!("mkfifo {}: {error}", path.display()));
    }

    pub(super) fn link(&self, from: &Path, to: &Path) {
        let ((from_dir, from), (to_dir, to)) = (self.parent(from), self.parent(to));
        self.tree()
            .hard_link(&from_dir, from, &to_dir, to)
            .expect("a file can be linked");
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) {
        let ((from_dir, from), (to_dir, to)) = (self.parent(from), self.parent(to));
        let moved = self
            .tree()
            .rename(&from_dir, from, &to_dir, to, RenameMode::Replace);
        moved.expect("a file can be renamed");
    }

    pub(super) fn chmod(&self, path: &Path, mode: u32) {
        let (dir, name) = self.parent(path);
        self.tree()
            .set_mode(Node::Entry(&dir, name), mode)
            .expect("a mode can be set");
    }

    pub(super) fn set_xattr(&self, path: &Path, attribute: &str, value: &[u8]) {
        let (dir, name) = self.parent(path);
        let node = Node::Entry(&dir, name);
        let set = self.tree().set_xattr(node, OsStr::new(attribute), value);
        set.unwrap_or_else(|error| panic!("set {attribute} on {}: {error}", path.display()));
    }

    /// Sets an attribute that archives carry: one that every user may set, where the file system
    /// takes those.
    pub(super) fn set_any_xattr(&self, path: &Path, value: &[u8]) {
        let (dir, name) = self.parent(path);
        for kind in ["user", "trusted"] {
            let attribute = format!("{kind}.colour");
            let node = Node::Entry(&dir, name);
            let set = self.tree().set_xattr(node, OsStr::new(&attribute), value);
            match set.map_err(|error| (Errno::from_io_error(&error), error)) {
                Ok(()) => return,
                Err((Some(Errno::OPNOTSUPP | Errno::PERM), error)) => {
                    let reason = format!("the file system does not take them: {error}");
                    self.skip(Skip::part(format!("{kind} attributes"), reason));
                }
                Err((_, error)) => panic!("set {attribute} on {}: {error}", path.display()),
            }
        }
    }

    pub(super) fn exists(&self, path: &Path) -> bool {
        let (dir, name) = self.parent(path);
        match self.tree().metadata(Node::Entry(&dir, name)) {
            Ok(_) => true,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
            Err(error) => panic!("look at {}: {error}", path.display()),
        }
    }

    pub(super) fn metadata(&self, path: &Path) -> Metadata {
        let (dir, name) = self.parent(path);
        let found = self.tree().metadata(Node::Entry(&dir, name));
        found.unwrap_or_else(|error| panic!("look at {}: {error}", path.display()))
    }

    pub(super) fn mode(&self, path: &Path) -> u32 {
        self.metadata(path).mode
    }

    pub(super) fn owner(&self, path: &Path) -> (u32, u32) {
        let found = self.metadata(path);
        (found.uid, found.gid)
    }

    pub(super) fn chown(&self, path: &Path, uid: u32, gid: u32) {
        let (dir, name) = self.parent(path);
        let given = self.tree().set_owner(Node::Entry(&dir, name), uid, gid);
        given.unwrap_or_else(|error| panic!("chown {}: {error}", path.display()));
    }

    pub(super) fn xattr(&self, path: &Path, attribute: &str) -> Option<Vec<u8>> {
        let (dir, name) = self.parent(path);
        let node = Node::Entry(&dir, name);
        let value = self.tree().xattr(node, OsStr::new(attribute));
        value.unwrap_or_else(|error| panic!("read {attribute} of {}: {error}", path.display()))
    }

    pub(super) fn names(&self, path: &Path) -> Vec<String> {
        let dir = self.tree().open_root(path).expect("a directory");
        let entries = self
            .tree()
            .read_dir(&dir)
            .expect("a directory can be listed")
            .into_iter();
        let mut names: Vec<String> = entries
            .map(|entry| entry.name.to_string_lossy().into_owned())
            .collect();
        names.retain(|name| name != "lost+found");
        names.sort();
        names
    }

    /// What a layer shows, by a mount of its own.
    pub(super) fn shown(&self, store: &Overlay2, id: &str) -> Snapshot {
        with_mount(store, id, |path| {
            snapshot_at(self.tree(), path).expect("a mounted tree can be read")
        })
    }

    /// Nothing may be mounted, staged or in the trash when a case ends.
    pub(super) fn assert_clean(&self, store: &Overlay2) {
        let mounts = self
            .kernel()
            .mount()
            .mounts_below(store.home())
            .expect("mounts can be listed");
        assert_eq!(mounts, [], "nothing is left mounted");
        for name in ["staging", "trash", "holds"] {
            let path = store.layout().store_dir().join(name);
            if self.exists(&path) {
                assert_eq!(self.names(&path), [""; 0], "nothing is left in {name}");
            }
        }
        let report = store.check().expect("a home can be checked");
        assert!(report.is_clean(), "{report:#?}");
        let links = self.names(&store.layout().link_dir()).len();
        let layers = store.layers().expect("layers can be listed");
        assert_eq!(
            links,
            layers.layers.len() + layers.broken.len(),
            "one link a layer"
        );
    }
}

/// Mounts a layer, does something with the path, unmounts it.
pub(super) fn with_mount<T>(store: &Overlay2, layer: &str, work: impl FnOnce(&Path) -> T) -> T {
    let path = mount(store, layer);
    let result = work(&path);
    unmount(store, layer);
    result
}

pub(super) fn mount(store: &Overlay2, layer: &str) -> PathBuf {
    let mounted = store.mount(&id(layer), &MountRequest::new());
    mounted.unwrap_or_else(|error| panic!("mount {layer}: {}", chain(&error)))
}

pub(super) fn unmount(store: &Overlay2, layer: &str) {
    let unmounted = store.unmount(&id(layer), UnmountMode::Now);
    unmounted.unwrap_or_else(|error| panic!("unmount {layer}: {}", chain(&error)));
}

pub(super) fn create(store: &Overlay2, name: &str, parent: Option<&str>) {
    let created = store.create(&layer(name, parent));
    created.unwrap_or_else(|error| panic!("create {name}: {}", chain(&error)));
}

pub(super) fn import(
    store: &Overlay2,
    name: &str,
    parent: Option<&str>,
    archive: &[u8],
) -> Applied {
    try_import(store, name, parent, archive)
        .unwrap_or_else(|error| panic!("import {name}: {}", chain(&error)))
}

pub(super) fn try_import(
    store: &Overlay2,
    name: &str,
    parent: Option<&str>,
    archive: &[u8],
) -> Result<Applied, Error> {
    store.import(
        &layer(name, parent),
        archive,
        ImportOptions::new(),
        &mut |_| {},
    )
}

pub(super) fn diff(store: &Overlay2, layer: &str, base: &Base) -> Vec<u8> {
    let mut archive = Vec::new();
    let written = store.diff(&id(layer), base, &mut archive);
    written.unwrap_or_else(|error| panic!("diff {layer}: {}", chain(&error)));
    archive
}

pub(super) fn changes(store: &Overlay2, layer: &str, base: &Base) -> Vec<String> {
    let changes = store.changes(&id(layer), base);
    let changes = changes.unwrap_or_else(|error| panic!("changes {layer}: {}", chain(&error)));
    changes.iter().map(ToString::to_string).collect()
}

#[track_caller]
pub(super) fn assert_same(one: &Snapshot, other: &Snapshot) {
    if let Some(words) = differences(one, other) {
        panic!("the trees differ:\n{words}");
    }
}

pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        words = format!("{words}: {source}");
        next = source.source();
    }
    words
}
