//! Layers into archives, what they change and take, and how they are copied, folded and removed.

mod archives;
mod changes;
mod cost;
mod deep;
mod failures;
mod policies;
mod redirects;
mod trees;

use std::ffi::OsStr;

use ovl_diff::{DiffError, DiffSummary, DirHandle, Node};

use crate::support::{Scene, members};

/// A native diff that must succeed.
#[track_caller]
fn diff(scene: &Scene, upper: &DirHandle, lowers: &[DirHandle]) -> (Vec<u8>, DiffSummary) {
    let mut bytes = Vec::new();
    let summary = ovl_diff::diff(scene.view(), upper, lowers, false, &mut bytes)
        .unwrap_or_else(|error| panic!("on {}: {error:?}", scene.backend));
    (bytes, summary)
}

/// The names in a native diff, in their order.
#[track_caller]
fn names(scene: &Scene, upper: &DirHandle, lowers: &[DirHandle]) -> Vec<String> {
    let names = members(&diff(scene, upper, lowers).0).into_iter();
    names
        .map(|(entry, _)| String::from_utf8(entry.path).unwrap())
        .collect()
}

/// Why neither way of diff works; both leave an archive that is cut short.
#[track_caller]
fn refused(scene: &Scene, upper: &DirHandle, lowers: &[DirHandle]) -> DiffError {
    let mut parts = vec![upper.clone()];
    parts.extend_from_slice(lowers);
    let (tree, base) = (
        ovl_diff::ViewDir::new(parts),
        ovl_diff::ViewDir::new(lowers.to_vec()),
    );
    let (mut native, mut naive) = (Vec::new(), Vec::new());
    let error = ovl_diff::diff(scene.view(), upper, lowers, false, &mut native).unwrap_err();
    ovl_diff::diff_trees(scene.view(), &tree, &base, &mut naive).unwrap_err();
    assert_cut_short(&native);
    assert_cut_short(&naive);
    error
}

/// No reader may take it for a whole archive.
#[track_caller]
pub(crate) fn assert_cut_short(bytes: &[u8]) {
    let limits = ovl_diff::ReadLimits::default();
    let mut reader = ovl_diff::ArchiveReader::new(bytes, limits);
    let mut read = || {
        while reader.next_entry()?.is_some() {}
        Ok::<_, ovl_diff::ArchiveError>(())
    };
    let error = read().expect_err("an archive that looks whole");
    assert!(error.to_string().contains("ends"), "{error}");
}

fn set_xattr(scene: &Scene, dir: &DirHandle, name: &str, attribute: &str, value: &[u8]) {
    let node = Node::Entry(dir, OsStr::new(name));
    scene
        .tree()
        .set_xattr(node, OsStr::new(attribute), value)
        .unwrap();
}
