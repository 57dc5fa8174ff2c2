//! What it costs to read a change, and where that goes.

use std::ffi::OsString;
use std::io;
use std::sync::atomic::Ordering;

use ovl_diff::{DirHandle, View, changes, diff, size, size_of};

use crate::support::{Entry, Recorder, Scene, each};

/// Many files in each of some directories.
fn base(files: usize) -> Vec<Entry> {
    let dirs = (0..4).map(|dir| Entry::dir(format!("dir-{dir}")));
    let files = (0..files).map(|file| Entry::file(format!("dir-{}/file-{file}", file % 4), b"x"));
    dirs.chain(files).collect()
}

/// Steps that reading a change of one file takes, over a base of so many.
fn steps(scene: &Scene, files: usize) -> [usize; 4] {
    let stack = scene.stack(&[&base(files)]);
    let upper = stack
        .apply(&[Entry::file("dir-1/file-1", b"changed")])
        .upper;
    type Work = fn(View<'_>, &DirHandle, &[DirHandle]);
    let works: [Work; 4] = [
        |view, upper, lowers| assert_eq!(changes(view, upper, lowers, false).unwrap().len(), 2),
        |view, upper, lowers| {
            diff(view, upper, lowers, false, io::sink()).unwrap();
        },
        |view, upper, _| assert_eq!(size(view, upper).unwrap().apparent, 7),
        |view, upper, lowers| assert_eq!(size_of(view, upper, lowers).unwrap().apparent, 7),
    ];
    works.map(|work| {
        let recorder = Recorder::new(scene.tree());
        work(View::new(&recorder, scene.xattrs), &upper, &stack.lowers);
        recorder.steps.load(Ordering::Relaxed)
    })
}

#[test]
fn reading_a_change_of_one_file_takes_the_same_steps_over_any_base() {
    each(|scene| {
        let few = steps(scene, 8);
        assert_eq!(few, steps(scene, 2000), "on {}", scene.backend);
        assert!(few.iter().all(|steps| *steps < 100), "{few:?}");
    });
}

#[test]
fn changes_never_follow_a_link_of_a_layer() {
    each(|scene| {
        let outside = scene.path.join("victim");
        let stack = scene.stack(&[&[
            Entry::symlink("a", "/etc"),
            Entry::symlink("b", outside.as_os_str()),
            Entry::symlink("c", "../victim"),
            Entry::symlink("d", "/etc"),
            Entry::dir("plain"),
        ]]);
        // What the links lead to, as a directory of the same name in the layer; and one that stays.
        let upper = scene.layer();
        for name in ["a", "b", "c", "plain"] {
            let dir = scene.make_dir(&upper, name);
            scene.write(&dir, "hello", b"x");
            scene.write(&dir, "passwd", b"x");
        }
        scene.whiteout(&upper, "d");
        let before = scene.raw(&scene.open(&scene.dir, "victim"));
        let recorder = Recorder::new(scene.tree());
        let view = View::new(&recorder, scene.xattrs);
        let listed = changes(view, &upper, &stack.lowers, false).unwrap();
        let listed: Vec<_> = listed.iter().map(ToString::to_string).collect();
        let expected = [
            "C /a",
            "A /a/hello",
            "A /a/passwd",
            "C /b",
            "A /b/hello",
            "A /b/passwd",
            "C /c",
            "A /c/hello",
            "A /c/passwd",
            "D /d",
            "C /plain",
            "A /plain/hello",
            "A /plain/passwd",
        ];
        assert_eq!(listed, expected);
        size_of(view, &upper, &stack.lowers).unwrap();
        diff(view, &upper, &stack.lowers, false, io::sink()).unwrap();
        assert!(recorder.roots.lock().unwrap().is_empty());
        assert!(recorder.links.lock().unwrap().is_empty());
        let allowed = ["a", "b", "c", "plain"].map(OsString::from);
        let dirs = recorder.dirs.lock().unwrap();
        assert!(dirs.iter().all(|dir| allowed.contains(dir)), "{dirs:?}");
        assert_eq!(scene.raw(&scene.open(&scene.dir, "victim")), before);
    });
}
