//! Rows of the catalogue of bad inputs that need a kernel of a certain kind.

use std::path::Path;

use ovl_driver::blocking::Overlay2;
use ovl_driver::{
    CreateLayer, Error, ErrorKind, Identity, ImportOptions, InitOptions, OpenOptions,
};
use ovl_testkit::{ArchiveBuilder, Faulty, KernelProfile, MockKernel};
use tar::EntryType;

#[test]
fn row_154_a_file_system_without_types_in_its_entries_is_refused_with_advice() {
    for (fs_type, advice) in [
        (ovl_driver::FsType::XFS, "ftype=1"),
        (ovl_driver::FsType::EXT, "filetype"),
    ] {
        let mut profile = KernelProfile::modern();
        (profile.d_type, profile.fs_type) = (false, fs_type);
        let kernel = MockKernel::new(profile);
        kernel.mkdir_all(Path::new("/scratch")).unwrap();
        let home = Path::new("/scratch/home");
        let opened = Overlay2::open(kernel.kernel(), home, OpenOptions::new().create(true));
        let error = opened.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(advice), "{error}");
    }
}

#[test]
fn a_home_whose_file_system_keeps_no_attributes_of_its_kind_is_neither_made_nor_opened() {
    let home = Path::new("/scratch/home");
    let kernel = |user_xattrs, identity| {
        let mut profile = KernelProfile::legacy_tmpfs();
        (profile.user_xattrs, profile.identity) = (user_xattrs, identity);
        let kernel = MockKernel::new(profile);
        kernel.mkdir_all(Path::new("/scratch")).unwrap();
        kernel
    };
    let create = || OpenOptions::new().create(true);
    let root = kernel(false, Identity::root());
    Overlay2::open(root.kernel(), home, create()).expect("root has other attributes");

    let rootless = kernel(false, Identity::single_id());
    for made in [
        Overlay2::open(rootless.kernel(), home, create()),
        Overlay2::init(rootless.kernel(), home, &InitOptions::new()),
    ] {
        let error = made.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let words = error.to_string();
        assert!(words.contains("(tmpfs) of /scratch"), "{words}");
        assert!(words.contains("user.overlay.*"), "{words}");
    }
    let scratch = rootless.kernel();
    let scratch = scratch.tree().open_root(Path::new("/scratch")).unwrap();
    let left = rootless.kernel().tree().read_dir(&scratch).unwrap();
    assert!(left.is_empty(), "{left:?}");

    // One that was made empty, or on a kernel that keeps them.
    rootless.mkdir_all(home).unwrap();
    let error = Overlay2::open(rootless.kernel(), home, create()).unwrap_err();
    assert!(matches!(error, Error::NoXattrs { .. }), "{error}");
    rootless.mkdir_all(&home.join("l")).unwrap();
    let error = Overlay2::open(rootless.kernel(), home, OpenOptions::new()).unwrap_err();
    assert!(matches!(error, Error::NoXattrs { .. }), "{error}");
}

#[test]
fn row_113_a_device_that_this_user_may_not_make_is_refused_or_left_out_and_counted() {
    const EPERM: i32 = 1;
    let mock = MockKernel::new(KernelProfile::modern());
    mock.mkdir_all(Path::new("/scratch")).unwrap();
    let faulty = Faulty::new(mock.kernel());
    let home = Path::new("/scratch/home");
    let store = Overlay2::open(faulty.kernel(), home, OpenOptions::new().create(true)).unwrap();
    let mut archive = ArchiveBuilder::new();
    for name in ["null", "disk"] {
        archive = archive.entry(name, EntryType::Block, 0o666, "", b"");
    }
    // A pipe needs no rights.
    let archive = archive
        .entry("pipe", EntryType::Fifo, 0o600, "", b"")
        .finish();
    faulty.order_where(|method, name| {
        (method == "create_node" && !name.contains("pipe")).then_some(EPERM)
    });
    let import = |id: &str, skip| {
        let layer = CreateLayer::new(id.parse().unwrap());
        let options = ImportOptions::new().skip_devices(skip);
        store.import(&layer, &*archive, options, &mut |_| {})
    };
    let error = import("refused", false).unwrap_err();
    let words = format!("{error:?}");
    assert!(words.contains("DeviceRefused"), "{words}");
    assert!(!store.contains(&"refused".parse().unwrap()).unwrap());
    let applied = import("skipped", true).unwrap();
    assert_eq!(applied.summary.skipped_devices, 2);
    let diff = store
        .layout()
        .layer(&"skipped".parse().unwrap())
        .diff()
        .to_owned();
    let shown = mock.kernel().tree().open_root(&diff).unwrap();
    let names = mock.kernel().tree().read_dir(&shown).unwrap();
    assert_eq!(names.len(), 1);
}
