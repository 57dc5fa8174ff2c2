//! Damaged stores: each is named, none is ever mounted wrongly. Row numbers are those of the
//! catalogue of bad inputs.

use std::path::Path;

use ovl_driver::blocking::Overlay2;
use ovl_driver::{
    Error, ErrorKind, Finding, FindingKind, MountRequest, Remedy, Severity, UpkeepOptions,
};
use ovl_layout::{LayerRecord, names};

use super::support::{chain, create, id, import, layer, try_import, with_mount};
use super::{Subject, list};
use crate::archive::ArchiveBuilder;

list! {
    row_124_an_empty_link_file_is_damage,
    row_126_an_empty_lower_file_is_damage,
    row_127_an_empty_entry_in_a_lower_file_is_damage,
    row_129_a_lower_entry_that_leads_out_is_damage,
    row_130_a_link_that_leads_out_is_damage,
    row_131_a_missing_link_is_damage,
    row_136_a_missing_lower_file_is_damage,
    row_137_a_shortened_lower_file_is_damage,
    row_125_two_empty_link_files_are_damage_of_both,
    row_128_a_lower_file_with_other_white_space_is_damage,
    row_133_a_link_file_that_leads_out_is_damage,
    row_135_a_link_file_comes_back_from_the_link,
    row_140_layers_that_stand_on_each_other_are_damage,
    row_141_a_layer_that_stands_on_itself_is_damage,
    a_record_that_names_its_own_layer_as_parent_is_damage,
    opaque_layers_that_stand_on_each_other_are_damage,
    no_layer_is_made_below_itself,
    layers_that_stand_on_each_other_can_be_removed,
    row_144_stale_contents_of_work_go_before_a_mount,
    row_147_a_parent_without_its_mark_is_never_mounted_writable,
    row_140_a_link_to_another_layer_is_damage,
    row_142_a_diff_that_is_no_directory_is_damage,
    a_damaged_layer_can_be_removed,
    the_parent_of_a_damaged_layer_stays,
    a_small_file_of_another_kind_or_size_is_damage,
    a_rewritten_layer_is_read_as_the_other_program_left_it,
    a_record_that_was_garbled_comes_back,
    a_record_of_a_newer_program_is_never_written_over,
    a_lost_record_and_a_lost_lower_file_have_no_right_answer,
    a_link_file_that_others_vouch_for_is_right,
    a_link_file_with_another_layers_link_is_damage,
    a_layer_of_docker_is_only_repaired_when_nobody_else_is_at_work,
    a_missing_layer_is_told_and_nothing_is_invented,
}

/// What repairing makes of a damage.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// There was one right answer.
    Mended,
    /// There is none.
    Stays,
}
use Outcome::{Mended, Stays};

pub(super) fn stack(subject: &Subject) -> Overlay2 {
    let store = subject.store();
    create(&store, "base", None);
    with_mount(&store, "base", |path| {
        subject.write(&path.join("secret"), b"base");
    });
    create(&store, "middle", Some("base"));
    create(&store, "top", Some("middle"));
    store
}

/// No operation that follows the stack may go on.
fn assert_damaged(subject: &Subject, store: &Overlay2, file: &Path, outcome: Outcome) {
    let request = MountRequest::new();
    let errors = [
        store.mount(&id("top"), &request).err(),
        store.plan(&id("top"), &request).err(),
        store.inspect(&id("top")).err(),
        store.create(&layer("new", Some("top"))).err(),
        store.changes(&id("top"), &ovl_driver::Base::Parent).err(),
    ];
    for error in errors {
        let error = error.expect("the stack is damaged");
        assert_eq!(error.kind(), ErrorKind::Damaged, "{}", chain(&error));
        let named = matches!(&error, Error::Damaged { file: found, .. } if found == file);
        assert!(named, "{} does not name {}", error, file.display());
    }
    let mounts = subject
        .kernel()
        .mount()
        .mounts_below(store.home())
        .expect("mounts");
    assert_eq!(mounts, []);
    assert!(!store.contains(&id("new")).expect("contains"));
    assert_found(store, file);
    assert_repaired(subject, store, outcome);
}

pub(super) fn findings(store: &Overlay2) -> Vec<Finding> {
    let report = store.check();
    let report = report.unwrap_or_else(|error| panic!("check: {}", chain(&error)));
    report.findings
}

fn assert_found(store: &Overlay2, file: &Path) {
    let found = findings(store);
    let damaged = |one: &Finding| one.severity() == Severity::Damage && one.path == file;
    assert!(
        found.iter().any(damaged),
        "{} is not in {found:#?}",
        file.display()
    );
}

/// Repairing gives what the layers showed before, or changes nothing that others need; a second time
/// there is nothing to do.
fn assert_repaired(subject: &Subject, store: &Overlay2, outcome: Outcome) {
    let dry = store.repair(UpkeepOptions::new().dry_run(true));
    let repaired = store.repair(UpkeepOptions::new());
    let repaired = repaired.unwrap_or_else(|error| panic!("repair: {}", chain(&error)));
    assert_eq!(repaired.left.is_sound(), outcome == Mended, "{repaired:#?}");
    assert_eq!(
        repaired.mended.is_empty(),
        outcome == Stays,
        "{repaired:#?}"
    );
    assert_eq!(dry.expect("a dry run").mended.is_empty(), outcome == Stays);
    let again = store.repair(UpkeepOptions::new()).expect("once more");
    assert_eq!(again.mended, []);
    assert_eq!(again.left, repaired.left);
    if outcome == Mended {
        assert_shows_base(subject, store);
        let layers = store.layers().expect("layers");
        assert!(layers.broken.is_empty(), "{layers:?}");
    }
}

pub(super) fn assert_shows_base(subject: &Subject, store: &Overlay2) {
    with_mount(store, "top", |path| {
        assert_eq!(subject.read(&path.join("secret")), b"base");
    });
}

fn damage_file(subject: &Subject, owner: &str, name: &str, contents: &[u8]) {
    let store = stack(subject);
    let file = store.layout().layer(&id(owner)).dir().join(name);
    subject.rewrite(&file, contents);
    assert_damaged(subject, &store, &file, Mended);
}

fn row_124_an_empty_link_file_is_damage(subject: &Subject) {
    damage_file(subject, "base", "link", b"");
}

fn row_126_an_empty_lower_file_is_damage(subject: &Subject) {
    damage_file(subject, "top", "lower", b"");
}

fn row_127_an_empty_entry_in_a_lower_file_is_damage(subject: &Subject) {
    let store = stack(subject);
    let file = store.layout().layer(&id("top")).dir().join("lower");
    let contents = subject.read(&file);
    for damaged in [[&contents, &b":"[..]].concat(), [b":", &*contents].concat()] {
        subject.rewrite(&file, &damaged);
        assert_damaged(subject, &store, &file, Mended);
    }
}

fn row_129_a_lower_entry_that_leads_out_is_damage(subject: &Subject) {
    damage_file(subject, "top", "lower", b"l/../../../../etc");
}

fn replace_link(subject: &Subject, target: Option<&str>) {
    let store = stack(subject);
    let link = store
        .layout()
        .link(store.inspect(&id("base")).expect("inspect").link);
    subject.unlink(&link);
    if let Some(target) = target {
        subject.symlink(&link, target);
    }
    assert_damaged(subject, &store, &link, Mended);
}

fn row_130_a_link_that_leads_out_is_damage(subject: &Subject) {
    replace_link(subject, Some("/etc"));
}

fn row_131_a_missing_link_is_damage(subject: &Subject) {
    replace_link(subject, None);
}

fn row_136_a_missing_lower_file_is_damage(subject: &Subject) {
    let store = stack(subject);
    let file = store.layout().layer(&id("top")).dir().join("lower");
    subject.unlink(&file);
    assert_damaged(subject, &store, &file, Mended);
}

fn row_137_a_shortened_lower_file_is_damage(subject: &Subject) {
    let store = stack(subject);
    let file = store.layout().layer(&id("top")).dir().join("lower");
    let contents = subject.read(&file);
    let first = contents
        .split(|&byte| byte == b':')
        .next()
        .expect("a chain")
        .to_vec();
    subject.rewrite(&file, &first);
    assert_damaged(subject, &store, &file, Mended);
}

fn row_140_a_link_to_another_layer_is_damage(subject: &Subject) {
    replace_link(subject, Some("../middle/diff"));
}

fn row_142_a_diff_that_is_no_directory_is_damage(subject: &Subject) {
    for replacement in ["missing", "file", "link"] {
        let store = stack(subject);
        let diff = store.layout().layer(&id("base")).diff().to_owned();
        subject.rename(&diff, &diff.with_file_name("moved"));
        match replacement {
            "file" => subject.write(&diff, b""),
            "link" => subject.symlink(&diff, "moved"),
            _ => {}
        }
        assert_damaged(subject, &store, &diff, Stays);
        subject.remove_tree(store.home());
    }
}

fn a_damaged_layer_can_be_removed(subject: &Subject) {
    let store = stack(subject);
    for (name, contents) in [("link", &b""[..]), ("lower", b"rubbish")] {
        let file = store.layout().layer(&id("top")).dir().join(name);
        let good = subject.read(&file);
        subject.rewrite(&file, contents);
        store.remove(&id("top"), false).expect("remove");
        assert!(!store.contains(&id("top")).expect("contains"));
        store.reclaim().expect("reclaim");
        drop(good);
        create(&store, "top", Some("middle"));
    }
    with_mount(&store, "top", |path| {
        assert_eq!(subject.read(&path.join("secret")), b"base");
    });
}

fn a_rewritten_layer_is_read_as_the_other_program_left_it(subject: &Subject) {
    let store = stack(subject);
    let paths = store.layout().layer(&id("top"));
    // Another program has made the layer anew: another link, and no parent.
    let link = "ZZZZZZZZZZZZZZZZZZZZZZZZZZ";
    subject.symlink(&store.layout().link_dir().join(link), "../top/diff");
    subject.rewrite(&paths.dir().join("link"), link.as_bytes());
    subject.unlink(&paths.dir().join("lower"));
    let info = store.inspect(&id("top")).expect("inspect");
    assert_eq!(
        (info.recorded, info.parent, info.chain),
        (false, None, Vec::new())
    );
}

fn the_parent_of_a_damaged_layer_stays(subject: &Subject) {
    for (name, contents) in [
        ("lower", Some(&b"garbled"[..])),
        ("link", None),
        ("link", Some(b"")),
    ] {
        let store = stack(subject);
        let file = store.layout().layer(&id("top")).dir().join(name);
        subject.unlink(&file);
        if let Some(contents) = contents {
            subject.write(&file, contents);
        }
        let error = store
            .remove(&id("middle"), true)
            .expect_err("top stands on it");
        assert!(
            matches!(error, Error::HasChildren { .. }),
            "{name}: {error}"
        );
        // Without our record nobody can tell any more.
        if name == "lower" {
            subject.unlink(&store.layout().layer(&id("top")).dir().join(".ovl-layer"));
            let error = store
                .remove(&id("middle"), true)
                .expect_err("it may stand on it");
            assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
        }
        assert!(store.contains(&id("middle")).expect("contains"));
        subject.remove_tree(store.home());
    }
}

fn a_small_file_of_another_kind_or_size_is_damage(subject: &Subject) {
    for name in ["link", "lower"] {
        for kind in ["fifo", "directory", "link", "large"] {
            let store = stack(subject);
            let file = store.layout().layer(&id("top")).dir().join(name);
            subject.unlink(&file);
            match kind {
                "fifo" => subject.fifo(&file),
                "directory" => subject.mkdir(&file, 0o755),
                "link" => subject.symlink(&file, "../base/link"),
                _ => subject.write(&file, &[b'x'; 100_000]),
            }
            let list = store.layers().expect("the others can be listed");
            assert_eq!(
                (list.layers.len(), list.broken.len()),
                (2, 1),
                "{name} {kind}"
            );
            assert_damaged(subject, &store, &file, Mended);
            store.remove(&id("top"), true).expect("it can be removed");
            store.reclaim().expect("reclaim");
            subject.remove_tree(store.home());
        }
    }
}

pub(super) fn layer_file(store: &Overlay2, layer: &str, name: &str) -> std::path::PathBuf {
    store.layout().layer(&id(layer)).dir().join(name)
}

pub(super) fn kinds(store: &Overlay2) -> Vec<FindingKind> {
    findings(store).iter().map(|one| one.kind).collect()
}

/// What Docker does not know is taken away.
pub(super) fn as_docker(subject: &Subject, store: Overlay2) -> Overlay2 {
    for summary in store.layers().expect("layers").layers {
        subject.unlink(&layer_file(&store, summary.id.as_str(), names::RECORD));
    }
    subject.remove_tree(&store.layout().store_dir());
    drop(store);
    subject.open("home").expect("it opens")
}

fn row_125_two_empty_link_files_are_damage_of_both(subject: &Subject) {
    let store = stack(subject);
    for owner in ["base", "middle"] {
        subject.rewrite(&layer_file(&store, owner, "link"), b"");
    }
    assert_found(&store, &layer_file(&store, "base", "link"));
    let file = layer_file(&store, "middle", "link");
    assert_damaged(subject, &store, &file, Mended);
}

fn row_128_a_lower_file_with_other_white_space_is_damage(subject: &Subject) {
    let store = stack(subject);
    let file = layer_file(&store, "top", "lower");
    let contents = subject.read(&file);
    for suffix in ["\r\n", "\n\n", " ", "\t"] {
        subject.rewrite(&file, &[&contents, suffix.as_bytes()].concat());
        assert_damaged(subject, &store, &file, Mended);
        assert_eq!(subject.read(&file), contents);
    }
}

fn row_133_a_link_file_that_leads_out_is_damage(subject: &Subject) {
    let store = stack(subject);
    let sentinel = subject.dir().join("target");
    subject.write(&sentinel, b"stays");
    let file = layer_file(&store, "top", "link");
    subject.rewrite(&file, b"../../../target");
    store.remove(&id("top"), false).expect("it can be removed");
    store.reclaim().expect("reclaim");
    assert_eq!(subject.read(&sentinel), b"stays");
    assert_eq!(subject.names(&store.layout().link_dir()).len(), 2);
    create(&store, "top", Some("middle"));
    subject.rewrite(&file, b"../../../target");
    assert_damaged(subject, &store, &file, Mended);
}

fn row_135_a_link_file_comes_back_from_the_link(subject: &Subject) {
    let store = as_docker(subject, stack(subject));
    for owner in ["base", "middle", "top"] {
        subject.unlink(&layer_file(&store, owner, "link"));
    }
    let found = findings(&store);
    assert!(
        found.iter().all(|one| one.kind == FindingKind::Link),
        "{found:#?}"
    );
    let options = UpkeepOptions::new().docker_stopped(true);
    let repaired = store.repair(options).expect("repair");
    assert_eq!(
        (repaired.mended.len(), repaired.left.findings.len()),
        (3, 0),
        "{repaired:#?}"
    );
    assert_eq!(store.repair(options).expect("again").mended, []);
    assert_shows_base(subject, &store);
}

fn row_140_layers_that_stand_on_each_other_are_damage(subject: &Subject) {
    let store = stack(subject);
    let middle = layer_file(&store, "middle", "lower");
    let right = subject.read(&middle);
    let top = store.inspect(&id("top")).expect("inspect").link;
    subject.rewrite(&middle, format!("l/{top}").as_bytes());
    let error = store.mount(&id("top"), &MountRequest::new());
    let error = error.expect_err("the layers stand on each other");
    assert_eq!(error.kind(), ErrorKind::Damaged, "{}", chain(&error));
    let error = store.mount(&id("middle"), &MountRequest::new());
    assert_eq!(
        error.expect_err("so does this one").kind(),
        ErrorKind::Damaged
    );
    assert!(
        findings(&store)
            .iter()
            .any(|one| one.severity() == Severity::Damage)
    );
    subject.rewrite(&middle, &right);
    assert_shows_base(subject, &store);
}

fn row_141_a_layer_that_stands_on_itself_is_damage(subject: &Subject) {
    let store = stack(subject);
    let file = layer_file(&store, "top", "lower");
    let contents = subject.read(&file);
    let link = store.inspect(&id("top")).expect("inspect").link;
    let mut entries = contents.rsplit(|byte| *byte == b':');
    let second = String::from_utf8_lossy(entries.next().expect("two")).into_owned();
    subject.rewrite(&file, format!("l/{link}:{second}").as_bytes());
    assert_damaged(subject, &store, &file, Mended);
    assert_eq!(subject.read(&file), contents);
}

/// A base and layers that hide everything below them, so that their records alone name parents.
fn opaque(subject: &Subject, layers: &[&str]) -> Overlay2 {
    let store = stack(subject);
    for name in layers {
        let archive = ArchiveBuilder::new().file(".wh..wh..opq", b"");
        import(&store, name, Some("base"), &archive.finish());
    }
    store
}

fn say_parent(subject: &Subject, store: &Overlay2, layer: &str, parent: &str) {
    let file = layer_file(store, layer, names::RECORD);
    let mut record = LayerRecord::parse_file(&subject.read(&file)).expect("a record");
    record.parent = Some(id(parent));
    subject.rewrite(&file, record.to_string().as_bytes());
}

/// Each way of comparing a layer with one that it hides, or may hide.
fn assert_not_compared(store: &Overlay2, layer: &str, file: &Path) {
    let (layer, base) = (id(layer), ovl_driver::Base::Layer(id("middle")));
    let errors = [
        store.diff(&layer, &base, Vec::new()).err(),
        store.changes(&layer, &base).err(),
        store.size(&layer, &base).err(),
    ];
    for error in errors {
        let error = error.expect("its parents lead nowhere");
        let named = matches!(&error, Error::Damaged { file: found, .. } if found == file);
        assert!(named, "{}", chain(&error));
    }
    assert_found(store, file);
}

fn a_record_that_names_its_own_layer_as_parent_is_damage(subject: &Subject) {
    let store = opaque(subject, &["opaque"]);
    create(&store, "child", Some("opaque"));
    say_parent(subject, &store, "opaque", "opaque");
    let file = layer_file(&store, "opaque", names::RECORD);
    for name in ["opaque", "child"] {
        assert_not_compared(&store, name, &file);
    }
    let error = store.mount(&id("opaque"), &MountRequest::new());
    assert_eq!(error.expect_err("never mounted").kind(), ErrorKind::Damaged);
    let repaired = store.repair(UpkeepOptions::new()).expect("repair");
    assert_eq!(repaired.mended, [], "nobody knows what it stood on");
    for name in ["child", "opaque", "base"] {
        let removed = store.remove(&id(name), false);
        match name {
            "base" => assert!(matches!(removed, Err(Error::HasChildren { .. }))),
            _ => removed.unwrap_or_else(|error| panic!("{name}: {}", chain(&error))),
        }
    }

    // A chain says better.
    let file = layer_file(&store, "top", names::RECORD);
    let right = subject.read(&file);
    say_parent(subject, &store, "top", "top");
    assert_damaged(subject, &store, &file, Mended);
    let mended = LayerRecord::parse_file(&subject.read(&file)).expect("a record");
    let right = LayerRecord::parse_file(&right).expect("a record");
    assert_eq!(mended.parent, right.parent);
    store.reclaim().expect("reclaim");
    subject.assert_clean(&store);
}

fn opaque_layers_that_stand_on_each_other_are_damage(subject: &Subject) {
    let store = opaque(subject, &["one", "two"]);
    create(&store, "child", Some("one"));
    say_parent(subject, &store, "one", "two");
    assert_eq!(kinds(&store), [], "one stands on the other");
    say_parent(subject, &store, "two", "one");
    let (one, two) = (
        layer_file(&store, "one", names::RECORD),
        layer_file(&store, "two", names::RECORD),
    );
    assert_not_compared(&store, "one", &one);
    assert_not_compared(&store, "two", &two);
    assert_not_compared(&store, "child", &one);
    let found = findings(&store);
    let paths: Vec<_> = found.iter().map(|one| one.path.clone()).collect();
    assert_eq!(paths, [one, two], "{found:#?}");
    assert_eq!(
        store.repair(UpkeepOptions::new()).expect("repair").mended,
        []
    );
}

/// As Docker does it, which asks nobody.
fn take_away(subject: &Subject, store: &Overlay2, layer: &str) {
    let link = store.inspect(&id(layer)).expect("inspect").link;
    subject.unlink(&store.layout().link(link));
    subject.remove_tree(store.layout().layer(&id(layer)).dir());
}

fn no_layer_is_made_below_itself(subject: &Subject) {
    let store = opaque(subject, &["opaque"]);
    create(&store, "child", Some("opaque"));
    create(&store, "gone", None);
    say_parent(subject, &store, "opaque", "gone");
    take_away(subject, &store, "gone");
    // One more that names what is not there, further down.
    let archive = ArchiveBuilder::new().file(".wh..wh..opq", b"").finish();
    import(&store, "above", Some("child"), &archive);
    create(&store, "highest", Some("above"));
    for parent in ["opaque", "child", "above", "highest"] {
        let wanted = layer("gone", Some(parent));
        let errors = [
            store.create(&wanted).err(),
            store.create_writable(&wanted).err(),
            try_import(&store, "gone", Some(parent), &archive).err(),
        ];
        for error in errors {
            let error = error.expect("it would stand on itself");
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{}", chain(&error));
            assert_eq!(error.layer(), Some(&id("gone")));
            let named =
                matches!(&error, Error::OwnAncestor { child, .. } if *child == id("opaque"));
            assert!(named, "{}", chain(&error));
        }
    }
    assert!(!store.inspect(&id("highest")).expect("inspect").sealed);
    create(&store, "other", Some("highest"));
    // What stands on none of them may have the id, and is what they name then.
    create(&store, "gone", Some("top"));
    let error = store.remove(&id("gone"), false);
    let error = error.expect_err("it is named as a parent");
    let named =
        matches!(&error, Error::HasChildren { children, .. } if *children == [id("opaque")]);
    assert!(named, "{}", chain(&error));
    for found in findings(&store) {
        // It was made by hand that the layer has a parent.
        assert_eq!(found.kind, FindingKind::Unmarked, "{found:?}");
    }
    store.repair(UpkeepOptions::new()).expect("repair");
    subject.assert_clean(&store);
}

fn layers_that_stand_on_each_other_can_be_removed(subject: &Subject) {
    for (record, force) in [(true, false), (true, true), (false, false), (false, true)] {
        let store = opaque(subject, &["one"]);
        create(&store, "two", Some("one"));
        create(&store, "three", Some("two"));
        create(&store, "other", Some("two"));
        say_parent(subject, &store, "one", "three");
        if !record {
            // As Docker would have made it.
            subject.unlink(&layer_file(&store, "three", names::RECORD));
        }
        subject.write(&layer_file(&store, "three", names::COMMITTED), b"");
        // The index does not know what has become of `one`.
        let another = store.layout().link_dir().join("another");
        subject.symlink(&another, "../one/diff");
        subject.unlink(&another);

        let found = findings(&store);
        let layers: Vec<_> = found.iter().filter_map(|one| one.layer.clone()).collect();
        let expected = match record {
            true => [id("one"), id("three"), id("two")].to_vec(),
            false => [id("one"), id("two")].to_vec(),
        };
        assert_eq!(layers, expected, "{found:#?}");
        for one in found {
            assert_eq!(one.kind, FindingKind::Record);
            assert!(
                one.problem
                    .contains("; three can be removed first, since one, "),
                "{one:?}"
            );
        }
        let refused = |name: &str, by: &[&str]| {
            let error = store.remove(&id(name), force);
            let error = error.expect_err("others stand on it");
            let by: Vec<_> = by.iter().map(|name| id(name)).collect();
            let named = matches!(&error, Error::HasChildren { children, .. } if *children == by);
            assert!(named, "{name}: {}", chain(&error));
        };
        let remove = |name: &str| {
            let removed = store.remove(&id(name), force);
            removed.unwrap_or_else(|error| panic!("{name}: {}", chain(&error)));
        };
        refused("one", &["other", "three", "two"]);
        refused("two", &["other", "three"]);
        create(&store, "above", Some("three"));
        refused("three", &["above"]);
        remove("above");
        remove("three");
        with_mount(&store, "other", |path| {
            assert_eq!(subject.names(path), [""; 0]);
        });
        // The next of this id is what `one` stands on again.
        create(&store, "three", None);
        refused("three", &["one"]);
        for name in ["other", "two", "one", "three"] {
            remove(name);
        }
        store.reclaim().expect("reclaim");
        subject.assert_clean(&store);
        subject.remove_tree(store.home());
    }
}

fn row_144_stale_contents_of_work_go_before_a_mount(subject: &Subject) {
    let store = stack(subject);
    let work = store.layout().layer(&id("top")).work().to_owned();
    let stale = work.join("work/a/b/c/d");
    for dir in stale
        .ancestors()
        .take(5)
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
    {
        if !subject.exists(dir) {
            subject.mkdir(dir, 0o700);
        }
    }
    subject.write(&stale.join("file"), b"stale");
    assert_shows_base(subject, &store);
    assert!(!subject.exists(&work.join("work/a")));
    for replacement in ["missing", "file"] {
        subject.remove_tree(&work);
        if replacement == "file" {
            subject.write(&work, b"not a directory");
        }
        assert_shows_base(subject, &store);
    }
    assert_eq!(kinds(&store), []);
}

fn row_147_a_parent_without_its_mark_is_never_mounted_writable(subject: &Subject) {
    let store = stack(subject);
    let mark = layer_file(&store, "middle", "committed");
    subject.unlink(&mark);
    assert_found(&store, &mark);
    with_mount(&store, "middle", |_| {
        let state = store.inspect(&id("middle")).expect("inspect").mount;
        let access = state.expect("mounted").access;
        assert_eq!(access, ovl_mount::Access::ReadOnly);
    });
    assert!(subject.exists(&mark), "the children are the proof");
    subject.unlink(&mark);
    let error = store
        .remove(&id("middle"), false)
        .expect_err("top stands on it");
    assert!(matches!(error, Error::HasChildren { .. }), "{error}");
    assert_repaired(subject, &store, Mended);
    assert!(subject.exists(&mark));

    // Old versions of Docker made no marks: there it is no damage.
    let store = as_docker(subject, store);
    subject.unlink(&mark);
    let found = findings(&store);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0].severity(), Severity::Note);
    with_mount(&store, "middle", |_| {
        let state = store.inspect(&id("middle")).expect("inspect").mount;
        assert_eq!(state.expect("mounted").access, ovl_mount::Access::ReadOnly);
    });
}

fn a_record_that_was_garbled_comes_back(subject: &Subject) {
    let store = stack(subject);
    let archive = ArchiveBuilder::new()
        .file(".wh..wh..opq", b"")
        .file("only", b"this");
    import(&store, "opaque", Some("base"), &archive.finish());
    for layer in ["base", "middle", "top", "opaque"] {
        let file = layer_file(&store, layer, names::RECORD);
        let (right, before) = (
            subject.read(&file),
            store.inspect(&id(layer)).expect("inspect"),
        );
        subject.rewrite(&file, b"garbled");
        let error = store.inspect(&id(layer)).expect_err("damaged");
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert_found(&store, &file);
        if layer == "opaque" {
            // No `lower`, and yet a parent: that may be a `lower` that was lost as well.
            assert_repaired(subject, &store, Stays);
            subject.rewrite(&file, &right);
        } else {
            assert_repaired(subject, &store, Mended);
            assert_eq!(subject.read(&file), right);
        }
        assert_eq!(store.inspect(&id(layer)).expect("inspect"), before);
    }
}

fn a_link_file_with_another_layers_link_is_damage(subject: &Subject) {
    let store = stack(subject);
    let other = subject.read(&layer_file(&store, "base", "link"));
    let file = layer_file(&store, "middle", "link");
    let right = subject.read(&file);
    for wrong in [&*other, b"NOBODYNOBODYNOBODYNOBODYNO"] {
        subject.rewrite(&file, wrong);
        let error = store.mount(&id("top"), &MountRequest::new());
        let error = error.expect_err("the stack is damaged");
        assert_eq!(error.kind(), ErrorKind::Damaged, "{}", chain(&error));
        assert_found(&store, &file);
        // Our record of it is void, so it may be another program's.
        let options = UpkeepOptions::new().docker_stopped(true);
        let repaired = store.repair(options).expect("repair");
        assert_eq!(
            (repaired.mended.len(), repaired.left.is_clean()),
            (1, true),
            "{repaired:#?}"
        );
        assert_eq!(subject.read(&file), right);
        assert_shows_base(subject, &store);
    }
}

fn a_layer_of_docker_is_only_repaired_when_nobody_else_is_at_work(subject: &Subject) {
    let store = as_docker(subject, stack(subject));
    let file = layer_file(&store, "middle", "link");
    let right = subject.read(&file);
    subject.unlink(&file);
    assert_found(&store, &file);
    let careful = store.repair(UpkeepOptions::new()).expect("repair");
    assert_eq!(careful.mended, []);
    assert!(!subject.exists(&file));
    let options = UpkeepOptions::new().docker_stopped(true);
    let repaired = store.repair(options).expect("repair");
    assert_eq!(repaired.mended.len(), 1, "{repaired:#?}");
    assert_eq!(subject.read(&file), right);
    assert_shows_base(subject, &store);
    // Without a record nobody knows what a garbled file said.
    let file = layer_file(&store, "top", "lower");
    subject.rewrite(&file, b"");
    let repaired = store.repair(options).expect("repair");
    assert_eq!(
        (repaired.mended.len(), repaired.left.is_sound()),
        (0, false)
    );
    let error = store.mount(&id("top"), &MountRequest::new());
    assert_eq!(error.expect_err("never mounted").kind(), ErrorKind::Damaged);
}

fn a_missing_layer_is_told_and_nothing_is_invented(subject: &Subject) {
    let store = stack(subject);
    subject.remove_tree(&store.home().join("base"));
    let found = findings(&store);
    let damage = found
        .iter()
        .filter(|one| one.severity() == Severity::Damage);
    let layers: Vec<_> = damage.filter_map(|one| one.layer.clone()).collect();
    assert_eq!(layers, [id("middle"), id("top")], "{found:#?}");
    assert!(
        found.iter().all(|one| one.remedy != Remedy::Repair),
        "{found:#?}"
    );
    let options = UpkeepOptions::new().docker_stopped(true);
    let repaired = store.repair(options).expect("repair");
    assert_eq!(repaired.mended, []);
    let error = store.mount(&id("top"), &MountRequest::new());
    assert_eq!(error.expect_err("never mounted").kind(), ErrorKind::Damaged);
}

fn a_record_of_a_newer_program_is_never_written_over(subject: &Subject) {
    let store = stack(subject);
    let file = layer_file(&store, "middle", names::RECORD);
    let newer = String::from_utf8(subject.read(&file)).expect("text");
    let newer = newer.replace("ovl-layer 1", "ovl-layer 2");
    subject.rewrite(&file, newer.as_bytes());
    let error = store.mount(&id("middle"), &MountRequest::new());
    let error = error.expect_err("only a newer program knows the layer");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{}", chain(&error));
    assert_found(&store, &file);
    let options = UpkeepOptions::new().docker_stopped(true);
    assert_eq!(store.repair(options).expect("repair").mended, []);
    assert_eq!(subject.read(&file), newer.as_bytes());
}

fn a_lost_record_and_a_lost_lower_file_have_no_right_answer(subject: &Subject) {
    let store = stack(subject);
    let file = layer_file(&store, "top", names::RECORD);
    subject.rewrite(&file, b"garbled");
    subject.unlink(&layer_file(&store, "top", "lower"));
    let options = UpkeepOptions::new().docker_stopped(true);
    assert_eq!(store.repair(options).expect("repair").mended, []);
    let error = store.mount(&id("top"), &MountRequest::new());
    assert_eq!(error.expect_err("never mounted").kind(), ErrorKind::Damaged);
}

fn a_link_file_that_others_vouch_for_is_right(subject: &Subject) {
    for docker in [false, true] {
        let mut store = stack(subject);
        if docker {
            store = as_docker(subject, store);
        }
        let link = store.inspect(&id("middle")).expect("inspect").link;
        subject.unlink(&store.layout().link(link));
        let stray = store.layout().link_dir().join("STRAYSTRAYSTRAYSTRAYSTRAYS");
        subject.symlink(&stray, "../middle/diff");
        let options = UpkeepOptions::new().docker_stopped(true);
        let repaired = store.repair(options).expect("repair");
        assert_eq!(
            (repaired.mended.len(), repaired.left.is_sound()),
            (1, true),
            "{repaired:#?}"
        );
        assert_eq!(store.inspect(&id("middle")).expect("inspect").link, link);
        assert_shows_base(subject, &store);
        subject.remove_tree(store.home());
    }
}
