//! Threads change how long it takes, and nothing else.

use std::cell::Cell;
use std::io::{self, Read, Write as _};
use std::num::NonZeroUsize;

use flate2::Compression;
use flate2::write::GzEncoder;
use ovl_diff::{
    ApplyError, ApplyOptions, ArchiveError, ArchiveReader, BadReason, DiffOptions, Layers,
    ReadLimits, diff_confirmed,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};

use crate::support::{Entry, Scene, archive, each};

/// The time of all entries, in seconds.
const ENTRIES_TIME: i64 = 1_000_000_000;

const NAMES: &[&str] = &["a", "b", "d/a", "d/b", "d/e/a", "e", "e/a", "s/a"];

/// Entries that get in each other's way: names that are taken, links to what is not complete,
/// whiteouts; few of them are refused.
fn entry() -> impl Strategy<Value = Entry> {
    let name = || select(NAMES);
    let file = (name(), select(vec![0, 1, 4096, 5000, 70_000, 300_000]));
    let kind = prop_oneof![
        12 => file.prop_map(|(name, len)| Entry::file(name, &name.repeat(len).as_bytes()[..len])),
        3 => (0..1000).prop_map(|number| Entry::file(format!("many/{number}"), b"contents")),
        2 => select(&["d", "e", "d/e", "many"][..]).prop_map(Entry::dir),
        1 => name().prop_map(|name| Entry::symlink(name, "d")),
        3 => (name(), name()).prop_map(|(name, target)| Entry::hard_link(name, target)),
        1 => select(&[".wh.low", "d/.wh.a", "low/.wh.f", "low/.wh..wh..opq"][..])
            .prop_map(Entry::marker),
    ];
    let xattr = select(vec![None, None, None, Some("user.k"), Some("trusted.k")]);
    let mode = select(vec![0o755, 0o644, 0, 0o7777]);
    (kind, mode, 0..3_u64, xattr).prop_map(|(entry, mode, owner, xattr)| {
        let entry = entry.mode(mode).owner(owner * 1000, owner);
        match xattr {
            Some(name) => entry.xattr(name, b"v"),
            None => entry,
        }
    })
}

/// Entries, and a few that are refused, many of those only when the file is completed, each with its
/// place among the others.
fn entries() -> impl Strategy<Value = (Vec<Entry>, Vec<(usize, Entry)>)> {
    // Enough of them that threads are started.
    let start = (0..64).map(|number| Entry::file(format!("first/{number}"), b"contents"));
    let start: Vec<_> = start.collect();
    let bad = (
        0..100_usize,
        select(&["bogus.name", "security.capability"][..]),
    );
    let bad = bad.prop_map(|(place, attribute)| {
        let entry = Entry::file(format!("bad/{place}"), b"contents");
        (place, entry.xattr(attribute, b"v"))
    });
    let entries = vec(entry(), 64..160);
    (entries, vec(bad, 0..3)).prop_map(move |(entries, bad)| ([&start[..], &entries].concat(), bad))
}

fn with_threads(scene: &Scene, threads: usize) -> ApplyOptions {
    let mut options = ApplyOptions::new(scene.xattrs);
    options.parallelism = NonZeroUsize::new(threads);
    options
}

#[test]
fn any_number_of_threads_makes_the_same_layer_or_the_same_error() {
    each(|scene| {
        let stack = scene.stack(&[&[Entry::file("low/f", b"low"), Entry::file("d/a", b"low")]]);
        let config = Config {
            cases: scene.cases / 4,
            failure_persistence: None,
            ..Config::default()
        };
        let (made, refused) = (Cell::new(0), Cell::new(0));
        let property = |((entries, bad), threads): ((_, Vec<(usize, Entry)>), usize)| {
            let mut entries = stack.acceptable(entries, &with_threads(scene, 1));
            for (place, entry) in bad {
                entries.insert(entries.len() - place.min(entries.len()), entry);
            }
            let bytes = archive(&entries);
            let apply = |threads| {
                let applied = stack.try_apply(&bytes, &with_threads(scene, threads));
                let result = applied
                    .map_err(|error| format!("{error:?}"))
                    .map(|applied| {
                        let summary = format!("{:?}", applied.summary);
                        let mut objects = scene.raw(&applied.upper);
                        // Directories that no entry names are as old as the run.
                        for object in objects.values_mut() {
                            object.mtime.secs = object.mtime.secs.min(ENTRIES_TIME + 1);
                            if object.mtime.secs > ENTRIES_TIME {
                                object.mtime.nanos = 0;
                            }
                        }
                        (objects, summary)
                    });
                stack.forget_others();
                result
            };
            let (one, many) = (apply(1), apply(threads));
            let count = if one.is_ok() { &made } else { &refused };
            count.set(count.get() + 1);
            prop_assert!(one == many, "{threads} threads: {one:?} {many:?}");
            Ok(())
        };
        let result = TestRunner::new(config).run(&(entries(), 2..=8_usize), property);
        if let Err(error) = result {
            panic!("on {}: {error}", scene.backend);
        }
        let (made, refused) = (made.get(), refused.get());

        assert!(made > 0 && refused > 0, "{made} made, {refused} refused");
    });
}

#[test]
fn the_first_refusal_in_the_archive_is_told_whichever_thread_meets_it() {
    each(|scene| {
        let stack = scene.stack(&[]);
        let mut entries: Vec<_> = (0..600)
            .map(|number| Entry::file(format!("{number}"), vec![7; 3000]))
            .collect();
        for number in [250, 300, 301, 420] {
            entries[number] = entries[number].clone().xattr("bogus.name", b"v");
        }
        entries[500] = Entry::file("../x", b"");
        for threads in [1, 2, 5, 8] {
            let bad = stack.blame(&archive(&entries), &with_threads(scene, threads));
            assert_eq!((bad.index, &*bad.name), (250, &b"250"[..]), "{bad}");
        }
        let truncated = archive(&entries[..300]);
        let truncated = &truncated[..truncated.len() - 3000];
        let bad = stack.blame(truncated, &with_threads(scene, 4));
        assert_eq!(bad.index, 250, "{bad}");
    });
}

#[test]
fn any_number_of_threads_writes_the_same_archive() {
    each(|scene| {
        let mut entries: Vec<_> = (0..300)
            .map(|number| Entry::file(format!("d-{}/{number}", number % 7), vec![7; number * 31]))
            .collect();
        entries.push(Entry::file("large", vec![3; 400_000]));
        entries.push(Entry::hard_link("d-3/again", "d-2/2"));
        entries.push(Entry::file("x", b"x").xattr("user.k", b"v"));
        let upper = scene.stack(&[]).apply(&entries).upper;
        let written = |threads| {
            let options = DiffOptions::new().parallelism(NonZeroUsize::new(threads));
            let layers = Layers::new(std::slice::from_ref(&upper), &[]);
            let mut bytes = Vec::new();
            diff_confirmed(scene.view(), layers, &options, &mut bytes, || Ok(())).unwrap();
            bytes
        };
        let one = written(1);
        for threads in [2, 3, 8] {
            assert!(one == written(threads), "on {}", scene.backend);
        }
    });
}

/// More than is decoded and hashed without threads, in many entries.
fn long() -> Vec<u8> {
    let mut state = 1_u32;
    let mut noise = |len: usize| -> Vec<u8> {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..len).map(|_| next()).collect()
    };
    let entries: Vec<_> = (0..60)
        .map(|number| Entry::file(format!("{number}"), noise(77_777)))
        .collect();
    archive(&entries)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Gives at most so many bytes at once, and counts how often it was asked.
struct Source<'a> {
    bytes: &'a [u8],
    step: usize,
    reads: usize,
}

impl Read for &mut Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reads += 1;
        let len = self.step.min(buffer.len());
        (&mut self.bytes).read(&mut buffer[..len])
    }
}

#[test]
fn a_long_archive_reads_the_same_however_it_is_compressed_and_arrives() {
    let plain = long();
    let whole = ArchiveReader::new(&*plain, ReadLimits::default());
    let expected = whole.finish().unwrap();
    assert_eq!(expected.uncompressed_bytes, plain.len() as u64);
    for packed in [
        plain.clone(),
        gzip(&plain),
        zstd::encode_all(&*plain, 1).unwrap(),
    ] {
        for step in [911, 65_536, usize::MAX] {
            let mut source = Source {
                bytes: &packed,
                step,
                reads: 0,
            };
            let mut reader = ArchiveReader::new(&mut source, ReadLimits::default());
            let (mut contents, mut buffer) = (0, vec![0; 10_000]);
            while let Some(entry) = reader.next_entry().unwrap() {
                // One in two is skipped.
                if entry.index % 2 == 1 {
                    continue;
                }
                loop {
                    match reader.read_payload(&mut buffer).unwrap() {
                        0 => break,
                        len => contents += len,
                    }
                }
            }
            let summary = reader.finish().unwrap();
            assert_eq!(contents, 30 * 77_777);
            assert_eq!(summary.diff_id, expected.diff_id);
            assert_eq!(summary.entries, 60);
            assert_eq!(summary.uncompressed_bytes, plain.len() as u64);
            assert_eq!(summary.compressed_bytes, packed.len() as u64);
        }
    }
}

#[test]
fn a_long_archive_that_is_cut_short_is_told_as_such() {
    let plain = long();
    let packed = gzip(&plain);
    for len in [packed.len() / 2, packed.len() - 4] {
        let reader = ArchiveReader::new(&packed[..len], ReadLimits::default());
        match reader.finish().unwrap_err() {
            ArchiveError::Bad(bad) => assert!(
                matches!(bad.reason, BadReason::TruncatedCompression { compressed, .. } if compressed == len as u64),
                "{bad}"
            ),
            other => panic!("{other:?}"),
        }
    }
    // Where the source fails, that is told, after as many bytes as came of what it gave.
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::from(io::ErrorKind::ConnectionReset))
        }
    }
    let source = packed[..packed.len() / 2].chain(Broken);
    match ArchiveReader::new(source, ReadLimits::default()).finish() {
        Err(ArchiveError::Io { offset, source, .. }) => {
            assert_eq!(source.kind(), io::ErrorKind::ConnectionReset);
            assert!(offset > plain.len() as u64 / 3, "{offset}");
        }
        other => panic!("{other:?}"),
    }
    // Dropped in the middle, with threads at work.
    let mut reader = ArchiveReader::new(&*packed, ReadLimits::default());
    for _ in 0..40 {
        reader.next_entry().unwrap();
    }
}

#[test]
fn nothing_is_read_of_the_source_before_what_came_is_used_up() {
    let mut entries: Vec<_> = (0..40)
        .map(|number| Entry::file(format!("{number}"), vec![number; 100_000]))
        .collect();
    entries.push(Entry::file("../x", b""));
    let bytes = archive(&entries);
    for packed in [
        bytes.clone(),
        gzip(&bytes),
        zstd::encode_all(&*bytes, 1).unwrap(),
    ] {
        each(|scene| {
            let mut source = Source {
                bytes: &packed,
                step: usize::MAX,
                reads: 0,
            };
            let upper = scene.layer();
            let options = with_threads(scene, 4);
            // Whoever asks the source more often waits for nothing, and for ever.
            let bad = ovl_diff::apply(
                scene.tree(),
                (&mut source).chain(Never),
                &upper,
                &[],
                &options,
                &mut |_| {},
            );
            match bad {
                Err(ApplyError::Archive(ArchiveError::Bad(bad))) => {
                    assert_eq!(bad.reason, BadReason::PathEscape);
                }
                other => panic!("{other:?}"),
            }
        });
    }
}

/// A source that has nothing to say.
struct Never;

impl Read for Never {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        panic!("read before it was needed")
    }
}
