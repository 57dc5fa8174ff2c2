//! A home that a real Docker wrote, and what Docker showed of it; see `fixtures/README.md`.

use std::path::{Path, PathBuf};
use std::process::Command;

use ovl_driver::blocking::Overlay2;
use ovl_driver::{Base, CreateLayer, ErrorKind, ImportOptions, Kernel, MountRequest, OpenOptions};
use ovl_layout::LayerId;
use ovl_mount::UnmountMode;
use ovl_testkit::listing_at;

/// A case on an empty directory.
type Case = fn(&Path);

/// All cases by name. They need to be root: the layers hold attributes and owners that nobody else
/// can make.
pub(crate) const CASES: &[(&str, Case)] = &[
    ("a_home_that_docker_wrote_is_listed_and_found_whole", listed),
    ("layers_that_docker_wrote_show_what_docker_showed", shown),
    (
        "diffs_of_layers_that_docker_wrote_rebuild_them_in_another_home",
        rebuilt,
    ),
    (
        "layers_are_added_to_and_removed_from_a_home_that_docker_wrote",
        changed,
    ),
];

const HOME: &[u8] = include_bytes!("fixtures/docker-20.10.tar.gz");
const SHOWN: &str = include_str!("fixtures/docker-20.10.txt");

/// What is known of a layer.
struct Known {
    id: LayerId,
    parent: Option<LayerId>,
    /// The lines of what it shows; none for what Docker never shows.
    shows: Vec<&'static str>,
}

/// The layers of the fixture: an image's from the lowest, a container's first layer, and its own.
fn known() -> Vec<Known> {
    let mut layers: Vec<Known> = Vec::new();
    for line in SHOWN.lines().filter(|line| !line.starts_with('#')) {
        if line.starts_with('"') {
            layers.last_mut().unwrap().shows.push(line);
            continue;
        }
        let words: Vec<&str> = line.split(' ').collect();
        let &[_, id, parent] = &words[..] else {
            panic!("{line:?} is no line of a fixture");
        };
        layers.push(Known {
            id: id.parse().unwrap(),
            parent: (parent != "-").then(|| parent.parse().unwrap()),
            shows: Vec::new(),
        });
    }
    assert_eq!(layers.len(), 5);
    layers
}

/// The home as Docker left it.
fn unpacked(dir: &Path) -> PathBuf {
    let archive = dir.join("home.tar.gz");
    std::fs::write(&archive, HOME).unwrap();
    let mut tar = Command::new("tar");
    tar.args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpzf"]);
    let output = tar.arg(&archive).arg("-C").arg(dir).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{errors}");
    dir.join("overlay2")
}

fn open(home: &Path) -> Overlay2 {
    let options = OpenOptions::new().create(!home.exists());
    Overlay2::open(Kernel::host(), home, options).unwrap()
}

fn assert_shows(store: &Overlay2, layer: &Known) {
    if layer.shows.is_empty() {
        return;
    }
    let path = store.mount(&layer.id, &MountRequest::new()).unwrap();
    let lines = listing_at(&path).unwrap();
    let lines: Vec<String> = lines
        .iter()
        .map(|(path, line)| format!("{path:?} {line}"))
        .collect();
    store.unmount(&layer.id, UnmountMode::Now).unwrap();
    assert_eq!(lines, layer.shows, "{}", layer.id);
}

fn listed(dir: &Path) {
    let store = open(&unpacked(dir));
    let list = store.layers().unwrap();
    assert!(list.broken.is_empty(), "{:?}", list.broken);
    let known = known();
    assert_eq!(list.layers.len(), known.len());
    for (depth, layer) in known.iter().enumerate() {
        let info = store.inspect(&layer.id).unwrap();
        assert_eq!((&info.parent, info.chain.len()), (&layer.parent, depth));
        assert!(!info.recorded && info.mount.is_none());
        assert_eq!(info.sealed, depth + 1 < known.len());
    }
    let report = store.check().unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
}

fn shown(dir: &Path) {
    let store = open(&unpacked(dir));
    for layer in &known() {
        assert_shows(&store, layer);
    }
    assert!(store.check().unwrap().is_clean());
}

fn rebuilt(dir: &Path) {
    let (store, other) = (open(&unpacked(dir)), open(&dir.join("other")));
    for layer in &known() {
        let mut archive = Vec::new();
        store.diff(&layer.id, &Base::Parent, &mut archive).unwrap();
        let copy = CreateLayer::new(layer.id.clone()).parent(layer.parent.clone());
        let import = other.import(&copy, &*archive, ImportOptions::new(), &mut |_| {});
        import.unwrap();
        assert_shows(&other, layer);
        let mut again = Vec::new();
        other.diff(&layer.id, &Base::Parent, &mut again).unwrap();
        assert_eq!(archive, again, "{}", layer.id);
    }
}

fn changed(dir: &Path) {
    let store = open(&unpacked(dir));
    let known = known();
    let [base, _, top, init, own] = &known[..] else {
        panic!("another fixture");
    };
    let child = CreateLayer::new("child".parse().unwrap()).parent(Some(top.id.clone()));
    store.create_writable(&child).unwrap();
    let path = store.mount(&child.id, &MountRequest::new()).unwrap();
    std::fs::write(path.join("data/changed"), "changed\n").unwrap();
    std::fs::remove_file(path.join("last")).unwrap();
    store.unmount(&child.id, UnmountMode::Now).unwrap();
    let changes = store.changes(&child.id, &Base::Parent).unwrap();
    assert_eq!(changes.len(), 3, "{changes:?}");
    for layer in &known {
        assert_shows(&store, layer);
    }

    for parent in [base, top, init] {
        let error = store.remove(&parent.id, false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
    }
    for id in [&own.id, &init.id, &child.id, &top.id] {
        store.remove(id, false).unwrap();
    }
    store.reclaim().unwrap();
    assert_eq!(store.layers().unwrap().layers.len(), 2);
    let report = store.check().unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
    assert_shows(&store, base);
}
