//! Changes, diff and size of a layer that changes one file, over a base of 1,000 files and of
//! 100,000: they must cost the same, less than 5 ms.
//!
//! `cargo bench -p ovl-diff --bench one_change`, as root; in the directory for temporary files.

#![allow(missing_docs, clippy::unwrap_used, reason = "a bench")]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use criterion::{BenchmarkId, Criterion};
use ovl_diff::{DirHandle, HostTree, TreeBackend as _, View, changes, diff, size_of};
use ovl_layout::XattrNamespace;

const SIZES: [usize; 2] = [1_000, 100_000];
const DIRS: usize = 100;

/// A layer of so many files, and one on top that has another version of one of them.
fn make(dir: &Path, files: usize) -> [PathBuf; 2] {
    let [lower, upper] = ["lower", "upper"].map(|name| dir.join(format!("{name}-{files}")));
    for number in 0..DIRS {
        fs::create_dir_all(lower.join(format!("usr/share/dir-{number}"))).unwrap();
    }
    let name = |number| format!("usr/share/dir-{}/file-{number}", number % DIRS);
    for number in 0..files {
        fs::write(lower.join(name(number)), b"contents").unwrap();
    }
    let changed = upper.join(name(7));
    fs::create_dir_all(changed.parent().unwrap()).unwrap();
    fs::write(changed, b"changed").unwrap();
    [upper, lower]
}

fn main() {
    let scratch = tempfile::tempdir().unwrap();
    let tree = HostTree::default();
    let view = View::new(&tree, XattrNamespace::Trusted);
    let layers: Vec<(usize, [DirHandle; 2])> = SIZES
        .iter()
        .map(|files| {
            let paths = make(scratch.path(), *files);
            (*files, paths.map(|path| tree.open_root(&path).unwrap()))
        })
        .collect();
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("one_change");
    for (files, [upper, lower]) in &layers {
        let lowers = std::slice::from_ref(lower);
        group.bench_function(BenchmarkId::new("changes", files), |bencher| {
            bencher.iter(|| changes(view, upper, lowers, false).unwrap());
        });
        group.bench_function(BenchmarkId::new("diff", files), |bencher| {
            bencher.iter(|| diff(view, upper, lowers, false, io::sink()).unwrap());
        });
        group.bench_function(BenchmarkId::new("size", files), |bencher| {
            bencher.iter(|| size_of(view, upper, lowers).unwrap());
        });
    }
    group.finish();
    criterion.final_summary();
}
