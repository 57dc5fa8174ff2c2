//! What the tests of apply, diff and the law share: scratch trees on every backend, archives by
//! hand, and everything that a stack of layers shows.

mod archive;
mod recorder;
mod shown;

use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use ovl_diff::{
    ApplyError, ApplyOptions, ApplySummary, ArchiveError, BadArchive, BadReason, DeviceNumber,
    DirHandle, HostTree, Node, NodeKind, Timestamp, TreeBackend, View, ViewDir,
    copy_root_attributes, remove_tree,
};
use ovl_layout::XattrNamespace;
use ovl_testkit::{KernelProfile, MockKernel, Snapshot, differences, snapshot};
use tempfile::TempDir;

pub(crate) use archive::{Entry, archive, members};
pub(crate) use recorder::Recorder;
pub(crate) use shown::{Seen, Shown};

/// A directory on some backend, with layers in it and, next to them, what nobody may touch.
pub(crate) struct Scene {
    pub(crate) backend: &'static str,
    pub(crate) tree: Arc<dyn TreeBackend>,
    pub(crate) dir: DirHandle,
    pub(crate) path: PathBuf,
    pub(crate) xattrs: XattrNamespace,
    /// How often to try something with random input.
    pub(crate) cases: u32,
    pub(crate) has_sockets: bool,
    pub(crate) has_acls: bool,
    layers: AtomicU32,
    _temp: Option<TempDir>,
}

/// Runs a test on every backend.
pub(crate) fn each(test: impl Fn(&Scene)) {
    test(&Scene::mock());
    if let Some(scene) = Scene::host() {
        test(&scene);
    }
}

impl Scene {
    /// On the running system; `None`, loudly, for anybody but root.
    pub(crate) fn host() -> Option<Self> {
        if !is_root() {
            skip("owners, devices and trusted attributes of this system need root");
            return None;
        }
        let temp = temp_dir();
        let tree = HostTree::default();
        let dir = tree.open_root(temp.path()).unwrap();
        Some(Self::new("host", Arc::new(tree), dir, Some(temp)))
    }

    /// In memory.
    pub(crate) fn mock() -> Self {
        let kernel = MockKernel::new(KernelProfile::modern());
        kernel.mkdir_all("/scene".as_ref()).unwrap();
        let dir = kernel.open_root("/scene".as_ref()).unwrap();
        Self::new("the mock", Arc::new(kernel), dir, None)
    }

    fn new(
        backend: &'static str,
        tree: Arc<dyn TreeBackend>,
        dir: DirHandle,
        temp: Option<TempDir>,
    ) -> Self {
        let has_acls = temp.as_ref().is_none_or(|temp| takes_acls(temp.path()));
        let scene = Self {
            backend,
            tree,
            dir,
            path: temp
                .as_ref()
                .map_or("/scene".into(), |temp| temp.path().to_owned()),
            xattrs: XattrNamespace::Trusted,
            cases: if temp.is_some() { 64 } else { 256 },
            has_sockets: temp.is_some(),
            has_acls,
            layers: AtomicU32::new(0),
            _temp: temp,
        };
        let victim = scene.make_dir(&scene.dir, "victim");
        scene.write(&victim, "hello", b"hands off");
        scene.tree().set_mode(Node::Dir(&victim), 0o750).unwrap();
        scene
    }

    pub(crate) fn tree(&self) -> &dyn TreeBackend {
        &*self.tree
    }

    pub(crate) fn view(&self) -> View<'_> {
        View::new(self.tree(), self.xattrs)
    }

    /// Removes all layers.
    pub(crate) fn clear(&self) {
        for entry in self.tree().read_dir(&self.dir).unwrap() {
            if entry.name != "victim" {
                remove_tree(self.tree(), &self.dir, &entry.name).unwrap();
            }
        }
    }

    /// A new empty layer.
    pub(crate) fn layer(&self) -> DirHandle {
        let number = self.layers.fetch_add(1, Ordering::Relaxed);
        self.make_dir(&self.dir, &format!("layer-{number}"))
    }

    pub(crate) fn make_dir(&self, parent: &DirHandle, name: &str) -> DirHandle {
        let name = OsStr::new(name);
        self.tree().create_dir(parent, name, 0o755).unwrap();
        self.tree().open_dir(parent, name).unwrap()
    }

    pub(crate) fn write(&self, parent: &DirHandle, name: &str, contents: &[u8]) {
        let name = OsStr::new(name);
        let file = self.tree().create_file(parent, name, 0o644).unwrap();
        self.tree().write_at(&file, 0, contents).unwrap();
    }

    /// Whether the file system can store this time.
    pub(crate) fn keeps_time(&self, time: Timestamp) -> bool {
        let layer = self.layer();
        self.tree().set_mtime(Node::Dir(&layer), time).unwrap();
        self.tree().metadata(Node::Dir(&layer)).unwrap().mtime == time
    }

    fn takes_device(&self, kind: NodeKind) -> bool {
        let layer = self.layer();
        self.tree()
            .create_node(&layer, OsStr::new("n"), kind, 0)
            .is_ok()
    }

    /// The largest device number of the file system: Linux's, or that of XFS.
    pub(crate) fn last_device(&self) -> DeviceNumber {
        let [linux, xfs] = [(4095, 0xf_ffff), (511, 0x3_ffff)];
        let number = |(major, minor)| DeviceNumber { major, minor };
        match self.takes_device(NodeKind::CharDevice(number(linux))) {
            true => number(linux),
            false => number(xfs),
        }
    }

    /// The longest text of a symbolic link that the file system has, in bytes: Linux's, or that of
    /// XFS.
    pub(crate) fn longest_link(&self) -> usize {
        let (layer, longest) = (self.layer(), "x".repeat(4095));
        let target = OsStr::new(&longest);
        match self.tree().create_symlink(&layer, OsStr::new("l"), target) {
            Ok(()) => 4095,
            Err(_) => 1023,
        }
    }

    /// What the kernel leaves where a name was removed.
    pub(crate) fn whiteout(&self, parent: &DirHandle, name: &str) {
        let kind = NodeKind::CharDevice(DeviceNumber::default());
        self.tree()
            .create_node(parent, OsStr::new(name), kind, 0)
            .unwrap();
    }

    pub(crate) fn set_opaque(&self, dir: &DirHandle) {
        let name = OsStr::new(self.xattrs.opaque());
        self.tree().set_xattr(Node::Dir(dir), name, b"y").unwrap();
    }

    pub(crate) fn open(&self, root: &DirHandle, path: &str) -> DirHandle {
        path.split('/').fold(root.clone(), |dir, name| {
            self.tree().open_dir(&dir, OsStr::new(name)).unwrap()
        })
    }

    /// All of one layer as it is on disk.
    pub(crate) fn raw(&self, layer: &DirHandle) -> Snapshot {
        snapshot(self.tree(), layer).unwrap()
    }

    /// What these layers show, uppermost first.
    pub(crate) fn shown(&self, layers: &[&DirHandle]) -> Shown {
        let parts = layers.iter().copied().cloned().collect();
        Shown::of(self.view(), &ViewDir::new(parts))
    }

    /// A stack of layers made from these archives, lowest first.
    pub(crate) fn stack(&self, archives: &[&[Entry]]) -> Stack<'_> {
        let mut stack = Stack {
            scene: self,
            lowers: Vec::new(),
        };
        for entries in archives {
            let applied = stack.apply(entries);
            stack.lowers.insert(0, applied.upper);
        }
        stack
    }

    /// A stack of layers that are there already, uppermost first.
    pub(crate) fn stack_of(&self, lowers: Vec<DirHandle>) -> Stack<'_> {
        Stack {
            scene: self,
            lowers,
        }
    }
}

/// Layers that something is applied on.
pub(crate) struct Stack<'s> {
    pub(crate) scene: &'s Scene,
    /// Uppermost first.
    pub(crate) lowers: Vec<DirHandle>,
}

/// An applied archive.
pub(crate) struct Applied {
    pub(crate) upper: DirHandle,
    pub(crate) summary: ApplySummary,
    /// What shows then.
    pub(crate) shown: Shown,
}

impl Applied {
    /// The names of a directory.
    pub(crate) fn names(&self, dir: &str) -> Vec<String> {
        self.shown.names(dir)
    }

    /// What is at a path.
    #[track_caller]
    pub(crate) fn at(&self, path: &str) -> &Seen {
        self.shown.at(path)
    }
}

impl Stack<'_> {
    /// Applies entries to a new layer on top.
    #[track_caller]
    pub(crate) fn apply(&self, entries: &[Entry]) -> Applied {
        self.apply_bytes(&archive(entries))
    }

    #[track_caller]
    pub(crate) fn apply_bytes(&self, bytes: &[u8]) -> Applied {
        self.try_apply(bytes, &ApplyOptions::new(self.scene.xattrs))
            .unwrap_or_else(|error| panic!("on {}: {error:?}", self.scene.backend))
    }

    /// Applies an archive to a new layer on top, and checks that nothing else was changed: not the
    /// layers below, not what is next to them.
    #[track_caller]
    pub(crate) fn try_apply(
        &self,
        bytes: &[u8],
        options: &ApplyOptions,
    ) -> Result<Applied, ApplyError> {
        let scene = self.scene;
        let upper = scene.layer();
        let below = View::new(scene.tree(), options.xattrs);
        if let Some(below_root) = self.lowers.first() {
            copy_root_attributes(below, below_root, &upper).unwrap();
        }
        let before = self.surroundings(&upper);
        let result = ovl_diff::apply(
            scene.tree(),
            bytes,
            &upper,
            &self.lowers,
            options,
            &mut |_| {},
        );
        if let Some(difference) = differences(&before, &self.surroundings(&upper)) {
            panic!(
                "on {}: apply has changed what is outside the layer: {difference}",
                scene.backend
            );
        }
        let summary = result?;
        let mut parts = vec![upper.clone()];
        if !summary.root_opaque {
            parts.extend_from_slice(&self.lowers);
        }
        let shown = Shown::of(below, &ViewDir::new(parts));
        Ok(Applied {
            upper,
            summary,
            shown,
        })
    }

    /// Takes out what is refused, until nothing is.
    pub(crate) fn acceptable(&self, mut entries: Vec<Entry>, options: &ApplyOptions) -> Vec<Entry> {
        loop {
            let applied = self.try_apply(&archive(&entries), options);
            self.forget_others();
            match applied {
                Ok(_) => return entries,
                Err(ApplyError::Archive(ArchiveError::Bad(bad))) => {
                    let refused = entries.remove(usize::try_from(bad.index).unwrap());
                    // Others like it would mostly be refused too, each in a run of its own.
                    let what =
                        |entry: &Entry| (entry.typeflag, entry.name.clone(), entry.target.clone());
                    entries.retain(|entry| what(entry) != what(&refused));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Removes all layers but those of the stack; that must work whatever is in them.
    pub(crate) fn forget_others(&self) {
        let scene = self.scene;
        let ino = |layer| scene.tree().metadata(Node::Dir(layer)).unwrap().ino;
        let own: Vec<_> = self.lowers.iter().map(ino).collect();
        for entry in scene.tree().read_dir(&scene.dir).unwrap() {
            if entry.name != "victim" && !own.contains(&entry.ino) {
                remove_tree(scene.tree(), &scene.dir, &entry.name).unwrap();
            }
        }
    }

    /// Everything of the scene but what is in `layer`.
    fn surroundings(&self, layer: &DirHandle) -> Snapshot {
        let own = self.scene.tree().metadata(Node::Dir(layer)).unwrap().ino;
        let entries = self.scene.tree().read_dir(&self.scene.dir).unwrap();
        let name = entries
            .into_iter()
            .find(|entry| entry.ino == own)
            .unwrap()
            .name;
        let mut found = self.scene.raw(&self.scene.dir);
        found.retain(|path, _| !path.starts_with(&name));
        found
    }

    /// Why the last of these entries is refused; nothing outside the layer is changed.
    #[track_caller]
    pub(crate) fn refused(&self, entries: &[Entry]) -> BadReason {
        let bad = self.blame(&archive(entries), &ApplyOptions::new(self.scene.xattrs));
        let last = entries.last().unwrap();
        assert_eq!(bad.index, entries.len() as u64 - 1, "{bad}");
        assert!(
            bad.name == last.name || bad.name == b"PaxHeaders/x",
            "{bad}"
        );
        let before = archive(&entries[..entries.len() - 1]).len() as u64 - 1024;
        assert!(bad.offset >= before, "{bad}");
        bad.reason
    }

    #[track_caller]
    pub(crate) fn blame(&self, bytes: &[u8], options: &ApplyOptions) -> BadArchive {
        match self.try_apply(bytes, options) {
            Err(ApplyError::Archive(ArchiveError::Bad(bad))) => *bad,
            Err(other) => panic!(
                "on {}: not the archive is blamed: {other:?}",
                self.scene.backend
            ),
            Ok(applied) => panic!("on {}: accepted: {:#?}", self.scene.backend, applied.shown),
        }
    }
}

/// `cap_net_raw` permitted and effective, revision 2.
pub(crate) const CAPABILITY: &[u8] = &[
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// Makes a socket on the running system; no backend can.
pub(crate) fn make_socket(dir: &DirHandle, name: impl AsRef<OsStr>) {
    let dir = HostTree::dir_fd(dir).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(dir, name.as_ref(), rustix::fs::FileType::Socket, mode, 0).unwrap();
}

/// A time that is not now.
pub(crate) const fn at(secs: i64, nanos: u32) -> Timestamp {
    Timestamp { secs, nanos }
}

/// Asked without what is tested.
fn takes_acls(dir: &Path) -> bool {
    let name = "system.posix_acl_default";
    let set = xattr::set(dir, name, DEFAULT_ACL).is_ok();
    if set {
        xattr::remove(dir, name).unwrap();
    }
    set
}

/// `u::rwx,u:1000:rwx,g::r-x,m::rwx,o::---`.
pub(crate) const DEFAULT_ACL: &[u8] = &[
    2, 0, 0, 0, // version
    1, 0, 7, 0, 255, 255, 255, 255, // owner
    2, 0, 7, 0, 232, 3, 0, 0, // user 1000
    4, 0, 5, 0, 255, 255, 255, 255, // group
    16, 0, 7, 0, 255, 255, 255, 255, // mask
    32, 0, 0, 0, 255, 255, 255, 255, // others
];

/// Names a directory on the file system to test on.
const TEST_DIR: &str = "OVL_TEST_DIR";

/// Whether somebody has named a file system to test on, and so asks for what only depends on it.
pub(crate) fn file_system_is_chosen() -> bool {
    std::env::var_os(TEST_DIR).is_some()
}

fn temp_dir() -> TempDir {
    if let Some(dir) = std::env::var_os(TEST_DIR) {
        return tempfile::tempdir_in(dir).unwrap();
    }
    // Many small files: memory where there is some.
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

/// Root, and not of a user namespace that lacks most owners and devices.
pub(crate) fn is_root() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    rustix::process::geteuid().is_root() && map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Says past the test runner's capture that something was not tested.
pub(crate) fn skip(what: &str) {
    static SKIPPED: AtomicUsize = AtomicUsize::new(0);
    let count = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
    let line = format!("\n*** SKIPPED in ovl-diff ({count} so far): {what}\n");
    io::stderr().write_all(line.as_bytes()).unwrap();
}
