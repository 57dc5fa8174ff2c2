//! What no mock has: small disks, read-only mounts, mounts in the way.

use std::path::Path;

use ovl_driver::blocking::Overlay2;
use ovl_driver::{
    Base, CreateLayer, Durability, Error, ErrorKind, FindingKind, ImportOptions, Kernel,
    MountRequest, OpenOptions, UpkeepOptions,
};
use ovl_testkit::ArchiveBuilder;
use rustix::mount::{MountFlags, mount, mount_bind, mount_remount};

type Case = (&'static str, fn(&Path));

pub(crate) const CASES: &[Case] = &[
    (
        "a_full_disk_refuses_an_import_and_gives_all_space_back",
        full_disk,
    ),
    (
        "row_143_contents_on_another_file_system_are_damage",
        foreign_contents,
    ),
    (
        "row_155_a_home_on_a_read_only_file_system_can_be_read",
        read_only,
    ),
    (
        "row_186_a_child_process_inherits_nothing_of_the_store",
        nothing_is_inherited,
    ),
];

fn open(dir: &Path) -> Overlay2 {
    let options = OpenOptions::new().create(true).durability(Durability::None);
    Overlay2::open(Kernel::host(), &dir.join("home"), options).unwrap()
}

fn import(store: &Overlay2, id: &str, len: usize) -> Result<(), Error> {
    let archive = ArchiveBuilder::new()
        .file("first", b"1")
        .file("large", &vec![7; len])
        .finish();
    let layer = CreateLayer::new(id.parse().unwrap());
    let imported = store.import(&layer, &*archive, ImportOptions::new(), &mut |_| {});
    imported.map(|_| ())
}

fn full_disk(dir: &Path) {
    let options = Some(c"size=2m");
    mount("ovl-tests", dir, "tmpfs", MountFlags::empty(), options).unwrap();
    let store = open(dir);
    import(&store, "fits", 1000).unwrap();
    let free = || rustix::fs::statvfs(dir).unwrap().f_bfree;
    let before = free();
    let error = import(&store, "large", 4 << 20).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
    assert_eq!(free(), before);
    assert_eq!(store.layers().unwrap().layers.len(), 1);
    store.remove(&"fits".parse().unwrap(), false).unwrap();
    store.reclaim().unwrap();
    assert!(free() > before, "a full disk can be emptied");
}

fn foreign_contents(dir: &Path) {
    let store = open(dir);
    import(&store, "base", 10).unwrap();
    let (base, top) = ("base".parse().unwrap(), "top".parse().unwrap());
    let layer = CreateLayer::new(top).parent(Some(base));
    store.create(&layer).unwrap();
    let diff = dir.join("home/base/diff");
    let nothing = None::<&std::ffi::CStr>;
    mount("ovl-tests", &diff, "tmpfs", MountFlags::empty(), nothing).unwrap();
    let error = store.mount(&layer.id, &MountRequest::new()).unwrap_err();
    assert!(
        matches!(&error, Error::Damaged { file, .. } if *file == diff),
        "{error}"
    );
    let found = store.check().unwrap().findings;
    let expected = [FindingKind::Contents];
    let kinds: Vec<FindingKind> = found.iter().map(|one| one.kind).collect();
    assert_eq!(kinds, expected, "{found:#?}");
    assert!(found[0].problem.contains("mounted there"), "{found:#?}");
}

fn read_only(dir: &Path) {
    let store = open(dir);
    import(&store, "base", 10).unwrap();
    let id = "base".parse().unwrap();
    mount_bind(dir, dir).unwrap();
    let flags = MountFlags::BIND | MountFlags::RDONLY;
    mount_remount(dir, flags, c"").unwrap();
    drop(store);

    let store = Overlay2::open(Kernel::host(), &dir.join("home"), OpenOptions::new()).unwrap();
    assert_eq!(store.layers().unwrap().layers.len(), 1);
    assert_eq!(store.inspect(&id).unwrap().size.inodes, 2);
    assert!(store.diff(&id, &Base::Parent, Vec::new()).is_ok());
    assert!(store.plan(&id, &MountRequest::new()).is_ok());
    assert!(store.check().unwrap().is_clean());
    store.status().unwrap();
    let errors = [
        store
            .create(&CreateLayer::new("new".parse().unwrap()))
            .err(),
        import(&store, "new", 1).err(),
        store.mount(&id, &MountRequest::new()).err(),
        store.remove(&id, false).err(),
    ];
    for error in errors {
        let error = error.expect("nothing can be written");
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    }
    let garbage = store.gc(UpkeepOptions::new()).unwrap();
    assert_eq!(garbage.items, []);
}

/// An archive during whose reading a child process lists what it has open.
struct Spawning<'a> {
    rest: std::io::Cursor<Vec<u8>>,
    seen: &'a mut Vec<String>,
}

impl std::io::Read for Spawning<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let listed = std::process::Command::new("ls")
            .args(["-l", "/proc/self/fd"])
            .output()?;
        self.seen
            .push(String::from_utf8_lossy(&listed.stdout).into_owned());
        let len = buffer.len().min(512);
        self.rest.read(&mut buffer[..len])
    }
}

fn nothing_is_inherited(dir: &Path) {
    let store = open(dir);
    let archive = ArchiveBuilder::new()
        .dir("d", 0o755)
        .file("d/f", &[7; 2000])
        .finish();
    let mut seen = Vec::new();
    let source = Spawning {
        rest: std::io::Cursor::new(archive),
        seen: &mut seen,
    };
    let layer = CreateLayer::new("base".parse().unwrap());
    store
        .import(&layer, source, ImportOptions::new(), &mut |_| {})
        .unwrap();
    assert!(seen.len() > 3, "the archive is read in several pieces");
    for listing in seen {
        assert!(listing.contains("/proc/"), "{listing}");
        assert!(!listing.contains(dir.to_str().unwrap()), "{listing}");
    }
}
