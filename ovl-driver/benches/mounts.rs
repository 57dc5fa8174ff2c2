//! Mounting and unmounting a writable layer against the bare system calls that this takes, by the
//! number of layers below: with a chain that the store has checked before, and for the first time.
//!
//! `cargo bench -p ovl-driver --bench mounts`, as root; on a tmpfs of its own.

#![allow(missing_docs, clippy::unwrap_used, reason = "a bench")]

use std::path::Path;

use criterion::{BatchSize, BenchmarkId, Criterion};
use nix::sched::{CloneFlags, unshare};
use ovl_driver::blocking::Overlay2;
use ovl_driver::{CreateLayer, Durability, InitOptions, Kernel, MountRequest, OpenOptions};
use ovl_layout::LayerId;
use ovl_mount::UnmountMode;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    UnmountFlags,
};

const LOWERS: [usize; 4] = [1, 10, 128, 499];

fn id(level: usize) -> LayerId {
    format!("layer-{level}").parse().unwrap()
}

fn open(home: &Path) -> Overlay2 {
    Overlay2::open(Kernel::host(), home, OpenOptions::new()).unwrap()
}

fn fill(home: &Path) {
    let options = InitOptions::new()
        .max_depth(499)
        .durability(Durability::None);
    let store = Overlay2::init(Kernel::host(), home, &options).unwrap();
    for level in 0..=499_usize {
        let parent = level.checked_sub(1).map(id);
        store
            .create(&CreateLayer::new(id(level)).parent(parent))
            .unwrap();
    }
    // The last one is open, so that each depth needs a layer of its own.
    for lowers in LOWERS {
        let top = format!("top-{lowers}").parse().unwrap();
        let parent = Some(id(lowers - 1));
        store.create(&CreateLayer::new(top).parent(parent)).unwrap();
    }
}

/// The system calls of one mount by file descriptors and its end, and nothing else.
fn bare(home: &Path, top: &str, lowers: usize) {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let home = rustix::fs::open(home, flags, Mode::empty()).unwrap();
    let merged = format!("{top}/merged");
    rustix::fs::mkdirat(&home, &*merged, Mode::from_raw_mode(0o700)).unwrap();
    let target = rustix::fs::openat(&home, &*merged, flags, Mode::empty()).unwrap();
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    rustix::mount::fsconfig_set_string(&context, "source", "overlay").unwrap();
    for (key, value) in [
        ("index", "off"),
        ("redirect_dir", "nofollow"),
        ("metacopy", "off"),
    ] {
        rustix::mount::fsconfig_set_string(&context, key, value).unwrap();
    }
    let give = |key: &str, path: String| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let dir = rustix::fs::openat2(&home, path, flags, Mode::empty(), resolve).unwrap();
        rustix::mount::fsconfig_set_fd(&context, key, &dir).unwrap();
    };
    for level in (0..lowers).rev() {
        give("lowerdir+", format!("layer-{level}/diff"));
    }
    give("upperdir", format!("{top}/diff"));
    give("workdir", format!("{top}/work"));
    rustix::mount::fsconfig_create(&context).unwrap();
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    let mount = rustix::mount::fsmount(&context, flags, MountAttrFlags::empty()).unwrap();
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(&mount, "", &target, "", flags).unwrap();
    drop((mount, context, target));
    let path = format!("/tmp/home/{merged}");
    rustix::mount::unmount(path, UnmountFlags::NOFOLLOW).unwrap();
    rustix::fs::unlinkat(&home, merged, AtFlags::REMOVEDIR).unwrap();
}

fn mount_and_unmount(store: &Overlay2, top: &LayerId) {
    store.mount(top, &MountRequest::new()).unwrap();
    store.unmount(top, UnmountMode::Now).unwrap();
}

fn mounts(criterion: &mut Criterion, home: &Path) {
    let mut group = criterion.benchmark_group("mount_and_unmount");
    for lowers in LOWERS {
        let top = format!("top-{lowers}");
        group.bench_function(BenchmarkId::new("bare", lowers), |bencher| {
            bencher.iter(|| bare(home, &top, lowers));
        });
        let id = top.parse().unwrap();
        let store = open(home);
        group.bench_function(BenchmarkId::new("checked_before", lowers), |bencher| {
            bencher.iter(|| mount_and_unmount(&store, &id));
        });
        group.bench_function(BenchmarkId::new("first_time", lowers), |bencher| {
            let fresh = || {
                let store = open(home);
                // What belongs to opening, not to the chain.
                store.status().unwrap();
                store
            };
            bencher.iter_batched(
                fresh,
                |store| mount_and_unmount(&store, &id),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn main() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).unwrap();
    let nothing = None::<&std::ffi::CStr>;
    rustix::mount::mount("ovl-bench", "/tmp", "tmpfs", MountFlags::empty(), nothing).unwrap();
    let home = Path::new("/tmp/home");
    fill(home);
    let mut criterion = Criterion::default().configure_from_args();
    mounts(&mut criterion, home);
    criterion.final_summary();
}
