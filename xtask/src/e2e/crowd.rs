//! Many threads that make, mount, unmount and remove the same few layers.

use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Error, Result, bail, ensure};
use clap::Args;
use ovl_driver::blocking::Overlay2;
use ovl_driver::{CreateLayer, ErrorKind, Hold, Kernel, MountRequest, OpenOptions};
use ovl_layout::LayerId;
use ovl_mount::UnmountMode;
use rustix::time::{ClockId, clock_gettime};

use super::random::Random;

/// Layers that all threads fight for.
pub(super) const IDS: u64 = 10;

/// How often a mount may be found in use by those who only look at it.
const RELEASES: u32 = 1000;

#[derive(Debug, Args)]
pub(crate) struct CrowdOptions {
    #[arg(long)]
    home: PathBuf,
    #[arg(long)]
    seed: u64,
    #[arg(long)]
    threads: u64,
    /// What each thread does
    #[arg(long)]
    turns: u64,
}

/// A layer that was made or removed at some time between two times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) id: LayerId,
    pub(super) made: bool,
    pub(super) from: u64,
    pub(super) to: u64,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, made, from, to } = self;
        write!(f, "{id} {made} {from} {to}")
    }
}

impl FromStr for Event {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        let [id, made, from, to] = words[..] else {
            bail!("{text:?} is no event");
        };
        Ok(Self {
            id: id.parse()?,
            made: made.parse()?,
            from: from.parse()?,
            to: to.parse()?,
        })
    }
}

/// One process: it prints the events of its threads, and fails on what must not happen.
pub(crate) fn crowd(options: &CrowdOptions) -> Result<()> {
    let open = OpenOptions::new().create(true);
    let store = Overlay2::open(Kernel::host(), &options.home, open)?;
    let mut random = Random::new(options.seed);
    let seeds: Vec<u64> = (0..options.threads).map(|_| random.next()).collect();
    let results: Vec<Result<Vec<Event>>> = std::thread::scope(|scope| {
        let start = |seed: u64| {
            let store = &store;
            scope.spawn(move || turns(store, Random::new(seed), options.turns))
        };
        let threads: Vec<_> = seeds.into_iter().map(start).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Vec<Event>>>| {
            let panicked = |_| Err(Error::msg("a thread panicked"));
            thread.join().unwrap_or_else(panicked)
        };
        threads.into_iter().map(join).collect()
    });
    let mut output = io::stdout().lock();
    let mut failures = Vec::new();
    for result in results {
        match result {
            Ok(events) => {
                for event in events {
                    writeln!(output, "{event}")?;
                }
            }
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}

fn turns(store: &Overlay2, mut random: Random, count: u64) -> Result<Vec<Event>> {
    let mut events = Vec::new();
    for _ in 0..count {
        let id = layer_id(&mut random)?;
        match random.below(100) {
            0..32 => {
                let parent = match random.one_in(3) {
                    true => None,
                    false => Some(layer_id(&mut random)?),
                };
                let layer = CreateLayer::new(id.clone()).parent(parent.filter(|one| *one != id));
                let from = now();
                if expected("create", &id, store.create(&layer))?.is_some() {
                    let (made, to) = (true, now());
                    events.push(Event { id, made, from, to });
                }
            }
            32..62 => mount(store, &mut random, &id)?,
            62..92 => {
                let from = now();
                if expected("remove", &id, store.remove(&id, false))?.is_some() {
                    let (made, to) = (false, now());
                    events.push(Event { id, made, from, to });
                }
            }
            92..96 => {
                expected("reclaim", &id, store.reclaim())?;
            }
            96..98 => {
                let list = store.layers()?;
                ensure!(list.broken.is_empty(), "broken: {:?}", list.broken);
            }
            _ => {
                let report = store.check()?;
                ensure!(report.is_sound(), "damage: {:?}", report.findings);
            }
        }
    }
    Ok(events)
}

fn layer_id(random: &mut Random) -> Result<LayerId> {
    Ok(format!("layer-{}", random.below(IDS)).parse()?)
}

/// While the mount is held, it shows the layer, and nobody takes it away.
fn mount(store: &Overlay2, random: &mut Random, id: &LayerId) -> Result<()> {
    let hold = match random.one_in(2) {
        true => Hold::Persistent,
        false => Hold::Process,
    };
    let request = MountRequest::new().hold(hold);
    let Some(path) = expected("mount", id, store.mount(id, &request))? else {
        return Ok(());
    };
    let name = format!("file-{:016x}", random.next());
    match fs::write(path.join(&name), b"contents") {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            let listed = fs::read_dir(&path);
            listed.with_context(|| format!("cannot list the mount of {id}"))?;
        }
        result => {
            result.with_context(|| format!("cannot write to the mount of {id}"))?;
            let found = fs::read(path.join(&name));
            let found = found.with_context(|| format!("a file in {id} is gone"))?;
            ensure!(found == b"contents", "a file in {id} holds {found:?}");
        }
    }
    // Who holds it can release it, except for the moment in which somebody looks at the mount.
    let mut tries = 0;
    loop {
        match store.unmount(id, UnmountMode::Now) {
            Err(error) if error.kind() == ErrorKind::Busy && tries < RELEASES => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            result => {
                result.with_context(|| format!("cannot release the held {id}"))?;
                return Ok(());
            }
        }
    }
}

/// `None` where another was faster.
fn expected<T>(
    verb: &str,
    id: &LayerId,
    result: Result<T, ovl_driver::Error>,
) -> Result<Option<T>> {
    match result {
        Ok(done) => Ok(Some(done)),
        Err(error) => match error.kind() {
            ErrorKind::AlreadyExists | ErrorKind::NotFound | ErrorKind::Busy => Ok(None),
            kind => Err(Error::new(error).context(format!("cannot {verb} {id} ({kind:?})"))),
        },
    }
}

/// Nanoseconds on the clock that all processes share.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let nanoseconds = i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec);
    u64::try_from(nanoseconds).unwrap_or(0)
}
