use std::collections::BTreeMap;
use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ovl_driver::blocking::Overlay2;
use ovl_driver::{Kernel, OpenOptions};
use ovl_layout::{LayerId, names};

use super::Place;
use crate::e2e::crowd::Event;
use crate::e2e::mounts::mounts_below;
use crate::e2e::random::Random;
use crate::e2e::storm::assert_clean;

const PROCESSES: usize = 8;
const THREADS: u64 = 8;
const TURNS: [u64; 2] = [40, 200];
/// Far more than they take: whoever works longer waits for a lock that nobody gives.
const LIMIT: Duration = Duration::from_secs(300);

/// Processes and threads share a home: each layer is made and removed by one of them at a time.
pub(super) fn eight_of_eight(place: &Place) -> Result<()> {
    let (home, turns) = (place.home(), TURNS[usize::from(!place.quick)]);
    let mut random = Random::new(place.seed);
    let mut crowd = Crowd(Vec::new());
    for number in 0..PROCESSES {
        let output = File::create(place.dir.join(format!("events-{number}")))?;
        let errors = File::create(place.dir.join(format!("errors-{number}")))?;
        let mut process = Command::new(std::env::current_exe()?);
        process.arg("crowd").arg("--home").arg(&home);
        process.arg("--seed").arg(random.next().to_string());
        process.arg("--threads").arg(THREADS.to_string());
        process.arg("--turns").arg(turns.to_string());
        process.stdin(Stdio::null()).stdout(output).stderr(errors);
        crowd.0.push(process.spawn()?);
    }
    let failed = crowd.wait()?;
    let (mut events, mut errors) = (Vec::new(), String::new());
    for number in 0..PROCESSES {
        errors += &fs::read_to_string(place.dir.join(format!("errors-{number}")))?;
        let text = fs::read_to_string(place.dir.join(format!("events-{number}")))?;
        for line in text.lines() {
            events.push(line.parse::<Event>()?);
        }
    }
    ensure!(
        failed == 0 && errors.is_empty(),
        "{failed} processes failed with --seed {}: {errors}",
        place.seed
    );

    let store = Overlay2::open(Kernel::host(), &home, OpenOptions::new())?;
    let list = store.layers()?;
    ensure!(list.broken.is_empty(), "broken: {:?}", list.broken);
    let there: Vec<&LayerId> = list.layers.iter().map(|layer| &layer.id).collect();
    let made = events.iter().filter(|event| event.made).count();
    let removed = events.len() - made;
    ensure!(
        made - removed == there.len(),
        "{made} were made and {removed} removed, {there:?} are there"
    );
    let mut by_id: BTreeMap<LayerId, Vec<Event>> = BTreeMap::new();
    for event in events {
        by_id.entry(event.id.clone()).or_default().push(event);
    }
    for (id, events) in &by_id {
        ensure!(
            alternate(events, there.contains(&id)),
            "{id} was made or removed by two at a time: {events:?}"
        );
    }
    let mounts = mounts_below(&home)?;
    ensure!(mounts.is_empty(), "still mounted: {mounts:?}");
    let holds = fs::read_dir(store.layout().store_dir().join(names::HOLDS))?.count();
    ensure!(holds == 0, "{holds} notes of holds are left");
    store.reclaim()?;
    assert_clean(&store)?;
    println!(
        "{made} layers were made and {removed} removed by {PROCESSES} processes of {THREADS} threads"
    );
    Ok(())
}

/// Whether there is an order, with each event between its two times, in which the layer is made and
/// removed by turns, and is there at the end or not.
fn alternate(events: &[Event], there: bool) -> bool {
    let times = |made: bool| {
        let chosen = || events.iter().filter(move |event| event.made == made);
        let mut from: Vec<u64> = chosen().map(|event| event.from).collect();
        let mut to: Vec<u64> = chosen().map(|event| event.to).collect();
        // Whatever the order, the first to happen is no earlier than the first that can.
        from.sort_unstable();
        to.sort_unstable();
        (from, to)
    };
    let ((made_from, made_to), (removed_from, removed_to)) = (times(true), times(false));
    if made_from.len() != removed_from.len() + usize::from(there) {
        return false;
    }
    let mut earliest = 0;
    for turn in 0..events.len() {
        let (from, to) = match turn % 2 {
            0 => (made_from[turn / 2], made_to[turn / 2]),
            _ => (removed_from[turn / 2], removed_to[turn / 2]),
        };
        earliest = earliest.max(from);
        if earliest > to {
            return false;
        }
    }
    true
}

/// Running processes; dropping them kills those that are left.
struct Crowd(Vec<Child>);

impl Crowd {
    /// Waits for all and gives how many failed.
    fn wait(&mut self) -> Result<usize> {
        let (start, mut failed) = (Instant::now(), 0);
        while !self.0.is_empty() {
            let mut running = Vec::new();
            for mut child in self.0.drain(..) {
                match child.try_wait()? {
                    None => running.push(child),
                    Some(status) => failed += usize::from(!status.success()),
                }
            }
            self.0 = running;
            ensure!(
                start.elapsed() < LIMIT,
                "{} processes still run after {LIMIT:?}",
                self.0.len()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(failed)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(made: bool, from: u64, to: u64) -> Result<Event> {
        let id = "a".parse()?;
        Ok(Event { id, made, from, to })
    }

    #[test]
    fn two_who_make_a_layer_need_one_who_removes_it_between() -> Result<()> {
        let (first, second) = (event(true, 0, 5)?, event(true, 10, 15)?);
        let between = event(false, 4, 11)?;
        assert!(alternate(&[first.clone(), between, second.clone()], true));
        let late = event(false, 16, 20)?;
        assert!(!alternate(&[first.clone(), late, second.clone()], true));
        assert!(!alternate(&[first.clone(), second], true));
        assert!(!alternate(&[first], false));
        Ok(())
    }
}
