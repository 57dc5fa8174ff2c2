//! What no mock has: small disks, read-only mounts, mounts in the way.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use ovl_driver::blocking::Overlay2;
use ovl_driver::{
    Base, CreateLayer, Durability, Error, ErrorKind, FindingKind, ImportOptions, Kernel,
    MountRequest, OpenOptions, UpkeepOptions,
};
use ovl_layout::LayerId;
use ovl_mount::{OverlayOptions, Strategy, UnmountMode};
use ovl_testkit::ArchiveBuilder;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};

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
        "row_143_what_is_mounted_over_a_layer_that_was_in_order_is_damage",
        covered_contents,
    ),
    (
        "an_overlay_that_lives_on_in_another_mount_namespace_is_not_mounted_twice",
        living_on,
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

/// The store has read the layer and remembers it; in no way does the kernel see what covers it.
fn covered_contents(dir: &Path) {
    let store = open(dir);
    import(&store, "base", 10).unwrap();
    let (base, top) = ("base".parse().unwrap(), "top".parse().unwrap());
    let layer = CreateLayer::new(top).parent(Some(base));
    // A layer is remembered once the clock of the file system has moved on since it was made.
    let changed = |name: &str| {
        let changed = std::fs::metadata(dir.join("home").join(name)).unwrap();
        i128::from(changed.ctime()) * 1_000_000_000 + i128::from(changed.ctime_nsec())
    };
    let made = changed("base");
    while changed("l") - made < 30_000_000 {
        let _ = store.remove(&layer.id, false);
        store.create(&layer).unwrap();
    }
    let by = |strategy| MountRequest::new().strategy(Some(strategy));
    let mut mounted = Vec::new();
    for strategy in Strategy::ALL {
        match store.mount(&layer.id, &by(strategy)) {
            Ok(_) => mounted.push(strategy),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}"),
        }
        let _ = store.unmount(&layer.id, UnmountMode::Now);
    }
    assert!(mounted.contains(&Strategy::MountAbsolute), "{mounted:?}");
    for name in ["base/diff", "l"] {
        let covered = dir.join("home").join(name);
        let nothing = None::<&std::ffi::CStr>;
        mount("ovl-tests", &covered, "tmpfs", MountFlags::empty(), nothing).unwrap();
        for &strategy in &mounted {
            let result = store.mount(&layer.id, &by(strategy));
            // Whoever opens layers by their ids needs no links.
            if name == "l" && strategy == Strategy::LayersByFd {
                result.unwrap();
                store.unmount(&layer.id, UnmountMode::Now).unwrap();
                continue;
            }
            let error = result.unwrap_err();
            assert!(
                matches!(&error, Error::Damaged { file, .. } if *file == covered),
                "{strategy}: {error:?}"
            );
        }
        unmount(&covered, UnmountFlags::empty()).unwrap();
    }
    store.mount(&layer.id, &MountRequest::new()).unwrap();
    store.unmount(&layer.id, UnmountMode::Now).unwrap();
}

/// A container that has the mount as its root does not make it busy for anybody else.
fn living_on(dir: &Path) {
    let root = rustix::fs::stat("/").unwrap().st_dev;
    let device = (rustix::fs::major(root), rustix::fs::minor(root));
    let kernel = Kernel::host();
    if kernel
        .mount()
        .is_file_system_alive(device)
        .unwrap()
        .is_none()
    {
        eprintln!("SKIPPED: living_on: this kernel does not tell which file systems are alive");
        return;
    }
    let store = open(dir);
    import(&store, "base", 10).unwrap();
    let (base, top): (LayerId, LayerId) = ("base".parse().unwrap(), "top".parse().unwrap());
    store
        .create(&CreateLayer::new(top.clone()).parent(Some(base)))
        .unwrap();
    let volatile = OverlayOptions::default().with("volatile").unwrap();
    let volatile = MountRequest::new().options(volatile);
    store.mount(&top, &volatile).unwrap();
    store.unmount(&top, UnmountMode::Now).unwrap();
    let noted = || {
        let record = std::fs::read_to_string(dir.join("home/top/.ovl-layer")).unwrap();
        record.contains("\nvolatile ")
    };
    assert!(noted());

    let path = store.mount(&top, &MountRequest::new()).unwrap();
    let inside = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        std::fs::File::open(path).unwrap()
    });
    let inside = inside.join().unwrap();
    assert_eq!(store.unmount(&top, UnmountMode::Now).unwrap(), 0);
    assert!(noted(), "nobody has waited for the disk");
    let child = CreateLayer::new("child".parse().unwrap()).parent(Some(top.clone()));
    for _ in 0..2 {
        let errors = [
            store.mount(&top, &MountRequest::new()).map(drop),
            store.create(&child),
        ];
        for error in errors {
            let error = error.unwrap_err();
            assert!(matches!(error, Error::StillInUse { .. }), "{error:?}");
        }
    }
    assert_eq!(store.check().unwrap().findings, []);
    drop(inside);
    store.mount(&top, &MountRequest::new()).unwrap();
    store.unmount(&top, UnmountMode::Now).unwrap();
    assert!(!noted());
    assert!(!dir.join("home/.ovl/holds/top").exists());
    store.create(&child).unwrap();
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
