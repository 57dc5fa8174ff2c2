//! What an ordinary user can do. Root becomes one for these tests.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use super::machine::{self, Needs, USER};
use super::support::{allowed, archive, skip};

/// Runs a script as an ordinary user in a directory of theirs, with `ovl` on the path; `None`,
/// loudly, where users do not have what it needs.
pub(crate) fn as_user(test: &str, needs: Needs, dir: &Path, script: &str) -> Option<Output> {
    as_user_after(test, needs, dir, "", script)
}

/// The same after something that root does in a mount namespace of its own.
pub(crate) fn as_user_after(
    test: &str,
    needs: Needs,
    dir: &Path,
    setup: &str,
    script: &str,
) -> Option<Output> {
    if !setup.is_empty() {
        allowed(test, machine::mounts_on_tmpfs())?;
    }
    allowed(test, machine::user_has(needs))?;
    std::fs::set_permissions(dir, Permissions::from_mode(0o777)).unwrap();
    // Where the program is built, others may not look. By another process: what this one writes is
    // open in the children of other tests for a moment, and does not run then.
    let copied = Command::new("cp")
        .args([Path::new(env!("CARGO_BIN_EXE_ovl")), &dir.join("ovl")])
        .status();
    assert!(copied.unwrap().success());
    let mut command = machine::user(setup);
    let script = format!("set -eu; cd '{}'; umask 077; {script}", dir.display());
    command.arg("-c").arg(script).env_remove("OVL_HOME");
    command.env(
        "PATH",
        format!("{}:/usr/bin:/bin:/usr/sbin:/sbin", dir.display()),
    );
    command
        .env("XDG_RUNTIME_DIR", dir.join("run"))
        .env("HOME", dir);
    Some(command.output().unwrap())
}

#[test]
fn an_ordinary_users_mount_stays_until_it_is_unmounted() {
    let test = "an_ordinary_users_mount_stays_until_it_is_unmounted";
    let dir = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
    std::fs::write(
        dir.path().join("good.tar"),
        archive(&[("good", b"good"), ("gone", b"")]),
    )
    .unwrap();
    std::fs::set_permissions(dir.path().join("good.tar"), Permissions::from_mode(0o644)).unwrap();
    let script = "
        mkdir -m 700 run store; H=\"$PWD/store/home\"; ovl() { command ./ovl --home \"$H\" \"$@\"; }
        ovl import base --squash good.tar >import
        ovl create work --parent base --writable
        m=$(ovl mount work); test \"$(ovl mount work)\" = \"$m\"
        test \"$(cat \"$m/good\")\" = good
        echo more >>\"$m/good\"; rm \"$m/gone\"; mkdir \"$m/new\"
        ovl ls | grep -q 'work .*yes'
        ovl rm work 2>busy && exit 50; test $? = 5 || exit 51
        ovl changes work; ovl diff work -o work.tar
        ovl unmount work; test -d \"$m/new\"; ovl unmount work
        ovl unmount work 2>none && exit 52; test $? = 3 || exit 53
        i=0; while test -e run/ovl/keeper; do i=$((i + 1)); test $i -lt 100 || exit 54; sleep 0.1; done
        ovl import again --squash --parent base work.tar >>import
        ovl changes again
        ovl rm work again base; ovl check; ovl ls | wc -l";
    let Some(output) = as_user(test, Needs::Mounts, dir.path(), script) else {
        return;
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {errors}", output.status);
    let printed = String::from_utf8_lossy(&output.stdout);
    let change = ["D /gone", "C /good", "A /new"];
    let expected = [&change[..], &change[..], &["1"]].concat();
    assert_eq!(printed.lines().collect::<Vec<_>>(), expected, "{errors}");
}

#[test]
fn a_layer_is_not_mounted_twice_in_namespaces_that_hide_from_each_other() {
    let test = "a_layer_is_not_mounted_twice_in_namespaces_that_hide_from_each_other";
    let dir = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
    // Whichever of the two fails, the other one does not wait.
    let script = "
        mkdir -m 700 store; H=\"$PWD/store/home\"; export H
        mkfifo ready done; exec 8<>ready 9<>done; trap 'echo >&9' EXIT
        { unshare -Urm sh -euc './ovl --home \"$H\" create base
            ./ovl --home \"$H\" create work --parent base
            ./ovl --home \"$H\" mount work >/dev/null; echo >&8; read line <&9' || echo failed >&8; } &
        read line <&8; test -z \"$line\"
        unshare -Urm ./ovl --home \"$H\" mount work 2>refused && exit 50; test $? = 5 || exit 51
        unshare -Urm ./ovl --home \"$H\" create child --parent work 2>>refused && exit 52
        test $? = 5 || exit 53; unshare -Urm ./ovl --home \"$H\" rm work 2>>refused && exit 54
        test $? = 5 || exit 55; echo >&9; wait
        unshare -Urm ./ovl --home \"$H\" mount work >/dev/null; grep -c 'another mount namespace' refused
        unshare -Urm ./ovl --home \"$H\" rm work base";
    let Some(output) = as_user(test, Needs::Mounts, dir.path(), script) else {
        return;
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {errors}", output.status);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "3\n", "{errors}");
}

#[test]
fn a_place_for_the_keeper_that_is_not_the_users_alone_is_refused() {
    let test = "a_place_for_the_keeper_that_is_not_the_users_alone_is_refused";
    let dir = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
    let script = "
        mkdir -m 700 run; mkdir -m 755 run/ovl
        ./ovl --home \"$PWD/home\" create base 2>refused && exit 50; test $? = 6 || exit 51
        cat refused; exit 0";
    let Some(output) = as_user(test, Needs::Nothing, dir.path(), script) else {
        return;
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {errors}", output.status);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        printed.contains("not a directory of yours alone"),
        "{printed}"
    );
}

/// Runs `ovl` where no user namespace can be made: the limit is that of a namespace of the test's
/// own, in which the user is not root.
const WITHOUT_NAMESPACES: &str = "ovl() { unshare -Ur sh -euc 'echo 1 >/proc/sys/user/max_user_namespaces
            exec unshare -U --map-user=1234 --map-group=1234 ./ovl --home \"$H\" \"$@\"' sh \"$@\"; }";

#[test]
fn what_only_reads_needs_no_namespace() {
    let test = "what_only_reads_needs_no_namespace";
    let dir = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
    let script = format!(
        "
        mkdir -m 700 run store; H=\"$PWD/store/home\"; export H
        ./ovl --home \"$H\" create base; ./ovl --home \"$H\" create top --parent base
        echo new >store/home/top/diff/new
        {WITHOUT_NAMESPACES}
        ovl create more 2>refused && exit 50; test $? = 6 || exit 51; cat refused
        ovl mount top 2>refused && exit 52; test $? = 6 || exit 53
        ovl check --repair 2>refused && exit 54; test $? = 6 || exit 55
        ovl ls | wc -l; ovl inspect top >/dev/null; ovl check; ovl gc --dry-run; ovl size top >/dev/null
        ovl plan top | grep -o userxattr; ovl changes top; ovl diff top | tar -t | grep new
        ovl status | grep '^User namespace'; ovl status --json"
    );
    let Some(output) = as_user(test, Needs::Namespaces, dir.path(), &script) else {
        return;
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {errors}", output.status);
    let printed = String::from_utf8_lossy(&output.stdout);
    let reason = "cannot enter a user namespace: ";
    for words in [
        format!("ovl: {reason}"),
        "user.max_user_namespaces".to_owned(),
        "\n3\n".to_owned(),
        "\nuserxattr\n".to_owned(),
        "\nA /new\n".to_owned(),
        "\nnew\n".to_owned(),
        format!("\nUser namespace       no: {reason}"),
        format!("\"user_namespace\":\"{reason}"),
    ] {
        assert!(printed.contains(&words), "{words}: {printed}{errors}");
    }
}

/// A mount leaves a directory in the layer that only root may open.
#[test]
fn a_home_with_a_layer_that_was_mounted_is_checked_without_a_namespace() {
    let test = "a_home_with_a_layer_that_was_mounted_is_checked_without_a_namespace";
    let dir = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
    let script = format!(
        "
        mkdir -m 700 run store; H=\"$PWD/store/home\"; export H
        ./ovl --home \"$H\" create base; ./ovl --home \"$H\" create top --parent base
        ./ovl --home \"$H\" mount top >/dev/null; ./ovl --home \"$H\" unmount top
        i=0; while test -e run/ovl/keeper; do i=$((i + 1)); test $i -lt 100 || exit 54; sleep 0.1; done
        stat -c %a store/home/top/work/work
        {WITHOUT_NAMESPACES}
        ovl check; ovl gc --dry-run"
    );
    let Some(output) = as_user(test, Needs::Mounts, dir.path(), &script) else {
        return;
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {errors}", output.status);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(printed.starts_with("0\n"), "{printed}");
}

#[test]
fn ids_that_the_administrator_gave_to_a_user_are_kept() {
    let test = "ids_that_the_administrator_gave_to_a_user_are_kept";
    let is_there = |program: &str| {
        ["/bin", "/usr/bin"]
            .iter()
            .any(|dir| Path::new(dir).join(program).exists())
    };
    if !machine::has_all_ids() || !is_there("newuidmap") {
        skip(&format!(
            "{test}: it needs root and the Debian package uidmap"
        ));
        return;
    }
    let dir = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
    // Over the machine's own files, in this mount namespace alone.
    let setup = format!(
        "set -e; mount -t tmpfs t /mnt; mkdir /mnt/upper /mnt/work; \
         mount -t overlay -o lowerdir=/etc,upperdir=/mnt/upper,workdir=/mnt/work o /etc; \
         for f in subuid subgid; do echo {USER}:300000:1000 >/etc/$f; done;"
    );
    let mut owned = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_path("owned").unwrap();
    header.set_mode(0o644);
    header.set_uid(7);
    header.set_gid(8);
    header.set_size(0);
    header.set_cksum();
    owned.append(&header, std::io::empty()).unwrap();
    let file = dir.path().join("owned.tar");
    std::fs::write(&file, owned.into_inner().unwrap()).unwrap();
    std::fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    let script = "
        mkdir -m 700 run store; ./ovl --home \"$PWD/store/home\" import base owned.tar >/dev/null
        stat -c %u:%g store/home/base/diff/owned
        ./ovl --home \"$PWD/store/home\" diff base | tar --numeric-owner -tvf - | grep owned";
    let Some(output) = as_user_after(test, Needs::Namespaces, dir.path(), &setup, script) else {
        return;
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{:?}: {errors}", output.status);
    assert!(printed.starts_with("300006:300007\n"), "{printed}");
    assert!(printed.contains(" 7/8 "), "{printed}");
}
