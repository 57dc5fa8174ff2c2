//! What is on disk when an operation returns.

use std::path::PathBuf;

use ovl_driver::blocking::Overlay2;
use ovl_driver::{
    CreateLayer, Durability, FindingKind, ImportOptions, MountRequest, OpenOptions, UpkeepOptions,
};
use ovl_mount::UnmountMode;
use ovl_quota::Limits;
use ovl_testkit::{ArchiveBuilder, Faulty, KernelProfile, MockKernel};

fn store(durability: Durability) -> (MockKernel, Overlay2) {
    let kernel = MockKernel::new(KernelProfile::modern());
    kernel.mkdir_all("/scratch".as_ref()).unwrap();
    let options = OpenOptions::new().create(true).durability(durability);
    let store = Overlay2::open(kernel.kernel(), "/scratch/home".as_ref(), options).unwrap();
    (kernel, store)
}

fn layer(id: &str, parent: Option<&str>) -> CreateLayer {
    CreateLayer::new(id.parse().unwrap()).parent(parent.map(|id| id.parse().unwrap()))
}

/// More files than are synced one after the other.
fn archive() -> Vec<u8> {
    let mut archive = ArchiveBuilder::new();
    for dir in 0..20 {
        archive = archive.dir(&format!("d{dir}"), 0o755);
        for file in 0..5 {
            archive = archive.file(&format!("d{dir}/f{file}"), b"contents");
        }
    }
    archive.symlink("link", "d1/f1").finish()
}

/// Makes layers in every way; what may be lost afterwards, without our own notes, which are made
/// again.
fn at_risk(durability: Durability) -> Vec<PathBuf> {
    let (kernel, store) = store(durability);
    let import = |layer: &CreateLayer| {
        let options = ImportOptions::new();
        store
            .import(layer, &*archive(), options, &mut |_| {})
            .unwrap();
    };
    import(&layer("base", None));
    store.create(&layer("child", Some("base"))).unwrap();
    store
        .create_writable(&layer("work", Some("child")))
        .unwrap();
    let work = "work".parse().unwrap();
    for _ in 0..2 {
        let options = ImportOptions::new();
        store
            .apply(&work, &*archive(), options, &mut |_| {})
            .unwrap();
    }
    import(&layer("top", Some("work")));
    import(&layer("gone", Some("work")));
    // Until something is removed, not a name is at risk.
    let links = kernel.unsynced("/scratch/home/l".as_ref()).unwrap();
    assert_eq!(
        links.is_empty(),
        durability != Durability::None,
        "{links:?}"
    );
    store.remove(&"gone".parse().unwrap(), false).unwrap();
    let home = kernel.unsynced("/scratch/home".as_ref()).unwrap();
    let notes = |path: &PathBuf| !path.starts_with(".ovl");
    home.into_iter().filter(notes).collect()
}

#[test]
fn nothing_of_a_published_layer_is_at_risk() {
    let mut risk = at_risk(Durability::Layer);
    // Removing takes the link away last; it may come back, and is taken for what it is.
    risk.retain(|path| path != std::path::Path::new("l"));
    assert_eq!(risk, [""; 0].map(PathBuf::from));
    assert_eq!(at_risk(Durability::Full), [""; 0].map(PathBuf::from));
}

#[test]
fn what_was_written_into_a_layer_is_not_at_risk_below_another() {
    let (kernel, store) = store(Durability::Layer);
    store.create(&layer("base", None)).unwrap();
    let base = "base".parse().unwrap();
    let merged = store.mount(&base, &MountRequest::new()).unwrap();
    kernel
        .write_file(&merged.join("file"), b"contents")
        .unwrap();
    store.unmount(&base, UnmountMode::Now).unwrap();
    let at_risk = || kernel.unsynced(&store.home().join("base")).unwrap();
    assert!(at_risk().contains(&"diff/file".into()), "{:?}", at_risk());

    store.create(&layer("top", Some("base"))).unwrap();
    assert_eq!(at_risk(), [""; 0].map(PathBuf::from));
}

#[test]
fn without_durability_nothing_is_waited_for() {
    let risk = at_risk(Durability::None);
    for path in [
        "base/diff/d1/f1",
        "base/.ovl-layer",
        "child/lower",
        "top/link",
        "l",
    ] {
        assert!(risk.contains(&path.into()), "{path} is not in {risk:?}");
    }
}

#[test]
fn what_a_repair_writes_is_not_at_risk() {
    let (kernel, store) = store(Durability::Layer);
    store.create(&layer("base", None)).unwrap();
    store.create(&layer("top", Some("base"))).unwrap();
    let tree = store.kernel().tree();
    for (dir, name) in [("top", "lower"), ("top", "link"), ("base", "committed")] {
        let dir = tree.open_root(&store.home().join(dir)).unwrap();
        tree.unlink(&dir, name.as_ref()).unwrap();
    }
    let repaired = store.repair(UpkeepOptions::new()).unwrap();
    assert_eq!((repaired.mended.len(), repaired.left.is_clean()), (3, true));
    for layer in ["base", "top"] {
        let risk = kernel.unsynced(&store.home().join(layer)).unwrap();
        assert_eq!(risk, [""; 0].map(PathBuf::from), "{layer}");
    }
}

/// Found by a power cut without durability: such a directory was nothing but a note to `check`, and
/// its home clean.
#[test]
fn a_layer_whose_small_files_were_lost_half_written_is_told_as_half_a_layer() {
    for name in [".tmp-.ovl-layer", ".tmp-lower", "replaces", "incoming"] {
        let (kernel, store) = store(Durability::None);
        store.create(&layer("base", None)).unwrap();
        let dir = store.home().join("half");
        kernel.mkdir_all(&dir.join("diff")).unwrap();
        kernel.write_file(&dir.join(name), b"").unwrap();
        let report = store.check().unwrap();
        let kinds: Vec<_> = report.findings.iter().map(|one| one.kind).collect();
        assert_eq!(kinds, [FindingKind::HalfLayer], "{name}: {report:#?}");
        assert!(!report.is_clean());
        store.remove(&"half".parse().unwrap(), false).unwrap();
        store.reclaim().unwrap();
        assert!(store.check().unwrap().is_clean());
    }
}

/// The same home, with another durability.
fn reopened(kernel: &MockKernel, durability: Durability) -> Overlay2 {
    let options = OpenOptions::new().durability(durability);
    Overlay2::open(kernel.kernel(), "/scratch/home".as_ref(), options).unwrap()
}

/// Of these layers, what a power cut may take.
fn pending(kernel: &MockKernel, layers: &[&str]) -> Vec<PathBuf> {
    let of = |layer: &&str| {
        let dir = PathBuf::from("/scratch/home").join(layer);
        kernel.unsynced(&dir).unwrap().into_iter()
    };
    layers.iter().flat_map(of).collect()
}

#[test]
fn a_durable_layer_waits_for_those_below_it_that_nobody_waited_for() {
    for make in [0, 1, 2] {
        let (kernel, quick) = store(Durability::None);
        let options = ImportOptions::new();
        let archive = archive();
        let import = |store: &Overlay2, name, parent| {
            let layer = layer(name, parent);
            store
                .import(&layer, &*archive, options, &mut |_| {})
                .unwrap();
        };
        import(&quick, "base", None);
        import(&quick, "middle", Some("base"));
        quick.create(&layer("open", Some("middle"))).unwrap();
        assert!(!pending(&kernel, &["base"]).is_empty());
        let durable = reopened(&kernel, Durability::Layer);
        let below: &[&str] = match make {
            0 => {
                durable.create(&layer("top", Some("open"))).unwrap();
                &["base", "middle", "open", "top"]
            }
            1 => {
                import(&durable, "top", Some("middle"));
                &["base", "middle", "top"]
            }
            _ => {
                let open = "open".parse().unwrap();
                durable
                    .apply(&open, &*archive, options, &mut |_| {})
                    .unwrap();
                &["base", "middle"]
            }
        };
        assert_eq!(
            pending(&kernel, below),
            [""; 0].map(PathBuf::from),
            "{make}"
        );
        assert!(durable.check().unwrap().is_clean());
    }
}

#[test]
fn a_seal_that_nobody_waited_for_is_made_up_for() {
    let (kernel, durable) = store(Durability::Layer);
    durable.create(&layer("base", None)).unwrap();
    durable.create(&layer("open", Some("base"))).unwrap();
    let open = "open".parse().unwrap();
    let merged = durable.mount(&open, &MountRequest::new()).unwrap();
    kernel.write_file(&merged.join("file"), b"file").unwrap();
    durable.unmount(&open, UnmountMode::Now).unwrap();
    let quick = reopened(&kernel, Durability::None);
    quick.create(&layer("quick", Some("open"))).unwrap();
    assert!(pending(&kernel, &["open"]).contains(&"diff/file".into()));

    durable.create(&layer("top", Some("open"))).unwrap();
    let below = ["base", "open", "top"];
    assert_eq!(pending(&kernel, &below), [""; 0].map(PathBuf::from));
    assert!(!pending(&kernel, &["quick"]).is_empty());
    // A second one has nothing to wait for.
    let record = kernel.read_file("/scratch/home/open/.ovl-layer".as_ref());
    let record = String::from_utf8(record.unwrap()).unwrap();
    assert!(!record.contains("unsynced"), "{record}");
}

/// The sync of a file waits for the limits of a project if the file has changed after them.
#[test]
fn limits_that_were_set_are_waited_for() {
    for durability in [Durability::None, Durability::Layer] {
        let (kernel, _) = store(durability);
        let faulty = Faulty::new(kernel.kernel());
        let options = OpenOptions::new().durability(durability);
        let home = "/scratch/home".as_ref();
        let store = Overlay2::open(faulty.kernel(), home, options).unwrap();
        store.create_writable(&layer("work", None)).unwrap();
        faulty.heal();
        let limits = Limits::UNLIMITED.inodes(Some(1000));
        store.set_limits(&"work".parse().unwrap(), limits).unwrap();
        let journal = faulty.journal();
        let calls = journal.operations().iter().map(|one| one.call);
        let after: Vec<_> = calls.skip_while(|call| *call != "set_limits").collect();
        let at = |wanted| after.iter().position(|call| *call == wanted);
        assert_eq!(at("set_limits"), Some(0), "{journal}");
        match durability {
            Durability::None => assert_eq!(at("sync"), None, "{journal}"),
            _ => {
                let (changed, synced) = (at("set_mtime"), at("sync"));
                assert!(changed.is_some() && changed < synced, "{journal}");
            }
        }
    }
}
