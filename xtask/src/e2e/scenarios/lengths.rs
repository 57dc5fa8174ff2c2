//! The deepest stacks that a page of mount data holds.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use ovl_driver::blocking::Overlay2;
use ovl_driver::{CreateLayer, Durability, Error, FindingKind, InitOptions, Kernel, MountRequest};
use ovl_layout::LayerId;
use ovl_mount::{MountAction, MountPlan, OverlayCall, PlanError, Strategy, UnmountMode};
use ovl_testkit::conformance::Skip;
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use super::Place;

/// Bytes in the home's path, and in each layer's id.
const HOMES: [usize; 3] = [10, 24, 200];
const IDS: [usize; 3] = [5, 64, 128];
/// Deeper than a page holds by any name: a lower takes 29 bytes and more.
const DEPTH: usize = 145;
/// Directories with a short path, one of which every system has.
const SHORT: [&str; 5] = ["/srv", "/mnt", "/opt", "/home", "/tmp"];

/// For each way of `mount(2)` the deepest stack mounts, and the next one is refused with the numbers
/// and goes another way.
pub(super) fn deepest(place: &Place) -> Result<()> {
    let long = place.dir.join("place");
    fs::create_dir(&long)?;
    let short = SHORT.map(Path::new).into_iter().find(|short| {
        let is_dir = fs::symlink_metadata(short).is_ok_and(|found| found.is_dir());
        is_dir && !place.dir.starts_with(short)
    });
    let Some(short) = short else {
        place.skip(Skip::whole("no directory here has a short path"));
        return Ok(());
    };
    // In a mount namespace of this suite's own.
    mount_bind(&long, short)?;
    let result = deepest_below(short);
    let gone = unmount(short, UnmountFlags::NOFOLLOW);
    result?;
    gone.context("the short path is still in use")
}

fn deepest_below(place: &Path) -> Result<()> {
    for home_len in HOMES {
        for id_len in IDS {
            let home = home_of_len(place, home_len)?;
            let context = || format!("a home of {home_len} bytes, ids of {id_len}");
            let stacks = Stacks::build(&home, id_len).with_context(context)?;
            for strategy in [Strategy::MountAbsolute, Strategy::MountRelative] {
                let depth = stacks.assert_deepest(strategy).with_context(context)?;
                println!("{}, {strategy}: {depth} lowers", context());
            }
            let mut findings = stacks.store.check()?.findings;
            findings.retain(|finding| finding.kind != FindingKind::TooDeepForDocker);
            ensure!(findings.is_empty(), "{}: {findings:?}", context());
            drop(stacks);
            fs::remove_dir_all(home)?;
        }
    }
    Ok(())
}

fn home_of_len(place: &Path, len: usize) -> Result<PathBuf> {
    let mut path = place.to_str().context("an odd path")?.to_owned();
    while path.len() < len {
        let left = len - path.len() - 1;
        // A name ends before 255 bytes, and what follows it has at least one.
        path.push('/');
        path.push_str(&"h".repeat(if left > 101 { 100 } else { left }));
    }
    ensure!(path.len() == len, "{path} has {} bytes", path.len());
    let path = PathBuf::from(path);
    fs::create_dir_all(path.parent().context("a parent")?)?;
    Ok(path)
}

struct Stacks {
    store: Overlay2,
    id_len: usize,
}

impl Stacks {
    /// Each layer adds a file and replaces a common one.
    fn build(home: &Path, id_len: usize) -> Result<Self> {
        let options = InitOptions::new()
            .max_depth(DEPTH + 1)
            .durability(Durability::None);
        let store = Overlay2::init(Kernel::host(), home, &options)?;
        let stacks = Self { store, id_len };
        for level in 0..DEPTH {
            stacks.add(stacks.id('s', level)?, level)?;
        }
        Ok(stacks)
    }

    fn id(&self, kind: char, number: usize) -> Result<LayerId> {
        Ok(format!("{kind}{number:0width$}", width = self.id_len - 1).parse()?)
    }

    /// A layer on `depth` others.
    fn add(&self, id: LayerId, depth: usize) -> Result<()> {
        let parent = depth.checked_sub(1).map(|below| self.id('s', below));
        let layer = CreateLayer::new(id.clone()).parent(parent.transpose()?);
        self.store.create(&layer)?;
        let diff = self.store.layout().layer(&id).diff().to_owned();
        fs::write(diff.join(format!("layer-{depth}")), id.as_str())?;
        fs::write(diff.join("top"), id.as_str())?;
        Ok(())
    }

    /// What a writable layer on `depth` others would be mounted with.
    fn plan(&self, depth: usize, strategy: Strategy) -> Result<Result<MountPlan, PlanError>> {
        let top = self.id('t', depth)?;
        if !self.store.contains(&top)? {
            self.add(top.clone(), depth)?;
        }
        let request = MountRequest::new().strategy(Some(strategy));
        match self.store.plan(&top, &request) {
            Ok(plan) => Ok(Ok(plan)),
            Err(Error::Plan { source, .. }) => Ok(Err(source)),
            Err(error) => Err(error.into()),
        }
    }

    fn assert_deepest(&self, strategy: Strategy) -> Result<usize> {
        let (mut deepest, mut too_deep) = (1, DEPTH);
        ensure!(self.plan(deepest, strategy)?.is_ok(), "one lower fits");
        while too_deep - deepest > 1 {
            let middle = usize::midpoint(deepest, too_deep);
            match self.plan(middle, strategy)? {
                Ok(_) => deepest = middle,
                Err(_) => too_deep = middle,
            }
        }
        let Ok(plan) = self.plan(deepest, strategy)? else {
            bail!("what fitted does not");
        };
        let used = data_len(&plan)?;
        let Err(PlanError::DataTooLong {
            len, limit, lowers, ..
        }) = self.plan(too_deep, strategy)?
        else {
            bail!("{too_deep} layers are not refused for their length");
        };
        // The kernel takes a page with the NUL at its end.
        ensure!(limit == rustix::param::page_size() - 1, "{limit}");
        ensure!(used <= limit && limit < len && lowers == too_deep);
        let prefix = match strategy {
            Strategy::MountAbsolute => self.store.home().as_os_str().len() + 1,
            _ => 0,
        };
        // A colon, `l/` and a link's name.
        ensure!(len == used + 1 + prefix + 2 + 26, "{used}, {len}");

        self.assert_mounts(deepest, Some(strategy))?;
        let next = self.id('t', too_deep)?;
        let request = MountRequest::new().strategy(Some(strategy));
        let refused = self.store.mount(&next, &request);
        ensure!(matches!(refused, Err(Error::Plan { .. })), "{refused:?}");
        // Left to itself, the plan takes another way, where there is one.
        match self.store.plan(&next, &MountRequest::new()) {
            Err(Error::Plan {
                source: PlanError::DataTooLong { .. },
                ..
            }) => ensure!(strategy == Strategy::MountRelative, "{too_deep} layers"),
            plan => {
                plan?;
                self.assert_mounts(too_deep, None)?;
            }
        }
        Ok(deepest)
    }

    fn assert_mounts(&self, depth: usize, strategy: Option<Strategy>) -> Result<()> {
        let top = self.id('t', depth)?;
        let request = MountRequest::new().strategy(strategy);
        let path = self.store.mount(&top, &request)?;
        for level in 0..depth {
            let found = fs::read_to_string(path.join(format!("layer-{level}")))?;
            let id = self.id('s', level)?;
            ensure!(found == id.as_str(), "layer {level} shows {found:?}");
        }
        let shown = fs::read_to_string(path.join("top"))?;
        ensure!(shown == top.as_str(), "the top shows {shown:?}");
        fs::write(path.join("top"), "changed")?;
        self.store.unmount(&top, UnmountMode::Now)?;
        ensure!(!path.exists(), "the mount point is left");
        let changed = fs::read_to_string(self.store.layout().layer(&top).diff().join("top"))?;
        ensure!(changed == "changed", "{changed:?}");
        fs::write(
            self.store.layout().layer(&top).diff().join("top"),
            top.as_str(),
        )?;
        Ok(())
    }
}

fn data_len(plan: &MountPlan) -> Result<usize> {
    match plan.action() {
        MountAction::Overlay(OverlayCall::Data { data, .. }) => Ok(data.as_bytes().len()),
        action => bail!("not by a string: {action:?}"),
    }
}
