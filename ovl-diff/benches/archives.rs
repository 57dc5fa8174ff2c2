//! Apply and diff against GNU tar, in turns, each in a process of its own.
//!
//! `cargo bench -p ovl-diff --bench archives -- [--dir DIR] [--tree DIR] [--rounds N]`, as root.
//! The work is done below `--dir`, which says on what file system; the directories `small` (20,000
//! files, 77 MB, in 217 directories) and, with `--tree`, that tree are what is archived. Printed are
//! the shortest and the median time of each, and the ratio of the shortest ones.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench"
)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ovl_diff::{ApplyOptions, HostTree, TreeBackend as _, View, apply, diff};
use ovl_layout::XattrNamespace;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["one-apply", archive, dir] => one_apply(archive, dir),
        ["one-diff", dir, archive] => one_diff(dir, archive),
        _ => compare(&args),
    }
}

fn one_apply(archive: &str, dir: &str) {
    let tree = HostTree::default();
    let upper = tree.open_root(dir.as_ref()).unwrap();
    let options = ApplyOptions::new(XattrNamespace::Trusted);
    let archive = File::open(archive).unwrap();
    apply(&tree, archive, &upper, &[], &options, &mut |_| {}).unwrap();
}

fn one_diff(dir: &str, archive: &str) {
    let tree = HostTree::default();
    let upper = tree.open_root(dir.as_ref()).unwrap();
    let view = View::new(&tree, XattrNamespace::Trusted);
    let output = File::create(archive).unwrap();
    diff(view, &upper, &[], false, output).unwrap();
}

fn compare(args: &[&str]) {
    let option = |name: &str| {
        let at = args.iter().position(|arg| *arg == name);
        at.and_then(|at| args.get(at + 1)).copied()
    };
    let rounds = option("--rounds").map_or(5, |rounds| rounds.parse().unwrap());
    let scratch = match option("--dir") {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir(),
    };
    let scratch = scratch.unwrap();
    let small = scratch.path().join("small");
    make_small_files(&small);
    let mut trees = vec![("20,000 small files", small)];
    if let Some(tree) = option("--tree") {
        trees.push(("tree", tree.into()));
    }
    println!(
        "{:40} {:>8} {:>8} {:>8} {:>8}  ratio",
        "seconds", "tar", "median", "ovl", "median"
    );
    for (name, tree) in &trees {
        let layer = scratch.path().join("layer.tar");
        run(&mut tar("-c", &layer, tree));
        for gzip in [false, true] {
            let mut layer = layer.clone();
            if gzip {
                run(Command::new("gzip").arg("-kf").arg(&layer));
                layer.set_extension("tar.gz");
            }
            let form = if gzip { ", gzip" } else { "" };
            let target = scratch.path().join("target");
            let fresh = || {
                remove(&target);
                fs::create_dir(&target).unwrap();
            };
            let tars = || tar("-xp", &layer, &target);
            let ours = || this("one-apply", &layer, &target);
            report(&format!("apply {name}{form}"), rounds, fresh, tars, ours);
            remove(&target);
        }
        let output = scratch.path().join("output.tar");
        let fresh = || {
            let _ = fs::remove_file(&output);
        };
        let tars = || tar("-c", &output, tree);
        let ours = || this("one-diff", tree, &output);
        report(&format!("diff {name}"), rounds, fresh, tars, ours);
        fresh();
    }
}

/// GNU tar with the numbers of owners, as layers have them.
fn tar(work: &str, archive: &Path, dir: &Path) -> Command {
    let mut tar = Command::new("tar");
    tar.args(["--numeric-owner", "-C"]).arg(dir);
    tar.args([work, "-f"]).arg(archive).arg(".");
    tar
}

fn this(work: &str, from: &Path, to: &Path) -> Command {
    let mut this = Command::new(std::env::current_exe().unwrap());
    this.arg(work).arg(from).arg(to);
    this
}

fn report(
    what: &str,
    rounds: usize,
    fresh: impl Fn(),
    tars: impl Fn() -> Command,
    ours: impl Fn() -> Command,
) {
    let (mut tar, mut ovl) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        for (command, times) in [(tars(), &mut tar), (ours(), &mut ovl)] {
            fresh();
            let mut command = command;
            let begin = Instant::now();
            run(&mut command);
            times.push(begin.elapsed());
        }
    }
    let [tar, ovl] = [&mut tar, &mut ovl].map(|times| {
        times.sort();
        (times[0], times[times.len() / 2])
    });
    let secs = |time: Duration| time.as_secs_f64();
    println!(
        "{what:40} {:8.3} {:8.3} {:8.3} {:8.3}  {:.2}",
        secs(tar.0),
        secs(tar.1),
        secs(ovl.0),
        secs(ovl.1),
        secs(ovl.0) / secs(tar.0)
    );
}

fn run(command: &mut Command) {
    let status = command.stdin(Stdio::null()).status().unwrap();
    assert!(status.success(), "{command:?}");
}

fn remove(dir: &Path) {
    if dir.exists() {
        fs::remove_dir_all(dir).unwrap();
    }
}

/// Sizes up to 7.7 KB, contents that compress about as far as source text does.
fn make_small_files(root: &Path) {
    let mut state = 1_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut dirs: Vec<PathBuf> = vec![root.to_owned()];
    for number in 1..217 {
        dirs.push(dirs[number / 6].join(format!("directory-{number}")));
    }
    for dir in &dirs {
        fs::create_dir(dir).unwrap();
    }
    let words: Vec<String> = (0..4096)
        .map(|_| format!("{:x} ", random() >> 40))
        .collect();
    for number in 0..20_000 {
        let len = (random() % 7700) as usize;
        let mut text = String::new();
        while text.len() < len {
            text.push_str(&words[(random() % 4096) as usize]);
        }
        text.truncate(len);
        fs::write(
            dirs[number % dirs.len()].join(format!("file-{number}")),
            text,
        )
        .unwrap();
    }
}
