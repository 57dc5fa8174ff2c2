//! A container runtime in a few lines, and its tests on a kernel in memory, without root.
#![allow(clippy::print_stdout, missing_docs, reason = "an example")]

use std::{error::Error, path::Path};

use ovl_driver::{Base, CreateLayer, Kernel, MountRequest, OpenOptions, blocking::Overlay2};
use ovl_testkit::{KernelProfile, MockKernel};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The runtime: a program gets a layer of its own for as long as it runs, and leaves its changes.
fn run(store: &Overlay2, name: &str, program: impl Fn(&Path)) -> Result<String> {
    let layer = CreateLayer::new(name.parse()?).parent(Some("image".parse()?));
    store.create_writable(&layer)?;
    let mount = store.mount_guarded(&layer.id, &MountRequest::new());
    let changes = mount.and_then(|mount| {
        program(mount.path());
        store.changes(&layer.id, &Base::Parent)
    });
    store.remove(&layer.id, true)?;
    Ok(changes?
        .iter()
        .map(|change| format!("{change}\n"))
        .collect())
}

/// A store with an image, on whatever kernel.
fn store_on(kernel: Kernel) -> Result<Overlay2> {
    let store = Overlay2::open(kernel, "/home".as_ref(), OpenOptions::new().create(true))?;
    store.create(&CreateLayer::new("image".parse()?))?;
    Ok(store)
}

fn main() -> Result<()> {
    let mock = MockKernel::new(KernelProfile::modern());
    let write = |root: &Path| drop(mock.write_file(&root.join("hello"), b"hi"));
    print!("{}", run(&store_on(mock.kernel())?, "c1", write)?);
    Ok(())
}

#[test]
fn a_container_leaves_its_changes_and_no_layer() -> Result<()> {
    let mock = MockKernel::new(KernelProfile::modern());
    let store = store_on(mock.kernel())?;
    let write = |root: &Path| drop(mock.write_file(&root.join("hello"), b"hi"));
    assert_eq!(run(&store, "c1", write)?, "A /hello\n");
    assert_eq!(store.layers()?.layers.len(), 1);
    Ok(())
}

#[test]
fn a_kernel_that_refuses_to_mount_leaves_no_layer() -> Result<()> {
    let faulty = ovl_testkit::Faulty::new(MockKernel::new(KernelProfile::modern()).kernel());
    let store = store_on(faulty.kernel())?;
    faulty.order_where(|call, _| (call == "mount").then_some(12));
    assert!(run(&store, "c1", |_| ()).is_err());
    assert_eq!(store.layers()?.layers.len(), 1);
    Ok(())
}
