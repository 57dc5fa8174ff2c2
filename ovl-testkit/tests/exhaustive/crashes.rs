//! The power goes before every operation of the kernel, and of what was not on disk survives what
//! chance wants.

use std::env;
use std::fmt;
use std::io::{self, Write as _};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ovl_driver::{Durability, Finding, FindingKind, Severity, UpkeepOptions};
use ovl_testkit::{Fault, MockKernel, Survivors};

use super::cases::{Case, LAYERS, MOUNTS, SCRIPTS, all};
use super::scene::{Scene, World, is_between, is_same, kind, words};

/// Every combination is tried where there are no more than this.
const ALL: usize = 64;
/// Otherwise nothing, everything, every state of a journal, and as many more by chance.
const SAMPLES: u64 = 16;
/// How long to go on, in seconds, and with it that this is a run of `cargo xtask fuzz`.
const SECONDS: &str = "OVL_FUZZ_SECONDS";

#[derive(Default)]
struct Counts {
    /// Operations before which the machine stopped.
    points: u64,
    /// Those after which something else was left behind than after the one before.
    different: u64,
    /// Those at which every combination was tried.
    exhausted: u64,
    cuts: u64,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.points += other.points;
        self.different += other.different;
        self.exhausted += other.exhausted;
        self.cuts += other.cuts;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            points,
            different,
            exhausted,
            cuts,
        } = self;
        write!(
            f,
            "before {points} operations, {different} states, {exhausted} of them exhausted, {cuts} cuts"
        )
    }
}

/// A machine on which the power goes.
struct Plug<'a> {
    case: &'a Case,
    /// Before the first step, and after each.
    worlds: &'a [World],
    durability: Durability,
    /// Whether nothing was damaged before.
    is_sound: bool,
}

impl Plug<'_> {
    /// Cuts the power of a copy, and looks at what is there.
    fn pull(
        &self,
        mock: &MockKernel,
        survivors: &Survivors,
        done: usize,
        thorough: bool,
    ) -> Result<(), String> {
        let mock = mock.fork();
        mock.crash(survivors);
        let scene = Scene::restarted(mock, self.durability)?;
        match self.durability {
            Durability::None => self.judge_unsynced(&scene),
            _ => self.judge(&scene, survivors, done, thorough),
        }
    }

    fn judge(
        &self,
        scene: &Scene,
        survivors: &Survivors,
        done: usize,
        thorough: bool,
    ) -> Result<(), String> {
        let (store, worlds) = (&scene.store, self.worlds);
        let last = worlds.len() - 1;
        let mended = self.mend(scene)?;
        let known = |world: &World, sealed: bool| {
            let mut world = world.clone();
            for (id, seen) in &mut world {
                if self.case.unsure.contains(&id.as_str()) && !(sealed && seen.is_sealed()) {
                    seen.forget_contents();
                }
            }
            world
        };
        let found = known(&scene.look(store)?, true);
        let (before, after) = (
            known(&worlds[done], true),
            known(&worlds[(done + 1).min(last)], true),
        );
        is_between(&found, &before, &after).map_err(|problem| format!("{mended}{problem}"))?;
        if done == last {
            is_same(&found, &after).map_err(|problem| format!("{mended}{problem}"))?;
        }
        // Layers that others stand on stay. What is noted of them is not synced: its order counts.
        let in_order = !matches!(survivors, Survivors::Chosen(_) | Survivors::Random(_));
        for (id, seen) in found.iter().filter(|_| in_order) {
            let Some(parent) = seen.parent() else {
                continue;
            };
            match store.remove(parent, false) {
                Err(error) if kind(&error) == "HasChildren" => {}
                Err(error) => return Err(format!("{id} on {parent}: {}", words(&error))),
                Ok(()) => return Err(format!("{parent} was removed below {id}")),
            }
        }
        if thorough && !self.case.volatile {
            for step in &self.case.steps[done..] {
                match step(scene) {
                    // What was mounted is not any more.
                    Err(error)
                        if !self.case.done.contains(&&*kind(&error))
                            && kind(&error) != "NotMounted" =>
                    {
                        return Err(format!("once more: {}", words(&error)));
                    }
                    _ => {}
                }
            }
            // What was written and lost is not written again.
            let found = known(&scene.look(store)?, false);
            is_same(&found, &known(&worlds[last], false))
                .map_err(|problem| format!("once more: {problem}"))?;
            self.mend(scene)?;
        }
        Ok(())
    }

    /// Repairs and reclaims; what is left is nothing but the question that a volatile mount leaves.
    fn mend(&self, scene: &Scene) -> Result<String, String> {
        let store = &scene.store;
        let failed = |error| words(&error);
        let found = store.check().map_err(failed)?;
        store
            .unmount_all(ovl_mount::UnmountMode::Now)
            .map_err(failed)?;
        let question = |left: &Finding| self.case.volatile && left.kind == FindingKind::Volatile;
        if self.is_sound && !found.of(Severity::Damage).all(question) {
            return Err(format!("the home is damaged: {found:#?}"));
        }
        if !found.is_sound() {
            store.repair(UpkeepOptions::new()).map_err(failed)?;
        }
        // One that was made when the layer's own name was not on disk: it could be Docker's.
        let strange = |left: &Finding| left.kind == FindingKind::DanglingLink && !left.ours;
        let after_gc = |options| -> Result<Vec<Finding>, String> {
            store.gc(options).map_err(failed)?;
            let left = store.check().map_err(failed)?.findings.into_iter();
            let left = left.filter(|left| left.severity() != Severity::Note && !question(left));
            Ok(left.collect())
        };
        if !found.is_clean() {
            let mut left = after_gc(UpkeepOptions::new())?;
            if !left.is_empty() && left.iter().all(strange) {
                left = after_gc(UpkeepOptions::new().docker_stopped(true))?;
            }
            if !left.is_empty() {
                return Err(format!("after {found:#?}\nwas mended there is {left:#?}"));
            }
        }
        Ok(format!("there was {found:#?}\n"))
    }

    /// Nothing was promised but that the home opens and that what is damaged is called so.
    fn judge_unsynced(&self, scene: &Scene) -> Result<(), String> {
        let store = &scene.store;
        let failed = |error| words(&error);
        store.repair(UpkeepOptions::new()).map_err(failed)?;
        store.gc(UpkeepOptions::new()).map_err(failed)?;
        let report = store.check().map_err(failed)?;
        let list = store.layers().map_err(failed)?;
        for broken in &list.broken {
            let said = |id: &Option<_>| id.as_ref() == Some(&broken.id);
            if !report.findings.iter().any(|finding| said(&finding.layer)) {
                let (id, error) = (&broken.id, words(&broken.error));
                return Err(format!("{id} is broken: {error}; but check: {report:#?}"));
            }
        }
        match report.is_clean() && !list.broken.is_empty() {
            true => Err("a home with broken layers is called clean".to_owned()),
            false => Ok(()),
        }
    }
}

fn run_case(
    case: &Case,
    home: &Scene,
    durability: Durability,
    (limit, samples, seed): (usize, u64, u64),
    problems: &mut Vec<String>,
) -> Counts {
    let prepared = home.fork(durability);
    (case.prepare)(&prepared);
    let mut worlds = vec![prepared.look(&prepared.store).unwrap()];
    let whole = prepared.fork(durability);
    for step in case.steps {
        step(&whole).unwrap();
        worlds.push(whole.look(&whole.store).unwrap());
    }
    let plug = Plug {
        case,
        worlds: &worlds,
        durability,
        is_sound: prepared.store.check().unwrap().is_sound(),
    };
    let mut counts = Counts::default();
    let mut before = None;
    for at in 1.. {
        let scene = prepared.fork(durability);
        scene.faulty.order(Fault::Crash { at });
        let results = case.steps.iter().map(|step| step(&scene));
        let done = results.take_while(Result::is_ok).count();
        let fired = scene.faulty.has_fired();
        let journal = scene.faulty.journal();
        // The one at which it stops does nothing.
        let operations = journal.operations();
        let happened = &operations[..operations.len().min(usize::try_from(at).unwrap() - 1)];
        let changes = happened.iter().filter(|one| one.is_change()).count();
        counts.points += 1;
        if before != Some((changes, done)) {
            before = Some((changes, done));
            counts.different += 1;
            let (cuts, all) = scene.mock.power_cuts(limit, samples, seed ^ at);
            counts.exhausted += u64::from(all);
            for (number, survivors) in cuts.iter().enumerate() {
                counts.cuts += 1;
                if let Err(problem) = plug.pull(&scene.mock, survivors, done, number % 8 == 1) {
                    let pending = scene.mock.pending();
                    let pending: Vec<_> = pending.iter().map(ToString::to_string).collect();
                    problems.push(format!(
                        "{}, {durability:?}, before operation {at}, {done} steps done, {survivors:?} of\n  {}\n{problem}\nafter\n{journal}",
                        case.name,
                        pending.join("\n  "),
                    ));
                }
            }
        }
        if !fired {
            break;
        }
    }
    counts
}

fn run<'c>(
    cases: impl IntoIterator<Item = &'c Case>,
    durability: Durability,
    amount: (usize, u64, u64),
) -> Counts {
    let home = Scene::new(durability);
    let (mut sum, mut problems, mut cases_run) = (Counts::default(), Vec::new(), 0);
    for case in cases {
        let counts = run_case(case, &home, durability, amount, &mut problems);
        println!("power cuts, {durability:?}: {}: {counts}", case.name);
        sum.add(&counts);
        cases_run += 1;
    }
    let shown: Vec<_> = problems.iter().take(3).map(String::as_str).collect();
    assert!(
        problems.is_empty(),
        "{} problems:\n{}",
        problems.len(),
        shown.join("\n\n")
    );
    println!("power cuts, {durability:?}: {cases_run} cases: {sum}");
    sum
}

/// For as long as there is time, with other samples each time.
fn go_on(time: Duration) {
    let start = Instant::now();
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut seed = since.map_or(1, |since| since.as_secs() << 16);
    let mut sum = Counts::default();
    while start.elapsed() < time {
        for durability in [Durability::Layer, Durability::Full, Durability::None] {
            println!("power cuts, {durability:?}: samples of seed {seed}");
            sum.add(&run(all(), durability, (4 * ALL, 4 * SAMPLES, seed)));
            seed += 1 << 8;
            if start.elapsed() >= time {
                break;
            }
        }
    }
    let seconds = start.elapsed().as_secs();
    let line = format!("fuzz power: {sum}, in {seconds} s, no failure\n");
    io::stderr().write_all(line.as_bytes()).unwrap();
}

#[test]
fn no_power_cut_takes_a_published_layer() {
    if let Ok(seconds) = env::var(SECONDS) {
        return go_on(Duration::from_secs(seconds.parse().unwrap()));
    }
    let counts = run(LAYERS, Durability::Layer, (ALL, SAMPLES, 1));
    assert!(counts.points > 3000 && counts.cuts > 10_000, "{counts}");
}

#[test]
fn no_power_cut_in_a_script_takes_what_was_done_before() {
    let counts = run(SCRIPTS, Durability::Layer, (ALL / 2, SAMPLES / 2, 2));
    assert!(counts.points > 1500 && counts.cuts > 5000, "{counts}");
}

#[test]
fn a_power_cut_under_a_mount_leaves_a_sound_home() {
    let counts = run(MOUNTS, Durability::Layer, (ALL, SAMPLES, 3));
    assert!(counts.points > 500 && counts.cuts > 1000, "{counts}");
}

#[test]
fn no_power_cut_brings_back_what_a_store_of_full_durability_has_removed() {
    let removing = LAYERS.iter().filter(|case| case.name.starts_with("remove"));
    let counts = run(removing, Durability::Full, (ALL, SAMPLES, 4));
    assert!(counts.points > 100 && counts.cuts > 500, "{counts}");
}

#[test]
fn without_durability_what_a_power_cut_damages_is_told() {
    let counts = run(&SCRIPTS[..2], Durability::None, (ALL / 4, SAMPLES / 4, 5));
    assert!(counts.points > 500 && counts.cuts > 1000, "{counts}");
}
