//! The process that keeps an ordinary user's mounts: whom it waits for, and when it ends.

use std::process::Output;

use super::machine::{self, Needs};
use super::ordinary::{as_user, as_user_after};
use super::support::skip;

const START: &str = "
    mkdir -m 700 run store; H=\"$PWD/store/home\"; ovl() { command ./ovl --home \"$H\" \"$@\"; }
    ovl create base
    ended() { i=0; while test -e run/ovl/keeper; do
        i=$((i + 1)); test $i -lt 100 || exit 54; sleep 0.1; done; }
    ";

#[track_caller]
fn assert_prints(output: &Output, expected: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {errors}", output.status);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        expected,
        "{errors}"
    );
}

#[test]
fn a_long_command_does_not_keep_others_from_mounting() {
    let test = "a_long_command_does_not_keep_others_from_mounting";
    let dir = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
    // The import waits for its archive until the second mount is there, or has given up waiting.
    let script = format!(
        "{START}
        ovl create other
        ovl mount base >/dev/null
        mkfifo archive; ovl import long - <archive >/dev/null & exec 3>archive
        i=0; until ls store/home/.ovl/staging | grep -q .; do
            i=$((i + 1)); test $i -lt 100 || exit 55; sleep 0.1; done
        timeout 20 ./ovl --home \"$H\" mount other >/dev/null || {{ echo \"mount: $?\"; }}
        head -c 1024 /dev/zero >&3; exec 3>&-; wait $!
        ovl unmount base; ovl unmount other; ended; ovl ls | wc -l"
    );
    let Some(output) = as_user(test, Needs::Mounts, dir.path(), &script) else {
        return;
    };
    assert_prints(&output, "4\n");
}

#[test]
fn commands_that_start_a_keeper_at_the_same_time_share_one() {
    let test = "commands_that_start_a_keeper_at_the_same_time_share_one";
    let dir = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
    let script = format!(
        "{START}
        for i in 1 2 3 4 5 6; do ovl create w$i; done
        for i in 1 2 3 4 5 6; do ovl mount w$i >m$i & done; wait
        cut -d/ -f3 m? | sort -u | wc -l; ovl ls | grep -c 'w[1-6] .*yes'
        ovl unmount-all >/dev/null; ended"
    );
    let Some(output) = as_user(test, Needs::Mounts, dir.path(), &script) else {
        return;
    };
    assert_prints(&output, "1\n6\n");
}

#[test]
fn a_keeper_that_was_killed_is_replaced_also_while_a_command_of_its_time_runs() {
    let test = "a_keeper_that_was_killed_is_replaced_also_while_a_command_of_its_time_runs";
    let dir = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
    let script = format!(
        "{START}
        ovl create other; ovl mount base >/dev/null
        mkfifo archive; ovl import long - <archive >/dev/null & exec 3>archive
        i=0; until ls store/home/.ovl/staging | grep -q .; do
            i=$((i + 1)); test $i -lt 100 || exit 55; sleep 0.1; done
        read first rest <run/ovl/keeper; kill -9 $first
        # Dead, whether or not anybody has asked for its end.
        while readlink /proc/$first/exe >exe; do :; done
        timeout 20 ./ovl --home \"$H\" mount other >/dev/null || {{ echo \"mount: $?\"; }}
        read second rest <run/ovl/keeper; test $first != $second
        head -c 1024 /dev/zero >&3; exec 3>&-; wait $!
        ovl ls | grep -c yes; ovl unmount other; ended; ovl ls | wc -l"
    );
    let Some(output) = as_user(test, Needs::Mounts, dir.path(), &script) else {
        return;
    };
    assert_prints(&output, "1\n4\n");
}

#[test]
fn a_keeper_that_was_never_noted_leaves_the_note_of_another() {
    let test = "a_keeper_that_was_never_noted_leaves_the_note_of_another";
    let dir = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
    // Started as by a command that is killed before it notes it. It cannot end before the other
    // one is noted.
    let script = format!(
        "{START}
        mkdir -m 700 run/ovl; exec 8>run/ovl/lock; flock -s 8
        ./ovl keep-mounts >ready 8>&- & orphan=$!
        i=0; until grep -q ready ready; do i=$((i + 1)); test $i -lt 100 || exit 55; sleep 0.1; done
        ovl mount base >/dev/null; read keeper rest <run/ovl/keeper; test $keeper != $orphan
        exec 8>&-; wait $orphan
        read now rest <run/ovl/keeper; test $now = $keeper
        ovl ls | grep -c yes; ovl unmount base; ended
        i=0; while test -e /proc/$keeper/ns/mnt; do i=$((i + 1)); test $i -lt 100 || exit 56; sleep 0.1; done"
    );
    let Some(output) = as_user(test, Needs::Mounts, dir.path(), &script) else {
        return;
    };
    assert_prints(&output, "1\n");
}

#[test]
fn a_keeper_that_cannot_be_noted_ends_with_its_command() {
    let test = "a_keeper_that_cannot_be_noted_ends_with_its_command";
    let dir = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
    // Where the note is written, or put. While the lock is held no keeper ends by itself.
    let script = format!(
        "{START}
        mkdir -m 700 run/ovl; exec 8>run/ovl/lock; flock -s 8
        for there in keeper.new keeper; do
            mkdir run/ovl/$there
            ovl mount base 2>refused 8>&- && exit 50; grep -q run/ovl/keeper refused || exit 51
            grep -al keep-mounts /proc/[0-9]*/cmdline | while read file; do
                tr '\\0' '\\n' <$file | grep -Fx \"$PWD/run/ovl\" || :; done
            rmdir run/ovl/$there
        done
        exec 8>&-; ovl mount base >/dev/null; ovl unmount base; ended"
    );
    let Some(output) = as_user(test, Needs::Mounts, dir.path(), &script) else {
        return;
    };
    assert_prints(&output, "");
}

#[test]
fn a_keeper_has_nothing_open_that_is_its_users() {
    let test = "a_keeper_has_nothing_open_that_is_its_users";
    let dir = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
    let script = format!(
        "{START}
        exec 7>theirs; flock -n 7; ovl mount base >/dev/null; exec 7>&-
        flock -n theirs echo free; ovl unmount base; ended"
    );
    let Some(output) = as_user(test, Needs::Mounts, dir.path(), &script) else {
        return;
    };
    assert_prints(&output, "free\n");
}

#[test]
fn mounts_of_others_do_not_keep_the_keeper() {
    let test = "mounts_of_others_do_not_keep_the_keeper";
    if !machine::is_root() {
        skip(&format!("{test}: it needs root, who mounts beside a user"));
        return;
    }
    let dir = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
    // In a mount namespace of the test's own, whose mounts go on into those made from it, as they
    // do on most machines: one mount before the keeper, with a name that is no text, and two while
    // it runs, of which one is made private as Docker's and root's own are.
    let place = dir.path().display();
    let setup = format!(
        "set -eu; cd {place}; mount --make-rshared /; mkfifo go done; exec 8<>go 9<>done
        bad=\"$(printf 'b\\377d')\"; mkdir -p \"$bad/merged\" two/merged three/merged
        mount -t tmpfs t \"$bad/merged\"
        (read line <&8; mount -t tmpfs t two/merged; mount -t tmpfs t three/merged
            mount --make-private three/merged; echo >&9) >/dev/null 2>&1 &"
    );
    let script = format!(
        "trap 'echo >&8' EXIT
        {START}
        ovl mount base >/dev/null; echo >&8; read line <&9
        read keeper rest <run/ovl/keeper; grep -c /merged /proc/$keeper/mountinfo
        ovl unmount base; ended"
    );
    let Some(output) = as_user_after(test, Needs::Mounts, dir.path(), &setup, &script) else {
        return;
    };
    assert_prints(&output, "4\n");
}
