use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, UNIX_EPOCH};

use ovl_diff::{ArchiveEntry, DiffId, EntryKind};
use sha2::Digest as _;

use super::builder::{Content, gzip, read};

/// Names that fit ustar, and with `long` some that fit no field.
fn make_tree(root: &Path, long: bool) {
    let file = |path: &str, len: usize| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, vec![b'x'; len]).unwrap();
        path
    };
    for len in [0, 1, 511, 512, 513, 100_000] {
        file(&format!("sizes/{len}"), len);
    }
    file(&"n".repeat(98), 5);
    file(&"n".repeat(99), 5);
    file(
        &format!("{}/{}/{}", "d".repeat(70), "e".repeat(70), "n".repeat(98)),
        5,
    );
    let odd = root.join(OsStr::from_bytes(b"odd\n\x1b\xff \"name"));
    fs::write(&odd, "odd").unwrap();
    let old = file("times", 1);
    let time = UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    fs::File::options()
        .write(true)
        .open(&old)
        .unwrap()
        .set_modified(time)
        .unwrap();
    for mode in [0o4755, 0o2755, 0o600, 0o444] {
        let path = file(&format!("modes/{mode:o}"), 1);
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::create_dir(root.join("sticky")).unwrap();
    fs::set_permissions(root.join("sticky"), fs::Permissions::from_mode(0o1777)).unwrap();
    symlink("../outside/the tree", root.join("symlink")).unwrap();
    symlink("t".repeat(100), root.join("symlink-100")).unwrap();
    fs::hard_link(root.join("sizes/513"), root.join("hardlink")).unwrap();
    if long {
        let deep = format!("{0}/{0}/{0}", "deep".repeat(30));
        let target = file(&deep, 10);
        file(&format!("{deep}-{}", "x".repeat(100)), 10);
        fs::hard_link(target, root.join("hardlink-long")).unwrap();
        symlink("t/".repeat(200), root.join("symlink-long")).unwrap();
    }
}

fn count(directory: &Path) -> usize {
    let entries = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    1 + entries
        .map(|path| {
            if path.is_dir() && !path.is_symlink() {
                count(&path)
            } else {
                1
            }
        })
        .sum::<usize>()
}

fn path_of(root: &Path, name: &[u8]) -> std::path::PathBuf {
    root.join(OsStr::from_bytes(name))
}

fn assert_like_disk(root: &Path, (entry, content): &Content, exact_times: bool) {
    let ArchiveEntry { path, kind, .. } = entry;
    let path = path_of(root, path);
    let disk = fs::symlink_metadata(&path).unwrap();
    assert_eq!(
        (entry.mode, entry.uid, entry.gid),
        (disk.mode() & 0o7777, disk.uid(), disk.gid()),
        "{path:?}"
    );
    let nanos = if exact_times { disk.mtime_nsec() } else { 0 };
    assert_eq!(
        (entry.mtime.secs, i64::from(entry.mtime.nanos)),
        (disk.mtime(), nanos),
        "{path:?}"
    );
    match kind {
        EntryKind::Directory => assert!(disk.is_dir()),
        EntryKind::Regular => assert!(fs::read(&path).unwrap() == *content),
        EntryKind::Symlink { target } => {
            assert_eq!(fs::read_link(&path).unwrap().as_os_str().as_bytes(), target);
        }
        EntryKind::HardLink { target } => {
            assert_eq!(
                fs::symlink_metadata(path_of(root, target)).unwrap().ino(),
                disk.ino()
            );
        }
        EntryKind::Fifo => assert!(disk.file_type().is_fifo()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_gnu_tar_writes_is_read_as_it_is_on_disk() {
    if Command::new("tar")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_err()
    {
        crate::support::skip("archives of GNU tar: it is not installed");
        return;
    }
    for (format, long) in [("gnu", true), ("pax", true), ("ustar", false)] {
        let root = tempfile::tempdir().unwrap();
        make_tree(root.path(), long);
        let attribute = b"\n12 uid=0\n\0\xff";
        let with_xattr = format == "pax"
            && xattr::set(root.path().join("times"), "user.test", attribute).is_ok();
        let mut command = Command::new("tar");
        command
            .arg(format!("--format={format}"))
            .arg("-C")
            .arg(root.path());
        if with_xattr {
            command.arg("--xattrs");
        }
        let output = command
            .args(["-cf", "-", "."])
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success());

        for source in [output.stdout.clone(), gzip(&output.stdout)] {
            let (entries, summary) = read(source.as_slice()).unwrap();
            for content in &entries {
                assert_like_disk(root.path(), content, format == "pax");
            }
            let paths: HashSet<_> = entries.iter().map(|(entry, _)| &entry.path).collect();
            assert_eq!(
                (paths.len(), entries.len()),
                (count(root.path()), count(root.path()))
            );
            let links = entries
                .iter()
                .filter(|(entry, _)| matches!(entry.kind, EntryKind::HardLink { .. }));
            assert_eq!(links.count(), if long { 2 } else { 1 });
            let found = entries.iter().flat_map(|(entry, _)| &entry.xattrs);
            let expected = with_xattr.then(|| (b"user.test".to_vec(), attribute.to_vec()));
            assert!(found.eq(&expected));
            let digest: [u8; 32] = sha2::Sha256::digest(&output.stdout).into();
            assert_eq!(summary.diff_id, DiffId::from_bytes(digest));
            assert_eq!(summary.warnings, []);
        }
    }
}
