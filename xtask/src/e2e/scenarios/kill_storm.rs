use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ovl_layout::names;
use rustix::process::Signal;

use super::Place;
use crate::e2e::random::Random;
use crate::e2e::storm::{Ending, Home, Log, Model};

const ROUNDS: [u64; 2] = [40, 300];
/// Rounds on one home.
const ON_ONE_HOME: u64 = 25;
/// Whatever a process is doing when it is killed, what it has reported is there, and what it has
/// left goes.
pub(super) fn run(place: &Place) -> Result<()> {
    let rounds = ROUNDS[usize::from(!place.quick)];
    let (mut random, mut tally) = (Random::new(place.seed), Tally::default());
    let mut storm = Storm::new(place, 0);
    for round in 0..rounds {
        let next = round / ON_ONE_HOME;
        if next != storm.number {
            storm.home.end().context("at the end of a home")?;
            storm = Storm::new(place, next);
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
    println!("{rounds} rounds of seed {}; {tally}", place.seed);
    Ok(())
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
}

impl Storm {
    fn new(place: &Place, number: u64) -> Self {
        Self {
            number,
            home: Home {
                path: place.dir.join(format!("home-{number}")),
                model: Model::default(),
            },
            log: place.dir.join("log"),
        }
    }

    fn round(&mut self, random: &mut Random, tally: &mut Tally) -> Result<()> {
        let delay = match random.below(8) {
            // The home is made within the first moments.
            _ if !self.home.path.join(names::LINK_DIR).exists() => random.below(6_000),
            0 => random.below(150_000),
            _ => random.below(30_000),
        };
        let log = self.kill_worker(random, Duration::from_micros(delay))?;
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
        match fs::remove_file(&self.log) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let durability = match random.below(4) {
            0 | 1 => "none",
            2 => "layer",
            _ => "full",
        };
        let mut worker = Command::new(std::env::current_exe()?);
        worker
            .arg("storm-worker")
            .arg("--home")
            .arg(&self.home.path)
            .arg("--log")
            .arg(&self.log);
        worker.args(["--durability", durability]);
        worker.arg("--seed").arg(random.next().to_string());
        let mut worker = worker.stdin(Stdio::null()).spawn()?;
        std::thread::sleep(delay);
        worker.kill()?;
        let status = worker.wait()?;
        let log: Log = match fs::read_to_string(&self.log) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Log::default(),
            log => log?.parse()?,
        };
        let killed = status.signal() == Some(Signal::KILL.as_raw());
        ensure!(
            killed || log.bug.is_some(),
            "the process has ended by itself: {status}"
        );
        Ok(log)
    }
}
