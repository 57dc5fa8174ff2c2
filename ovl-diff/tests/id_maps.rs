//! Archives into and out of trees whose owners on disk are not those inside containers.

use std::ffi::OsStr;

use ovl_diff::{
    ApplyOptions, BadReason, DiffError, DiffOptions, DirHandle, IdKind, IdPlace, Layers, Node,
    ViewDir, diff_confirmed, diff_trees_confirmed,
};
use ovl_layout::{IdMap, IdMaps};

use crate::diff::assert_cut_short;
use crate::support::{CAPABILITY, DEFAULT_ACL, Entry, Scene, archive, each, members, skip};

/// Users from 100000, groups from 200000.
fn maps() -> IdMaps {
    let uids = "0:100000:2000".parse().unwrap();
    let gids = "0:200000:2000".parse().unwrap();
    IdMaps { uids, gids }
}

fn mapped(scene: &Scene) -> ApplyOptions {
    let mut options = ApplyOptions::new(scene.xattrs);
    options.id_maps = maps();
    options
}

/// Both ways of diff, which must agree.
#[track_caller]
fn diff(
    scene: &Scene,
    upper: &DirHandle,
    lowers: &[DirHandle],
    id_maps: &IdMaps,
) -> Result<Vec<u8>, DiffError> {
    let options = DiffOptions::new().id_maps(id_maps.clone());
    let (mut native, mut naive) = (Vec::new(), Vec::new());
    let view = scene.view();
    let layers = Layers::new(std::slice::from_ref(upper), lowers);
    let result = diff_confirmed(view, layers, &options, &mut native, || Ok(()));
    let tree = ViewDir::new([std::slice::from_ref(upper), lowers].concat());
    let base = ViewDir::new(lowers.to_vec());
    let other = diff_trees_confirmed(view, &tree, &base, &options, &mut naive, || Ok(()));
    assert_eq!(result.is_ok(), other.is_ok(), "{result:?}, {other:?}");
    if result.is_err() {
        assert_cut_short(&native);
        assert_cut_short(&naive);
    }
    result.map(|_| native)
}

fn owner(scene: &Scene, dir: &DirHandle, name: &str) -> (u32, u32) {
    let node = Node::Entry(dir, OsStr::new(name));
    let found = scene.tree().metadata(node).unwrap();
    (found.uid, found.gid)
}

fn stored(scene: &Scene, dir: &DirHandle, name: &str, attribute: &str) -> Option<Vec<u8>> {
    let node = Node::Entry(dir, OsStr::new(name));
    scene.tree().xattr(node, OsStr::new(attribute)).unwrap()
}

/// `u::rw-,u:USER:r--,g::r--,g:GROUP:r-x,m::r-x,o::---`.
fn acl(user: u32, group: u32) -> Vec<u8> {
    let entries = [
        (1_u16, 6_u16, u32::MAX),
        (2, 4, user),
        (4, 4, u32::MAX),
        (8, 5, group),
        (16, 5, u32::MAX),
        (32, 0, u32::MAX),
    ];
    let mut value = vec![2, 0, 0, 0];
    for (tag, perm, id) in entries {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&perm.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    value
}

/// A capability that counts for the user namespace of this root only.
fn capability(root: u32) -> Vec<u8> {
    let mut value = CAPABILITY.to_vec();
    value[3] = 3;
    value.extend_from_slice(&root.to_le_bytes());
    value
}

/// Every kind of object, by several owners.
fn everything() -> Vec<Entry> {
    vec![
        Entry::dir("./").owner(1, 2),
        Entry::char_device("c", 1, 3).owner(3, 4),
        Entry::dir("d").owner(1999, 1999),
        Entry::file("d/f", b"f").owner(1000, 0).mode(0o4755),
        Entry::symlink("d/l", "f").owner(0, 1000),
        Entry::hard_link("h", "d/f"),
        Entry::fifo("p").owner(5, 6),
    ]
}

#[test]
fn owners_are_mapped_to_disk_and_back_to_the_same_bytes() {
    each(|scene| {
        let bytes = archive(&everything());
        let stack = scene.stack(&[]);
        let applied = stack.try_apply(&bytes, &mapped(scene)).unwrap();
        let plain = stack.apply_bytes(&bytes);
        for (path, seen) in &plain.shown.0 {
            let host = applied.at(path.to_str().unwrap());
            assert_eq!(host.owner(), (seen.uid + 100_000, seen.gid + 200_000));
            assert_eq!(host.mode, seen.mode, "{}", path.display());
        }
        let back = diff(scene, &applied.upper, &[], &maps()).unwrap();
        let unmapped = diff(scene, &plain.upper, &[], &IdMaps::default()).unwrap();
        assert_eq!(back, unmapped);
        // Ids on disk are not passed on as they are.
        assert_ne!(
            diff(scene, &applied.upper, &[], &IdMaps::default()).unwrap(),
            back
        );
    });
}

#[test]
fn an_implied_directory_is_the_mapped_roots_or_as_below() {
    each(|scene| {
        let options = mapped(scene);
        let below = archive(&[Entry::dir("low").owner(7, 8).mode(0o750)]);
        let below = scene.stack(&[]).try_apply(&below, &options).unwrap().upper;
        let stack = scene.stack_of(vec![below]);
        let bytes = archive(&[Entry::file("low/f", b""), Entry::file("new/inner/f", b"")]);
        let upper = stack.try_apply(&bytes, &options).unwrap().upper;
        assert_eq!(owner(scene, &upper, "low"), (100_007, 200_008));
        assert_eq!(owner(scene, &upper, "new"), (100_000, 200_000));
        let inner = scene.open(&upper, "new");
        assert_eq!(owner(scene, &inner, "inner"), (100_000, 200_000));
    });
}

#[test]
fn an_id_without_a_map_is_refused_with_entry_id_and_map() {
    each(|scene| {
        let stack = scene.stack(&[]);
        let cases = [
            ((2000, 0), IdKind::User, 2000, "the uid 2000 of the owner"),
            ((70_000, 5), IdKind::User, 70_000, "uid map 0:100000:2000"),
            ((5, 2000), IdKind::Group, 2000, "gid map 0:200000:2000"),
            ((5, 200_001), IdKind::Group, 200_001, "the gid 200001"),
        ];
        for ((uid, gid), kind, id, words) in cases {
            for foreign in [Entry::dir("bad"), Entry::file("bad", b"x")] {
                let entries = [Entry::file("good", b""), foreign.owner(uid, gid)];
                let bad = stack.blame(&archive(&entries), &mapped(scene));
                assert_eq!((bad.index, &*bad.name), (1, &b"bad"[..]));
                let BadReason::NoHostId {
                    place,
                    kind: bad_kind,
                    id: bad_id,
                    ..
                } = &bad.reason
                else {
                    panic!("{bad}");
                };
                assert_eq!((*place, *bad_kind, *bad_id), (IdPlace::Owner, kind, id));
                assert!(bad.reason.to_string().contains(words), "{}", bad.reason);
            }
        }
    });
}

#[test]
fn squashed_ids_become_the_mapped_root() {
    each(|scene| {
        let mut options = mapped(scene);
        options.squash = true;
        let entries = [
            Entry::file("both", b"").owner(70_000, 70_000),
            Entry::file("group", b"").owner(5, 70_000),
            Entry::file("mine", b"").owner(5, 6),
        ];
        let applied = scene.stack(&[]).try_apply(&archive(&entries), &options);
        let applied = applied.unwrap();
        let owners = ["both", "group", "mine"].map(|name| applied.at(name).owner());
        assert_eq!(
            owners,
            [(100_000, 200_000), (100_005, 200_000), (100_005, 200_006)]
        );
        assert_eq!(applied.summary.squashed, 2);
    });
}

#[test]
fn the_ids_of_a_namespace_are_those_on_disk() {
    each(|scene| {
        let mut options = mapped(scene);
        options.uids = Some(std::iter::once(100_000..100_010).collect());
        options.gids = Some(std::iter::once(200_000..200_010).collect());
        let stack = scene.stack(&[]);
        let good = archive(&[Entry::file("f", b"").owner(9, 9)]);
        let applied = stack.try_apply(&good, &options).unwrap();
        assert_eq!(applied.at("f").owner(), (100_009, 200_009));
        let foreign = archive(&[Entry::file("f", b"").owner(10, 9)]);
        let bad = stack.blame(&foreign, &options);
        assert!(
            matches!(
                bad.reason,
                BadReason::UnmappedOwner {
                    uid: 100_010,
                    gid: 200_009,
                    ..
                }
            ),
            "{bad}"
        );
        options.squash = true;
        let applied = stack.try_apply(&foreign, &options).unwrap();
        assert_eq!(applied.at("f").owner(), (100_000, 200_009));
    });
}

#[test]
fn an_id_on_disk_without_a_map_is_never_a_short_archive() {
    each(|scene| {
        let stack = scene.stack(&[]);
        let cases = [
            ((99_999, 200_000), IdKind::User, 99_999),
            ((0, 0), IdKind::User, 0),
            ((100_001, 202_000), IdKind::Group, 202_000),
        ];
        for ((uid, gid), kind, id) in cases {
            for name in ["c", "d", "p", "h"] {
                let applied = stack.try_apply(&archive(&everything()), &mapped(scene));
                let upper = applied.unwrap().upper;
                let node = Node::Entry(&upper, OsStr::new(name));
                scene.tree().set_owner(node, uid, gid).unwrap();
                let error = diff(scene, &upper, &[], &maps()).unwrap_err();
                let DiffError::NoContainerId {
                    path,
                    kind: found,
                    id: number,
                    ..
                } = &error
                else {
                    panic!("{error}");
                };
                // The first name of the two links.
                let expected = if name == "h" { "d/f" } else { name };
                assert_eq!(path, OsStr::new(expected));
                assert_eq!((*found, *number), (kind, id));
                let text = error.to_string();
                assert!(
                    text.contains(expected) && text.contains(&id.to_string()),
                    "{text}"
                );
            }
        }
    });
}

#[test]
fn whiteouts_have_no_owner_to_map() {
    each(|scene| {
        let options = mapped(scene);
        let below = archive(&[
            Entry::dir("./"),
            Entry::file("gone", b""),
            Entry::file("d/old", b""),
            Entry::file("e/old", b""),
        ]);
        let below = scene.stack(&[]).try_apply(&below, &options).unwrap().upper;
        let stack = scene.stack_of(vec![below.clone()]);
        let bytes = archive(&[
            Entry::marker(".wh.gone").owner(70_000, 70_000),
            Entry::dir("d"),
            Entry::marker("d/.wh..wh..opq").owner(70_000, 70_000),
            Entry::marker("e/.wh.old").owner(70_000, 70_000),
        ]);
        let upper = stack.try_apply(&bytes, &options).unwrap().upper;
        let back = diff(scene, &upper, &[below], &maps()).unwrap();
        for (entry, _) in members(&back) {
            assert_eq!((entry.uid, entry.gid), (0, 0), "{entry:?}");
        }
        assert_eq!(members(&back).len(), 5);
    });
}

#[test]
fn access_control_lists_are_mapped_both_ways() {
    each(|scene| {
        if !scene.has_acls {
            skip("POSIX ACLs: the file system of the temporary directory has none");
            return;
        }
        let (access, default) = ("system.posix_acl_access", "system.posix_acl_default");
        let entries = [
            Entry::dir("./").xattr(default, DEFAULT_ACL),
            Entry::dir("d").mode(0o750).xattr(default, acl(1, 2)),
            Entry::file("f", b"").mode(0o650).xattr(access, acl(7, 8)),
        ];
        let stack = scene.stack(&[]);
        let applied = stack.try_apply(&archive(&entries), &mapped(scene)).unwrap();
        let upper = &applied.upper;
        let on_disk = |name, attribute| stored(scene, upper, name, attribute);
        assert_eq!(on_disk("f", access), Some(acl(100_007, 200_008)));
        assert_eq!(on_disk("d", default), Some(acl(100_001, 200_002)));
        assert_eq!(on_disk("d", access), None);
        let back = diff(scene, upper, &[], &maps()).unwrap();
        let plain = stack.apply(&entries);
        assert_eq!(
            back,
            diff(scene, &plain.upper, &[], &IdMaps::default()).unwrap()
        );

        for (user, group, kind, id) in [
            (2000, 0, IdKind::User, 2000),
            (0, 3000, IdKind::Group, 3000),
        ] {
            let entry = Entry::file("f", b"").xattr(access, acl(user, group));
            let bytes = archive(&[entry]);
            let bad = stack.blame(&bytes, &mapped(scene));
            let BadReason::NoHostId {
                place: IdPlace::AccessControlList,
                kind: bad_kind,
                id: bad_id,
                ..
            } = bad.reason
            else {
                panic!("{bad}");
            };
            assert_eq!((bad_kind, bad_id), (kind, id));
            let mut squash = mapped(scene);
            squash.squash = true;
            let applied = stack.try_apply(&bytes, &squash).unwrap();
            assert_eq!(applied.summary.squashed, 1);
        }
        // Somebody on the host has given it to a user of the host.
        let node = Node::Entry(upper, OsStr::new("f"));
        scene
            .tree()
            .set_xattr(node, OsStr::new(access), &acl(7, 200_008))
            .unwrap();
        let error = diff(scene, upper, &[], &maps()).unwrap_err();
        assert!(
            matches!(
                &error,
                DiffError::NoContainerId {
                    place: IdPlace::AccessControlList,
                    kind: IdKind::User,
                    id: 7,
                    ..
                }
            ),
            "{error}"
        );
    });
}

#[test]
fn an_access_control_list_of_no_known_form_is_refused() {
    each(|scene| {
        let entry = Entry::file("f", b"").xattr("system.posix_acl_access", b"\x03\0\0\0");
        let bad = scene.stack(&[]).blame(&archive(&[entry]), &mapped(scene));
        assert!(matches!(bad.reason, BadReason::BadXattr { .. }), "{bad}");
    });
}

#[test]
fn the_own_form_of_xfs_for_access_control_lists_passes_neither_way() {
    each(|scene| {
        let names = ["trusted.SGI_ACL_FILE", "trusted.SGI_ACL_DEFAULT"];
        let file = |name: &str| Entry::file("f", b"").xattr(name, [0; 4]);
        let stack = scene.stack(&[]);
        for name in names {
            let applied = stack.apply(&[Entry::dir("./"), file(name)]);
            assert_eq!(applied.summary.skipped_xattrs, 1);
            assert_eq!(stored(scene, &applied.upper, "f", name), None);
            let bytes = diff(scene, &applied.upper, &[], &IdMaps::default()).unwrap();
            // Only XFS takes no value that is none.
            let node = Node::Entry(&applied.upper, OsStr::new("f"));
            if scene.tree().set_xattr(node, OsStr::new(name), b"x").is_ok() {
                let again = diff(scene, &applied.upper, &[], &IdMaps::default());
                assert_eq!(again.unwrap(), bytes, "{name} is not passed on");
            }
        }
    });
}

#[test]
fn the_root_of_a_capability_is_mapped_both_ways() {
    each(|scene| {
        let name = "security.capability";
        let entries = [
            Entry::dir("./"),
            Entry::file("any", b"").xattr(name, CAPABILITY),
            Entry::file("inner", b"").xattr(name, capability(1000)),
            Entry::file("root", b"").xattr(name, capability(0)),
        ];
        let stack = scene.stack(&[]);
        let applied = stack.try_apply(&archive(&entries), &mapped(scene)).unwrap();
        let on_disk = |file| stored(scene, &applied.upper, file, name);
        assert_eq!(on_disk("any").as_deref(), Some(CAPABILITY));
        assert_eq!(on_disk("inner"), Some(capability(101_000)));
        assert_eq!(on_disk("root"), Some(capability(100_000)));
        let back = diff(scene, &applied.upper, &[], &maps()).unwrap();
        let plain = stack.apply(&entries);
        assert_eq!(
            back,
            diff(scene, &plain.upper, &[], &IdMaps::default()).unwrap()
        );
        let find = |file: &str| {
            let (found, _) = members(&back)
                .into_iter()
                .find(|(entry, _)| entry.path == file.as_bytes())
                .unwrap();
            found.xattrs[0].1.clone()
        };
        assert_eq!(find("inner"), capability(1000));
        // As the container's root sees it.
        assert_eq!(find("root"), CAPABILITY);

        let foreign = Entry::file("f", b"").xattr(name, capability(2000));
        let bad = stack.blame(&archive(&[foreign]), &mapped(scene));
        assert!(
            matches!(
                bad.reason,
                BadReason::NoHostId {
                    place: IdPlace::Capability,
                    id: 2000,
                    ..
                }
            ),
            "{bad}"
        );
    });
}

#[test]
fn one_map_leaves_the_other_ids_as_they_are() {
    each(|scene| {
        let gids: IdMap = "0:200000:2000".parse().unwrap();
        let mut options = ApplyOptions::new(scene.xattrs);
        options.id_maps.gids = gids;
        let bytes = archive(&[Entry::file("implied/f", b"").owner(70_000, 5)]);
        let applied = scene.stack(&[]).try_apply(&bytes, &options).unwrap();
        assert_eq!(applied.at("implied/f").owner(), (70_000, 200_005));
        assert_eq!(applied.at("implied").owner(), (0, 200_000));
    });
}
