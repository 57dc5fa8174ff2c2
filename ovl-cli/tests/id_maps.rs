use std::io;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::Path;

use serde_json::Value;

use crate::machine;
use crate::support::{Store, archive, skip, store};

/// A home with a map; `None` for whoever cannot give files to its owners.
fn mapped(test: &'static str) -> Option<Store> {
    if !machine::has_all_ids() {
        skip(&format!(
            "{test}: only root outside of user namespaces owns all ids"
        ));
        return None;
    }
    let store = store(test)?;
    store.ok(&["init", "--uid-map", "0:100000:65536"]);
    Some(store)
}

/// An archive of one file with this owner, which `archive` gives to root.
fn owned(name: &str, uid: u32, gid: u32) -> Vec<u8> {
    let mut bytes = archive(&[(name, b"x")]);
    bytes[108..116].copy_from_slice(format!("{uid:07o}\0").as_bytes());
    bytes[116..124].copy_from_slice(format!("{gid:07o}\0").as_bytes());
    bytes[148..156].copy_from_slice(b"        ");
    let sum: u32 = bytes[..512].iter().map(|byte| u32::from(*byte)).sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    bytes
}

fn owner(path: impl AsRef<Path>) -> io::Result<(u32, u32)> {
    let found = std::fs::symlink_metadata(path)?;
    Ok((found.uid(), found.gid()))
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn a_home_with_an_id_map_keeps_host_ids_on_disk_and_container_ids_in_archives() {
    let test = "a_home_with_an_id_map_keeps_host_ids_on_disk_and_container_ids_in_archives";
    let Some(store) = mapped(test) else {
        return;
    };
    let good = store.write("good.tar", &owned("f", 5, 6));
    store.ok(&["import", "base", &good]);
    store.ok(&["create", "child", "--parent", "base"]);
    let home = store.path("home");
    assert_eq!(owner(&home).unwrap(), (0, 100_000));
    assert_eq!(owner(home.join("l")).unwrap().0, 0);
    assert_eq!(owner(home.join("base")).unwrap(), (0, 100_000));
    assert_eq!(owner(home.join("base/diff")).unwrap(), (100_000, 100_000));
    assert_eq!(owner(home.join("base/diff/f")).unwrap(), (100_005, 100_006));
    assert_eq!(owner(home.join("child/diff")).unwrap(), (100_000, 100_000));
    assert_eq!(owner(home.join("child/work")).unwrap(), (100_000, 100_000));

    let out = store.path("out.tar");
    let out = out.to_str().unwrap();
    store.ok(&["diff", "base", "-o", out]);
    let mut written = tar::Archive::new(std::fs::File::open(out).unwrap());
    let owners: Vec<(String, u64, u64)> = written
        .entries()
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.path().unwrap().to_str().unwrap().to_owned();
            let header = entry.header();
            (name, header.uid().unwrap(), header.gid().unwrap())
        })
        .collect();
    assert_eq!(owners.len(), 2, "{owners:?}");
    assert_eq!((owners[0].1, owners[0].2), (0, 0), "{owners:?}");
    assert_eq!(owners[1], ("f".to_owned(), 5, 6));
}

#[test]
fn an_id_outside_the_map_is_exit_code_7_in_both_directions() {
    let Some(store) = mapped("an_id_outside_the_map_is_exit_code_7_in_both_directions") else {
        return;
    };
    let foreign = store.write("foreign.tar", &owned("f", 5, 70_000));
    let message = store.fails(7, &["import", "bad", &foreign]);
    for words in ["entry", "\"f\"", "gid 70000", "gid map 0:100000:65536"] {
        assert!(message.contains(words), "{words}: {message}");
    }
    assert_eq!(
        json(&store.ok(&["ls", "--json"]))["layers"],
        Value::Array(Vec::new())
    );
    store.ok(&["import", "squashed", "--squash", &foreign]);
    let file = store.path("home/squashed/diff/f");
    assert_eq!(owner(&file).unwrap(), (100_005, 100_000));

    chown(&file, Some(7), None).unwrap();
    let out = store.path("out.tar");
    let message = store.fails(7, &["diff", "squashed", "-o", out.to_str().unwrap()]);
    for words in ["f has the uid 7 on disk", "uid map 0:100000:65536"] {
        assert!(message.contains(words), "{words}: {message}");
    }
    assert!(!out.exists());
}

#[test]
fn status_and_inspect_show_the_id_maps() {
    let Some(mapped) = mapped("status_and_inspect_show_the_id_maps") else {
        return;
    };
    let plain = store("status_and_inspect_show_the_id_maps").unwrap();
    plain.ok(&["init"]);
    for (store, map) in [(&mapped, Some("0:100000:65536")), (&plain, None)] {
        store.ok(&["create", "base"]);
        for arguments in [&["status"][..], &["inspect", "base"]] {
            let shown = json(&store.ok(&[arguments, &["--json"]].concat()));
            assert_eq!(shown["uid_map"], Value::from(map));
            assert_eq!(shown["gid_map"], Value::from(map));
            let lines = store.ok(arguments);
            let count = lines.matches("0:100000:65536").count();
            assert_eq!(count, map.map_or(0, |_| 2), "{lines}");
        }
    }
}
