//! Damaged stores: each is named, none is ever mounted wrongly. Row numbers are those of the
//! catalogue of bad inputs.

use ovl_driver::blocking::Overlay2;
use ovl_driver::{Error, ErrorKind, MountRequest};

use super::support::{chain, create, id, layer, with_mount};
use super::{Subject, list};

list! {
    row_124_an_empty_link_file_is_damage,
    row_126_an_empty_lower_file_is_damage,
    row_127_an_empty_entry_in_a_lower_file_is_damage,
    row_129_a_lower_entry_that_leads_out_is_damage,
    row_130_a_link_that_leads_out_is_damage,
    row_131_a_missing_link_is_damage,
    row_136_a_missing_lower_file_is_damage,
    row_137_a_shortened_lower_file_is_damage,
    row_140_a_link_to_another_layer_is_damage,
    row_142_a_diff_that_is_no_directory_is_damage,
    a_damaged_layer_can_be_removed,
    the_parent_of_a_damaged_layer_stays,
    a_small_file_of_another_kind_or_size_is_damage,
    a_rewritten_layer_is_read_as_the_other_program_left_it,
}

fn stack(subject: &Subject) -> Overlay2 {
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
fn assert_damaged(subject: &Subject, store: &Overlay2, file: &std::path::Path) {
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
}

fn damage_file(subject: &Subject, owner: &str, name: &str, contents: &[u8]) {
    let store = stack(subject);
    let file = store.layout().layer(&id(owner)).dir().join(name);
    subject.rewrite(&file, contents);
    assert_damaged(subject, &store, &file);
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
        assert_damaged(subject, &store, &file);
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
    assert_damaged(subject, &store, &link);
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
    assert_damaged(subject, &store, &file);
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
    assert_damaged(subject, &store, &file);
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
        assert_damaged(subject, &store, &diff);
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
            assert_damaged(subject, &store, &file);
            let list = store.layers().expect("the others can be listed");
            assert_eq!(
                (list.layers.len(), list.broken.len()),
                (2, 1),
                "{name} {kind}"
            );
            store.remove(&id("top"), true).expect("it can be removed");
            store.reclaim().expect("reclaim");
            subject.remove_tree(store.home());
        }
    }
}
