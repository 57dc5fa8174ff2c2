//! Random changes of mounted layers: archives, lists and sizes of them say what the kernel shows.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use ovl_diff::{
    DeviceNumber, DirHandle, FileKind, Layers, Node, NodeKind, RenameMode, Timestamp, TreeBackend,
    View, ViewDir, changes_of, compare, diff_trees, remove_tree, size_of_change, size_of_changes,
};
use ovl_driver::blocking::Overlay2;
use ovl_driver::{Base, MountRequest};
use ovl_layout::XattrNamespace;
use ovl_mount::{OverlayOptions, UnmountMode};
use rustix::io::Errno;

use super::Subject;
use super::support::{chain, create, diff, id, import};
use crate::edit::Edit;
use crate::random::Random;
use crate::snapshot::{Snapshot, differences, snapshot_at};

super::list! {
    random_changes_are_what_diffs_say_with_and_without_redirects,
}

/// Runs the scripts of these numbers: each makes a few layers, mounted with and without
/// `redirect_dir=on` and `metacopy=on`, by random changes. Then the changes, sizes and archives of
/// the topmost one against each layer below it, and against nothing, must say what its mount shows:
/// applied elsewhere, both the archive that is read from the layers and that of a comparison show
/// the same, and the archive of what was applied is that archive again.
/// Files are changed in place where the subject [can](Subject::editing).
///
/// # Panics
/// With the number of the script, when the subject breaks the rule.
pub fn run_scripts(subject: &Subject, numbers: Range<u64>) -> ScriptsSummary {
    let store = subject.store();
    let mut summary = ScriptsSummary::default();
    for number in numbers {
        Script::new(subject, &store, number).run(&mut summary);
    }
    subject.assert_clean(&store);
    summary
}

/// What the scripts have made the kernel write: without any of it, they prove little.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ScriptsSummary {
    /// Directories and files that come from another name.
    pub redirects: u64,
    /// Files that have their data below.
    pub metacopies: u64,
}

fn random_changes_are_what_diffs_say_with_and_without_redirects(subject: &Subject) {
    let written = run_scripts(subject, 0..12);
    let identity = subject.kernel().system().identity().expect("an identity");
    let features = subject.kernel().mount().features().expect("features");
    let found = written.redirects > 0 && written.metacopies > 0;
    let writes = !identity.user_namespace && features.redirect_dir && features.metacopy;
    assert_eq!(found, writes, "{written:?}");
}

const LAYERS: usize = 4;
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f\n\u{fc}"];

struct Script<'s> {
    subject: &'s Subject,
    store: &'s Overlay2,
    number: u64,
    options: OverlayOptions,
    xattrs: XattrNamespace,
    random: Random,
}

impl<'s> Script<'s> {
    fn new(subject: &'s Subject, store: &'s Overlay2, number: u64) -> Self {
        let identity = subject.kernel().system().identity().expect("an identity");
        // The attributes that anybody can write are not followed.
        let features = subject.kernel().mount().features().expect("features");
        let knows = features.redirect_dir && features.metacopy;
        let (settings, xattrs) = match identity.user_namespace {
            true => (&[][..], XattrNamespace::User),
            false if !knows => (&[][..], XattrNamespace::Trusted),
            false => (
                match number % 4 {
                    0 => &[][..],
                    1 => &["redirect_dir=on"][..],
                    _ => &["redirect_dir=on", "metacopy=on"][..],
                },
                XattrNamespace::Trusted,
            ),
        };
        let options = settings
            .iter()
            .try_fold(OverlayOptions::default(), |all, one| all.with(one));
        Self {
            subject,
            store,
            number,
            options: options.expect("options that there are"),
            xattrs,
            random: Random::new(number),
        }
    }

    fn run(mut self, summary: &mut ScriptsSummary) {
        let names: Vec<String> = (0..LAYERS)
            .map(|at| format!("s{}-{at}", self.number))
            .collect();
        for (at, name) in names.iter().enumerate() {
            create(
                self.store,
                name,
                at.checked_sub(1).map(|below| &*names[below]),
            );
            let steps = if at == 0 { 30 } else { 10 };
            self.mounted(name, |script, target| {
                for _ in 0..steps {
                    script.step(target);
                }
            });
        }
        self.count(&names, summary);
        let top = &names[LAYERS - 1];
        let shown = self.shown(top);
        let mut copies = Vec::new();
        for below in (0..LAYERS - 1).map(Some).chain([None]) {
            let base = match below {
                Some(below) => Base::Layer(id(&names[below])),
                None => Base::Empty,
            };
            let compared = self.compare(&names, below);
            let parent = below.map(|below| &*names[below]);
            copies.push(self.copy(top, &base, parent, &shown));
            copies.push(self.copy_compared(top, &compared, parent, &shown));
        }
        for name in copies.iter().chain(names.iter().rev()) {
            let removed = self.store.remove(&id(name), false);
            removed.unwrap_or_else(|error| panic!("{}: {}", self.said(), chain(&error)));
        }
        self.store.reclaim().expect("reclaim");
    }

    fn count(&self, names: &[String], summary: &mut ScriptsSummary) {
        for name in names {
            let path = self.store.layout().layer(&id(name)).diff().to_owned();
            let stored = snapshot_at(self.subject.tree(), &path).expect("a layer can be read");
            for object in stored.values() {
                let has = |name: &str| u64::from(object.xattrs.contains_key(OsStr::new(name)));
                summary.redirects += has(self.xattrs.redirect());
                summary.metacopies += has(self.xattrs.metacopy());
            }
        }
    }

    fn said(&self) -> String {
        format!("script {}", self.number)
    }

    fn mounted<T>(&mut self, name: &str, work: impl FnOnce(&mut Self, &Path) -> T) -> T {
        let request = MountRequest::new().options(self.options);
        let target = self.store.mount(&id(name), &request);
        let target = target.unwrap_or_else(|error| panic!("{}: {}", self.said(), chain(&error)));
        let result = work(self, &target);
        let unmounted = self.store.unmount(&id(name), UnmountMode::Now);
        unmounted.unwrap_or_else(|error| panic!("{}: {}", self.said(), chain(&error)));
        result
    }

    /// What a mount shows: every object, and the first name of each inode.
    fn shown(&mut self, name: &str) -> (Snapshot, HashMap<PathBuf, PathBuf>) {
        self.mounted(name, |script, target| {
            let tree = script.subject.tree();
            let shown = snapshot_at(tree, target);
            let mut shown = shown.unwrap_or_else(|error| panic!("{}: {error}", script.said()));
            let (mut first, mut links) = (HashMap::new(), HashMap::new());
            for (path, object) in &mut shown {
                if object.kind == FileKind::Directory {
                    continue;
                }
                // Of a name that is hidden, the inode still has the count.
                object.nlink = 0;
                let at = target.join(path);
                let dir = tree
                    .open_root(at.parent().unwrap_or(target))
                    .expect("it shows");
                let name = at.file_name().unwrap_or_default();
                let ino = tree
                    .metadata(Node::Entry(&dir, name))
                    .expect("it shows")
                    .ino;
                let first = first.entry(ino).or_insert_with(|| path.clone());
                links.insert(path.clone(), first.clone());
            }
            (shown, links)
        })
    }

    /// Applies what a layer changes elsewhere, where it must show the same.
    fn copy(
        &mut self,
        top: &str,
        base: &Base,
        parent: Option<&str>,
        shown: &(Snapshot, HashMap<PathBuf, PathBuf>),
    ) -> String {
        let archive = diff(self.store, top, base);
        assert!(
            archive == diff(self.store, top, base),
            "{}: two diffs differ",
            self.said()
        );
        let name = format!("{top}-on-{}", parent.unwrap_or("nothing"));
        import(self.store, &name, parent, &archive);
        let again = self.shown(&name);
        if let Some(difference) = differences(&shown.0, &again.0) {
            panic!("{}, against {base:?}: {difference}", self.said());
        }
        assert_eq!(shown.1, again.1, "{}, against {base:?}", self.said());
        self.assert_fixed(&name, base, parent, &archive);
        name
    }

    /// The archive of what was applied is the archive itself. Only where other names of a renamed
    /// directory's hard links came last they have come to their places, with their directories; then
    /// it is that archive.
    fn assert_fixed(&self, name: &str, base: &Base, parent: Option<&str>, archive: &[u8]) {
        let again = diff(self.store, name, base);
        if again == archive {
            return;
        }
        let (said, ordered) = (self.said(), format!("{name}-ordered"));
        let plain = self.options == OverlayOptions::default();
        assert!(!plain, "{said}, against {base:?}: another archive");
        import(self.store, &ordered, parent, &again);
        let fixed = diff(self.store, &ordered, base);
        assert!(fixed == again, "{said}, against {base:?}: no fixed point");
        let removed = self.store.remove(&id(&ordered), false);
        removed.unwrap_or_else(|error| panic!("{said}: {}", chain(&error)));
    }

    /// The same with the archive of a comparison, which has directories for their own sake only.
    fn copy_compared(
        &mut self,
        top: &str,
        archive: &[u8],
        parent: Option<&str>,
        shown: &(Snapshot, HashMap<PathBuf, PathBuf>),
    ) -> String {
        let name = format!("{top}-like-{}", parent.unwrap_or("nothing"));
        import(self.store, &name, parent, archive);
        let again = self.shown(&name);
        let [one, other] = [&shown.0, &again.0].map(without_dir_times);
        if let Some(difference) = differences(&one, &other) {
            panic!("{}, compared with {parent:?}: {difference}", self.said());
        }
        assert_eq!(
            shown.1,
            again.1,
            "{}, compared with {parent:?}",
            self.said()
        );
        name
    }

    /// What is read from the layers on top says the same as the comparison of all, whose archive
    /// this gives.
    fn compare(&self, names: &[String], below: Option<usize>) -> Vec<u8> {
        let tree = self.subject.tree();
        let open = |name: &String| {
            let path = self.store.layout().layer(&id(name)).diff().to_owned();
            tree.open_root(&path).expect("a layer's directory")
        };
        let dirs: Vec<DirHandle> = names.iter().rev().map(open).collect();
        let (uppers, lowers) = dirs.split_at(names.len() - below.map_or(0, |below| below + 1));
        let (view, layers) = (View::new(tree, self.xattrs), Layers::new(uppers, lowers));
        let (all, base) = (ViewDir::new(dirs.clone()), ViewDir::new(lowers.to_vec()));
        let said = self.said();
        assert_eq!(
            changes_of(view, layers).expect(&said),
            compare(view, &all, &base).expect(&said),
            "{said}"
        );
        assert_eq!(
            size_of_change(view, layers).expect(&said),
            size_of_changes(view, &all, &base).expect(&said),
            "{said}"
        );
        let mut archive = Vec::new();
        diff_trees(view, &all, &base, &mut archive).expect(&said);
        archive
    }

    /// Changes something, or tries to.
    fn step(&mut self, target: &Path) {
        if let Err(error) = self.try_step(target) {
            // Anything else may be in the way; but what is there has its data.
            let is = |errno: Errno| error.raw_os_error() == Some(errno.raw_os_error());
            // In a user namespace the kernel does not know two new names of a file that was copied
            // up for the same, and cannot rename one to the other.
            let is_stale = is(Errno::STALE) && self.xattrs == XattrNamespace::Trusted;
            assert!(!is_stale && !is(Errno::IO), "{}: {error}", self.said());
        }
    }

    fn try_step(&mut self, target: &Path) -> io::Result<()> {
        let tree = self.subject.tree();
        let root = tree.open_root(target)?;
        let all = Listed::of(tree, root, target)?;
        let random = &mut self.random;
        let (dir, _) = random.of(&all.dirs);
        let new = OsStr::new(*random.of(&NAMES));
        let Some((holder, name, path, kind)) = random.maybe_of(&all.objects) else {
            return tree.create_dir(dir, new, 0o755);
        };
        let node = Node::Entry(holder, name);
        match random.below(24) {
            0..3 => tree.create_dir(dir, new, 0o700 | mode(random)),
            3..7 => {
                let file = tree.create_file(dir, new, 0o600 | mode(random))?;
                let contents = vec![b'a' + random.small(26); usize::from(random.small(9)) * 700];
                tree.write_at(&file, 0, &contents)
            }
            7 => tree.create_symlink(dir, new, random.of(&NAMES).as_ref()),
            8 => {
                let device = DeviceNumber { major: 8, minor: 1 };
                let kind = *random.of(&[NodeKind::Fifo, NodeKind::CharDevice(device)]);
                tree.create_node(dir, new, kind, 0o600)
            }
            9..11 => tree.hard_link(holder, name, dir, new),
            11..16 => tree.rename(holder, name, dir, new, RenameMode::Replace),
            16 => remove_tree(tree, holder, name).map_err(|error| error.source),
            17 if *kind != FileKind::Directory => tree.unlink(holder, name),
            17 => tree.remove_dir(holder, name),
            18 if *kind != FileKind::Symlink => tree.set_mode(node, 0o600 | mode(random)),
            19 => tree.set_owner(node, u32::from(random.small(3)), 0),
            20 => {
                let attribute = *random.of(&["user.colour", "trusted.other"]);
                tree.set_xattr(node, OsStr::new(attribute), &[random.small(3)])
            }
            21 => {
                let secs = 1_000_000_000 + i64::from(random.small(3));
                tree.set_mtime(node, Timestamp { secs, nanos: 5 })
            }
            22 if *kind == FileKind::Regular => {
                let bytes = &[b'A' + random.small(26)];
                let edited = self.subject.edit(path, Edit::Write { offset: 0, bytes });
                edited.unwrap_or(Ok(()))
            }
            _ => tree.set_mtime(Node::Dir(dir), Timestamp { secs: 1, nanos: 0 }),
        }
    }
}

fn without_dir_times(shown: &Snapshot) -> Snapshot {
    let mut shown = shown.clone();
    for object in shown.values_mut() {
        if object.kind == FileKind::Directory {
            object.mtime = Timestamp { secs: 0, nanos: 0 };
        }
    }
    shown
}

/// What there is to change.
struct Listed {
    dirs: Vec<(DirHandle, PathBuf)>,
    objects: Vec<(DirHandle, OsString, PathBuf, FileKind)>,
}

impl Listed {
    fn of(tree: &dyn TreeBackend, root: DirHandle, target: &Path) -> io::Result<Self> {
        let mut listed = Self {
            dirs: vec![(root, target.to_owned())],
            objects: Vec::new(),
        };
        let mut next = 0;
        while let Some((dir, path)) = listed.dirs.get(next).cloned() {
            next += 1;
            let mut entries = tree.read_dir(&dir)?;
            entries.sort_by(|one, other| one.name.cmp(&other.name));
            for entry in entries {
                let path = path.join(&entry.name);
                if entry.kind == FileKind::Directory {
                    let inner = tree.open_dir(&dir, &entry.name)?;
                    listed.dirs.push((inner, path.clone()));
                }
                listed
                    .objects
                    .push((dir.clone(), entry.name, path, entry.kind));
            }
        }
        Ok(listed)
    }
}

fn mode(random: &mut Random) -> u32 {
    *random.of(&[0o055, 0o044, 0o4011, 0o1077, 0])
}
