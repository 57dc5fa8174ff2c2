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
