//! Layers that no kernel stacks. What no plan can say is not here: more than 500 layers, values of
//! more than 255 bytes for `fsconfig(2)`, a work directory inside an upper one.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use ovl_diff::Node;
use ovl_layout::{LayerId, Layout, LinkId, LowerChain};
use ovl_mount::{Access, MountError, OverlaySpec};
use rustix::io::Errno;

use super::support::{chain, create, id, with_mount};
use super::{Subject, list};

list! {
    a_layer_that_is_twice_in_a_chain_is_refused,
    a_layer_inside_another_is_refused,
    no_layer_on_an_overlay_is_written_to,
    the_work_directory_must_be_there_for_whiteouts,
}

/// Mounts a layer of a home past any store.
fn mount(
    subject: &Subject,
    home: &Layout,
    layer: &LayerId,
    lowers: &[LinkId],
) -> Result<(), MountError> {
    let lowers: LowerChain = lowers.iter().copied().collect();
    let backend = subject.kernel().mount();
    let features = backend.features().expect("features");
    let spec = OverlaySpec::new(layer, &lowers, Access::Writable);
    backend.mount(&spec.plan(home, &features).expect("a plan"))
}

#[track_caller]
fn assert_refused(subject: &Subject, home: &Layout, result: Result<(), MountError>, errno: Errno) {
    let error = result.expect_err("it is no stack");
    let mut found = None;
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(error) = next {
        found = error
            .downcast_ref()
            .and_then(Errno::from_io_error)
            .or(found);
        next = error.source();
    }
    assert_eq!(found, Some(errno), "{}", chain(&error));
    let left: io::Result<Vec<_>> = subject.kernel().mount().mounts_below(home.home());
    assert_eq!(left.expect("mounts can be listed"), []);
}

fn a_layer_that_is_twice_in_a_chain_is_refused(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    create(&store, "top", Some("base"));
    // What a mount of the store makes first.
    with_mount(&store, "top", |_| {});
    let layout = store.layout();
    let top = layout.layer(&id("top"));
    let chain = LowerChain::parse_file(&subject.read(&top.dir().join(ovl_layout::names::LOWER)))
        .expect("a chain");
    let [link] = *chain.links() else {
        panic!("{chain:?}");
    };
    for dir in [top.work(), top.merged()] {
        if !subject.exists(dir) {
            subject.mkdir(dir, 0o700);
        }
    }
    let mounted = mount(subject, layout, &id("top"), &[link, link]);
    assert_refused(subject, layout, mounted, Errno::LOOP);
}

fn a_layer_inside_another_is_refused(subject: &Subject) {
    let home = subject.dir().join("home");
    for dir in [
        "",
        "l",
        "below",
        "below/diff",
        "below/diff/in",
        "top",
        "top/diff",
        "top/diff/in",
        "top/work",
        "top/merged",
    ] {
        subject.mkdir(&home.join(dir), 0o755);
    }
    let link = |number: u8, target: &str| {
        let link = LinkId::from_entropy([number; 17]);
        subject.symlink(&home.join("l").join(link.as_str()), target);
        link
    };
    let outer = link(1, "../below/diff");
    let inner = link(2, "../below/diff/in");
    let in_upper = link(3, "../top/diff/in");
    let layout = Layout::new(&home);
    for lowers in [&[outer, inner][..], &[inner, outer], &[outer, in_upper]] {
        let mounted = mount(subject, &layout, &id("top"), lowers);
        assert_refused(subject, &layout, mounted, Errno::LOOP);
    }
}

fn no_layer_on_an_overlay_is_written_to(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    create(&store, "top", Some("base"));
    with_mount(&store, "top", |path| {
        let home = path.join("home");
        let link = LinkId::from_entropy([7; 17]);
        for dir in [
            "",
            "l",
            "below",
            "below/diff",
            "in",
            "in/diff",
            "in/work",
            "in/merged",
        ] {
            subject.mkdir(&home.join(dir), 0o755);
        }
        subject.symlink(&home.join("l").join(link.as_str()), "../below/diff");
        let layout = Layout::new(&home);
        let mounted = mount(subject, &layout, &id("in"), &[link]);
        assert_refused(subject, &layout, mounted, Errno::INVAL);
    });
    subject.assert_clean(&store);
}

fn the_work_directory_must_be_there_for_whiteouts(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    let base = store.layout().layer(&id("base")).diff().to_owned();
    subject.write(&base.join("file"), b"below");
    create(&store, "top", Some("base"));
    let work = store.layout().layer(&id("top")).work().to_owned();
    with_mount(&store, "top", |path| {
        subject.rmdir(&work.join("work"));
        let removed = unlink(subject, path, "file");
        assert_eq!(removed, Some(Errno::NOENT));
        assert_eq!(subject.read(&path.join("file")), b"below");
        // What needs none goes on.
        subject.mkdir(&path.join("dir"), 0o755);
    });
    // The next mount makes it anew.
    with_mount(&store, "top", |path| {
        assert_eq!(unlink(subject, path, "file"), None);
        assert_eq!(subject.names(path), ["dir"]);
    });
    subject.assert_clean(&store);
}

fn unlink(subject: &Subject, dir: &Path, name: &str) -> Option<Errno> {
    let (tree, name) = (subject.tree(), OsStr::new(name));
    let dir = tree.open_root(dir).expect("a directory");
    tree.metadata(Node::Entry(&dir, name)).expect("it is there");
    let removed = tree.unlink(&dir, name);
    removed.err().and_then(|error| Errno::from_io_error(&error))
}
