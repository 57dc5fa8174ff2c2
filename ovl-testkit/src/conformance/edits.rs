//! What a container does to files that its image has: it writes into them.

use std::ffi::OsStr;
use std::path::Path;

use ovl_diff::RenameMode;
use ovl_driver::blocking::Overlay2;
use ovl_driver::{Base, ImportOptions, MountRequest};
use ovl_layout::XattrNamespace;
use ovl_mount::OverlayOptions;

use super::support::{changes, create, id, import, unmount, with_mount};
use super::{Skip, Subject, list};
use crate::ArchiveBuilder;
use crate::edit::Edit;

list! {
    what_is_written_into_a_file_of_the_image_is_in_the_upper_layer,
    a_file_of_the_image_that_is_cut_has_what_is_left_in_the_upper_layer,
    a_file_whose_data_was_left_below_has_it_once_it_is_written,
    a_file_whose_data_was_left_below_is_one_file_by_both_its_names,
    writing_takes_capabilities_away_and_no_mode,
}

const CONTENTS: &[u8] = b"contents of the image";

/// A layer on an image with one file; none where the subject cannot change files.
fn on_image(subject: &Subject) -> Option<Overlay2> {
    if subject.editor.is_none() {
        subject.skip(Skip::whole("the subject changes no files in place"));
        return None;
    }
    let store = subject.store();
    let archive = ArchiveBuilder::new()
        .dir("dir", 0o755)
        .file("dir/file", CONTENTS);
    import(&store, "base", None, &archive.finish());
    create(&store, "top", Some("base"));
    Some(store)
}

#[track_caller]
fn edit(subject: &Subject, path: &Path, change: Edit<'_>) {
    let edited = subject.edit(path, change).expect("it has an editor");
    edited.unwrap_or_else(|error| panic!("edit {}: {error}", path.display()));
}

/// The file's parts in both layers, and what a diff says.
#[track_caller]
fn assert_holds(subject: &Subject, store: &Overlay2, expected: &[u8]) {
    let diff = |layer: &str| store.layout().layer(&id(layer)).diff().join("dir/file");
    assert_eq!(subject.read(&diff("top")), expected);
    assert_eq!(
        subject.read(&diff("base")),
        CONTENTS,
        "the image is as it was"
    );
    let told = changes(store, "top", &Base::Parent);
    assert_eq!(told, ["C /dir", "C /dir/file"]);
    subject.assert_clean(store);
}

fn what_is_written_into_a_file_of_the_image_is_in_the_upper_layer(subject: &Subject) {
    let Some(store) = on_image(subject) else {
        return;
    };
    let expected = b"contents OF the image, and more";
    with_mount(&store, "top", |path| {
        let file = path.join("dir/file");
        let writes = [(9, &b"OF"[..]), (CONTENTS.len() as u64, b", and more")];
        for (offset, bytes) in writes {
            edit(subject, &file, Edit::Write { offset, bytes });
        }
        assert_eq!(subject.read(&file), expected);
    });
    assert_holds(subject, &store, expected);
}

fn a_file_of_the_image_that_is_cut_has_what_is_left_in_the_upper_layer(subject: &Subject) {
    let Some(store) = on_image(subject) else {
        return;
    };
    with_mount(&store, "top", |path| {
        let file = path.join("dir/file");
        edit(subject, &file, Edit::Truncate(8));
        assert_eq!(subject.read(&file), b"contents");
        edit(subject, &file, Edit::Truncate(10));
        assert_eq!(subject.read(&file), b"contents\0\0");
    });
    assert_holds(subject, &store, b"contents\0\0");
}

/// How a layer is mounted that leaves data below; none where no mount does.
fn leaving_data_below(subject: &Subject) -> Option<MountRequest> {
    let features = subject.kernel().mount().features().expect("features");
    if features.user_namespace || !features.metacopy {
        subject.skip(Skip::whole("no mount leaves data below here"));
        return None;
    }
    let options = OverlayOptions::default().with("metacopy=on");
    Some(MountRequest::new().options(options.expect("an option")))
}

fn a_file_whose_data_was_left_below_has_it_once_it_is_written(subject: &Subject) {
    let Some(request) = leaving_data_below(subject) else {
        return;
    };
    let Some(store) = on_image(subject) else {
        return;
    };
    let path = store.mount(&id("top"), &request).expect("mount");
    let file = path.join("dir/file");
    subject.chmod(&file, 0o640);
    let upper = store.layout().layer(&id("top")).diff().join("dir/file");
    let mark = XattrNamespace::Trusted.metacopy();
    assert!(subject.xattr(&upper, mark).is_some(), "its data is below");
    edit(
        subject,
        &file,
        Edit::Write {
            offset: 0,
            bytes: b"C",
        },
    );
    assert_eq!(subject.xattr(&upper, mark), None);
    assert_eq!(subject.read(&file), b"Contents of the image");
    unmount(&store, "top");
    assert_holds(subject, &store, b"Contents of the image");
    assert_eq!(subject.mode(&upper), 0o640);
}

/// The copy of a layer that an archive makes has what leads Linux to one inode from both: else it
/// gives each name a number of its own, and `ESTALE` to who exchanges them.
fn a_file_whose_data_was_left_below_is_one_file_by_both_its_names(subject: &Subject) {
    let Some(request) = leaving_data_below(subject) else {
        return;
    };
    let Some(store) = on_image(subject) else {
        return;
    };
    let mounted = || store.mount(&id("top"), &request).expect("mount");
    subject.chmod(&mounted().join("dir/file"), 0o640);
    unmount(&store, "top");
    let archive = ArchiveBuilder::new().file("new", b"new").finish();
    let options = ImportOptions::new();
    let applied = store.apply(&id("top"), &*archive, options, &mut |_| {});
    applied.expect("apply");
    let path = mounted();
    let (file, other) = (path.join("dir/file"), path.join("dir/other"));
    edit(subject, &file, Edit::Truncate(2));
    subject.rename(&file, &other);
    // Where a whiteout is.
    subject.link(&other, &file);
    let upper = store.layout().layer(&id("top")).diff().to_owned();
    let check = |root: &Path| {
        let [one, two] = ["dir/file", "dir/other"].map(|name| subject.metadata(&root.join(name)));
        assert_eq!((one.ino, one.nlink), (two.ino, 2), "{}", root.display());
    };
    check(&upper);
    check(&path);
    for name in [&file, &other] {
        assert_eq!(subject.read(name), b"co");
    }
    let dir = subject.tree().open_root(&path.join("dir")).expect("open");
    let (one, two) = (OsStr::new("file"), OsStr::new("other"));
    for mode in [RenameMode::Exchange, RenameMode::Replace] {
        let renamed = subject.tree().rename(&dir, one, &dir, two, mode);
        renamed.expect("nothing is to be done");
    }
    drop(dir);
    check(&path);
    unmount(&store, "top");
    check(&mounted());
    unmount(&store, "top");
    let told = changes(&store, "top", &Base::Parent);
    assert_eq!(told, ["C /dir", "C /dir/file", "A /dir/other", "A /new"]);
    subject.assert_clean(&store);
}

fn writing_takes_capabilities_away_and_no_mode(subject: &Subject) {
    let identity = subject.kernel().system().identity().expect("an identity");
    if identity.user_namespace {
        return subject.skip(Skip::whole("capabilities belong to a user namespace here"));
    }
    let Some(store) = on_image(subject) else {
        return;
    };
    // VFS_CAP_REVISION_2 with CAP_NET_RAW.
    let mut capability = [0; 20];
    (capability[3], capability[5]) = (2, 32);
    let name = "security.capability";
    with_mount(&store, "top", |path| {
        let file = path.join("dir/file");
        for change in [
            Edit::Truncate(3),
            Edit::Write {
                offset: 0,
                bytes: b"C",
            },
        ] {
            subject.chmod(&file, 0o4755);
            subject.set_xattr(&file, name, &capability);
            assert_eq!(subject.xattr(&file, name).as_deref(), Some(&capability[..]));
            edit(subject, &file, change);
            assert_eq!(subject.xattr(&file, name), None, "after {change:?}");
            assert_eq!(subject.mode(&file), 0o4755, "after {change:?}");
        }
    });
    subject.assert_clean(&store);
}
