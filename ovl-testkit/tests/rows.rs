//! Rows of the catalogue of bad inputs that need a kernel of a certain kind.

use std::path::Path;

use ovl_driver::blocking::Overlay2;
use ovl_driver::{CreateLayer, ErrorKind, ImportOptions, OpenOptions};
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
