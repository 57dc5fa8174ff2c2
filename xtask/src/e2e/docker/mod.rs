//! The store beside a real Docker daemon on one home.

mod confine;
mod daemon;
mod fixtures;
mod images;
mod replaced;
mod shared;
mod trees;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::scenarios::{Ovl, Place, Scenario};
use crate::output;
pub(super) use confine::{Confinement, confined};
use daemon::Docker;
pub(super) use fixtures::write as write_fixture;

/// Programs that these scenarios use besides the others, and the Debian packages that have them.
pub(super) const TOOLS: [(&str, &str); 6] = [
    ("dockerd", "docker.io"),
    ("docker", "docker.io"),
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("setpriv", "util-linux"),
    ("unshare", "util-linux"),
];

/// All scenarios by name.
pub(super) const ALL: [(&str, Scenario); 6] = [
    (
        "images_that_docker_wrote_mount_and_diff_as_in_docker",
        images::read,
    ),
    (
        "a_debian_image_of_docker_mounts_and_diffs_as_in_docker",
        images::read_debian,
    ),
    (
        "docker_shows_the_same_after_ovl_has_added_children_and_siblings",
        shared::children_and_siblings,
    ),
    (
        "docker_runs_an_image_whose_top_layer_ovl_has_written_anew",
        replaced::top_layer,
    ),
    (
        "docker_writes_to_a_layer_that_ovl_has_made",
        replaced::writable_layer,
    ),
    (
        "docker_uses_a_home_that_ovl_has_written_wholly",
        replaced::whole_home,
    ),
];

/// What the first image has besides a shell; the changes start from there.
const CHANGE: &str = "
    rm /data/gone
    rm -r /data/replaced
    mkdir /data/replaced
    echo new >/data/replaced/new
    echo changed >/data/changed
    ln /data/kept /data/linked
    ln -s kept /data/symbolic
    chmod 4750 /data/mode
    chown 1:2 /data/owner
    mkdir -p /new/deep
    echo file >/new/deep/file
    ln /new/deep/file /new/file
    mkfifo /new/fifo
    mknod /new/null c 1 3";

/// A change on top of that one.
const SECOND_CHANGE: &str = "
    rm -r /new/deep /data/symbolic
    mkdir /data/symbolic
    echo inside >/data/symbolic/inside
    mv /data/linked /data/moved
    echo second >/data/changed
    echo last >/last";

/// Two images on a shell's root, each with one layer more: `shell:1`, `shell:2` and `shell:3`, made
/// by the containers `one` and `two`.
fn build_images(docker: &Docker, place: &Place) -> Result<()> {
    let root = pack(&shell_root(place)?)?;
    docker.ok(&["import", &root.to_string_lossy(), "shell:1"])?;
    docker.run("one", "shell:1", CHANGE)?;
    docker.ok_reading(&["cp", "-", "one:/data"], &capable_file(place)?)?;
    docker.ok(&["commit", "one", "shell:2"])?;
    docker.run("two", "shell:2", SECOND_CHANGE)?;
    docker.ok(&["commit", "two", "shell:3"]).map(drop)
}

/// A directory with a Debian shell, a few programs and files to change.
fn shell_root(place: &Place) -> Result<PathBuf> {
    let dir = place.dir.join("shell");
    fs::create_dir(&dir)?;
    let mut names = vec!["./bin".to_owned(), "./lib*".to_owned()];
    names.extend(["dash", "sh"].map(|name| format!("./usr/bin/{name}")));
    names.extend(
        [
            "cat", "chmod", "chown", "cp", "ln", "ls", "mkdir", "mkfifo", "mknod", "mv", "rm",
            "sleep",
        ]
        .map(|name| format!("./usr/bin/{name}")),
    );
    names.extend(
        [
            "ld-*",
            "libc.so*",
            "libselinux.so*",
            "libpcre2-8.so*",
            "libacl.so*",
            "libattr.so*",
        ]
        .map(|name| format!("./usr/lib*/{name}")),
    );
    let mut tar = Command::new("tar");
    tar.args(["--wildcards", "-xpf"]).arg(place.rootfs()?);
    output(tar.arg("-C").arg(&dir).args(names))?;

    for name in ["data/replaced/deep", "dev", "etc", "proc", "sys"] {
        fs::create_dir_all(dir.join(name))?;
    }
    for name in [
        "changed",
        "coloured",
        "gone",
        "kept",
        "mode",
        "owner",
        "replaced/old",
        "replaced/deep/old",
    ] {
        fs::write(dir.join("data").join(name), format!("{name}\n"))?;
    }
    fs::write(dir.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
    fs::set_permissions(dir.join("data"), fs::Permissions::from_mode(0o1777))?;
    chown(dir.join("data/kept"), Some(33), Some(1000))?;
    fs::hard_link(dir.join("data/owner"), dir.join("data/owner too"))?;
    symlink("/data/nowhere", dir.join("data/dangling"))?;
    let mut setfattr = Command::new("setfattr");
    setfattr.args(["-n", "user.colour", "-v", "red"]);
    output(setfattr.arg(dir.join("data/coloured")))?;
    Ok(dir)
}

/// An archive with a file that has a capability.
fn capable_file(place: &Place) -> Result<PathBuf> {
    let dir = place.dir.join("capable");
    fs::create_dir(&dir)?;
    let file = dir.join("capable");
    fs::write(&file, "a program\n")?;
    output(Command::new("setcap").arg("cap_net_raw+ep").arg(&file))?;
    pack(&dir)
}

/// A directory as an archive beside it, with all that GNU tar knows of.
fn pack(dir: &Path) -> Result<PathBuf> {
    let archive = dir.with_extension("tar");
    let mut tar = Command::new("tar");
    tar.args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "-cf"])
        .arg(&archive);
    output(tar.arg("-C").arg(dir).arg("."))?;
    Ok(archive)
}

/// The store must find its home whole, with these layers, and nothing to say of it.
fn assert_whole(ovl: &Ovl, layers: &[&String]) -> Result<()> {
    let listed = ovl.ok(&["ls", "--json"])?;
    let listed: serde_json::Value = serde_json::from_str(&listed)?;
    ensure!(
        listed["broken"] == serde_json::json!([]),
        "broken layers: {}",
        listed["broken"]
    );
    let known = listed["layers"].as_array().context("no layers")?;
    for layer in layers {
        ensure!(
            known.iter().any(|one| one["id"] == **layer),
            "{layer} is not listed"
        );
    }
    let found = ovl.ok(&["check"])?;
    ensure!(found.is_empty(), "the check found: {found}");
    Ok(())
}
