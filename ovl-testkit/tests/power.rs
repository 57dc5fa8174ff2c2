//! What a sync puts on disk, and what a power cut leaves of the rest.

use std::ffi::OsStr;
use std::path::Path;

use ovl_diff::{Node, RenameMode, TreeBackend as _};
use ovl_testkit::{Fate, KernelProfile, MockKernel, PendingKind, Survivors};

/// A kernel with `/dir` and `/other` on disk, and a file `/dir/old` with "old" in it.
fn kernel() -> MockKernel {
    let kernel = MockKernel::new(KernelProfile::modern());
    kernel.mkdir_all("/dir".as_ref()).unwrap();
    kernel.mkdir_all("/other".as_ref()).unwrap();
    kernel.write_file("/dir/old".as_ref(), b"old").unwrap();
    kernel.sync_all();
    assert_eq!(kernel.pending(), []);
    kernel
}

fn sync_dir(kernel: &MockKernel, path: &str) {
    let dir = kernel.open_root(path.as_ref()).unwrap();
    kernel.sync(Node::Dir(&dir)).unwrap();
}

fn sync_file(kernel: &MockKernel, dir: &str, name: &str) {
    let dir = kernel.open_root(dir.as_ref()).unwrap();
    kernel.sync(Node::Entry(&dir, name.as_ref())).unwrap();
}

fn rename(kernel: &MockKernel, from: (&str, &str), to: (&str, &str), mode: RenameMode) {
    let source = kernel.open_root(from.0.as_ref()).unwrap();
    let target = kernel.open_root(to.0.as_ref()).unwrap();
    let (from, to) = (OsStr::new(from.1), OsStr::new(to.1));
    kernel.rename(&source, from, &target, to, mode).unwrap();
}

/// What a file holds after a power cut, on a copy of the machine.
fn after(kernel: &MockKernel, survivors: &Survivors, path: &str) -> Option<Vec<u8>> {
    let kernel = kernel.fork();
    kernel.crash(survivors);
    assert_eq!(kernel.pending(), [], "nothing is left to lose");
    kernel.read_file(Path::new(path)).ok()
}

/// All combinations of what can become of the changes that are not on disk.
fn combinations(kernel: &MockKernel) -> Vec<Survivors> {
    let mut all = vec![Vec::new()];
    for change in kernel.pending() {
        let fates: &[Fate] = match change.kind {
            PendingKind::Data => &[Fate::Lost, Fate::Torn, Fate::Kept],
            _ => &[Fate::Lost, Fate::Kept],
        };
        let longer = |before: &Vec<Fate>| {
            let more = fates.iter().map(|fate| [&**before, &[*fate]].concat());
            more.collect::<Vec<_>>()
        };
        all = all.iter().flat_map(longer).collect();
    }
    all.into_iter().map(Survivors::Chosen).collect()
}

#[test]
fn syncing_a_file_keeps_its_contents_and_not_its_name() {
    let kernel = kernel();
    kernel.write_file("/dir/new".as_ref(), b"new").unwrap();
    sync_file(&kernel, "/dir", "new");
    assert_eq!(after(&kernel, &Survivors::Nothing, "/dir/new"), None);
    let kinds: Vec<_> = kernel.pending().iter().map(|one| one.kind).collect();
    assert_eq!(kinds, [PendingKind::Names], "only the name is at risk");
    sync_dir(&kernel, "/dir");
    let found = after(&kernel, &Survivors::Nothing, "/dir/new");
    assert_eq!(found.as_deref(), Some(&b"new"[..]));
}

#[test]
fn syncing_a_directory_keeps_its_names_and_not_their_contents() {
    let kernel = kernel();
    kernel.write_file("/dir/new".as_ref(), b"new!").unwrap();
    kernel.write_file("/other/new".as_ref(), b"new!").unwrap();
    sync_dir(&kernel, "/dir");
    let found = after(&kernel, &Survivors::Nothing, "/dir/new");
    assert_eq!(found.as_deref(), Some(&b""[..]), "it is empty");
    assert_eq!(after(&kernel, &Survivors::Nothing, "/other/new"), None);

    kernel.mkdir_all("/dir/inner".as_ref()).unwrap();
    kernel.write_file("/dir/inner/file".as_ref(), b"").unwrap();
    sync_dir(&kernel, "/dir/inner");
    let lost = after(&kernel, &Survivors::Nothing, "/dir/inner/file");
    assert_eq!(lost, None, "nothing leads there");
    sync_dir(&kernel, "/dir");
    let found = after(&kernel, &Survivors::Nothing, "/dir/inner/file");
    assert_eq!(found.as_deref(), Some(&b""[..]));
}

#[test]
fn contents_are_there_or_torn_or_those_of_the_last_sync() {
    let kernel = kernel();
    let dir = kernel.open_root("/dir".as_ref()).unwrap();
    let file = kernel.create_file(&dir, "file".as_ref(), 0o600).unwrap();
    kernel.write_at(&file, 0, b"before").unwrap();
    kernel.sync_all();
    kernel.write_at(&file, 0, b"behind").unwrap();
    let contents = |fate| after(&kernel, &Survivors::Chosen(vec![fate]), "/dir/file").unwrap();
    assert_eq!(contents(Fate::Lost), b"before");
    assert_eq!(contents(Fate::Torn), b"beh\0\0\0");
    assert_eq!(contents(Fate::Kept), b"behind");
    kernel.sync_data(Node::File(&file)).unwrap();
    let found = after(&kernel, &Survivors::Nothing, "/dir/file");
    assert_eq!(found.as_deref(), Some(&b"behind"[..]));
}

#[test]
fn attributes_are_on_disk_with_the_file_and_not_with_its_data() {
    let kernel = kernel();
    let dir = kernel.open_root("/dir".as_ref()).unwrap();
    let old = Node::Entry(&dir, "old".as_ref());
    kernel.set_mode(old, 0o400).unwrap();
    kernel.set_xattr(old, "user.a".as_ref(), b"1").unwrap();
    let mode_after = |survivors: &Survivors| {
        let kernel = kernel.fork();
        kernel.crash(survivors);
        let dir = kernel.open_root("/dir".as_ref()).unwrap();
        let old = Node::Entry(&dir, "old".as_ref());
        let xattr = kernel.xattr(old, "user.a".as_ref()).unwrap();
        (kernel.metadata(old).unwrap().mode, xattr.is_some())
    };
    kernel.sync_data(old).unwrap();
    assert_eq!(mode_after(&Survivors::Nothing), (0o644, false));
    assert_eq!(mode_after(&Survivors::Everything), (0o400, true));
    kernel.sync(old).unwrap();
    assert_eq!(mode_after(&Survivors::Nothing), (0o400, true));
}

#[test]
fn a_rename_is_done_or_not_and_never_half() {
    for (mode, to) in [
        (RenameMode::NoReplace, "new"),
        (RenameMode::Replace, "there"),
        (RenameMode::Exchange, "there"),
    ] {
        let kernel = kernel();
        if to == "there" {
            kernel
                .write_file("/other/there".as_ref(), b"there")
                .unwrap();
            kernel.sync_all();
        }
        rename(&kernel, ("/dir", "old"), ("/other", to), mode);
        let mut seen = std::collections::BTreeSet::new();
        for survivors in combinations(&kernel) {
            let from = after(&kernel, &survivors, "/dir/old");
            let to = after(&kernel, &survivors, &format!("/other/{to}"));
            seen.insert((from, to));
        }
        let there = (to == "there").then(|| b"there".to_vec());
        let old = Some(b"old".to_vec());
        let left = there.clone().filter(|_| mode == RenameMode::Exchange);
        let both = [(old.clone(), there), (left, old)];
        assert_eq!(seen, both.into_iter().collect(), "{mode:?}");
        // One of its directories is enough.
        sync_dir(&kernel, "/dir");
        let found = after(&kernel, &Survivors::Nothing, &format!("/other/{to}"));
        assert_eq!(found.as_deref(), Some(&b"old"[..]));
    }
}

#[test]
fn a_removed_name_may_come_back_until_its_directory_is_synced() {
    let kernel = kernel();
    let dir = kernel.open_root("/dir".as_ref()).unwrap();
    kernel.unlink(&dir, "old".as_ref()).unwrap();
    let found = after(&kernel, &Survivors::Nothing, "/dir/old");
    assert_eq!(found.as_deref(), Some(&b"old"[..]));
    assert_eq!(after(&kernel, &Survivors::Everything, "/dir/old"), None);
    sync_dir(&kernel, "/dir");
    assert_eq!(after(&kernel, &Survivors::Nothing, "/dir/old"), None);
}

#[test]
fn names_survive_in_any_combination_but_not_without_what_they_need() {
    let kernel = kernel();
    kernel.write_file("/other/one".as_ref(), b"").unwrap();
    kernel.write_file("/other/two".as_ref(), b"").unwrap();
    let there = |kernel: &MockKernel, path: &str| kernel.read_file(path.as_ref()).is_ok();
    let mut seen = std::collections::BTreeSet::new();
    for survivors in combinations(&kernel) {
        let kernel = kernel.fork();
        kernel.crash(&survivors);
        seen.insert((there(&kernel, "/other/one"), there(&kernel, "/other/two")));
    }
    assert_eq!(seen.len(), 4, "a later one without an earlier one, too");

    // A journal keeps their order.
    let (changes, seed) = (1, 0);
    let survivors = Survivors::Journal { changes, seed };
    assert!(after(&kernel, &survivors, "/other/one").is_some());
    assert!(after(&kernel, &survivors, "/other/two").is_none());

    // What was moved out of a directory does not go with it.
    kernel.sync_all();
    rename(
        &kernel,
        ("/dir", "old"),
        ("/other", "old"),
        RenameMode::NoReplace,
    );
    let root = kernel.open_root("/".as_ref()).unwrap();
    kernel.remove_dir(&root, "dir".as_ref()).unwrap();
    for survivors in combinations(&kernel) {
        let kernel = kernel.fork();
        kernel.crash(&survivors);
        let places = ["/dir/old", "/other/old"].map(|path| there(&kernel, path));
        assert_ne!(places[0], places[1], "{survivors:?}");
    }
}

#[test]
fn nothing_is_at_risk_after_everything_was_synced() {
    let kernel = kernel();
    kernel.write_file("/dir/new".as_ref(), b"new").unwrap();
    rename(
        &kernel,
        ("/dir", "old"),
        ("/other", "old"),
        RenameMode::NoReplace,
    );
    assert!(kernel.pending_changes() > 0);
    kernel.sync_all();
    assert_eq!(kernel.pending_changes(), 0);
    kernel.crash(&Survivors::Nothing);
    assert_eq!(kernel.read_file("/dir/new".as_ref()).unwrap(), b"new");
    assert_eq!(kernel.read_file("/other/old".as_ref()).unwrap(), b"old");
}

#[test]
fn a_copy_of_a_machine_goes_its_own_way() {
    let kernel = kernel();
    let copy = kernel.fork();
    copy.write_file("/dir/copy".as_ref(), b"copy").unwrap();
    kernel.write_file("/dir/new".as_ref(), b"new").unwrap();
    assert!(kernel.read_file("/dir/copy".as_ref()).is_err());
    assert!(copy.read_file("/dir/new".as_ref()).is_err());
    assert_eq!(copy.read_file("/dir/old".as_ref()).unwrap(), b"old");
}
