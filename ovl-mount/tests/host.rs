//! What [`HostMount`] does without privileges. Mounts are the conformance suite's.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use ovl_layout::{Layout, LowerChain};
use ovl_mount::{
    Access, HostMount, Lack, MountBackend, MountError, OverlaySpec, Strategy, UnmountMode,
};

/// A directory that is removed with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let name = format!("ovl-mount-{}-{name}", std::process::id());
        let path = fs::canonicalize(std::env::temp_dir()).unwrap().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What mounting `<home>/base/diff` on `<home>/base/merged` fails with.
fn refused_mount(home: &Path) -> (PathBuf, io::Error) {
    let host = HostMount::default();
    let (id, chain) = ("base".parse().unwrap(), LowerChain::default());
    let spec = OverlaySpec::new(&id, &chain, Access::ReadOnly);
    let plan = spec
        .plan(&Layout::new(home), &host.features().unwrap())
        .unwrap();
    match host.mount(&plan).unwrap_err() {
        MountError::Mount {
            target,
            messages,
            source,
            ..
        } => {
            assert!(messages.is_empty(), "{messages:?}");
            (target, source)
        }
        other => panic!("{other:?}"),
    }
}

/// Says past the test runner's capture that something was not tested.
fn skip(what: &str) {
    static SKIPPED: AtomicUsize = AtomicUsize::new(0);
    let count = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
    let line = format!("\n*** SKIPPED in ovl-mount ({count} so far): {what}\n");
    io::stderr().write_all(line.as_bytes()).unwrap();
}

#[test]
fn features_are_the_same_when_asked_again() {
    let host = HostMount::default();
    let features = host.features().unwrap();
    assert!(features.data_limit.bytes() >= 4095);
    let copy = host.clone();
    assert_eq!(host.features().unwrap(), features);
    assert_eq!(copy.features().unwrap(), features);
}

#[test]
fn a_symbolic_link_is_no_mount_point() {
    let home = Scratch::new("link-target");
    fs::create_dir_all(home.0.join("base/diff")).unwrap();
    fs::create_dir(home.0.join("elsewhere")).unwrap();
    symlink("../elsewhere", home.0.join("base/merged")).unwrap();
    let (target, source) = refused_mount(&home.0);
    assert_eq!(target, home.0.join("base/merged"));
    assert_eq!(source.kind(), io::ErrorKind::NotADirectory);
}

#[test]
fn a_bind_mount_does_not_follow_a_symbolic_link_in_place_of_diff() {
    let home = Scratch::new("link-source");
    fs::create_dir_all(home.0.join("base/merged")).unwrap();
    symlink("/", home.0.join("base/diff")).unwrap();
    let (_, source) = refused_mount(&home.0);
    assert_eq!(source.kind(), io::ErrorKind::NotADirectory);
}

#[test]
fn a_missing_mount_point_is_refused_and_not_made() {
    let home = Scratch::new("no-target");
    fs::create_dir_all(home.0.join("base/diff")).unwrap();
    let (_, source) = refused_mount(&home.0);
    assert_eq!(source.kind(), io::ErrorKind::NotFound);
    assert!(!home.0.join("base/merged").exists());
}

#[test]
fn proc_is_found_at_its_path_below_the_root_and_through_a_link() {
    let (host, home) = (HostMount::default(), Scratch::new("proc"));
    let proc = host.mount_at(Path::new("/proc")).unwrap().unwrap();
    assert_eq!(
        (proc.target.as_path(), &*proc.fs_type),
        (Path::new("/proc"), "proc")
    );
    assert!(host.mounts_below(Path::new("/")).unwrap().contains(&proc));

    symlink("/", home.0.join("root")).unwrap();
    let through_link = home.0.join("root/proc");
    assert_eq!(host.mount_at(&through_link).unwrap(), Some(proc));
    // The link itself is no mount point, wherever it leads.
    symlink("/proc", home.0.join("link")).unwrap();
    assert_eq!(host.mount_at(&home.0.join("link")).unwrap(), None);
}

#[test]
fn a_path_lies_in_the_nearest_mount_above_it() {
    let host = HostMount::default();
    let proc = host.mount_at(Path::new("/proc")).unwrap();
    assert!(proc.is_some());
    assert_eq!(host.mount_of(Path::new("/proc")).unwrap(), proc);
    assert_eq!(host.mount_of(Path::new("/proc/self/task")).unwrap(), proc);
    let home = Scratch::new("inside");
    symlink("/proc/self", home.0.join("link")).unwrap();
    assert_eq!(host.mount_of(&home.0.join("link")).unwrap(), proc);
    assert!(host.mount_of(&home.0.join("missing")).is_err());
}

#[test]
fn what_the_kernel_does_not_offer_has_a_reason() {
    let features = HostMount::default().features().unwrap();
    for strategy in Strategy::ALL {
        let offered = match strategy {
            Strategy::LayersByFd => features.layers_by_fd,
            Strategy::LowerdirPlus => features.lowerdir_plus,
            _ => true,
        };
        let lack = features.lack(strategy);
        assert_eq!(lack.is_none(), offered, "{strategy}");
        assert_ne!(lack, Some(Lack::Unknown), "{strategy}");
    }
}

#[test]
fn nothing_is_mounted_at_or_below_a_new_directory() {
    let (host, home) = (HostMount::default(), Scratch::new("empty"));
    assert_eq!(host.mount_at(&home.0).unwrap(), None);
    assert_eq!(host.mount_at(&home.0.join("missing")).unwrap(), None);
    assert_eq!(host.mounts_below(&home.0).unwrap(), []);
}

#[test]
fn unmounting_what_is_not_mounted_is_an_error() {
    let (host, home) = (HostMount::default(), Scratch::new("not-mounted"));
    for mode in [UnmountMode::Now, UnmountMode::Lazy] {
        match host.unmount(&home.0, mode).unwrap_err() {
            MountError::NotMounted { target, .. } => assert_eq!(target, home.0),
            // Without the privilege the kernel does not look at the path.
            MountError::Unmount { source, .. } => {
                assert_eq!(source.kind(), io::ErrorKind::PermissionDenied);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_file_system_is_alive_while_it_is_mounted() {
    let host = HostMount::default();
    let device = |path: &str| {
        let number = rustix::fs::stat(path).unwrap().st_dev;
        (rustix::fs::major(number), rustix::fs::minor(number))
    };
    let alive = |device| host.is_file_system_alive(device).unwrap();
    // Where the kernel does not tell, of none.
    let Some(proc) = alive(device("/proc")) else {
        assert_eq!(alive((0, 0)), None);
        // This architecture has the call, and only a filter forbids it.
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let is_free = cfg!(target_arch = "x86_64") && status.contains("\nSeccomp:\t0\n");
        assert!(!is_free, "the kernel would have told");
        skip("which file systems are alive: this kernel does not tell");
        return;
    };
    assert!(proc, "with no block device");
    assert_eq!(alive(device("/")), Some(true));
    assert_eq!(alive((0xfff, 0xf_fffe)), Some(false), "nothing has this");
    assert_eq!(alive((0, 0)), Some(false));
}
