//! Rows of the catalogue of bad inputs that need a kernel of a certain kind.

use std::path::Path;

use ovl_driver::blocking::Overlay2;
use ovl_driver::{ErrorKind, OpenOptions};
use ovl_testkit::{KernelProfile, MockKernel};

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
