//! Layers as the builders of real images write them.

use std::io::Write as _;
use std::ops::Range;
use std::path::Path;

use flate2::{Compression as Level, GzBuilder};
use ovl_diff::{Compression, FileKind};

use crate::support::{Entry, Scene, archive, each};

/// Contents that do not compress away.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

fn gzip(part: &[u8]) -> Vec<u8> {
    gzip_with(GzBuilder::new(), part)
}

fn gzip_with(builder: GzBuilder, part: &[u8]) -> Vec<u8> {
    let mut encoder = builder.write(Vec::new(), Level::fast());
    encoder.write_all(part).unwrap();
    encoder.finish().unwrap()
}

/// A layer with what its compressed forms must not lose.
fn layer() -> Vec<Entry> {
    vec![
        Entry::dir("./"),
        Entry::dir("bin"),
        Entry::file("bin/large", noise(300_000)).mode(0o755),
        Entry::symlink("bin/link", "large"),
        Entry::dir("etc"),
        Entry::file("etc/empty", b""),
        Entry::file("etc/small", b"small"),
        Entry::hard_link("etc/linked", "etc/small"),
    ]
}

/// Applies both and finds the same layer and the same diff id.
fn assert_same(scene: &Scene, compressed: &[u8], plain: &[u8], compression: Compression) {
    let (one, other) = (
        scene.stack(&[]).apply_bytes(compressed),
        scene.stack(&[]).apply_bytes(plain),
    );
    assert_eq!(one.shown.difference(&other.shown), None);
    let (one, other) = (one.summary.archive, other.summary.archive);
    assert_eq!(one.compression, compression);
    assert_eq!(one.diff_id, other.diff_id);
    assert_eq!(one.entries, other.entries);
    assert!(one.warnings.is_empty(), "{:?}", one.warnings);
}

#[test]
fn kaniko_links_by_absolute_names_to_its_own_files_and_to_those_below() {
    each(|scene| {
        let base = [
            Entry::dir("usr"),
            Entry::dir("usr/bin"),
            Entry::file("usr/bin/perl", b"perl").owner(3, 4),
        ];
        let applied = scene.stack(&[&base]).apply(&[
            Entry::dir("/"),
            Entry::dir("/usr/"),
            Entry::dir("/usr/bin/").mode(0o711),
            Entry::file("/usr/bin/git", b"git"),
            Entry::hard_link("/usr/bin/git-receive-pack", "/usr/bin/git"),
            // Of a layer below: it comes up, and both names are one file.
            Entry::hard_link("/usr/bin/perl5", "/usr/bin/perl"),
        ]);
        let names = ["git", "git-receive-pack", "perl", "perl5"];
        assert_eq!(applied.names("usr/bin"), names);
        assert_eq!(applied.at("usr/bin").mode, 0o711);
        for (name, first) in [("git-receive-pack", "git"), ("perl5", "perl")] {
            let found = applied.at(&format!("usr/bin/{name}"));
            assert_eq!(found.linked_to, Path::new("usr/bin").join(first));
        }
        assert_eq!(applied.at("usr/bin/perl5").uid, 3);
    });
}

#[test]
fn a_layer_from_before_merged_usr_writes_through_the_links_of_one_after_it() {
    each(|scene| {
        let merged = [
            Entry::dir("usr"),
            Entry::dir("usr/bin").mode(0o711).owner(3, 4),
            Entry::file("usr/bin/sh", b"old"),
            Entry::file("usr/bin/gone", b"old"),
            Entry::dir("usr/lib"),
            Entry::dir("usr/lib/modules"),
            Entry::file("usr/lib/modules/old", b"old"),
            Entry::symlink("bin", "usr/bin"),
            Entry::symlink("lib", "/usr/lib"),
        ];
        let applied = scene.stack(&[&merged]).apply(&[
            Entry::file("bin/sh", b"new").mode(0o755),
            Entry::marker("bin/.wh.gone"),
            Entry::symlink("bin/rsh", "sh"),
            Entry::hard_link("bin/ash", "bin/sh"),
            Entry::marker("lib/modules/.wh..wh..opq"),
            Entry::file("lib/modules/new", b"new"),
        ]);
        assert_eq!(applied.names("usr/bin"), ["ash", "rsh", "sh"]);
        assert_eq!(applied.names("usr/lib/modules"), ["new"]);
        for link in ["bin", "lib"] {
            assert_eq!(applied.at(link).kind, FileKind::Symlink, "{link}");
        }
        assert_eq!(applied.at("usr/bin/sh").linked_to, Path::new("usr/bin/ash"));
        let dir = applied.at("usr/bin");
        assert_eq!((dir.mode, dir.uid, dir.gid), (0o711, 3, 4));
    });
}

#[test]
fn a_layer_of_the_days_of_aufs_brings_its_files_and_none_of_the_bookkeeping() {
    each(|scene| {
        let base = [
            Entry::dir("etc"),
            Entry::file("etc/hosts", b"old"),
            Entry::dir("var"),
            Entry::dir("var/cache"),
            Entry::file("var/cache/old", b"old"),
        ];
        let applied = scene.stack(&[&base]).apply(&[
            Entry::marker(".wh..wh.aufs").mode(0o444),
            Entry::dir(".wh..wh.orph").mode(0o700),
            Entry::dir(".wh..wh.plnk").mode(0o700),
            // What had several names: under its number, and the names linked to that.
            Entry::file(".wh..wh.plnk/1234.5678", b"both"),
            Entry::hard_link("etc/one", ".wh..wh.plnk/1234.5678"),
            Entry::hard_link("etc/other", ".wh..wh.plnk/1234.5678"),
            // Its whiteouts are all one file.
            Entry::hard_link("etc/.wh.hosts", ".wh..wh.aufs"),
            Entry::dir("var/cache"),
            Entry::hard_link("var/cache/.wh..wh..opq", ".wh..wh.aufs"),
            Entry::file("var/cache/new", b"new"),
        ]);
        assert_eq!(applied.names(""), ["etc", "var"]);
        assert_eq!(applied.names("etc"), ["one", "other"]);
        assert_eq!(applied.at("etc/other").linked_to, Path::new("etc/one"));
        assert_eq!(applied.at("etc/one").contents, b"both");
        assert_eq!(applied.names("var/cache"), ["new"]);
    });
}

#[test]
fn gzip_in_members_that_end_anywhere_is_one_archive() {
    each(|scene| {
        let plain = archive(&layer());
        // As those that compress in parallel cut it: blocks of a size, whatever they cut through.
        for len in [100, 512, 131_072] {
            let members: Vec<u8> = plain.chunks(len).flat_map(gzip).collect();
            assert_same(scene, &members, &plain, Compression::Gzip);
        }
    });
}

#[test]
fn estargz_is_an_archive_with_a_landmark_and_a_table_of_contents() {
    each(|scene| {
        let mut entries = layer();
        entries.insert(0, Entry::file(".no.prefetch.landmark", [0xf]));
        let toc = br#"{"version":1,"entries":[{"name":"bin/","type":"dir"}]}"#;
        entries.push(Entry::file("stargz.index.json", toc));
        let plain = archive(&entries);
        let mut compressed = Vec::new();
        for part in members_of_estargz(&entries) {
            compressed.extend(gzip(&plain[part]));
        }
        // The end of the archive, and where the table of contents begins: an empty member.
        compressed.extend(gzip(&[0; 1024]));
        let extra = [&b"SG\x16\0"[..], b"0000000000001234STARGZ"].concat();
        compressed.extend(gzip_with(GzBuilder::new().extra(extra), b""));
        assert_same(scene, &compressed, &plain, Compression::Gzip);
        let applied = scene.stack(&[]).apply_bytes(&compressed);
        let names = [".no.prefetch.landmark", "bin", "etc", "stargz.index.json"];
        assert_eq!(applied.names(""), names);
    });
}

/// Each header is a member, and each chunk of contents is.
fn members_of_estargz(entries: &[Entry]) -> Vec<Range<usize>> {
    const CHUNK: usize = 65_536;
    let (mut parts, mut at) = (Vec::new(), 0);
    for entry in entries {
        parts.push(at..at + 512);
        at += 512;
        let end = at + entry.content.len();
        while at < end {
            let next = (at + CHUNK).min(end);
            // The padding belongs to the last chunk.
            let stop = if next == end {
                end.next_multiple_of(512)
            } else {
                next
            };
            parts.push(at..stop);
            at = stop;
        }
    }
    parts
}

#[test]
fn zstd_in_frames_with_others_to_skip_is_one_archive() {
    each(|scene| {
        let entries = layer();
        let plain = archive(&entries);
        let frame = |part: &[u8]| zstd::stream::encode_all(part, 3).unwrap();
        let skippable = |data: &[u8]| {
            let len = u32::try_from(data.len()).unwrap();
            [&[0x50, 0x2a, 0x4d, 0x18], &len.to_le_bytes()[..], data].concat()
        };
        // zstd:chunked: a frame for each file's contents, then its manifest and its footer.
        let mut chunked = Vec::new();
        let mut at = 0;
        for part in members_of_estargz(&entries) {
            chunked.extend(frame(&plain[part.clone()]));
            at = part.end;
        }
        chunked.extend(frame(&plain[at..]));
        let manifest = br#"{"version":1,"entries":[]}"#;
        chunked.extend(skippable(&frame(manifest)));
        chunked.extend(skippable(&[&[7; 56][..], b"GNUlInUx"].concat()));
        assert_same(scene, &chunked, &plain, Compression::Zstd);
        // Frames to skip come first where a dictionary of them does.
        let first = [skippable(b"seek table"), frame(&plain), skippable(b"")].concat();
        assert_same(scene, &first, &plain, Compression::Zstd);
        let blocks: Vec<u8> = plain.chunks(100_000).flat_map(frame).collect();
        assert_same(scene, &blocks, &plain, Compression::Zstd);
    });
}
