//! Power cuts: a store works in a guest on disks whose caches forget, and the guest is ended at a
//! random moment. What the store had reported by then must be there after the next boot.
//!
//! The disks are served by this process, so that what the guest's kernel has not flushed can be
//! lost; ending the guest alone would lose nothing but what that kernel had not written yet.

mod broken;
mod console;
mod disk;
mod guest;
mod nbd;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum as _};
use tempfile::TempDir;

use super::initramfs;
use super::kernel::{self, Kernel};
use super::machine::{Heard, Machine, TOOLS, make_disk};
use crate::e2e::{self, FsKind, Log, Random, Step};
use broken::Variant;
use console::{Ledger, Told};
use disk::{Counts, Disk};
pub(crate) use guest::{PowerGuestOptions, run as guest};
use nbd::{Power, Server};

/// Both work in one guest: a boot takes longer than what is done in it.
const DISKS: [(&str, FsKind); 2] = [("vda", FsKind::Xfs), ("vdb", FsKind::Ext4)];
/// The disk after them, by which the guest gets to know what it must find.
const LEDGERS: &str = "vdc";
/// Cuts until the disks are new ones.
const ON_ONE_DISK: u64 = 25;
/// No round takes so long.
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Debug, Args)]
pub(super) struct PowerCut {
    /// Cuts on each file system
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// What is done, and what the cuts hit and lose
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Do not wait for the disk where it counts: losses must be found
    #[arg(long, value_enum, hide = true)]
    broken: Option<Variant>,
}

/// When the power goes.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// So long after all workers have begun.
    Delay(Duration),
    /// When the first worker has made, or taken away, so many layers and does nothing more.
    Rest(u64),
    /// With the so-many-th write or flush after the machine's start, which may be before the
    /// workers have begun.
    Request(u64),
    /// When every worker has looked at what the last cut has left.
    Looked,
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delay(delay) => write!(f, "after {} ms", delay.as_millis()),
            Self::Rest(count) => write!(f, "right after change {count}"),
            Self::Request(count) => write!(f, "at request {count}"),
            Self::Looked => f.write_str("after a look"),
        }
    }
}

impl Moment {
    /// The kinds go by turns, so that the shortest run has them all.
    fn draw(round: u64, random: &mut Random) -> Self {
        match round % 5 {
            0 | 2 => Self::Request(1 + random.below(1500)),
            1 | 3 => Self::Rest(1 + random.below(10)),
            _ => Self::Delay(Duration::from_millis(random.below(3000))),
        }
    }
}

impl PowerCut {
    pub(super) fn of_rounds(rounds: u64) -> Self {
        Self {
            rounds,
            seed: None,
            broken: None,
        }
    }

    /// One run for each kernel that does not wait: that it is caught is what makes the others count.
    pub(super) fn broken(rounds: u64) -> impl Iterator<Item = Self> {
        Variant::value_variants().iter().map(move |variant| Self {
            broken: Some(*variant),
            ..Self::of_rounds(rounds)
        })
    }
}

pub(super) fn run(options: &PowerCut) -> Result<()> {
    e2e::require_tools(&TOOLS)?;
    let seed = options.seed.map_or_else(e2e::random_seed, Ok)?;
    println!("power-cut: --seed {seed}");
    let programs = e2e::build()?;
    let cache = e2e::target_dir()?.join("vm");
    let kernel = Kernel::fetch(kernel::OLDEST, &cache)?;
    println!("power-cut: {}", kernel.name);
    let scratch = tempfile::Builder::new().prefix("ovl-power").tempdir()?;
    let initramfs = scratch.path().join("initramfs");
    initramfs::write(&kernel, &programs, &initramfs)?;
    let mut bench = Bench {
        kernel,
        initramfs,
        scratch,
        broken: options.broken,
        seed,
        disks: BTreeMap::new(),
        tally: BTreeMap::new(),
    };
    if let Some(variant) = options.broken {
        println!("power-cut: {variant:?} must lose something on each file system");
    }
    let start = Instant::now();
    let result = bench.rounds(options.rounds);
    let took = start.elapsed().as_secs_f64();
    for (_, fs) in DISKS {
        println!("power-cut: {}: {}", fs.name(), bench.tally(fs));
    }
    println!("power-cut: seed {seed}, {took:.0} s");
    if result.is_err() && options.broken.is_none() {
        let kept = bench.scratch.keep();
        println!("power-cut: the disks are kept in {}", kept.display());
    }
    result.with_context(|| format!("power cuts with --seed {seed}"))
}

/// What has come of a file system so far.
#[derive(Clone, Debug, Default)]
struct Tally {
    cuts: u64,
    /// Layers that were reported as made or changed, and as taken away.
    made: u64,
    removed: u64,
    counts: Counts,
    losses: Vec<String>,
}

impl Tally {
    fn count(&mut self, log: &Log) {
        for step in log.done.iter().filter(|step| step.is_lasting()) {
            match step {
                Step::Remove { .. } => self.removed += 1,
                _ => self.made += 1,
            }
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cuts,
            made,
            removed,
            counts,
            losses,
        } = self;
        let Counts {
            writes,
            flushes,
            uncovered,
            kept,
            dropped,
        } = counts;
        write!(
            f,
            "{cuts} cuts; {made} layers published, {removed} removed; {writes} writes, {flushes} \
             flushes; not flushed at the cuts {uncovered} writes: {dropped} sectors dropped, \
             {kept} kept; {} losses",
            losses.len()
        )
    }
}

/// A disk between two machines.
#[derive(Debug)]
struct Bed {
    disk: Disk,
    ledger: Ledger,
}

struct Bench {
    kernel: Kernel,
    initramfs: PathBuf,
    scratch: TempDir,
    broken: Option<Variant>,
    seed: u64,
    disks: BTreeMap<&'static str, Bed>,
    tally: BTreeMap<&'static str, Tally>,
}

impl Bench {
    fn tally(&mut self, fs: FsKind) -> &mut Tally {
        self.tally.entry(fs.name()).or_default()
    }

    fn rounds(&mut self, rounds: u64) -> Result<()> {
        for round in 1..=rounds {
            // What one does is independent of how far the others came.
            let mut random = Random::new(Random::new(self.seed.wrapping_add(round)).next());
            let moment = Moment::draw(round, &mut random);
            self.round(round, moment, &mut random)?;
            if round % ON_ONE_DISK == 0 || round == rounds {
                self.round(round, Moment::Looked, &mut random)?;
                self.disks.clear();
            }
            let lost = |tally: &Tally| !tally.losses.is_empty();
            if self.tally.values().filter(|tally| lost(tally)).count() == DISKS.len() {
                break;
            }
        }
        let mut dropped = 0;
        for (_, fs) in DISKS {
            let broken = self.broken;
            let tally = self.tally(fs);
            if let Some(variant) = broken {
                let is_caught = !tally.losses.is_empty();
                ensure!(is_caught, "{variant:?} has lost nothing on {}", fs.name());
                continue;
            }
            // Otherwise that nothing was lost shows nothing.
            ensure!(
                tally.made > 0 && tally.counts.flushes > 0,
                "{}: there was nothing to lose: {tally}",
                fs.name()
            );
            dropped += tally.counts.dropped;
        }
        ensure!(
            dropped > 0 || self.broken.is_some(),
            "no cut has hit anything"
        );
        Ok(())
    }

    /// Boots, lets the workers look and work, and takes the power away.
    fn round(&mut self, round: u64, moment: Moment, random: &mut Random) -> Result<()> {
        let options = PowerGuestOptions {
            seed: random.next() >> 32,
            rest: match moment {
                Moment::Rest(count) => Some(count),
                Moment::Looked => Some(0),
                Moment::Delay(_) | Moment::Request(_) => None,
            },
            broken: self.broken,
            fs: None,
        };
        let power = Arc::new(Power::new(match moment {
            Moment::Request(count) => Some(count),
            _ => None,
        }));
        let dir = tempfile::tempdir_in(self.scratch.path())?;
        let (mut servers, mut drives, mut text) = (Vec::new(), Vec::new(), String::new());
        let mut ledgers = BTreeMap::new();
        for (name, fs) in DISKS {
            let bed = self.take_bed(fs)?;
            text += &bed.ledger.write(fs);
            ledgers.insert(fs.name(), bed.ledger);
            let socket = dir.path().join(name);
            servers.push((fs, Server::start(bed.disk, &socket, &power)?));
            drives.push(format!(
                "if=virtio,format=raw,cache=none,file.driver=nbd,file.server.type=unix,\
                 file.server.path={}",
                socket.display()
            ));
        }
        drives.push(ledger_drive(self.scratch.path(), text)?);
        let machine = Machine::boot(&self.kernel, &self.initramfs, &drives, &options.arguments())?;
        let mut watch = Watch {
            ledgers,
            started: BTreeSet::new(),
            resting: BTreeSet::new(),
            lost: BTreeMap::new(),
        };
        watch
            .until(moment, &machine, &power)
            .with_context(|| format!("in round {round}, {moment}"))?;
        power.cut();
        let said = machine.kill()?;
        for (number, line) in said.iter().enumerate() {
            watch.take(line, number + 1 == said.len())?;
        }
        let mut how = Vec::new();
        for (fs, server) in servers {
            let mut disk = server.end()?;
            let mut chance = Random::new(random.next());
            how.push(format!("{}: {}", fs.name(), disk.cut(&mut chance)?));
            let ledger = watch.ledgers.remove(fs.name());
            let mut ledger = ledger.context("each disk has a ledger")?;
            ledger.cut();
            self.tally(fs).counts.add(disk.take_counts());
            if !matches!(moment, Moment::Looked) {
                self.tally(fs).cuts += 1;
            }
            if watch.started.contains(fs.name()) {
                self.tally(fs).count(&ledger.log()?);
            }
            match watch.lost.remove(fs.name()) {
                Some(loss) => {
                    println!("power-cut: {round}: LOST on {}: {loss}", fs.name());
                    self.tally(fs).losses.push(loss);
                    ensure!(self.broken.is_some(), "{} has lost layers", fs.name());
                }
                None => drop(self.disks.insert(fs.name(), Bed { disk, ledger })),
            }
        }
        println!("power-cut: {round}: {moment}; {}", how.join(", "));
        Ok(())
    }

    fn take_bed(&mut self, fs: FsKind) -> Result<Bed> {
        match self.disks.remove(fs.name()) {
            Some(bed) => Ok(bed),
            None => Ok(Bed {
                disk: Disk::open(&make_disk(fs, self.scratch.path())?)?,
                ledger: Ledger::default(),
            }),
        }
    }
}

/// The host's view of a guest.
struct Watch {
    ledgers: BTreeMap<&'static str, Ledger>,
    started: BTreeSet<&'static str>,
    resting: BTreeSet<&'static str>,
    /// What was not as it must be.
    lost: BTreeMap<&'static str, String>,
}

impl Watch {
    /// Listens until it is time for the cut.
    fn until(&mut self, moment: Moment, machine: &Machine, power: &Power) -> Result<()> {
        let begin = Instant::now();
        let mut all_started = None;
        while !power.is_off() {
            ensure!(begin.elapsed() < PATIENCE, "the guest has come to no end");
            match machine.hear(Duration::from_millis(5)) {
                Heard::Line(line) => self.take(&line, false)?,
                Heard::Nothing => {}
                Heard::End => bail!("the guest has ended by itself"),
            }
            let is_ready = |set: &BTreeSet<_>| set.len() + self.lost.len() == DISKS.len();
            if all_started.is_none() && is_ready(&self.started) {
                all_started = Some(Instant::now());
            }
            let is_time = match moment {
                Moment::Delay(delay) => all_started.is_some_and(|since| since.elapsed() >= delay),
                Moment::Rest(_) => !self.resting.is_empty() || self.lost.len() == DISKS.len(),
                Moment::Looked => is_ready(&self.resting),
                Moment::Request(_) => self.lost.len() == DISKS.len(),
            };
            if is_time {
                break;
            }
        }
        Ok(())
    }

    /// A line that is not whole is only right where the power has cut it off.
    fn take(&mut self, line: &str, is_last: bool) -> Result<()> {
        let Some((fs, told)) = Told::read(line) else {
            ensure!(is_last || !Told::is_meant(line), "garbled: {line:?}");
            if !is_last && !line.is_empty() {
                println!("power-cut: the guest: {line}");
            }
            return Ok(());
        };
        let ledger = self.ledgers.get_mut(fs.name());
        ledger.context("there is no such disk")?.take(&told)?;
        match told {
            Told::Started => drop(self.started.insert(fs.name())),
            Told::Resting => drop(self.resting.insert(fs.name())),
            Told::Lost(loss) => drop(self.lost.insert(fs.name(), loss)),
            Told::Failed(error) => bail!("{}: {error}", fs.name()),
            Told::Sound | Told::Home(_) | Told::Log(_) => {}
        }
        Ok(())
    }
}

/// A text as a disk.
fn ledger_drive(dir: &Path, mut text: String) -> Result<String> {
    let len = text.len().max(1).next_multiple_of(4096);
    text.extend(std::iter::repeat_n('\0', len - text.len()));
    let path = dir.join("ledgers");
    std::fs::write(&path, text)?;
    let path = path.display();
    Ok(format!(
        "file={path},if=virtio,format=raw,cache=unsafe,readonly=on"
    ))
}
