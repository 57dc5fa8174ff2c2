//! Random layers, as overlayfs leaves them on disk.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt as _;

use ovl_diff::{DeviceNumber, DirHandle, Node, NodeKind};
use proptest::collection::btree_map;
use proptest::option;
use proptest::prelude::*;

use crate::support::{CAPABILITY, DEFAULT_ACL, Scene, at, make_socket};

/// The contents of one layer's directory.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    attributes: Attributes,
    children: Children,
}

type Children = BTreeMap<u8, Object>;

#[derive(Clone, Debug)]
enum Object {
    Dir {
        attributes: Attributes,
        mark: Mark,
        children: Children,
    },
    /// Leaves of one group are hard links of the first of them.
    Leaf {
        attributes: Attributes,
        kind: Leaf,
        group: Option<u8>,
    },
    Whiteout,
    /// The form that the kernel reads and never writes.
    XattrWhiteout,
}

#[derive(Clone, Copy, Debug)]
enum Mark {
    None,
    Opaque,
    HoldsXattrWhiteouts,
}

#[derive(Clone, Copy, Debug)]
enum Leaf {
    File(u8),
    Symlink(u8),
    Fifo,
    CharDevice,
    BlockDevice,
    Socket,
}

/// Which of the tables below; small numbers, so that layers often agree.
#[derive(Clone, Copy, Debug)]
struct Attributes {
    mode: u8,
    owner: u8,
    mtime: u8,
    xattrs: u8,
}

const MODES: [u32; 5] = [0o755, 0o644, 0o6711, 0o1777, 0];
const OWNERS: [(u32, u32); 4] = [(0, 0), (1000, 0), (0, 1000), (3_000_000, u32::MAX - 1)];
const MTIMES: [(i64, u32); 5] = [
    (1_000_000_000, 0),
    (1_000_000_000, 1),
    (-5, 250_000_000),
    (0, 0),
    (1 << 33, 0),
];

fn xattrs(which: u8, leaf: Option<Leaf>) -> Vec<(&'static str, Vec<u8>)> {
    let user = matches!(leaf, None | Some(Leaf::File(_)));
    match which {
        1 if user => vec![("user.colour", b"r\ned\0=".to_vec())],
        2 => vec![("trusted.other", Vec::new())],
        3 => vec![("trusted.overlay.overlay.opaque", b"y".to_vec())],
        4 if matches!(leaf, Some(Leaf::File(_))) => {
            vec![("security.capability", CAPABILITY.to_vec())]
        }
        4 if user => vec![
            ("user.overlay.opaque", b"y".to_vec()),
            ("user.b", vec![7; 300]),
        ],
        _ => Vec::new(),
    }
}

fn contents(which: u8) -> Vec<u8> {
    match which {
        0 => Vec::new(),
        1 => b"one".to_vec(),
        2 => b"two".to_vec(),
        _ => (0..9000_u32)
            .map(|n| if n < 5000 { 0 } else { n as u8 })
            .collect(),
    }
}

fn name(which: u8) -> OsString {
    match which {
        0..4 => OsString::from(char::from(b'a' + which).to_string()),
        4 => OsString::from_vec(b"e\n\xff".to_vec()),
        _ => OsString::from("long-".repeat(24)),
    }
}

fn small(len: u8) -> impl Strategy<Value = u8> {
    prop_oneof![3 => Just(0), 1 => 0..len]
}

fn attributes() -> impl Strategy<Value = Attributes> {
    (small(5), small(4), small(5), small(5)).prop_map(|(mode, owner, mtime, xattrs)| Attributes {
        mode,
        owner,
        mtime,
        xattrs,
    })
}

fn leaf() -> impl Strategy<Value = Leaf> {
    prop_oneof![
        6 => (0..4_u8).prop_map(Leaf::File),
        2 => (0..3_u8).prop_map(Leaf::Symlink),
        1 => Just(Leaf::Fifo),
        1 => Just(Leaf::CharDevice),
        1 => Just(Leaf::BlockDevice),
        1 => Just(Leaf::Socket),
    ]
}

fn object() -> impl Strategy<Value = Object> {
    let leaf = prop_oneof![
        5 => (attributes(), leaf(), option::weighted(0.3, 0..3_u8))
            .prop_map(|(attributes, kind, group)| Object::Leaf { attributes, kind, group }),
        2 => Just(Object::Whiteout),
        1 => Just(Object::XattrWhiteout),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        let mark = prop_oneof![
            4 => Just(Mark::None),
            1 => Just(Mark::Opaque),
            1 => Just(Mark::HoldsXattrWhiteouts),
        ];
        (attributes(), mark, btree_map(0..6_u8, inner, 0..5)).prop_map(
            |(attributes, mark, children)| Object::Dir {
                attributes,
                mark,
                children,
            },
        )
    })
}

/// One layer.
pub(super) fn layer() -> impl Strategy<Value = Layer> {
    (attributes(), btree_map(0..6_u8, object(), 0..6)).prop_map(|(attributes, children)| Layer {
        attributes,
        children,
    })
}

/// Makes the layer.
pub(super) fn build(scene: &Scene, layer: &Layer) -> DirHandle {
    build_with(scene, layer, scene.has_sockets)
}

pub(super) fn build_without_sockets(scene: &Scene, layer: &Layer) -> DirHandle {
    build_with(scene, layer, false)
}

fn build_with(scene: &Scene, layer: &Layer, sockets: bool) -> DirHandle {
    let dir = scene.layer();
    let mut builder = Builder {
        scene,
        sockets,
        groups: HashMap::new(),
        whiteout: None,
    };
    builder.fill(&dir, &layer.children);
    builder.dress(Node::Dir(&dir), layer.attributes, None);
    dir
}

struct Builder<'s> {
    scene: &'s Scene,
    sockets: bool,
    groups: HashMap<u8, (DirHandle, OsString)>,
    /// The kernel links all whiteouts of a mount together.
    whiteout: Option<(DirHandle, OsString)>,
}

impl Builder<'_> {
    fn fill(&mut self, dir: &DirHandle, children: &Children) {
        for (which, object) in children {
            let name = name(*which);
            match object {
                Object::Dir {
                    attributes,
                    mark,
                    children,
                } => {
                    self.directory(dir, &name, *attributes, *mark, children);
                }
                Object::Leaf {
                    attributes,
                    kind,
                    group,
                } => {
                    self.leaf(dir, &name, *attributes, *kind, *group);
                }
                Object::Whiteout => self.whiteout(dir, &name),
                Object::XattrWhiteout => {
                    let tree = self.scene.tree();
                    tree.create_file(dir, &name, 0o600).unwrap();
                    let attribute = OsStr::new(self.scene.xattrs.whiteout());
                    tree.set_xattr(Node::Entry(dir, &name), attribute, b"")
                        .unwrap();
                }
            }
        }
    }

    fn directory(
        &mut self,
        parent: &DirHandle,
        name: &OsStr,
        attributes: Attributes,
        mark: Mark,
        children: &Children,
    ) {
        let tree = self.scene.tree();
        tree.create_dir(parent, name, 0o700).unwrap();
        let dir = tree.open_dir(parent, name).unwrap();
        let value = match mark {
            Mark::None => None,
            Mark::Opaque => Some(b"y"),
            Mark::HoldsXattrWhiteouts => Some(b"x"),
        };
        if let Some(value) = value {
            let attribute = OsStr::new(self.scene.xattrs.opaque());
            tree.set_xattr(Node::Dir(&dir), attribute, value).unwrap();
        }
        self.fill(&dir, children);
        self.dress(Node::Dir(&dir), attributes, None);
        // After what is inside was made, or it would be inherited.
        if attributes.xattrs == 2 && self.scene.has_acls {
            let acl = OsStr::new("system.posix_acl_default");
            tree.set_xattr(Node::Dir(&dir), acl, DEFAULT_ACL).unwrap();
        }
    }

    fn leaf(
        &mut self,
        dir: &DirHandle,
        name: &OsStr,
        attributes: Attributes,
        kind: Leaf,
        group: Option<u8>,
    ) {
        let tree = self.scene.tree();
        if let Some((first_dir, first)) = group.and_then(|group| self.groups.get(&group)) {
            tree.hard_link(first_dir, first, dir, name).unwrap();
            return;
        }
        let device = DeviceNumber { major: 8, minor: 1 };
        match kind {
            Leaf::File(which) => {
                let file = tree.create_file(dir, name, 0o600).unwrap();
                tree.write_at(&file, 0, &contents(which)).unwrap();
            }
            Leaf::Symlink(which) => {
                let target = ["a", "../b/c", "/nowhere"][usize::from(which)];
                tree.create_symlink(dir, name, OsStr::new(target)).unwrap();
            }
            Leaf::Fifo => tree.create_node(dir, name, NodeKind::Fifo, 0o600).unwrap(),
            Leaf::CharDevice => {
                tree.create_node(dir, name, NodeKind::CharDevice(device), 0o600)
                    .unwrap();
            }
            Leaf::BlockDevice => {
                tree.create_node(dir, name, NodeKind::BlockDevice(device), 0o600)
                    .unwrap();
            }
            Leaf::Socket if self.sockets => make_socket(dir, name),
            Leaf::Socket => return,
        }
        self.dress(Node::Entry(dir, name), attributes, Some(kind));
        if let Some(group) = group {
            self.groups.insert(group, (dir.clone(), name.to_owned()));
        }
    }

    fn whiteout(&mut self, dir: &DirHandle, name: &OsStr) {
        let tree = self.scene.tree();
        match &self.whiteout {
            Some((first_dir, first)) => tree.hard_link(first_dir, first, dir, name).unwrap(),
            None => {
                let kind = NodeKind::CharDevice(DeviceNumber::default());
                tree.create_node(dir, name, kind, 0).unwrap();
                self.whiteout = Some((dir.clone(), name.to_owned()));
            }
        }
    }

    fn dress(&self, node: Node<'_>, attributes: Attributes, leaf: Option<Leaf>) {
        let tree = self.scene.tree();
        let (uid, gid) = OWNERS[usize::from(attributes.owner)];
        tree.set_owner(node, uid, gid).unwrap();
        if !matches!(leaf, Some(Leaf::Symlink(_))) {
            tree.set_mode(node, MODES[usize::from(attributes.mode)])
                .unwrap();
        }
        for (name, value) in xattrs(attributes.xattrs, leaf) {
            tree.set_xattr(node, OsStr::new(name), &value).unwrap();
        }
        let (secs, nanos) = MTIMES[usize::from(attributes.mtime)];
        tree.set_mtime(node, at(secs, nanos)).unwrap();
    }
}
