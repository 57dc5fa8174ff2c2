//! The view, on which the law stands, against the kernel's own merge.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use ovl_diff::{DirHandle, Node, ViewDir};
use proptest::collection::vec;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

use super::layers::layer;
use super::{build_all, hold_on, same};
use crate::support::{Scene, Shown, skip};

/// Mounts layers read-only, uppermost first, nowhere: the mount goes away with the descriptor.
fn mount(scene: &Scene, layers: &[DirHandle]) -> io::Result<OwnedFd> {
    let names: Vec<String> = layers.iter().map(|layer| path_of(scene, layer)).collect();
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let lowers = CString::new(names.join(":"))?;
    fsconfig_set_string(&context, "lowerdir", lowers.as_c_str())?;
    fsconfig_create(&context)?;
    Ok(fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY,
    )?)
}

fn path_of(scene: &Scene, layer: &DirHandle) -> String {
    let ino = scene.tree().metadata(Node::Dir(layer)).unwrap().ino;
    let entries = scene.tree().read_dir(&scene.dir).unwrap();
    let name = entries
        .into_iter()
        .find(|entry| entry.ino == ino)
        .unwrap()
        .name;
    scene.path.join(name).to_str().unwrap().to_owned()
}

#[test]
fn the_view_is_what_the_kernel_shows() {
    let Some(scene) = Scene::host() else { return };
    if let Err(error) = mount(&scene, &[scene.layer(), scene.layer()]) {
        skip(&format!("the kernel's own merge: {error}"));
        return;
    }
    scene.clear();
    hold_on(&scene, &vec(layer(), 2..5), &|scene, layers| {
        let layers = build_all(scene, layers);
        let ours = Shown::of(scene.view(), &ViewDir::new(layers.clone()));
        let mounted = mount(scene, &layers).unwrap();
        let root = format!("/proc/self/fd/{}", mounted.as_raw_fd());
        let root = scene.tree().open_root(Path::new(&root)).unwrap();
        same("kernel", &Shown::of_mount(scene.tree(), root), &ours)
    });
}
