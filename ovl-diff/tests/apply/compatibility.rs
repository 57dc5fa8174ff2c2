//! Odd shapes of real images, which must be accepted.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::Path;

use ovl_diff::{ApplyOptions, ArchiveWarning, Compression, EntryKind, FileKind, Progress};
use ovl_layout::XattrNamespace;

use crate::support::{Entry, archive, at, each, members};

#[test]
fn section_1_12_hard_links_without_parents_and_with_absolute_targets() {
    each(|scene| {
        let applied = scene.stack(&[]).apply(&[
            Entry::file("/usr/bin/perl", b"1"),
            Entry::hard_link("/usr/share/doc/perl/link", "/usr/bin/perl"),
        ]);
        assert_eq!(
            applied.at("usr/share/doc/perl/link").linked_to,
            Path::new("usr/bin/perl")
        );
    });
}

#[test]
fn section_1_12_archives_without_an_end_and_with_something_after_it() {
    each(|scene| {
        let whole = archive(&[Entry::file("f", b"1")]);
        let without = scene.stack(&[]).apply_bytes(&whole[..whole.len() - 1024]);
        assert!(matches!(
            without.summary.archive.warnings[..],
            [ArchiveWarning::MissingEndBlocks { .. }]
        ));
        assert_eq!(without.names(""), ["f"]);
        let trailing = [&whole[..], &archive(&[Entry::file("ghost", b"")])].concat();
        let trailing = scene.stack(&[]).apply_bytes(&trailing);
        assert!(matches!(
            trailing.summary.archive.warnings[..],
            [ArchiveWarning::TrailingData { .. }]
        ));
        assert_eq!(trailing.names(""), ["f"]);
        let zeros = [&whole[..], &[0; 20_480]].concat();
        let zeros = scene.stack(&[]).apply_bytes(&zeros);
        assert!(zeros.summary.archive.warnings.is_empty());
        assert_ne!(
            zeros.summary.archive.diff_id,
            trailing.summary.archive.diff_id
        );
        // No entry at all.
        assert!(scene.stack(&[]).apply(&[]).names("").is_empty());
    });
}

#[test]
fn section_1_12_compressed_in_one_or_several_members() {
    each(|scene| {
        let whole = archive(&[
            Entry::dir("d"),
            Entry::file("d/f", vec![7; 100_000]),
            Entry::marker("d/.wh.x"),
        ]);
        let gzip = |part: &[u8]| {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(part).unwrap();
            encoder.finish().unwrap()
        };
        let (one, other) = whole.split_at(700);
        let plain = scene.stack(&[]).apply_bytes(&whole);
        for (bytes, compression) in [
            (gzip(&whole), Compression::Gzip),
            ([gzip(one), gzip(other)].concat(), Compression::Gzip),
            ([gzip(&whole), vec![0; 100]].concat(), Compression::Gzip),
            (
                zstd::stream::encode_all(&whole[..], 1).unwrap(),
                Compression::Zstd,
            ),
        ] {
            let applied = scene.stack(&[]).apply_bytes(&bytes);
            assert_eq!(applied.summary.archive.compression, compression);
            assert_eq!(
                applied.summary.archive.diff_id,
                plain.summary.archive.diff_id
            );
            assert_eq!(applied.names("d"), ["f"]);
            assert_eq!(applied.at("d/f"), plain.at("d/f"));
            assert_eq!(applied.summary.payload, 100_000);
        }
    });
}

#[test]
fn section_1_12_global_headers_with_a_comment() {
    each(|scene| {
        let record = b"52 comment=0123456789abcdef0123456789abcdef01234567\n";
        let mut global = Entry::file("pax_global_header", record);
        global.typeflag = b'g';
        let applied = scene.stack(&[]).apply(&[global, Entry::file("f", b"1")]);
        assert_eq!(applied.names(""), ["f"]);
        assert_eq!(applied.summary.archive.entries, 1);
    });
}

#[test]
fn section_1_12_a_device_directory_of_a_real_image() {
    each(|scene| {
        let applied = scene.stack(&[]).apply(&[
            Entry::dir("dev"),
            Entry::char_device("dev/ptmx", 5, 2).mode(0o666),
            Entry::char_device("dev/console", 5, 1).mode(0o622),
            Entry::symlink("dev/fd", "/proc/self/fd"),
            Entry::symlink("dev/stdin", "/proc/self/fd/0"),
            Entry::fifo("dev/initctl"),
            Entry::dir("dev/pts"),
        ]);
        assert_eq!(applied.names("dev").len(), 6);
        assert_eq!(
            (applied.at("dev/ptmx").mode, applied.at("dev/ptmx").kind),
            (0o666, FileKind::CharDevice)
        );
    });
}

#[test]
fn section_1_12_files_through_var_run() {
    each(|scene| {
        let base = [Entry::dir("run"), Entry::symlink("var/run", "/run")];
        let below = scene.stack(&[&base]);
        let applied = below.apply(&[Entry::file("var/run/lock/pid", b"1")]);
        assert_eq!(applied.at("run/lock/pid").contents, b"1");
        let together = [&base[..], &[Entry::file("var/run/pid", b"1")]].concat();
        let applied = scene.stack(&[]).apply(&together);
        assert_eq!(applied.names("run"), ["pid"]);
    });
}

#[test]
fn section_1_12_attributes_that_podman_leaked() {
    each(|scene| {
        let origin = [0, 0xfb, 0x1d, 0, 1];
        let entries = [
            Entry::dir("./").xattr("user.overlay.origin", origin),
            Entry::dir("d").xattr("user.overlay.impure", b"y"),
            Entry::file("d/f", b"1").xattr("user.overlay.origin", origin),
        ];
        for xattrs in [XattrNamespace::Trusted, XattrNamespace::User] {
            let options = ApplyOptions::new(xattrs);
            let applied = scene.stack(&[]).try_apply(&archive(&entries), &options);
            let applied = applied.unwrap();
            let seen = applied.at("d/f").xattr("user.overlay.origin");
            assert_eq!(seen, Some(&origin[..]), "as the container sees it");
            let raw = &scene.raw(&applied.upper)[Path::new("d/f")].xattrs;
            let escaped = raw.contains_key(OsStr::new("user.overlay.overlay.origin"));
            assert_eq!(escaped, xattrs == XattrNamespace::User);
        }
    });
}

#[test]
fn section_1_12_a_layer_of_the_time_of_aufs() {
    each(|scene| {
        let base = [Entry::file("etc/passwd", b"old"), Entry::file("gone", b"")];
        let applied = scene.stack(&[&base]).apply(&[
            Entry::dir("./"),
            Entry::marker(".wh..wh.aufs"),
            Entry::dir(".wh..wh.orph/"),
            Entry::dir(".wh..wh.plnk/"),
            Entry::file(".wh..wh.plnk/261.1234", b"new").mode(0o600),
            Entry::hard_link(".wh.gone", ".wh..wh.aufs"),
            Entry::dir("etc/"),
            Entry::hard_link("etc/passwd", ".wh..wh.plnk/261.1234"),
            Entry::hard_link("etc/passwd-", ".wh..wh.plnk/261.1234"),
        ]);
        assert_eq!(applied.names(""), ["etc"]);
        let (one, other) = (applied.at("etc/passwd"), applied.at("etc/passwd-"));
        assert_eq!((one, one.mode, &*one.contents), (other, 0o600, &b"new"[..]));
    });
}

#[test]
fn section_1_12_whiteouts_for_files_that_are_nowhere() {
    each(|scene| {
        let applied = scene.stack(&[&[Entry::file("etc/f", b"")]]).apply(&[
            Entry::marker("etc/.wh.resolv.conf"),
            Entry::marker("var/cache/.wh.apt"),
            Entry::file("etc/g", b""),
        ]);
        assert_eq!(applied.names("etc"), ["f", "g"]);
    });
}

#[test]
fn section_1_12_names_of_more_than_100_and_of_more_than_256_bytes() {
    each(|scene| {
        let short = format!("usr/share/{}/f", "n".repeat(120));
        let long = format!("{}/{}/f", "d".repeat(200), "e".repeat(200));
        let applied = scene.stack(&[]).apply(&[
            Entry::file(&short, b"1"),
            Entry::file(&long, b"2"),
            Entry::symlink("link", &long),
            Entry::hard_link("hard", &long),
        ]);
        assert_eq!(applied.at(&short).contents, b"1");
        assert_eq!(applied.at("hard"), applied.at(&long));
        assert_eq!(applied.at("link").contents, long.as_bytes());
    });
}

#[test]
fn section_1_12_owners_beyond_2097151() {
    each(|scene| {
        let applied = scene.stack(&[]).apply(&[
            Entry::file("f", b"").owner(2_097_152, 1_234_567_890),
            Entry::dir("d").owner(4_294_967_294, 2_097_151),
        ]);
        assert_eq!(applied.at("f").owner(), (2_097_152, 1_234_567_890));
        assert_eq!(applied.at("d").owner(), (4_294_967_294, 2_097_151));
    });
}

#[test]
fn contents_of_every_size_arrive_and_are_counted() {
    each(|scene| {
        let mut random = 1_u32;
        let mut bytes = |len: usize| -> Vec<u8> {
            let next = std::iter::repeat_with(|| {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (random >> 24) as u8
            });
            next.take(len).collect()
        };
        let sizes = [
            0, 1, 511, 512, 513, 4095, 4096, 4097, 262_143, 262_144, 262_145, 1_000_000,
        ];
        let mut contents: Vec<Vec<u8>> = sizes.into_iter().map(&mut bytes).collect();
        // Zeros at the start, in the middle and at the end, which may become holes.
        for zeros in [
            0..600_000,
            300_000..900_000,
            500_000..1_000_000,
            0..1_000_000,
        ] {
            let mut content = bytes(1_000_000);
            content[zeros].fill(0);
            contents.push(content);
        }
        let entries: Vec<Entry> = contents
            .iter()
            .enumerate()
            .map(|(n, content)| Entry::file(format!("f{n}"), content).mtime(n as i64, 0))
            .collect();
        let applied = scene.stack(&[]).apply(&entries);
        for (n, content) in contents.iter().enumerate() {
            let seen = applied.at(&format!("f{n}"));
            assert!(seen.contents == *content, "file {n} differs");
            assert_eq!(seen.mtime, at(n as i64, 0));
        }
        let payload: usize = contents.iter().map(Vec::len).sum();
        assert_eq!(applied.summary.payload, payload as u64);
    });
}

#[test]
fn progress_is_told_after_every_entry() {
    each(|scene| {
        let entries: Vec<Entry> = (0..10)
            .map(|n| Entry::file(format!("f{n}"), [n; 600]))
            .collect();
        let bytes = archive(&entries);
        let mut told: Vec<Progress> = Vec::new();
        let options = ovl_diff::ApplyOptions::new(scene.xattrs);
        let upper = scene.layer();
        let mut tell = |progress| told.push(progress);
        ovl_diff::apply(scene.tree(), &*bytes, &upper, &[], &options, &mut tell).unwrap();
        let counts: Vec<u64> = told.iter().map(|progress| progress.entries).collect();
        assert_eq!(counts, (1..=10).collect::<Vec<_>>());
        assert!(told.is_sorted_by_key(|progress| progress.input_bytes));
        assert!(told[9].input_bytes <= bytes.len() as u64);
    });
}

#[test]
fn the_builder_of_these_tests_writes_what_it_is_told() {
    let long = "n".repeat(300);
    let entries = [
        Entry::file(&long, b"x")
            .owner(1 << 30, 7)
            .mtime(-2, 1)
            .xattr("user.a", b"1\n2"),
        Entry::symlink("l", &long),
    ];
    let read = members(&archive(&entries));
    assert_eq!(
        (read[0].0.uid, read[0].0.gid, read[0].0.mtime),
        (1 << 30, 7, at(-2, 1))
    );
    assert_eq!(
        (&read[0].0.path, &read[0].1),
        (&long.clone().into_bytes(), &b"x".to_vec())
    );
    assert_eq!(read[0].0.xattrs, [(b"user.a".to_vec(), b"1\n2".to_vec())]);
    assert_eq!(
        read[1].0.kind,
        EntryKind::Symlink {
            target: long.into_bytes()
        }
    );
}
