use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use super::{Place, assert_same};
use crate::output;

/// Import a Debian root, change it through a mount, list and diff the change, import that beside it,
/// and find the two trees the same.
pub(super) fn change_and_apply(place: &Place) -> Result<()> {
    let ovl = place.ovl(&place.home());
    let rootfs = place.rootfs()?;
    let imported = ovl.ok(&["import", "base", &rootfs.to_string_lossy()])?;
    let digest = output(Command::new("sha256sum").arg(rootfs))?;
    let digest = digest.split(' ').next().unwrap_or_default();
    ensure!(
        imported.starts_with(&format!("sha256:{digest}\n")),
        "wrong diff id: {imported}"
    );
    ovl.ok(&["create", "work", "--parent", "base", "--writable"])?;
    let root = ovl.mount(&["work"])?;

    let packages = output(Command::new("chroot").arg(&root).args(["dpkg", "-l"]))?;
    ensure!(
        packages
            .lines()
            .filter(|line| line.starts_with("ii "))
            .count()
            > 50,
        "dpkg -l: {packages}"
    );
    let expected = change(&root)?;
    ovl.ok(&["unmount", "work"])?;

    let listed = ovl.ok(&["changes", "work"])?;
    let listed: Vec<&str> = listed.lines().collect();
    assert_listed(&listed, &expected)?;

    let (first, second) = (place.dir.join("d.tar"), place.dir.join("d2.tar"));
    for file in [&first, &second] {
        ovl.ok(&["diff", "work", "-o", &file.to_string_lossy()])?;
    }
    ensure!(
        fs::read(&first)? == fs::read(&second)?,
        "two diffs are not the same bytes"
    );
    for reader in ["tar", "bsdtar"] {
        let listed = Command::new(reader).arg("-tvf").arg(&first).output()?;
        let errors = String::from_utf8_lossy(&listed.stderr);
        ensure!(
            listed.status.success() && errors.is_empty(),
            "{reader}: {errors}"
        );
    }
    ovl.ok(&[
        "import",
        "again",
        "--parent",
        "base",
        &first.to_string_lossy(),
    ])?;
    let (work, again) = (ovl.mount(&["work"])?, ovl.mount(&["again"])?);
    assert_same(&work, &again)?;
    ovl.ok(&["unmount", "work"])?;
    ovl.ok(&["unmount", "again"])?;
    let third = place.dir.join("d3.tar");
    ovl.ok(&["diff", "again", "-o", &third.to_string_lossy()])?;
    ensure!(
        fs::read(&first)? == fs::read(&third)?,
        "the diff of the copy has other bytes"
    );
    ovl.ok(&["rm", "base", "work", "again"])?;
    ensure!(
        ovl.ok(&["ls", "--json"])?.contains("\"layers\":[]"),
        "layers are left"
    );
    ovl.assert_clean()
}

/// Exactly what was done, each path once, and a directory before what is in it.
fn assert_listed(listed: &[&str], expected: &Expected) -> Result<()> {
    let wanted: BTreeSet<String> = expected
        .iter()
        .map(|(path, kind)| format!("{kind} {path}"))
        .collect();
    for line in &wanted {
        ensure!(listed.contains(&&**line), "{line:?} is not listed");
    }
    let mut seen = BTreeSet::new();
    for line in listed {
        ensure!(
            wanted.contains(*line),
            "{line:?} is listed and was not made"
        );
        let path = Path::new(&line[2..]);
        ensure!(seen.insert(path), "{line:?} is listed twice");
        let parent = path.parent().filter(|dir| *dir != Path::new("/"));
        ensure!(
            parent.is_none_or(|dir| seen.contains(dir)),
            "{line:?} comes before its directory"
        );
    }
    Ok(())
}

/// The changes that must be listed, by path.
type Expected = BTreeMap<String, char>;

fn change(root: &Path) -> Result<Expected> {
    let mut expected = Expected::new();
    let mut note = |kind: char, path: &str| {
        expected.insert(path.to_owned(), kind);
        let mut parent = Path::new(path).parent();
        while let Some(dir) = parent.filter(|dir| *dir != Path::new("/")) {
            // What is listed for its own sake stays so.
            expected
                .entry(dir.to_string_lossy().into_owned())
                .or_insert('C');
            parent = dir.parent();
        }
    };
    let at = |path: &str| root.join(path.trim_start_matches('/'));

    // The files of a package.
    let files = output(
        Command::new("chroot")
            .arg(root)
            .args(["dpkg", "-L", "tzdata"]),
    )?;
    let mut removed = 0;
    for path in files.lines().filter(|path| path.starts_with('/')) {
        let is_file = fs::symlink_metadata(at(path)).is_ok_and(|found| !found.is_dir());
        if is_file {
            fs::remove_file(at(path))?;
            note('D', path);
            removed += 1;
        }
    }
    ensure!(removed > 100, "the package had {removed} files only");

    fs::write(at("/etc/issue"), "written through the mount\n")?;
    note('C', "/etc/issue");
    fs::create_dir_all(at("/srv/new/deep"))?;
    note('A', "/srv/new");
    note('A', "/srv/new/deep");
    fs::write(at("/srv/new/deep/file"), vec![7; 300_000])?;
    note('A', "/srv/new/deep/file");
    fs::set_permissions(at("/srv/new"), fs::Permissions::from_mode(0o3770))?;
    fs::rename(at("/etc/debian_version"), at("/etc/version of debian"))?;
    note('D', "/etc/debian_version");
    note('A', "/etc/version of debian");
    fs::set_permissions(at("/etc/passwd"), fs::Permissions::from_mode(0o600))?;
    note('C', "/etc/passwd");
    chown(at("/etc/group"), Some(33), Some(1000))?;
    note('C', "/etc/group");
    // Linking copies the file up; that is no change of its own.
    fs::hard_link(at("/etc/shells"), at("/etc/shells too"))?;
    note('A', "/etc/shells too");
    fs::hard_link(at("/srv/new/deep/file"), at("/srv/new/linked"))?;
    note('A', "/srv/new/linked");
    symlink("../etc/issue", at("/srv/new/link"))?;
    note('A', "/srv/new/link");
    let mut setfattr = Command::new("setfattr");
    output(
        setfattr
            .args(["-n", "user.colour", "-v", "0x720a656400"])
            .arg(at("/etc/fstab")),
    )?;
    note('C', "/etc/fstab");
    output(
        Command::new("setcap")
            .arg("cap_net_raw,cap_net_admin+ep")
            .arg(at("/usr/bin/env")),
    )?;
    note('C', "/usr/bin/env");
    output(Command::new("mkfifo").arg(at("/srv/new/fifo")))?;
    note('A', "/srv/new/fifo");
    output(
        Command::new("mknod")
            .arg(at("/srv/new/null"))
            .args(["c", "1", "3"]),
    )?;
    note('A', "/srv/new/null");

    // A directory that goes, and one that is replaced.
    fs::remove_dir_all(at("/usr/share/doc/bash"))?;
    note('D', "/usr/share/doc/bash");
    for entry in fs::read_dir(at("/etc/skel"))? {
        note(
            'D',
            &format!("/etc/skel/{}", entry?.file_name().to_string_lossy()),
        );
    }
    fs::remove_dir_all(at("/etc/skel"))?;
    fs::create_dir(at("/etc/skel"))?;
    fs::write(at("/etc/skel/only"), "only\n")?;
    note('C', "/etc/skel");
    note('A', "/etc/skel/only");
    Ok(expected)
}
