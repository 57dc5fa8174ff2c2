//! init, check, gc and unmount-all.

use std::process::{Command, Output, Stdio};

use ovl_driver::blocking::Overlay2;
use ovl_driver::{CreateLayer, Kernel, OpenOptions};
use ovl_layout::LayerId;
use serde_json::Value;

use super::machine;
use super::support::{Store, archive, skip, store};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn two_layers(store: &Store) {
    let good = store.write("good.tar", &archive(&[("good", b"good")]));
    store.ok(&["import", "base", &good]);
    store.ok(&["create", "open", "--parent", "base"]);
}

#[test]
fn a_home_is_made_with_settings_once() {
    let Some(store) = store("a_home_is_made_with_settings_once") else {
        return;
    };
    store.ok(&["init", "--max-depth", "300", "--durability", "full"]);
    let status = json(&store.ok(&["--json", "status"]));
    assert_eq!(status["max_depth"], 300);
    assert_eq!(status["durability"], "full");
    store.ok(&["init", "--max-depth", "300", "--durability", "full"]);
    let message = store.fails(4, &["init"]);
    assert!(message.contains("other settings"), "{message}");
    for bad in [
        &["init", "--max-depth", "500"][..],
        &["init", "--durability", "some"],
        &["init", "--uid-map", "0:1"],
        &["init", "--uid-map", "1:0:1"],
        &["init", "--size", "0"],
        &["init", "--project-base", "0"],
    ] {
        store.fails(7, bad);
    }
    store.fails(2, &["init", "--max-depth", "many"]);
}

#[test]
fn check_finds_and_mends_what_has_one_right_answer() {
    let Some(store) = store("check_finds_and_mends_what_has_one_right_answer") else {
        return;
    };
    two_layers(&store);
    assert_eq!(store.ok(&["check"]), "");
    let lower = store.path("home/open/lower");
    let right = std::fs::read(&lower).unwrap();
    std::fs::write(&lower, "").unwrap();
    let output = store.run(&["check"]);
    assert_eq!(output.status.code(), Some(9));
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        printed.contains("open/lower: the file is empty; check --repair mends it"),
        "{printed}"
    );
    let report = store.run(&["--json", "check"]);
    let report = json(&String::from_utf8_lossy(&report.stdout));
    assert_eq!(report["sound"], false);
    assert_eq!(report["findings"][0]["layer"], "open");
    assert_eq!(report["findings"][0]["kind"], "lower");

    let printed = store.ok(&["check", "--repair"]);
    assert!(printed.starts_with("mended: "), "{printed}");
    assert_eq!(std::fs::read(&lower).unwrap(), right);
    assert_eq!(store.ok(&["check", "--repair"]), "");
    // What nobody can know is not invented.
    std::fs::remove_dir(store.path("home/open/diff")).unwrap();
    let output = store.run(&["check", "--repair"]);
    assert_eq!(output.status.code(), Some(9));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("no single right answer"), "{errors}");
}

/// A home of layers, on each other or on none.
fn many_layers(test: &'static str, count: usize, stacked: bool) -> Option<Store> {
    let store = store(test)?;
    if !machine::is_root() {
        skip(&format!("{test}: only root makes layers for root"));
        return None;
    }
    store.ok(&["init", "--max-depth", "499", "--durability", "none"]);
    let options = OpenOptions::new();
    let library = Overlay2::open(Kernel::host(), &store.path("home"), options).unwrap();
    let mut parent = None;
    for layer in 0..count {
        let id: LayerId = format!("l{layer}").parse().unwrap();
        library
            .create(&CreateLayer::new(id.clone()).parent(parent))
            .unwrap();
        // As a container would have written it.
        let dir = library.layout().layer(&id).diff().join("dir");
        std::fs::create_dir(&dir).unwrap();
        if layer % 50 == 0 {
            std::fs::write(dir.join(id.as_str()), id.as_str()).unwrap();
        }
        parent = stacked.then_some(id);
    }
    Some(store)
}

/// Runs the program where it can open as many files at most.
fn run_with(store: &Store, descriptors: u32, arguments: &[&str]) -> Output {
    let ovl = store.command(arguments);
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "ulimit -n $0 && exec \"$@\""])
        .arg(descriptors.to_string())
        .arg(ovl.get_program())
        .args(ovl.get_args())
        .env_remove("OVL_HOME");
    shell.stdin(Stdio::null()).output().unwrap()
}

#[test]
fn a_home_has_more_layers_than_a_process_has_descriptors() {
    let test = "a_home_has_more_layers_than_a_process_has_descriptors";
    let Some(store) = many_layers(test, 200, false) else {
        return;
    };
    let run = |arguments: &[&str]| run_with(&store, 64, arguments);
    let first = run(&["check"]);
    assert_eq!(first.status.code(), Some(0), "{first:?}");
    std::fs::remove_file(store.path("home/l7/link")).unwrap();
    let found = run(&["check"]);
    assert_eq!(found.status.code(), Some(9), "{found:?}");
    let mended = run(&["check", "--repair"]);
    assert_eq!(mended.status.code(), Some(0), "{mended:?}");
    assert!(store.path("home/l7/link").exists());
    std::fs::create_dir_all(store.path("home/half/diff")).unwrap();
    let reclaimed = run(&["gc", "--docker-stopped"]);
    assert_eq!(reclaimed.status.code(), Some(0), "{reclaimed:?}");
    assert!(!store.path("home/half").exists());
}

#[test]
fn the_deepest_stack_needs_no_more_descriptors_than_a_process_has_at_first() {
    let test = "the_deepest_stack_needs_no_more_descriptors_than_a_process_has_at_first";
    let Some(store) = many_layers(test, 500, true) else {
        return;
    };
    let ok = |arguments: &[&str]| {
        let output = run_with(&store, 1024, arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ovl {arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    };
    let names: Vec<String> = (0..1000).map(|file| format!("f{file}")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (&**name, &b"new"[..])).collect();
    let new = store.write("new.tar", &archive(&files));
    ok(&["import", "imported", "--parent", "l498", &new]);
    ok(&["apply", "l499", &new]);
    // On top of what is in it now.
    ok(&["apply", "l499", &new]);
    let changes = |arguments: &[&str]| {
        let listed = ok(&[&["changes"], arguments].concat());
        listed.lines().count()
    };
    assert_eq!(changes(&["imported"]), 1000);
    assert_eq!(changes(&["l499"]), 1000);
    // The directory too, and what is new in it.
    assert_eq!(changes(&["l499", "--parent", "l0"]), 1000 + 1 + 9);
    for arguments in [
        &["diff", "l499"][..],
        &["diff", "l499", "--parent", "l0"],
        &["diff", "l499", "--parent", "l499"],
        // Another stack of as many layers, of which the two share all but their own.
        &["diff", "l499", "--parent", "imported"],
    ] {
        let path = store.path("diff.tar");
        ok(&[arguments, &["-o", path.to_str().unwrap()]].concat());
        std::fs::remove_file(path).unwrap();
    }
    ok(&["size", "l499", "--parent", "l0"]);
    assert_eq!(ok(&["check"]), store.ok(&["check"]));
}

#[test]
fn gc_tells_and_takes_what_nobody_needs() {
    let Some(store) = store("gc_tells_and_takes_what_nobody_needs") else {
        return;
    };
    two_layers(&store);
    assert_eq!(store.ok(&["gc"]), "bytes 0\n");
    store.ok(&["rm", "--defer", "open"]);
    std::os::unix::fs::symlink(
        "../gone/diff",
        store.path("home/l/DANGLINGDANGLINGDANGLINGDA"),
    )
    .unwrap();
    let would = json(&store.ok(&["--json", "gc", "--dry-run"]));
    assert_eq!(would["items"][0]["kind"], "trash");
    assert_eq!(would["kept"][0]["kind"], "dangling-link");
    let printed = store.ok(&["gc"]);
    assert!(
        printed.contains("gone: ") && printed.contains("kept: "),
        "{printed}"
    );
    let would = json(&store.ok(&["--json", "gc", "--dry-run", "--docker-stopped"]));
    assert_eq!(would["items"].as_array().unwrap().len(), 1);
    store.ok(&["gc", "--docker-stopped"]);
    let report = json(&store.ok(&["--json", "check"]));
    assert_eq!(report["findings"].as_array().unwrap().len(), 0);
    assert_eq!(report["layers"], 1);
}

#[test]
fn reading_commands_make_nothing() {
    let Some(store) = store("reading_commands_make_nothing") else {
        return;
    };
    for command in [
        &["check"][..],
        &["gc"],
        &["gc", "--dry-run"],
        &["check", "--repair"],
    ] {
        store.fails(3, command);
    }
    assert!(!store.path("home").exists());
    two_layers(&store);
    // A home as Docker leaves it.
    std::fs::remove_dir_all(store.path("home/.ovl")).unwrap();
    for command in [
        &["check"][..],
        &["gc", "--dry-run"],
        &["ls"],
        &["inspect", "open"],
    ] {
        store.ok(command);
    }
    assert!(!store.path("home/.ovl").exists());
}

#[test]
fn unmount_all_takes_every_mount_and_tells_which() {
    let Some(store) = store("unmount_all_takes_every_mount_and_tells_which") else {
        return;
    };
    let good = store.write("good.tar", &archive(&[("good", b"good")]));
    let script = format!(
        "ovl import base {good} >/dev/null
         ovl create one --parent base; ovl create two --parent base
         ovl mount one >/dev/null; ovl mount two >/dev/null; ovl mount two >/dev/null
         ovl unmount-all | sort; ovl unmount-all; ovl unmount one 2>/dev/null && exit 50
         ovl check"
    );
    let Some(output) = store.script(&script) else {
        return;
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {errors}", output.status);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "one\ntwo\n");
}

#[test]
fn what_was_done_is_told_when_the_output_cannot_be_written() {
    let Some(store) = store("what_was_done_is_told_when_the_output_cannot_be_written") else {
        return;
    };
    let good = store.write("good.tar", &archive(&[("good", b"good")]));
    let script = format!(
        "ovl import base {good} >/dev/full && exit 50; test $? = 8
         ovl mount base >/dev/full && exit 51; test $? = 8
         ovl unmount base"
    );
    let Some(output) = store.script(&script) else {
        return;
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {errors}", output.status);
    assert!(errors.contains("base is imported"), "{errors}");
    assert!(errors.contains("base is mounted at"), "{errors}");
}
