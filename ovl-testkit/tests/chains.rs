//! Chains that a store has found in order are not read again, and what has changed is.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use ovl_diff::RenameMode;
use ovl_driver::blocking::Overlay2;
use ovl_driver::{
    CreateLayer, Dirty, Durability, Error, ErrorKind, Kernel, MountRequest, OpenOptions,
};
use ovl_layout::LayerId;
use ovl_mount::{OverlayOptions, UnmountMode};
use ovl_testkit::{Faulty, KernelProfile, MockKernel};

const HOME: &str = "/home";
const DEPTH: u64 = 20;

fn id(name: &str) -> LayerId {
    name.parse().unwrap()
}

fn layer(name: &str, parent: Option<&str>) -> CreateLayer {
    CreateLayer::new(id(name)).parent(parent.map(id))
}

fn open(kernel: Kernel) -> Overlay2 {
    Overlay2::open(kernel, Path::new(HOME), OpenOptions::new().create(true)).unwrap()
}

/// A writable layer `top` on a chain of layers `s0`, `s1` and so on.
fn chain(profile: KernelProfile) -> (MockKernel, Faulty, Overlay2) {
    let mock = MockKernel::new(profile);
    let faulty = Faulty::new(mock.kernel());
    let store = open(faulty.kernel());
    let mut parent = None;
    for level in 0..DEPTH {
        let name = format!("s{level}");
        store.create(&layer(&name, parent.as_deref())).unwrap();
        parent = Some(name);
    }
    store.create(&layer("top", parent.as_deref())).unwrap();
    (mock, faulty, store)
}

fn mount_and_unmount(store: &Overlay2) -> Result<PathBuf, Error> {
    let path = store.mount(&id("top"), &MountRequest::new())?;
    store.unmount(&id("top"), UnmountMode::Now)?;
    Ok(path)
}

#[test]
fn a_chain_that_was_in_order_costs_one_look_a_layer() {
    let (_, faulty, store) = chain(KernelProfile::modern());
    let count = || {
        faulty.heal();
        let before = faulty.count();
        mount_and_unmount(&store).unwrap();
        faulty.count() - before
    };
    let first = count();
    let again = count();
    assert!(first - again >= DEPTH * 10, "{first}, {again}");
    // Another mount on the same chain knows it too; links come and go meanwhile.
    store.create(&layer("other", Some("s3"))).unwrap();
    assert!(count() <= again + DEPTH + 1);
    assert_eq!(count(), again);
    // Nor does a plan read what a plan has read: it opens contents too, which mounts do by themselves.
    store.plan(&id("top"), &MountRequest::new()).unwrap();
    let before = faulty.count();
    store.plan(&id("top"), &MountRequest::new()).unwrap();
    assert!(faulty.count() - before < DEPTH + 30);
    assert!(count() <= again);
}

/// Puts a file in another's place, as programs do.
fn replace(kernel: &Kernel, dir: &str, name: &str, contents: &[u8]) {
    let tree = kernel.tree();
    let dir = tree.open_root(&Path::new(HOME).join(dir)).unwrap();
    let (name, new) = (OsStr::new(name), OsStr::new("new"));
    let file = tree.create_file(&dir, new, 0o644).unwrap();
    tree.write_at(&file, 0, contents).unwrap();
    tree.rename(&dir, new, &dir, name, RenameMode::Replace)
        .unwrap();
}

fn assert_damaged(store: &Overlay2) {
    let error = mount_and_unmount(store).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    // What the mount would have looked at by itself.
    let error = store.plan(&id("top"), &MountRequest::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
}

#[test]
fn damage_below_is_found_in_a_chain_that_was_in_order() {
    let damages: [fn(&Kernel); 5] = [
        |kernel| replace(kernel, "s7", "link", b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
        |kernel| replace(kernel, "s7", "lower", b""),
        |kernel| replace(kernel, "s7", ".ovl-layer", b"ovl-layer 1\n"),
        |kernel| {
            let tree = kernel.tree();
            let dir = tree.open_root(&Path::new(HOME).join("s7")).unwrap();
            tree.remove_dir(&dir, OsStr::new("diff")).unwrap();
        },
        // A link that leads to another layer.
        |kernel| {
            let tree = kernel.tree();
            let links = tree.open_root(&Path::new(HOME).join("l")).unwrap();
            let link = tree.open_root(&Path::new(HOME).join("s7")).unwrap();
            let file = tree.open_file(&link, OsStr::new("link")).unwrap();
            let mut name = [0; 26];
            tree.read_at(&file, 0, &mut name).unwrap();
            let name = OsStr::new(str::from_utf8(&name).unwrap());
            tree.unlink(&links, name).unwrap();
            let target = OsStr::new("../s6/diff");
            tree.create_symlink(&links, name, target).unwrap();
        },
    ];
    for (number, damage) in damages.into_iter().enumerate() {
        for coarse_time in [false, true] {
            let mut profile = KernelProfile::modern();
            profile.coarse_time = coarse_time;
            let (mock, _, store) = chain(profile);
            mount_and_unmount(&store).unwrap();
            mount_and_unmount(&store).unwrap();
            println!("damage {number}, coarse time {coarse_time}");
            damage(&mock.kernel());
            assert_damaged(&store);
            // Nor is it remembered.
            assert_damaged(&store);
        }
    }
}

#[test]
fn a_layer_below_that_was_mounted_volatile_is_looked_at_every_time() {
    let mock = MockKernel::new(KernelProfile::modern());
    // A durable layer on top would wait for what was written.
    let options = OpenOptions::new().durability(Durability::None);
    let store = Overlay2::open(mock.kernel(), Path::new(HOME), options.create(true)).unwrap();
    store.create(&layer("base", None)).unwrap();
    store.create(&layer("below", Some("base"))).unwrap();
    let volatile = OverlayOptions::default().with("volatile").unwrap();
    let request = MountRequest::new().options(volatile);
    store.mount(&id("below"), &request).unwrap();
    store.unmount(&id("below"), UnmountMode::Lazy).unwrap();
    store.create(&layer("top", Some("below"))).unwrap();
    mount_and_unmount(&store).unwrap();
    mock.reboot();
    let store = open(mock.kernel());
    // What was decided is seen, and so is that nothing was.
    for _ in 0..2 {
        let error = mount_and_unmount(&store).unwrap_err();
        assert!(matches!(&error, Error::Dirty { id, .. } if id.as_str() == "below"));
    }
    let accept = MountRequest::new().dirty(Some(Dirty::Accept));
    store.mount(&id("below"), &accept).unwrap();
    store.unmount(&id("below"), UnmountMode::Now).unwrap();
    mount_and_unmount(&store).unwrap();
}

#[test]
fn nothing_is_remembered_of_a_chain_that_is_not_in_order() {
    let (mock, _, store) = chain(KernelProfile::modern());
    let (kernel, read) = (mock.kernel(), |path: &str| {
        mock.read_file(&Path::new(HOME).join(path)).unwrap()
    });
    let lower = |name: &str| String::from_utf8(read(&format!("{name}/lower"))).unwrap();
    store.create(&layer("other", None)).unwrap();
    let other = String::from_utf8(read("other/link")).unwrap();
    // The uppermost two agree on a lowest one that the others do not know.
    let lie = |name: &str| {
        let (rest, _) = lower(name)
            .rsplit_once(':')
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .unwrap();
        let lie = format!("{rest}:l/{other}");
        replace(&kernel, name, "lower", lie.as_bytes());
    };
    let truth = lower("top");
    lie("s19");
    lie("top");
    assert_damaged(&store);
    // Now s19 alone does.
    replace(&kernel, "top", "lower", truth.as_bytes());
    assert_damaged(&store);
    assert_damaged(&store);
}
