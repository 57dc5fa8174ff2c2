//! `HostQuota` as far as any file system and any caller goes. That limits are kept needs a kernel
//! and a mount with quotas; it is not proved here.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use ovl_quota::{
    Bytes, Enforcement, HostQuota, Limits, ProjectId, QuotaBackend, QuotaControl, QuotaError,
    UnsupportedReason,
};
use rustix::thread::{CapabilitySet, capabilities};

#[test]
fn the_state_of_any_file_system_is_a_value() {
    let dir = tempfile::tempdir().unwrap();
    let found = HostQuota::new().enforcement(dir.path()).unwrap();
    let probed = QuotaControl::probe(Arc::new(HostQuota::new()), dir.path());
    match probed {
        Ok(_) => assert_eq!(found, Enforcement::Enforced),
        Err(QuotaError::Unsupported {
            reason: UnsupportedReason::NotEnforced(reason),
            ..
        }) => {
            assert_eq!(reason, found);
        }
        // Enforced, and the caller is not root, or the directory is in somebody's project.
        Err(QuotaError::Unsupported { .. }) => assert_eq!(found, Enforcement::Enforced),
        Err(other) => panic!("{found:?}, but {other:?}"),
    }
}

#[test]
fn a_file_system_without_projects_has_none_and_is_unsupported() {
    let proc = fs::canonicalize("/proc/self").unwrap();
    assert_eq!(HostQuota::new().project_of(&proc).unwrap(), None);
    assert!(!HostQuota::new().inherits(&proc).unwrap());
    assert_eq!(
        HostQuota::new().enforcement(&proc).unwrap(),
        Enforcement::Unsupported
    );
    assert!(
        HostQuota::new()
            .assign_project(&proc, ProjectId::new(5))
            .is_err()
    );
}

#[test]
fn only_directories_are_opened_and_no_symlink_is_followed_at_the_end() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, link, file) = (
        temp.path().join("d"),
        temp.path().join("l"),
        temp.path().join("f"),
    );
    fs::create_dir(&dir).unwrap();
    symlink(&dir, &link).unwrap();
    fs::write(&file, "").unwrap();
    let quota = HostQuota::new();
    assert!(quota.project_of(&dir).is_ok());
    assert_eq!(
        quota.project_of(&link).unwrap_err().kind(),
        io::ErrorKind::NotADirectory
    );
    assert_eq!(
        quota.project_of(&file).unwrap_err().kind(),
        io::ErrorKind::NotADirectory
    );
    let missing = quota
        .assign_project(&temp.path().join("m"), None)
        .unwrap_err();
    assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    assert_eq!(
        quota.enforcement(&link).unwrap_err().kind(),
        io::ErrorKind::NotADirectory
    );
}

#[test]
fn limits_that_mean_no_limit_never_reach_the_kernel() {
    let project = ProjectId::new(5).unwrap();
    let nowhere = Path::new("/nowhere");
    for limits in [
        Limits::UNLIMITED.bytes(Some(Bytes::ZERO)),
        Limits::UNLIMITED.inodes(Some(0)),
    ] {
        let error = HostQuota::new()
            .set_limits(nowhere, project, &limits)
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
    let error = HostQuota::new()
        .set_limits(nowhere, project, &Limits::UNLIMITED)
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_thread_that_keeps_to_limits_gives_its_exemption_up_for_so_long() {
    let is_exempt = || {
        let sets = capabilities(None).unwrap();
        sets.effective.contains(CapabilitySet::SYS_RESOURCE)
    };
    let before = is_exempt();
    let kept = HostQuota::new().keep_to_limits().unwrap();
    assert!(!is_exempt());
    assert!(!std::thread::spawn(is_exempt).join().unwrap());
    // One inside the other.
    drop(HostQuota::new().keep_to_limits().unwrap());
    assert!(!is_exempt());
    drop(kept);
    assert_eq!(is_exempt(), before);
}
