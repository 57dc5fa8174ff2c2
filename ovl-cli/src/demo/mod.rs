//! The whole story in a throw-away home: import, stack, mount, change, diff, import elsewhere,
//! compare.

mod compare;
mod edit;
mod scratch;
mod source;

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use ovl_driver::blocking::Overlay2;
use ovl_driver::{
    Applied, Base, CreateLayer, Durability, ImportOptions, Kernel, MountRequest, OpenOptions,
};
use ovl_layout::LayerId;
use ovl_mount::UnmountMode;

use crate::fail::{Failure, Kind};
use crate::namespace::{Entered, enter_mount_namespace};
use scratch::Scratch;

/// Changes shown of those made.
const SHOWN: usize = 8;

pub(crate) fn run(rootfs: Option<&Path>, entered: Entered) -> Result<(), Failure> {
    // Opened before anything is mounted over the directory it may be in.
    let rootfs = match rootfs {
        None => None,
        Some(path) => {
            let file = File::open(path).map_err(|error| Failure::io("open", path, &error))?;
            Some((file, path.display().to_string()))
        }
    };
    if entered == Entered::No {
        // Whatever happens, no mount of the demo outlives it.
        enter_mount_namespace()?;
    }
    let scratch = Scratch::new(entered)?;
    let options = OpenOptions::new().create(true).durability(Durability::None);
    let store = Overlay2::open(Kernel::host(), &scratch.path().join("store"), options)?;
    let demo = Demo {
        store,
        scratch: &scratch,
        entered,
    };
    let told = demo.tell(rootfs);
    let cleaned = demo.clean_up();
    drop(demo);
    told?;
    cleaned?;
    scratch.remove()?;
    say("done", "nothing is mounted, nothing is left behind")
}

struct Demo<'a> {
    store: Overlay2,
    scratch: &'a Scratch,
    entered: Entered,
}

impl Demo<'_> {
    fn tell(&self, rootfs: Option<(File, String)>) -> Result<(), Failure> {
        let who = match self.entered {
            Entered::No => "as root",
            Entered::Own => "as an ordinary user, in a user namespace",
        };
        say(
            "store",
            &format!("a throw-away home on {}, {who}", self.scratch.kind()),
        )?;
        let top = match rootfs {
            Some((file, name)) => {
                self.import("base", None, file, &name)?;
                "base"
            }
            None => {
                let base = source::collect(self.scratch.path(), "base.tar", &source::PROGRAMS)?;
                self.import("base", None, base.file, &base.what)?;
                let config = source::collect(self.scratch.path(), "config.tar", &source::SETTINGS)?;
                self.import("config", Some("base"), config.file, &config.what)?;
                "config"
            }
        };

        self.store
            .create_writable(&CreateLayer::new(id("work")?).parent(Some(id(top)?)))?;
        let start = Instant::now();
        let request = MountRequest::new();
        let path = self.store.mount(&id("work")?, &request)?;
        let strategy = self.store.plan(&id("work")?, &request)?.strategy();
        let strategy = strategy.map_or("a bind mount", |strategy| strategy.as_str());
        let took_mount = took(start);
        say(
            "work",
            &format!("an empty layer on {top}, mounted by {strategy} in {took_mount}"),
        )?;

        let edits = edit::edit(&path)?;
        say(
            "edit",
            &format!("through the mount: {}", edits.what.join(", ")),
        )?;
        self.store.unmount(&id("work")?, UnmountMode::Now)?;

        let start = Instant::now();
        let changes = self.store.changes(&id("work")?, &Base::Parent)?;
        let took_changes = took(start);
        say(
            "changes",
            &format!("{} paths, found in {took_changes}", changes.len()),
        )?;
        let lines: Vec<String> = changes.iter().map(ToString::to_string).collect();
        for line in lines.iter().take(SHOWN) {
            say("", line)?;
        }
        if let Some(more @ 1..) = lines.len().checked_sub(SHOWN) {
            say("", &format!("and {more} more"))?;
        }
        if let Some(missing) = edits.expected.iter().find(|line| !lines.contains(line)) {
            return Err(wrong(&format!("`{missing}` is not among the changes")));
        }

        let archive = self.scratch.path().join("work.tar");
        let start = Instant::now();
        self.diff("work", &archive)?;
        let took_diff = took(start);
        let len = std::fs::metadata(&archive)
            .map_err(|e| Failure::io("look at", &archive, &e))?
            .len();
        say("diff", &format!("work.tar, {}, in {took_diff}", bytes(len)))?;

        let file = File::open(&archive).map_err(|error| Failure::io("open", &archive, &error))?;
        self.import("again", Some(top), file, "work.tar")?;
        let start = Instant::now();
        let work = self.store.mount(&id("work")?, &request)?;
        let again = self.store.mount(&id("again")?, &request)?;
        let compared = compare::compare(self.store.kernel().tree(), &work, &again)?;
        let took_compare = took(start);
        if let Some(difference) = compared.differences.first() {
            let more = compared.differences.len() - 1;
            return Err(wrong(&format!(
                "work and again differ: {difference}, and {more} more"
            )));
        }
        let what = "names, types, contents, owners, modes, times, links, attributes";
        say(
            "verify",
            &format!(
                "{} objects are the same in {what} ({took_compare})",
                compared.objects
            ),
        )?;
        let repeated = self.scratch.path().join("again.tar");
        self.diff("again", &repeated)?;
        match same_bytes(&archive, &repeated)? {
            true => say("", "a diff of the copy gives the same bytes again"),
            false => Err(wrong("a diff of the copy gives other bytes")),
        }
    }

    fn import(
        &self,
        name: &str,
        parent: Option<&str>,
        archive: impl Read,
        what: &str,
    ) -> Result<(), Failure> {
        let parent = parent.map(id).transpose()?;
        let on = parent
            .as_ref()
            .map_or(String::new(), |parent| format!(", on {parent}"));
        let layer = CreateLayer::new(id(name)?).parent(parent);
        // An ordinary user can own files as nobody else and make no devices.
        let ordinary = self.entered == Entered::Own;
        let options = ImportOptions::new().squash(ordinary).skip_devices(ordinary);
        let start = Instant::now();
        let Applied { summary, .. } = self.store.import(&layer, archive, options, &mut |_| {})?;
        let took_import = took(start);
        let (entries, size) = (summary.archive.entries, bytes(summary.payload));
        say(
            name,
            &format!("{what}: {entries} entries, {size}{on}, imported in {took_import}"),
        )?;
        if summary.squashed + summary.skipped_devices > 0 {
            let (squashed, devices) = (summary.squashed, summary.skipped_devices);
            say(
                "",
                &format!("{squashed} entries given to root, {devices} devices left out"),
            )?;
        }
        say("", &summary.archive.diff_id.to_string())
    }

    fn diff(&self, name: &str, path: &Path) -> Result<(), Failure> {
        let failed = |error| Failure::io("write", path, &error);
        let mut output = io::BufWriter::with_capacity(1 << 17, File::create(path).map_err(failed)?);
        self.store.diff(&id(name)?, &Base::Parent, &mut output)?;
        output.flush().map_err(failed)
    }

    fn clean_up(&self) -> Result<(), Failure> {
        let start = Instant::now();
        self.store.unmount_all(UnmountMode::Lazy)?;
        for name in ["again", "work", "config", "base"] {
            if self.store.contains(&id(name)?)? {
                self.store.remove(&id(name)?, true)?;
            }
        }
        self.store.reclaim()?;
        let mounts = self.store.kernel().mount().mounts_below(self.store.home());
        let mounts =
            mounts.map_err(|error| Failure::io("look for mounts in", self.store.home(), &error))?;
        if let Some(mount) = mounts.first() {
            return Err(wrong(&format!(
                "{} is still mounted",
                mount.target.display()
            )));
        }
        say(
            "rm",
            &format!("all layers unmounted and removed in {}", took(start)),
        )
    }
}

fn id(name: &str) -> Result<LayerId, Failure> {
    name.parse().map_err(Failure::input)
}

fn wrong(what: &str) -> Failure {
    Failure::new(Kind::Other, format!("the demo went wrong: {what}"))
}

fn say(topic: &str, words: &str) -> Result<(), Failure> {
    writeln!(io::stdout(), "{topic:8} {words}").map_err(|error| Failure::output(&error))
}

fn took(start: Instant) -> String {
    let took: Duration = start.elapsed();
    match took.as_millis() {
        0..10 => format!("{:.2} ms", took.as_secs_f64() * 1e3),
        10..1000 => format!("{:.0} ms", took.as_secs_f64() * 1e3),
        _ => format!("{:.1} s", took.as_secs_f64()),
    }
}

fn bytes(count: u64) -> String {
    match count {
        0..10_000 => format!("{count} bytes"),
        10_000..10_000_000 => format!("{:.1} kB", count as f64 / 1e3),
        _ => format!("{:.1} MB", count as f64 / 1e6),
    }
}

fn same_bytes(one: &Path, other: &Path) -> Result<bool, Failure> {
    let read = |path: &Path| std::fs::read(path).map_err(|error| Failure::io("read", path, &error));
    Ok(read(one)? == read(other)?)
}
