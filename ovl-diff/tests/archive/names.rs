use ovl_diff::{BadReason, EntryKind};

use super::builder::{Header, archive, blame, entry, long, pax, refused};

#[test]
fn escaping_and_absolute_names_are_passed_on_as_they_are() {
    // Only the tree can tell where they lead; the apply refuses or confines them.
    for name in [
        "../victim/x",
        "/../victim/x",
        "a/../../x",
        "./../x",
        "/abs/file",
        ".",
        "/",
    ] {
        assert_eq!(
            entry(&[&Header::new(b'6', name).seal()]).path,
            name.as_bytes()
        );
    }
}

#[test]
fn row_004_names_are_not_cleaned() {
    assert_eq!(entry(&[&Header::file("a/./b//c").seal()]).path, b"a/./b//c");
}

#[test]
fn row_004_a_trailing_slash_makes_a_directory_only_of_a_file_without_type() {
    let old = entry(&[&Header::new(0, "dir/").seal()]);
    assert_eq!(old.kind, EntryKind::Directory);
    assert_eq!(
        entry(&[&Header::new(0, "file").seal()]).kind,
        EntryKind::Regular
    );
    for typeflag in [b'0', b'7'] {
        assert_eq!(
            refused(&[&Header::new(typeflag, "dir/").seal()]),
            BadReason::TrailingSlash
        );
    }
}

#[test]
fn row_004_the_trailing_slash_that_counts_is_the_resolved_names() {
    let renamed = entry(&[&pax(&[("path", b"dir/")]), &Header::new(0, "file").seal()]);
    assert_eq!(renamed.kind, EntryKind::Directory);
    let renamed = entry(&[&long(b'L', "file"), &Header::new(0, "dir/").gnu().seal()]);
    assert_eq!(renamed.kind, EntryKind::Regular);
    assert_eq!(
        refused(&[&pax(&[("path", b"dir/")]), &Header::file("file").seal()]),
        BadReason::TrailingSlash
    );
}

#[test]
fn row_005_empty_names_are_refused() {
    let reason = refused(&[&Header::file("").seal()]);
    assert!(
        matches!(reason, BadReason::EmptyName { field: "path", .. }),
        "{reason}"
    );
    let reason = refused(&[&long(b'L', ""), &Header::file("x").gnu().seal()]);
    assert!(
        matches!(reason, BadReason::EmptyName { field: "path", .. }),
        "{reason}"
    );
}

#[test]
fn row_005_links_without_a_target_are_refused() {
    for typeflag in [b'1', b'2'] {
        let reason = refused(&[&Header::new(typeflag, "x").seal()]);
        assert!(
            matches!(
                reason,
                BadReason::EmptyName {
                    field: "linkpath",
                    ..
                }
            ),
            "{reason}"
        );
    }
}

#[test]
fn row_006_zero_bytes_in_pax_names_are_refused() {
    for key in ["path", "linkpath"] {
        let reason = refused(&[
            &pax(&[(key, b"a\0b")]),
            &Header::new(b'2', "x").link("y").seal(),
        ]);
        assert!(
            matches!(reason, BadReason::NulInName { field, .. } if field == key),
            "{reason}"
        );
    }
}

#[test]
fn row_006_zero_bytes_in_gnu_names_are_refused_except_at_the_end() {
    for typeflag in [b'L', b'K'] {
        let reason = refused(&[&long(typeflag, "a\0b"), &Header::file("x").gnu().seal()]);
        assert!(matches!(reason, BadReason::NulInName { .. }), "{reason}");
    }
    assert_eq!(
        entry(&[&long(b'L', "ab\0\0"), &Header::file("x").gnu().seal()]).path,
        b"ab"
    );
    let unterminated = Header::new(b'L', "l").gnu().holding("ab");
    assert_eq!(
        entry(&[&unterminated, &Header::file("x").gnu().seal()]).path,
        b"ab"
    );
}

#[test]
fn row_007_any_other_byte_is_kept() {
    for name in [
        b"a\nb\x1b[31m\x7f".as_slice(),
        b"\xff\xfe\x80",
        "\u{202e}gpj.exe".as_bytes(),
    ] {
        assert_eq!(entry(&[&Header::file(name).seal()]).path, name);
        assert_eq!(
            entry(&[&pax(&[("path", name)]), &Header::file("x").seal()]).path,
            name
        );
    }
}

#[test]
fn row_007_errors_escape_names() {
    let bad = blame(&archive(&[&Header::new(
        b'Z',
        b"a\x1b[31m\n\xff\"\\\xe2\x80\xae'",
    )
    .seal()]));
    assert_eq!(bad.name, b"a\x1b[31m\n\xff\"\\\xe2\x80\xae'");
    assert_eq!(
        bad.to_string(),
        r#"archive entry 0 "a\u{1b}[31m\n\xff\"\\\u{202e}'" at byte 0: entries of type 'Z' are not supported in a layer"#
    );
}

#[test]
fn errors_cut_very_long_names() {
    let name = vec![b'a'; 100_000];
    let bad = blame(&archive(&[
        &long(b'L', &name),
        &Header::new(b'Z', "x").gnu().seal(),
    ]));
    assert_eq!(bad.name, name);
    let text = bad.to_string();
    assert!(
        text.len() < 500 && text.contains("aaa... (100000 bytes)"),
        "{text}"
    );
}

#[test]
fn long_components_and_long_paths_are_passed_on() {
    // The file system decides on components, the apply on depth; a whiteout may have 259 bytes.
    let whiteout = [b".wh.".as_slice(), &[b'n'; 255]].concat();
    let deep = "d/".repeat(3000) + "x";
    for name in [whiteout.as_slice(), deep.as_bytes()] {
        assert_eq!(
            entry(&[&long(b'L', name), &Header::file("x").gnu().seal()]).path,
            name
        );
        assert_eq!(
            entry(&[&pax(&[("path", name)]), &Header::file("x").seal()]).path,
            name
        );
    }
}

#[test]
fn ustar_prefixes_are_joined() {
    let split = Header::file("name").set(345, b"some/prefix");
    assert_eq!(entry(&[&split.clone().seal()]).path, b"some/prefix/name");
    // GNU tar keeps times and offsets there.
    assert_eq!(entry(&[&split.gnu().seal()]).path, b"name");
}

#[test]
fn fields_without_a_terminator_are_used_in_full() {
    let full = Header::file([b'n'; 100]).set(345, &[b'p'; 155]);
    assert_eq!(entry(&[&full.seal()]).path.len(), 256);
    let star = Header::file([b'n'; 100])
        .set(345, &[b'p'; 131])
        .set(508, b"tar\0");
    assert_eq!(entry(&[&star.seal()]).path.len(), 232);
    let link = entry(&[&Header::new(b'2', "x").link([b't'; 100]).seal()]);
    assert_eq!(
        link.kind,
        EntryKind::Symlink {
            target: vec![b't'; 100]
        }
    );
}
