use serde_json::Value;

use crate::machine;
use crate::support::{Store, archive, skip, store};

/// Runs a script on a home with a layer `work` on a base; gives what it prints.
#[track_caller]
fn script(store: &Store, script: &str) -> Option<String> {
    let good = store.write("good.tar", &archive(&[("good", b"good")]));
    let script = format!(
        "ovl import base {good} >/dev/null; ovl create work --parent base --writable
         fails() {{ c=$1; shift; set +e; ovl \"$@\" 2>&1; r=$?; set -e; test $r = $c || exit 50; }}
         {script}"
    );
    let output = store.script(&script)?;
    let (printed, errors) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "{:?}: {printed}{errors}",
        output.status
    );
    Some(printed)
}

#[test]
fn a_plan_by_fd_names_the_directories_that_are_opened() {
    let test = "a_plan_by_fd_names_the_directories_that_are_opened";
    let Some(store) = store(test) else { return };
    let planned = "ovl status --json; ovl plan work --json; ovl plan work";
    let Some(printed) = script(&store, planned) else {
        return;
    };
    let mut lines = printed.lines();
    let mut next = || -> Value { serde_json::from_str(lines.next().unwrap()).unwrap() };
    let (status, plan) = (next(), next());
    assert_eq!(plan["strategy"], status["strategies"][0]);
    let best = &plan["strategy"];
    // The program has to find out by itself; that it did is seen by the version.
    if best != "layers-by-fd" && !machine::is_linux((6, 13)) {
        skip(&format!("half of {test}: this kernel mounts by {best}"));
        return;
    }
    assert_eq!(best, "layers-by-fd");
    let directory = |key: &str| {
        let settings = plan["settings"].as_array().unwrap();
        let found = settings.iter().find(|one| one["key"] == key).unwrap();
        found["directory"].clone()
    };
    assert_eq!(directory("lowerdir+"), "base/diff");
    assert_eq!(directory("upperdir"), "work/diff");
    assert_eq!(directory("workdir"), "work/work");
    let home = plan["working_dir"].as_str().unwrap();
    assert!(plan["target"].as_str().unwrap().starts_with(home));
    assert!(
        printed.contains("lowerdir+ base/diff (opened)"),
        "{printed}"
    );
}

#[test]
fn a_layer_that_was_volatile_in_another_boot_is_9_until_it_is_accepted_or_discarded() {
    let name = "a_layer_that_was_volatile_in_another_boot_is_9_until_it_is_accepted_or_discarded";
    let Some(store) = store(name) else { return };
    let home = store.path("home").join("h");
    let stop = format!(
        "sed -i 's/^volatile .*/volatile another-boot/' {}/work/.ovl-layer",
        home.display()
    );
    let printed = script(
        &store,
        &format!(
            "m=$(ovl mount work -O volatile); echo x >$m/new; ovl unmount work
             ovl mount work -O volatile >/dev/null; ovl unmount work
             {stop}; fails 9 mount work
             ovl mount work --accept-dirty -O volatile >/dev/null; cat $m/new; ovl unmount work
             {stop}; fails 9 check
             ovl mount work --discard-dirty >/dev/null; ls $m; ovl unmount work
             ovl mount work >/dev/null; ovl unmount work; ovl check
             fails 2 mount work --accept-dirty --discard-dirty >/dev/null"
        ),
    );
    let Some(printed) = printed else { return };
    assert!(printed.contains("volatile"), "{printed}");
    assert!(printed.contains("accept"), "{printed}");
    let lines: Vec<&str> = printed.lines().collect();
    assert!(lines.contains(&"x"), "what was accepted: {printed}");
    assert!(lines.contains(&"good"), "what is below: {printed}");
    assert!(!lines.contains(&"new"), "what was discarded: {printed}");
}

#[test]
fn an_unmount_that_is_refused_names_who_is_in_the_way() {
    let name = "an_unmount_that_is_refused_names_who_is_in_the_way";
    let Some(store) = store(name) else { return };
    let printed = script(
        &store,
        "m=$(ovl mount work)
         cp $(command -v sleep) $m/waits; $m/waits 60 & waits=$!
         until [ \"$(readlink /proc/$waits/exe)\" = $m/waits ]; do :; done
         fails 5 unmount work; kill $waits; wait $waits || :
         echo waits $waits
         cd $m; fails 5 unmount work; cd /
         echo shell $$
         sleep 60 <$m/good & sleeps=$!
         until [ \"$(readlink /proc/$sleeps/fd/0)\" = $m/good ]; do :; done
         fails 5 unmount work; kill $sleeps; wait $sleeps || :
         echo sleeps $sleeps
         ovl unmount work",
    );
    let Some(printed) = printed else { return };
    let pid = |name: &str| {
        let mut lines = printed.lines();
        lines
            .find_map(|line| line.strip_prefix(name)?.trim().parse::<u32>().ok())
            .unwrap()
    };
    for (name, words) in [
        ("waits", "mapped file"),
        ("shell", "working directory"),
        ("sleeps", "open file"),
    ] {
        let words = format!("({words} of process {})", pid(name));
        assert!(printed.contains(&words), "no {words:?} in {printed}");
    }
}
