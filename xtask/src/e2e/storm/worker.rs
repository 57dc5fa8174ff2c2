use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use ovl_driver::blocking::Overlay2;
use ovl_driver::{
    CreateLayer, Durability, Error, ErrorKind, Hold, ImportOptions, Kernel, LayerSummary,
    MountRequest, OpenOptions, UpkeepOptions,
};
use ovl_layout::LayerId;
use ovl_mount::UnmountMode;

use super::{Step, contents};
use crate::e2e::random::Random;

/// More layers than this are not made.
const LAYERS: u64 = 12;
/// Layers below a layer.
const DEPTH: usize = 4;

#[derive(Debug, Args)]
pub(crate) struct WorkerOptions {
    #[arg(long)]
    home: PathBuf,
    #[arg(long)]
    log: PathBuf,
    #[arg(long)]
    seed: u64,
    #[arg(long)]
    durability: Durability,
}

/// Works until it is killed.
pub(crate) fn work(options: &WorkerOptions) -> Result<()> {
    let mut log = File::options()
        .create(true)
        .append(true)
        .open(&options.log)?;
    // One write a line, so that a kill leaves whole lines.
    let mut tell = |line: &str| log.write_all(format!("{line}\n").as_bytes());
    let (durability, seed) = (options.durability, options.seed);
    work_with(Kernel::host(), &options.home, durability, seed, &mut tell)
}

/// Works on a home until an error that must not happen, and tells every line of the log.
pub(crate) fn work_with(
    kernel: Kernel,
    home: &Path,
    durability: Durability,
    seed: u64,
    tell: &mut dyn FnMut(&str) -> io::Result<()>,
) -> Result<()> {
    let mut log = Teller(tell);
    let open = OpenOptions::new().create(true).durability(durability);
    let store = log.step(&Step::Open, || Overlay2::open(kernel, home, open))?;
    let Some(store) = store else {
        bail!("the home was refused");
    };
    let mut random = Random::new(seed);
    loop {
        turn(&store, &mut log, &mut random)?;
    }
}

struct Teller<'a>(&'a mut dyn FnMut(&str) -> io::Result<()>);

impl Teller<'_> {
    fn line(&mut self, line: &str) -> io::Result<()> {
        (self.0)(line)
    }

    /// Does a step between two lines. `None` when the store refuses it because of what others do.
    fn step<T>(
        &mut self,
        step: &Step,
        work: impl FnOnce() -> Result<T, Error>,
    ) -> Result<Option<T>> {
        self.line(&format!("begin {step}"))?;
        match work() {
            Ok(done) => {
                self.line("done")?;
                Ok(Some(done))
            }
            Err(error) if error.kind() == ErrorKind::Busy => {
                self.line("refused")?;
                Ok(None)
            }
            Err(error) => {
                let error = anyhow::Error::new(error).context(format!("cannot {step}"));
                self.line(&format!("bug {error:#}"))?;
                Err(error)
            }
        }
    }
}

fn turn(store: &Overlay2, log: &mut Teller<'_>, random: &mut Random) -> Result<()> {
    let Some(list) = log.step(&Step::List, || store.layers())? else {
        return Ok(());
    };
    if let Some(broken) = list.broken.into_iter().next() {
        log.line(&format!("bug {} is broken: {}", broken.id, broken.error))?;
        bail!("a layer is broken");
    }
    let layers = list.layers;
    let open: Vec<&LayerSummary> = layers.iter().filter(|layer| !layer.sealed).collect();
    let few = (layers.len() as u64) < LAYERS;
    match random.below(100) {
        0..24 if few => {
            let step = Step::Import {
                id: free_id(&layers, random)?,
                parent: parent(&layers, random),
                seed: random.next(),
            };
            do_it(store, log, step)
        }
        24..36 if few => {
            let (id, parent) = (free_id(&layers, random)?, parent(&layers, random));
            let step = match random.one_in(2) {
                true => Step::Create { id, parent },
                false => Step::CreateWritable { id, parent },
            };
            do_it(store, log, step)
        }
        0..52 => {
            let Some(layer) = random.pick(&layers) else {
                return Ok(());
            };
            let step = Step::Remove {
                id: layer.id.clone(),
                force: random.one_in(4),
            };
            do_it(store, log, step)
        }
        52..76 => {
            let chosen = match random.one_in(4) {
                true => random.pick(&layers),
                false => random.pick(&open).copied(),
            };
            match chosen {
                Some(layer) => use_mount(store, log, random, layer),
                None => Ok(()),
            }
        }
        76..88 => match random.pick(&open) {
            Some(layer) => {
                let (id, seed) = (layer.id.clone(), random.next());
                do_it(store, log, Step::Apply { id, seed })
            }
            None => Ok(()),
        },
        88..92 => do_it(store, log, Step::Reclaim),
        92..94 => do_it(store, log, Step::Gc),
        94..96 => do_it(store, log, Step::UnmountAll),
        _ => match random.pick(&layers) {
            Some(layer) => look_at(store, log, &layer.id),
            None => Ok(()),
        },
    }
}

/// Tells what a layer holds, down to the last byte and time.
fn look_at(store: &Overlay2, log: &mut Teller<'_>, id: &LayerId) -> Result<()> {
    let diff = Step::Diff { id: id.clone() };
    match log.step(&diff, || contents::digest(store, id))? {
        Some(digest) => {
            let id = id.clone();
            log.step(&Step::Digest { id, digest }, || Ok(())).map(drop)
        }
        None => Ok(()),
    }
}

fn free_id(layers: &[LayerSummary], random: &mut Random) -> Result<LayerId> {
    loop {
        let id: LayerId = format!("layer-{}", random.below(4 * LAYERS)).parse()?;
        if layers.iter().all(|layer| layer.id != id) {
            return Ok(id);
        }
    }
}

fn parent(layers: &[LayerSummary], random: &mut Random) -> Option<LayerId> {
    if random.one_in(4) {
        return None;
    }
    let parent = random.pick(layers)?;
    (parent.depth < DEPTH).then(|| parent.id.clone())
}

/// Mounts a layer, uses it, and mostly unmounts it.
fn use_mount(
    store: &Overlay2,
    log: &mut Teller<'_>,
    random: &mut Random,
    layer: &LayerSummary,
) -> Result<()> {
    let id = layer.id.clone();
    let persistent = random.one_in(2);
    let hold = match persistent {
        true => Hold::Persistent,
        false => Hold::Process,
    };
    let mount = Step::Mount {
        id: id.clone(),
        persistent,
    };
    let request = MountRequest::new().hold(hold);
    let Some(path) = log.step(&mount, || store.mount(&id, &request))? else {
        return Ok(());
    };
    if layer.sealed {
        // It must be readable.
        fs::read_dir(&path)?.try_for_each(|entry| entry.map(|_| ()))?;
    } else {
        let seed = random.next();
        let step = Step::Write {
            id: id.clone(),
            seed,
        };
        log.line(&format!("begin {step}"))?;
        match contents::write(seed, &path) {
            Ok(()) => log.line("done")?,
            Err(error) => {
                log.line(&format!("bug cannot {step}: {error}"))?;
                return Err(error.into());
            }
        }
    }
    match random.one_in(6) {
        true => Ok(()),
        false => do_it(store, log, Step::Unmount { id }),
    }
}

fn do_it(store: &Overlay2, log: &mut Teller<'_>, step: Step) -> Result<()> {
    let layer = |id: &LayerId, parent: &Option<LayerId>| {
        CreateLayer::new(id.clone()).parent(parent.clone())
    };
    let (options, mut quiet) = (ImportOptions::new(), |_| {});
    let archive = match &step {
        Step::Import { seed, .. } | Step::Apply { seed, .. } => contents::archive(*seed),
        _ => Vec::new(),
    };
    let work = || match &step {
        Step::Import { id, parent, .. } => {
            let imported = store.import(&layer(id, parent), &*archive, options, &mut quiet);
            imported.map(drop)
        }
        Step::Apply { id, .. } => store.apply(id, &*archive, options, &mut quiet).map(drop),
        Step::Create { id, parent } => store.create(&layer(id, parent)),
        Step::CreateWritable { id, parent } => store.create_writable(&layer(id, parent)),
        Step::Unmount { id } => store.unmount(id, UnmountMode::Now).map(drop),
        Step::UnmountAll => store.unmount_all(UnmountMode::Now).map(drop),
        Step::Remove { id, force } => store.remove(id, *force),
        Step::Reclaim => store.reclaim().map(drop),
        Step::Gc => store.gc(UpkeepOptions::new()).map(drop),
        Step::Open
        | Step::List
        | Step::Mount { .. }
        | Step::Write { .. }
        | Step::Diff { .. }
        | Step::Digest { .. } => Ok(()),
    };
    log.step(&step, work).map(drop)
}
