use serde_json::Value;

use crate::support::{Store, archive, store};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Whether limits can be set in the tests' home, which must be there.
fn enforced(store: &Store) -> bool {
    let status = json(&store.ok(&["status", "--json"]));
    status["quota"] == "project quotas are enforced" && rustix::process::geteuid().is_root()
}

#[test]
fn status_prints_the_names_of_docker_and_reasons_as_json() {
    let Some(store) = store("status_prints_the_names_of_docker_and_reasons_as_json") else {
        return;
    };
    store.fails(3, &["status"]);
    store.ok(&["create", "base"]);
    let lines = store.ok(&["status"]);
    for name in [
        "Backing Filesystem   ",
        "Supports d_type      true",
        "Using metacopy       false",
        "Native Overlay Diff  true",
        "userxattr            ",
        "Default size         none",
    ] {
        assert!(
            lines.lines().any(|line| line.starts_with(name)),
            "{name}: {lines}"
        );
    }
    let status = json(&store.ok(&["status", "--json"]));
    assert_eq!(status["supports_d_type"], true);
    assert_eq!(status["using_metacopy"], false);
    assert_eq!(status["native_overlay_diff"], true);
    assert_eq!(status["userxattr"], status["user_namespace"]);
    let works: Vec<_> = status["mounting"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|one| one["works"] == true)
        .map(|one| one["strategy"].clone())
        .collect();
    assert_eq!(status["strategies"], Value::from(works));
    for one in status["mounting"].as_array().unwrap() {
        assert!(one["reason"].as_str().unwrap().len() > 10, "{one}");
    }
    for (key, line) in [
        ("keeps_owners", "Keeps owners         "),
        ("makes_devices", "Makes devices        "),
        ("takes_redirects", "Takes redirects      "),
        ("private_mounts", "Private mounts       "),
    ] {
        let word = if status[key] == true { "yes" } else { "no" };
        let reason = status["reasons"][key].as_str().unwrap();
        let expected = format!("{line}{word}: {reason}");
        assert!(
            lines.lines().any(|line| line == expected),
            "{expected}: {lines}"
        );
    }
    for (_, reason) in status["reasons"].as_object().unwrap() {
        assert!(reason.as_str().unwrap().len() > 10, "{reason}");
    }
}

#[test]
fn inspect_gives_the_paths_by_the_names_of_docker() {
    let Some(store) = store("inspect_gives_the_paths_by_the_names_of_docker") else {
        return;
    };
    store.ok(&["create", "base"]);
    store.ok(&["create", "top", "--parent", "base"]);
    let info = json(&store.ok(&["inspect", "top", "--json"]));
    for (docker, ours) in [
        ("WorkDir", "work"),
        ("MergedDir", "merged"),
        ("UpperDir", "diff"),
    ] {
        assert_eq!(info["docker"][docker], info["paths"][ours]);
    }
    let base = json(&store.ok(&["inspect", "base", "--json"]));
    assert_eq!(info["docker"]["LowerDir"], base["paths"]["diff"]);
    assert_eq!(base["docker"].get("LowerDir"), None);
    assert_eq!(base["quota"], Value::Null);
}

#[test]
fn sizes_that_are_none_are_exit_code_7() {
    let Some(store) = store("sizes_that_are_none_are_exit_code_7") else {
        return;
    };
    store.ok(&["create", "base"]);
    for size in [
        "0",
        "-1",
        "1e30",
        "10GB!",
        " 10G",
        "",
        "none",
        "9223372036854775807",
    ] {
        let size = format!("--size={size}");
        store.fails(7, &["create", "new", "--writable", &size]);
        store.fails(7, &["init", &size]);
        if size != "--size=none" {
            store.fails(7, &["quota", "base", &size]);
        }
    }
    for inodes in ["0", "-1", "1k", ""] {
        let inodes = format!("--inodes={inodes}");
        store.fails(7, &["create", "new", "--writable", &inodes]);
        store.fails(7, &["quota", "base", &inodes]);
    }
    let message = store.fails(7, &["create", "new", "--size", "1G"]);
    assert!(message.contains("only writable layers"), "{message}");
    store.fails(7, &["create", "new", "--inodes", "100"]);
    store.fails(3, &["quota", "new"]);
    assert_eq!(
        json(&store.ok(&["ls", "--json"]))["layers"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn a_size_is_kept_or_refused_with_the_reason() {
    let Some(store) = store("a_size_is_kept_or_refused_with_the_reason") else {
        return;
    };
    store.ok(&["create", "plain", "--writable"]);
    let create = [
        "create",
        "small",
        "--writable",
        "--size",
        "5M",
        "--inodes",
        "100",
    ];
    if !enforced(&store) {
        for refused in [&create[..], &["quota", "plain", "--size", "5M"]] {
            let message = store.fails(6, refused);
            assert!(message.contains("quotas"), "{message}");
        }
        let Some(other) = crate::support::store("a_size_is_kept_or_refused_with_the_reason") else {
            return;
        };
        let message = other.fails(6, &["init", "--size", "5M"]);
        assert!(message.contains("default size"), "{message}");
        assert!(!other.path("home").exists(), "no home is made");
        assert_eq!(store.ok(&["quota", "plain"]), "project       none\n");
        let quota = json(&store.ok(&["quota", "plain", "--json"]));
        assert_eq!(
            (&quota["id"], &quota["quota"]),
            (&"plain".into(), &Value::Null)
        );
        return;
    }
    store.ok(&create);
    let quota = json(&store.ok(&["quota", "small", "--json"]));
    assert_eq!(quota["quota"]["bytes_limit"], 5 << 20);
    assert_eq!(quota["quota"]["inodes_limit"], 100);
    let large = store.write("large.tar", &archive(&[("large", &[7; 6 << 20])]));
    let message = store.fails(8, &["apply", "small", &large]);
    assert!(
        message.contains("quota") && message.contains("5 MiB"),
        "{message}"
    );
    store.ok(&["quota", "small", "--size", "20M"]);
    store.ok(&["apply", "small", &large]);
    store.ok(&["quota", "small", "--size", "none"]);
    let quota = json(&store.ok(&["quota", "small", "--json"]));
    assert_eq!(quota["quota"]["bytes_limit"], Value::Null);
    assert_eq!(quota["quota"]["inodes_limit"], 100);
}
