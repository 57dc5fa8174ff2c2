use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use ovl_layout::names;
use rustix::process::Signal;

use super::Place;
use crate::e2e::mounts::unmount_below;
use crate::e2e::random::Random;
use crate::e2e::storm::{Ending, Home, Log, Model};

const ROUNDS: [u64; 2] = [40, 300];
/// Rounds on one home.
const ON_ONE_HOME: u64 = 25;
/// A process that has made no home by then never will.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whatever a process is doing when it is killed, what it has reported is there, and what it has
/// left goes.
pub(super) fn run(place: &Place) -> Result<()> {
    let rounds = ROUNDS[usize::from(!place.quick)];
    let (mut random, mut tally) = (Random::new(place.seed), Tally::default());
    let pace = pace(place)?;
    let mut storm = Storm::new(place, 0, pace);
    for round in 0..rounds {
        let next = round / ON_ONE_HOME;
        if next != storm.number {
            storm.home.end().context("at the end of a home")?;
            storm = Storm::new(place, next, pace);
        }
        storm.round(&mut random, &mut tally).with_context(|| {
            format!(
                "round {round} with --seed {}; its log is {}",
                place.seed,
                storm.log.display()
            )
        })?;
    }
    storm.home.end().context("at the end of a home")?;
    println!(
        "{rounds} rounds of seed {} at a pace of {:.1} ms; {tally}",
        place.seed,
        pace.as_secs_f64() * 1e3
    );
    ensure!(
        tally.steps >= rounds && tally.hit.len() > 2,
        "the kills hit next to nothing: {tally}"
    );
    Ok(())
}

/// How long a process takes here until it has made a home. A kill must come while it is at work,
/// and how soon that is differs by much between machines.
fn pace(place: &Place) -> Result<Duration> {
    let mut all = Vec::new();
    for number in 0..5 {
        let storm = Storm::new(place, number, Duration::ZERO);
        let start = Instant::now();
        let mut worker = storm.worker("none", place.seed)?;
        let took = loop {
            let took = start.elapsed();
            if !storm.read_log()?.done.is_empty() {
                break took;
            }
            if worker.try_wait()?.is_some() || took > PATIENCE {
                bail!("a process makes no home, also if it is not killed");
            }
            std::thread::sleep(Duration::from_micros(100));
        };
        worker.kill()?;
        worker.wait()?;
        storm.remove_log()?;
        unmount_below(&storm.home.path)?;
        fs::remove_dir_all(&storm.home.path)?;
        all.push(took);
    }
    all.sort_unstable();
    Ok(all[all.len() / 2])
}

/// What the kills hit.
#[derive(Default)]
struct Tally {
    steps: u64,
    refused: usize,
    hit: BTreeMap<&'static str, u64>,
    /// What they left behind, before anything was cleaned up.
    left: BTreeMap<&'static str, u64>,
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |counts: &BTreeMap<&str, u64>| {
            let counts = counts.iter().map(|(name, count)| format!("{name} {count}"));
            counts.collect::<Vec<_>>().join(", ")
        };
        let (hit, left) = (list(&self.hit), list(&self.left));
        let Self { steps, refused, .. } = self;
        write!(
            f,
            "{steps} steps done, {refused} refused; killed in {hit}; left: {left}"
        )
    }
}

/// One home and what must be in it.
struct Storm {
    number: u64,
    home: Home,
    log: PathBuf,
    /// What a process needs until it has made a home.
    pace: Duration,
}

impl Storm {
    fn new(place: &Place, number: u64, pace: Duration) -> Self {
        Self {
            number,
            pace,
            home: Home {
                path: place.dir.join(format!("home-{number}")),
                model: Model::default(),
            },
            log: place.dir.join("log"),
        }
    }

    fn round(&mut self, random: &mut Random, tally: &mut Tally) -> Result<()> {
        let paces = match random.below(8) {
            // The home is made within the first moments.
            _ if !self.home.path.join(names::LINK_DIR).exists() => 1,
            0 => 25,
            _ => 5,
        };
        let delay = u64::try_from(self.pace.as_micros())? * paces;
        let delay = Duration::from_micros(random.below(delay.max(1)));
        let log = self.kill_worker(random, delay)?;
        tally.steps += log.done.len() as u64;
        tally.refused += log.refused;
        let hit = match &log.pending {
            Some(step) => step.name(),
            None if log.done.is_empty() => "start",
            None => "between steps",
        };
        *tally.hit.entry(hit).or_default() += 1;

        let Some((store, left)) = self.home.follow(&log, Ending::Kill)? else {
            return Ok(());
        };
        for (kind, count) in left {
            *tally.left.entry(kind).or_default() += count;
        }
        // Sometimes the next process meets what this one has left.
        if !random.one_in(4) {
            self.home.clean_up(&store)?;
            if random.one_in(3) {
                self.home.release_all(&store)?;
            }
        }
        Ok(())
    }

    /// Runs a process that works on the home, and kills it.
    fn kill_worker(&self, random: &mut Random, delay: Duration) -> Result<Log> {
        self.remove_log()?;
        let durability = match random.below(4) {
            0 | 1 => "none",
            2 => "layer",
            _ => "full",
        };
        let mut worker = self.worker(durability, random.next())?;
        std::thread::sleep(delay);
        worker.kill()?;
        let status = worker.wait()?;
        let log = self.read_log()?;
        let killed = status.signal() == Some(Signal::KILL.as_raw());
        ensure!(
            killed || log.bug.is_some(),
            "the process has ended by itself: {status}"
        );
        Ok(log)
    }

    /// Starts a process that works on the home.
    fn worker(&self, durability: &str, seed: u64) -> Result<Child> {
        let mut worker = Command::new(std::env::current_exe()?);
        worker
            .arg("storm-worker")
            .arg("--home")
            .arg(&self.home.path)
            .arg("--log")
            .arg(&self.log);
        worker.args(["--durability", durability]);
        worker.arg("--seed").arg(seed.to_string());
        Ok(worker.stdin(Stdio::null()).spawn()?)
    }

    fn remove_log(&self) -> Result<()> {
        match fs::remove_file(&self.log) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn read_log(&self) -> Result<Log> {
        match fs::read_to_string(&self.log) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Log::default()),
            log => log?.parse(),
        }
    }
}
