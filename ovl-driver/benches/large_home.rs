//! One layer's operations in a home of 100 and in one of 10,000 layers: they must cost the same.
//! Listing must be linear.
//!
//! `cargo bench -p ovl-driver --bench large_home`, as root or where user namespaces are allowed; on a
//! tmpfs of its own.

#![allow(missing_docs, clippy::unwrap_used, reason = "a bench")]

use std::path::{Path, PathBuf};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use nix::sched::{CloneFlags, unshare};
use ovl_driver::blocking::Overlay2;
use ovl_driver::{CreateLayer, Durability, Kernel, MountRequest, OpenOptions};
use ovl_layout::LayerId;
use ovl_mount::UnmountMode;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

const SIZES: [usize; 2] = [100, 10_000];

fn id(text: &str) -> LayerId {
    text.parse().unwrap()
}

fn open(home: &Path) -> Overlay2 {
    let options = OpenOptions::new().create(true).durability(Durability::None);
    Overlay2::open(Kernel::host(), home, options).unwrap()
}

/// A base, as many open layers on it as asked for, and one to work with.
fn fill(dir: &Path, layers: usize) -> Overlay2 {
    let store = open(&dir.join(layers.to_string()));
    store.create(&CreateLayer::new(id("base"))).unwrap();
    for number in 0..layers {
        store.create(&on_base(&format!("layer-{number}"))).unwrap();
    }
    store.create(&on_base("middle")).unwrap();
    let top = CreateLayer::new(id("top")).parent(Some(id("middle")));
    store.create(&top).unwrap();
    store
}

fn on_base(name: &str) -> CreateLayer {
    CreateLayer::new(id(name)).parent(Some(id("base")))
}

fn one_layer(criterion: &mut Criterion, stores: &[(usize, Overlay2)]) {
    let mut group = criterion.benchmark_group("one_layer");
    for (size, store) in stores {
        let parameter = |name: &str| BenchmarkId::new(name, size);
        group.bench_function(parameter("inspect"), |bencher| {
            bencher.iter(|| store.inspect(&id("top")).unwrap());
        });
        group.bench_function(parameter("create_and_remove"), |bencher| {
            bencher.iter(|| {
                store.create(&on_base("new")).unwrap();
                store.remove(&id("new"), false).unwrap();
                store.reclaim().unwrap();
            });
        });
        // Its children have to be looked for.
        group.bench_function(parameter("remove_sealed"), |bencher| {
            let child = CreateLayer::new(id("child")).parent(Some(id("new")));
            let make = || {
                store.create(&on_base("new")).unwrap();
                store.create(&child).unwrap();
                store.remove(&id("child"), false).unwrap();
            };
            bencher.iter_batched(
                make,
                |()| {
                    store.remove(&id("new"), false).unwrap();
                    store.reclaim().unwrap();
                },
                BatchSize::PerIteration,
            );
        });
        group.bench_function(parameter("mount_and_unmount"), |bencher| {
            bencher.iter(|| {
                store.mount(&id("top"), &MountRequest::new()).unwrap();
                store.unmount(&id("top"), UnmountMode::Now).unwrap();
            });
        });
        group.bench_function(parameter("open"), |bencher| {
            bencher.iter(|| open(store.home()));
        });
    }
    group.finish();
}

fn list(criterion: &mut Criterion, stores: &[(usize, Overlay2)]) {
    let mut group = criterion.benchmark_group("list");
    group.sample_size(20);
    for (size, store) in stores {
        group.throughput(Throughput::Elements(*size as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter(|| store.layers().unwrap());
        });
    }
    group.finish();
}

/// A tmpfs that nobody else sees and that goes with this process.
fn scratch() -> PathBuf {
    let user = match rustix::process::geteuid().is_root() {
        true => CloneFlags::empty(),
        false => CloneFlags::CLONE_NEWUSER,
    };
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    unshare(user | CloneFlags::CLONE_NEWNS).unwrap();
    if !uid.is_root() {
        std::fs::write("/proc/self/setgroups", "deny").unwrap();
        std::fs::write("/proc/self/uid_map", format!("0 {} 1", uid.as_raw())).unwrap();
        std::fs::write("/proc/self/gid_map", format!("0 {} 1", gid.as_raw())).unwrap();
    }
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).unwrap();
    let dir = Path::new("/tmp");
    let nothing = None::<&std::ffi::CStr>;
    mount("ovl-bench", dir, "tmpfs", MountFlags::empty(), nothing).unwrap();
    dir.to_owned()
}

fn main() {
    let dir = scratch();
    let stores: Vec<_> = SIZES
        .iter()
        .map(|size| (*size, fill(&dir, *size)))
        .collect();
    let mut criterion = Criterion::default().configure_from_args();
    one_layer(&mut criterion, &stores);
    list(&mut criterion, &stores);
    criterion.final_summary();
}
