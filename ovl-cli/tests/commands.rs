use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{Store, archive, is_empty, store};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A sealed base with one file, and an open layer on it.
fn two_layers(store: &Store) -> String {
    let good = store.write("good.tar", &archive(&[("good", b"good")]));
    store.ok(&["import", "base", &good]);
    store.ok(&["create", "open", "--parent", "base", "--writable"]);
    good
}

#[test]
fn an_import_prints_digest_entries_and_bytes() {
    let Some(store) = store("an_import_prints_digest_entries_and_bytes") else {
        return;
    };
    let good = store.write("good.tar", &archive(&[("a", b"four"), ("b", b"")]));
    let printed = store.ok(&["import", "base", &good]);
    let lines: Vec<&str> = printed.lines().collect();
    assert!(
        lines[0].starts_with("sha256:") && lines[0].len() == 71,
        "{printed}"
    );
    assert_eq!(lines[1..], ["entries 2", "bytes 4"]);
    let again = json(&store.ok(&["import", "again", &good, "--json"]));
    assert_eq!(again["diff_id"], lines[0]);
    assert_eq!(
        (&again["entries"], &again["size"]["bytes"]),
        (&2.into(), &4.into())
    );
}

#[test]
fn an_archive_comes_from_standard_input_too() {
    let Some(store) = store("an_archive_comes_from_standard_input_too") else {
        return;
    };
    let mut import = store.command(&["import", "base", "-"]);
    let mut child = import
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(&archive(&[("x", b"x")]))
        .unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(store.ok(&["size", "base"]), "1\n");
}

#[test]
fn bad_ids_are_refused_by_every_command() {
    let Some(store) = store("bad_ids_are_refused_by_every_command") else {
        return;
    };
    let good = two_layers(&store);
    let before = store.ok(&["ls", "--json"]);
    for id in [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/abs",
        "l",
        "-x",
        "a b",
        "a\nb",
        "metacopy-check1",
    ] {
        for command in [
            "create", "mount", "unmount", "rm", "inspect", "plan", "changes", "size", "diff",
        ] {
            store.fails(7, &[command, "--", id]);
        }
        store.fails(7, &["import", "--", id, &good]);
        store.fails(7, &["apply", "--", id, &good]);
        store.fails(7, &["create", "child", &format!("--parent={id}")]);
    }
    assert_eq!(store.ok(&["ls", "--json"]), before);
}

#[test]
fn what_is_not_there_is_exit_code_3() {
    let Some(store) = store("what_is_not_there_is_exit_code_3") else {
        return;
    };
    let message = store.fails(3, &["ls"]);
    store.fails(3, &["create", "child", "--parent", "unknown"]);
    assert!(message.contains("no layer store"), "{message}");
    assert!(
        !store.path("home").exists(),
        "a reading command makes no home"
    );
    let good = two_layers(&store);
    for command in ["rm", "inspect", "plan", "changes", "size", "diff"] {
        let message = store.fails(3, &[command, "unknown"]);
        assert!(message.contains("unknown"), "{message}");
    }
    store.fails(3, &["create", "child", "--parent", "unknown"]);
    store.fails(3, &["import", "child", "--parent", "unknown", &good]);
    store.fails(3, &["changes", "open", "--parent", "unknown"]);
    assert_eq!(store.ok(&["rm", "--force", "unknown"]), "");
    let error = json(&store.fails(3, &["inspect", "unknown", "--json"]));
    assert_eq!(
        (&error["error"]["kind"], &error["error"]["layer"]),
        (&"not-found".into(), &"unknown".into())
    );
}

#[test]
fn what_exists_is_4_and_what_is_in_use_is_5() {
    let Some(store) = store("what_exists_is_4_and_what_is_in_use_is_5") else {
        return;
    };
    let good = two_layers(&store);
    store.fails(4, &["create", "base"]);
    store.fails(4, &["import", "open", &good]);
    store.fails(5, &["rm", "base"]);
    store.fails(5, &["rm", "base", "--force"]);
    store.fails(5, &["apply", "base", &good]);
    // In any order: children go first.
    store.ok(&["rm", "base", "open"]);
    assert_eq!(
        json(&store.ok(&["ls", "--json"]))["layers"],
        Value::Array(Vec::new())
    );
}

#[test]
fn bad_archives_are_7_and_leave_nothing() {
    let Some(store) = store("bad_archives_are_7_and_leave_nothing") else {
        return;
    };
    two_layers(&store);
    let before = store.ok(&["ls", "--json"]);
    let mut truncated = archive(&[("cut", &[7; 5000])]);
    truncated.truncate(3000);
    for (name, bytes, word) in [
        (
            "escape",
            archive(&[("good", b"g"), ("../victim", b"x")]),
            "out of the layer",
        ),
        ("truncated", truncated, "truncated"),
        (
            "text",
            b"not an archive\n".repeat(99),
            "not a layer archive",
        ),
        ("empty", Vec::new(), "not a layer archive"),
    ] {
        let path = store.write(name, &bytes);
        for arguments in [
            &["import", "bad", &path][..],
            &["import", "bad", "--parent", "base", &path],
            &["apply", "open", &path],
        ] {
            let message = store.fails(7, arguments);
            assert!(message.contains(word), "{message}");
        }
    }
    assert_eq!(store.ok(&["ls", "--json"]), before);
    for name in ["staging", "trash"] {
        assert!(is_empty(&store.path("home/.ovl").join(name)), "{name}");
    }
    assert!(!store.path("victim").exists() && !store.path("home/victim").exists());
    store.fails(1, &["import", "new", "/does/not/exist.tar"]);
}

#[test]
fn a_damaged_layer_is_9_and_named() {
    let Some(store) = store("a_damaged_layer_is_9_and_named") else {
        return;
    };
    two_layers(&store);
    std::fs::write(store.path("home/open/lower"), "").unwrap();
    let message = store.fails(9, &["inspect", "open"]);
    assert!(
        message.contains("open/lower") && message.contains("empty"),
        "{message}"
    );
    let list = store.run(&["ls"]);
    assert!(String::from_utf8_lossy(&list.stderr).contains("open/lower"));
    store.ok(&["rm", "open"]);
}

#[test]
fn wrong_usage_is_2() {
    let Some(store) = store("wrong_usage_is_2") else {
        return;
    };
    for arguments in [
        &["frobnicate"][..],
        &["create"],
        &["mount"],
        &["ls", "--loud"],
        &["rm"],
    ] {
        store.fails(2, arguments);
    }
}

#[test]
fn a_plan_is_printed_with_its_lengths_and_bad_options_are_7() {
    let Some(store) = store("a_plan_is_printed_with_its_lengths_and_bad_options_are_7") else {
        return;
    };
    two_layers(&store);
    let plan = json(&store.ok(&["plan", "open", "--strategy", "mount-absolute", "--json"]));
    assert_eq!(
        (&plan["kind"], &plan["access"]),
        (&"overlay".into(), &"writable".into())
    );
    let (text, len) = (
        plan["data"]["text"].as_str().unwrap(),
        plan["data"]["len"].as_u64().unwrap(),
    );
    assert_eq!(text.len() as u64, len);
    assert!(text.contains("lowerdir=") && len <= plan["data"]["limit"].as_u64().unwrap());
    let lines = store.ok(&["plan", "base"]);
    assert!(
        lines.contains("bind") && lines.contains("read-only"),
        "{lines}"
    );
    store.fails(7, &["plan", "open", "--option", "upperdir=/etc"]);
    store.fails(7, &["plan", "open", "--label", "a\",upperdir=/x,\"b"]);
    store.fails(7, &["plan", "open", "--strategy", "magic"]);
}

#[test]
fn changes_and_diff_speak_of_the_parent_unless_told_otherwise() {
    let Some(store) = store("changes_and_diff_speak_of_the_parent_unless_told_otherwise") else {
        return;
    };
    two_layers(&store);
    let more = store.write("more.tar", &archive(&[("more", b"more!")]));
    store.ok(&["apply", "open", &more]);
    assert_eq!(store.ok(&["changes", "open"]), "A /more\n");
    assert_eq!(store.ok(&["changes", "open", "-0"]), "A /more\0");
    assert_eq!(
        store.ok(&["changes", "open", "--parent", "none"]),
        "A /good\nA /more\n"
    );
    assert_eq!(store.ok(&["size", "open"]), "5\n");
    assert_eq!(store.ok(&["size", "open", "--parent", "none"]), "9\n");
    let first = store.run(&["diff", "open"]).stdout;
    assert_eq!(first, store.run(&["diff", "open", "-o", "-"]).stdout);
    assert!(first.len() > 1024);
    let missing = store.path("out.tar");
    store.fails(3, &["diff", "unknown", "-o", missing.to_str().unwrap()]);
    assert!(!missing.exists(), "no file is made for nothing");
}

#[test]
fn an_archive_is_what_the_policy_and_the_last_time_say() {
    let Some(store) = store("an_archive_is_what_the_policy_and_the_last_time_say") else {
        return;
    };
    two_layers(&store);
    let members = |arguments: &[&str]| {
        let output = store.run(&[&["diff", "base"], arguments].concat());
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        let mut archive = tar::Archive::new(&*output.stdout);
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
            (path, entry.header().mtime().unwrap())
        });
        entries.collect::<Vec<_>>()
    };
    let file = |mtime| ("good".to_owned(), mtime);
    let all = members(&[]);
    assert_eq!((all[0].0.as_str(), &all[1..]), ("./", &[file(1)][..]));
    assert_eq!(members(&["--policy", "all"]), all);
    assert_eq!(members(&["--policy", "docker"]), [file(1)]);
    let clamped = members(&["--clamp-time", "0"]);
    assert_eq!(clamped, [("./".to_owned(), 0), file(0)]);
    let last = ["--policy", "docker", "--clamp-time", "1"];
    assert_eq!(members(&last), [file(1)]);
    store.fails(2, &["diff", "base", "--policy", "podman"]);
    store.fails(2, &["diff", "base", "--clamp-time", "yesterday"]);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let Some(store) = store("a_reader_that_goes_away_is_no_failure") else {
        return;
    };
    let large = store.write("large.tar", &archive(&[("large", &[7; 3_000_000])]));
    store.ok(&["import", "base", &large]);
    let mut diff = store.command(&["diff", "base"]);
    let mut child = diff
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 512];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn mounts_are_counted_across_processes() {
    let Some(store) = store("mounts_are_counted_across_processes") else {
        return;
    };
    let good = store.write("good.tar", &archive(&[("good", b"good")]));
    let script = format!(
        "ovl import base {good} >/dev/null; ovl create work --parent base --writable
         m=$(ovl mount work); test \"$(ovl mount work)\" = \"$m\"
         echo changed >$m/good; mkdir $m/new
         ovl inspect work --json
         ovl unmount work; test -d $m/new; ovl unmount work; test ! -e $m
         ovl unmount work 2>/dev/null && exit 50
         test $? = 3
         ovl changes work"
    );
    let Some(output) = store.script(&script) else {
        return;
    };
    let (printed, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{:?}: {errors}", output.status);
    let mut lines = printed.lines();
    let info = json(lines.next().unwrap());
    assert_eq!(info["mount"]["persistent_holds"], 2);
    assert_eq!(lines.collect::<Vec<_>>(), ["C /good", "A /new"]);
}

#[test]
fn completions_and_the_manual_need_no_store() {
    let run = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_ovl"))
            .args(arguments)
            .output()
            .unwrap()
    };
    let completions = run(&["completions", "bash"]);
    assert!(completions.status.success());
    assert!(String::from_utf8_lossy(&completions.stdout).contains("unmount"));
    let manual = run(&["man"]);
    assert!(manual.status.success());
    assert!(manual.stdout.starts_with(b".ie") || manual.stdout.starts_with(b".TH"));
    assert!(run(&["--help"]).status.success());
}

#[test]
fn a_diff_that_fails_keeps_what_the_file_was() {
    let Some(store) = store("a_diff_that_fails_keeps_what_the_file_was") else {
        return;
    };
    two_layers(&store);
    let kept = store.write("kept.tar", b"precious");
    std::fs::write(store.path("home/open/diff/.wh.reserved"), "").unwrap();
    store.fails(7, &["diff", "open", "-o", &kept]);
    assert_eq!(std::fs::read(&kept).unwrap(), b"precious");
    let left = std::fs::read_dir(store.path("")).unwrap().flatten();
    let partial = left.filter(|entry| entry.file_name().to_string_lossy().contains("partial"));
    assert_eq!(partial.count(), 0);
    std::fs::remove_file(store.path("home/open/diff/.wh.reserved")).unwrap();
    store.ok(&["diff", "open", "-o", &kept]);
    assert!(std::fs::read(&kept).unwrap().len() >= 1024);
    // A device stays one.
    let full = store.run(&["diff", "base", "-o", "/dev/full"]);
    assert_eq!(full.status.code(), Some(8));
    assert!(!std::fs::symlink_metadata("/dev/full").unwrap().is_file());
}

#[test]
fn a_child_with_an_opaque_root_goes_before_its_parent() {
    let Some(store) = store("a_child_with_an_opaque_root_goes_before_its_parent") else {
        return;
    };
    two_layers(&store);
    let opaque = store.write(
        "opaque.tar",
        &archive(&[("x", b"x"), (".wh..wh..opq", b"")]),
    );
    store.ok(&["import", "aop", "--parent", "base", &opaque]);
    store.ok(&["rm", "open", "base", "aop", "base"]);
    assert_eq!(
        json(&store.ok(&["ls", "--json"]))["layers"],
        Value::Array(Vec::new())
    );
}

#[test]
fn a_mount_in_another_namespace_is_in_use_until_that_ends() {
    let Some(store) = store("a_mount_in_another_namespace_is_in_use_until_that_ends") else {
        return;
    };
    // Whichever of the two fails, the other one does not wait.
    let script = "ovl create base; ovl create work --parent base
         h=$(dirname $(ovl inspect base | sed -n 's/^diff *//p'))/..
         mkfifo $h/ready $h/go; exec 8<>$h/ready 9<>$h/go; trap 'echo >&9' EXIT
         { unshare --mount sh -ec \"$OVL --home $h mount work >/dev/null; echo >&8; read x <&9\" ||
             echo failed >&8; } &
         read x <&8; test -z \"$x\"
         for c in 'rm work' 'mount work' 'unmount work' 'create k --parent work' 'apply work /dev/null'; do
             code=0; ovl $c >/dev/null 2>&1 || code=$?; test $code = 5 || { echo \"$c: $code\"; exit 51; }
         done
         echo >&9; wait
         ovl create k --parent work; ovl rm k work base";
    let Some(output) = store.script(script) else {
        return;
    };
    let (printed, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "{:?}: {printed}{errors}",
        output.status
    );
}

#[test]
fn row_171_neither_umask_nor_environment_changes_a_layer() {
    let Some(store) = store("row_171_neither_umask_nor_environment_changes_a_layer") else {
        return;
    };
    let file = store.path("layer.tar");
    std::fs::write(&file, archive(&[("implied/file", b"contents")])).unwrap();
    let mut found = Vec::new();
    for (umask, id) in [("077", "one"), ("000", "two"), ("022", "three")] {
        let command = store.command(&["import", id, file.to_str().unwrap()]);
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("umask {umask}; exec \"$@\""), "sh"]);
        shell.arg(command.get_program()).args(command.get_args());
        shell.env_remove("OVL_HOME").env("TMPDIR", "/nowhere");
        shell.env("MOBY_DISABLE_PIGZ", "1").env("LC_ALL", "C");
        let output = shell.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        let dir = store.path("home").join(id);
        let modes = [
            "",
            "link",
            "diff",
            "diff/implied",
            "diff/implied/file",
            ".ovl-layer",
        ]
        .map(|name| std::fs::metadata(dir.join(name)).unwrap().permissions());
        found.push(modes);
    }
    assert!(found.iter().all(|modes| *modes == found[0]), "{found:?}");
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&found[0][3]) & 0o7777,
        0o755
    );
}
