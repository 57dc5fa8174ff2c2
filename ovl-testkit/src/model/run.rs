//! Scripts, run on a store and on the model of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::Path;

use ovl_diff::{DirHandle, FileKind, Node, RenameMode, TreeBackend, remove_tree};
use ovl_driver::blocking::Overlay2;
use ovl_driver::{
    Base, CreateLayer, Error, Hold, ImportOptions, InitOptions, MountRequest, OpenOptions,
    ProcessId, UpkeepOptions,
};
use ovl_layout::LayerId;
use ovl_mount::{Access, OverlayOptions, UnmountMode};
use ovl_quota::{Bytes, Enforcement, Limits};
use rustix::io::Errno;

use super::damage;
use super::machine::Machine;
use super::reference::{Answer, Body, FILL, Layer, MAX_DEPTH, Model, Mount, Object, Refusal, Tree};
use super::reference::{TARGET, edited};
use super::script::{Against, Edit, Script, Step, as_code};
use crate::faulty::{Fault, Faulty};
use crate::snapshot::{Snapshot, snapshot_at};

/// Steps after which everything is compared.
const INTERVAL: usize = 6;
const COLOUR: &str = "user.colour";
const MIB: u64 = 1 << 20;

/// What a script has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Steps and changes that were done, by name.
    pub done: BTreeMap<String, u64>,
    /// Steps that were refused, by the name of the error's variant.
    pub refused: BTreeMap<String, u64>,
    /// Steps in which the process was killed where that was ordered, by name.
    pub kills: BTreeMap<String, u64>,
    /// Steps in which an operation failed where that was ordered, by name.
    pub errors: BTreeMap<String, u64>,
}

impl Summary {
    /// Adds what another script has done.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in [
            (&mut self.done, &other.done),
            (&mut self.refused, &other.refused),
            (&mut self.kills, &other.kills),
            (&mut self.errors, &other.errors),
        ] {
            for (name, count) in more {
                *sum.entry(name.clone()).or_default() += count;
            }
        }
    }
}

/// Where store and model differ. It prints with a test to paste.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failure {
    /// The number of the step, from 0.
    pub step: usize,
    /// What is not as the model predicts.
    pub problem: String,
    /// The script up to that step.
    pub script: Script,
    /// The expression that makes the machine it ran on.
    pub machine: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.script.0.last().map(as_code).unwrap_or_default();
        write!(
            f,
            "step {}, {last}: {}\n\n{}",
            self.step,
            self.problem,
            self.script.as_test(&self.machine)
        )
    }
}

impl std::error::Error for Failure {}

/// Runs a script and compares each result, at intervals the whole store, with what the model says.
/// At the end everything is unmounted and what is left over reclaimed, and the home must be clean.
///
/// # Errors
/// The first difference.
pub fn replay(machine: &mut dyn Machine, script: &[Step]) -> Result<Summary, Failure> {
    let made_by = machine.constructor();
    let failure = |step: usize, problem| Failure {
        step,
        problem,
        script: Script(script.iter().take(step + 1).cloned().collect()),
        machine: made_by.clone(),
    };
    let mut run = Run::new(machine).map_err(|problem| failure(0, problem))?;
    for (number, step) in script.iter().enumerate() {
        let mut result = run.step(step).and_then(|()| run.model.check());
        if result.is_ok() && number % INTERVAL == INTERVAL - 1 {
            result = run.compare();
        }
        result.map_err(|problem| failure(number, problem))?;
    }
    let ended = run.end();
    ended.map_err(|problem| failure(script.len().saturating_sub(1), problem))?;
    Ok(run.summary)
}

/// Takes steps and changes out of a script for as long as it still fails, and gives what is left.
pub fn shrink(script: &[Step], mut fails: impl FnMut(&[Step]) -> bool) -> Script {
    let mut left = script.to_vec();
    let mut len = left.len().div_ceil(2);
    while len > 0 {
        let mut at = 0;
        while at < left.len() {
            let mut fewer = left.clone();
            fewer.drain(at..(at + len).min(fewer.len()));
            match fails(&fewer) {
                true => left = fewer,
                false => at += len,
            }
        }
        len /= 2;
    }
    for step in 0..left.len() {
        let mut at = 0;
        while let Step::Write { edits, .. } = &left[step]
            && at < edits.len()
        {
            let mut fewer = left.clone();
            if let Step::Write { edits, .. } = &mut fewer[step] {
                edits.remove(at);
            }
            match fails(&fewer) {
                true => left = fewer,
                false => at += 1,
            }
        }
    }
    Script(left)
}

struct Run<'m> {
    machine: &'m mut dyn Machine,
    users: Vec<User>,
    model: Model,
    /// What happens in the next step.
    order: Option<Order>,
    /// Layers that were written through a mount: nobody waits for the disk until they are sealed.
    written: BTreeSet<String>,
    summary: Summary,
}

#[derive(Clone, Copy)]
enum Order {
    Kill { at: u64 },
    Fail { at: u64, errno: i32 },
}

impl Order {
    fn fault(self) -> Fault {
        match self {
            Self::Kill { at } => Fault::Crash { at },
            Self::Fail { at, errno } => Fault::Once { at, errno },
        }
    }
}

/// A process that has the home open.
struct User {
    kernel: Faulty,
    process: ProcessId,
    store: Overlay2,
}

fn id(text: &str) -> LayerId {
    text.parse().expect("scripts have valid ids")
}

fn limits(mib: Option<u64>) -> Limits {
    Limits::UNLIMITED.bytes(mib.map(|mib| Bytes::new(mib * MIB)))
}

fn words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        words = format!("{words}: {source}");
        next = source.source();
    }
    words
}

/// The first word of what `Debug` says: the name of a variant.
fn name(value: &dyn fmt::Debug) -> String {
    let words = format!("{value:?}");
    let end = words.find(|c: char| !c.is_alphanumeric());
    words[..end.unwrap_or(words.len())].to_owned()
}

impl User {
    fn start(machine: &mut dyn Machine) -> Result<Self, String> {
        let kernel = Faulty::new(machine.start());
        let process = kernel.kernel().system().this_process();
        let process = process.map_err(|error| error.to_string())?;
        let store = open(&kernel, machine.home()).map_err(|error| words(&error))?;
        Ok(Self {
            kernel,
            process,
            store,
        })
    }
}

fn open(kernel: &Faulty, home: &Path) -> Result<Overlay2, Error> {
    Overlay2::open(kernel.kernel(), home, OpenOptions::new())
}

impl<'m> Run<'m> {
    fn new(machine: &'m mut dyn Machine) -> Result<Self, String> {
        let kernel = machine.start();
        let options = InitOptions::new().max_depth(MAX_DEPTH);
        let made = Overlay2::init(kernel.clone(), machine.home(), &options);
        made.map_err(|error| words(&error))?;
        let enforcement = kernel.quota().enforcement(machine.home());
        let mut run = Self {
            machine,
            users: Vec::new(),
            model: Model {
                enforced: enforcement.is_ok_and(|found| found == Enforcement::Enforced),
                ..Model::default()
            },
            order: None,
            written: BTreeSet::new(),
            summary: Summary::default(),
        };
        for _ in 0..2 {
            run.users.push(User::start(run.machine)?);
        }
        Ok(run)
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        let order = self.order.take();
        match step {
            Step::KillAt { operation } => self.order = Some(Order::Kill { at: *operation }),
            Step::FailAt { operation, errno } => {
                self.order = Some(Order::Fail {
                    at: *operation,
                    errno: *errno,
                });
            }
            Step::Write { layer, edits } => {
                for edit in edits {
                    self.edit(layer, edit)?;
                }
            }
            Step::Reopen { user } => {
                self.reopen(*user, step, order)?;
            }
            Step::Kill { user } => {
                let process = self.users[*user].process;
                if self.machine.kill(process) {
                    self.model.end(process);
                    self.users[*user] = User::start(self.machine)?;
                    self.count(step);
                }
            }
            Step::Reboot => {
                if self.machine.reboot() {
                    self.model.unmount_all();
                    for user in 0..self.users.len() {
                        self.users[user] = User::start(self.machine)?;
                    }
                    self.count(step);
                }
            }
            Step::CutPower { seed } => {
                if self.machine.cut_power(*seed) {
                    self.start_after_power_cut()?;
                    self.count(step);
                }
            }
            Step::Damage { user, layer, harm } => {
                let Some(found) = self.model.layers.get(*layer) else {
                    return Ok(());
                };
                if found.mount.is_none() {
                    let has_children = self.model.has_children(layer);
                    let user = &self.users[*user];
                    if damage::do_and_mend(&user.store, &id(layer), *harm, has_children)? {
                        self.count(step);
                        self.count(harm);
                    }
                    self.compare()?;
                }
            }
            Step::Create { user, .. }
            | Step::CreateWritable { user, .. }
            | Step::Import { user, .. }
            | Step::Apply { user, .. }
            | Step::Copy { user, .. }
            | Step::Mount { user, .. }
            | Step::Unmount { user, .. }
            | Step::UnmountAll { user }
            | Step::SetLimit { user, .. }
            | Step::Remove { user, .. }
            | Step::Reclaim { user }
            | Step::Gc { user }
            | Step::Check { user }
            | Step::Repair { user } => self.operation(*user, step, order)?,
        }
        Ok(())
    }

    /// Everything is there but mounts, and what was written into open layers.
    fn start_after_power_cut(&mut self) -> Result<(), String> {
        self.model.unmount_all();
        for user in 0..self.users.len() {
            self.users[user] = User::start(self.machine)?;
        }
        let found = self.observe()?;
        for id in std::mem::take(&mut self.written) {
            let there = found.layers.get(&id).map(|layer| &layer.tree);
            match (self.model.layers.get_mut(&id), there) {
                (Some(layer), Some(there)) if !layer.sealed => layer.tree.clone_from(there),
                _ => {}
            }
        }
        match found == self.model {
            true => Ok(()),
            false => Err(format!(
                "after a power cut there is {found:#?}\nand not {:#?}",
                self.model
            )),
        }
    }

    fn count(&mut self, step: &dyn fmt::Debug) {
        *self.summary.done.entry(name(step)).or_default() += 1;
    }

    fn count_fault(&mut self, step: &Step, order: Order) {
        let counts = match order {
            Order::Kill { .. } => &mut self.summary.kills,
            Order::Fail { .. } => &mut self.summary.errors,
        };
        *counts.entry(name(step)).or_default() += 1;
    }

    fn reopen(&mut self, user: usize, step: &Step, order: Option<Order>) -> Result<(), String> {
        let home = self.machine.home().to_owned();
        let one = &self.users[user];
        if let Some(order) = order {
            one.kernel.order(order.fault());
            let _ = open(&one.kernel, &home);
            let fired = one.kernel.has_fired();
            one.kernel.heal();
            if fired {
                self.count_fault(step, order);
            }
            if fired && matches!(order, Order::Kill { .. }) {
                return self.start_after_kill(user);
            }
        }
        let one = &mut self.users[user];
        one.store = open(&one.kernel, &home).map_err(|error| words(&error))?;
        self.count(step);
        Ok(())
    }

    /// Another process comes instead of one that stopped in the middle.
    fn start_after_kill(&mut self, user: usize) -> Result<(), String> {
        let process = self.users[user].process;
        if self.machine.kill(process) {
            self.model.end(process);
        }
        self.users[user] = User::start(self.machine)?;
        Ok(())
    }

    /// An operation of the store, with or without a fault.
    fn operation(&mut self, user: usize, step: &Step, order: Option<Order>) -> Result<(), String> {
        let before = self.model.clone();
        let mut after = before.clone();
        let process = self.users[user].process;
        let Some(predicted) = predict(&mut after, step, process) else {
            return Ok(());
        };
        if predicted.is_err() {
            after = before.clone();
        }
        let one = &self.users[user];
        if let Some(order) = order {
            one.kernel.order(order.fault());
        }
        let result = perform(&one.store, &before, step);
        let fired = one.kernel.has_fired();
        let journal = if fired {
            one.kernel.journal().to_string()
        } else {
            String::new()
        };
        one.kernel.heal();
        // A copy was made, which is on disk.
        match step {
            Step::Apply { layer, .. } if result.is_ok() => {
                self.written.remove(*layer);
            }
            Step::SetLimit { layer, .. } if result.is_ok() => {
                let project = |model: &Model| model.layers.get(*layer)?.project;
                if project(&before) != project(&after) && project(&before).is_none() {
                    self.written.remove(*layer);
                }
            }
            _ => {}
        }
        if let Some(order) = order.filter(|_| fired) {
            self.count_fault(step, order);
            let told = match &result {
                Ok(()) => "done".to_owned(),
                Err(error) => words(error),
            };
            let resolved = self.resolve(user, order, (before, after), &result, &predicted);
            return resolved.map_err(|problem| format!("{problem}\n{told}, after\n{journal}"));
        }
        match (&result, predicted) {
            (Ok(()), Ok(())) => self.count(step),
            (Err(error), Err(refusal)) if name(error) == refusal => {
                *self.summary.refused.entry(name(error)).or_default() += 1;
            }
            (Ok(()), Err(refusal)) => return Err(format!("done, and not refused as {refusal}")),
            (Err(error), predicted) => {
                return Err(format!(
                    "{}, and not {predicted:?}: {error:?}",
                    words(error)
                ));
            }
        }
        self.model = after;
        Ok(())
    }

    /// After a fault: the store is sound, and each layer is as it was before or as it was to be.
    fn resolve(
        &mut self,
        user: usize,
        order: Order,
        (mut before, mut after): (Model, Model),
        result: &Result<(), Error>,
        predicted: &Result<(), Refusal>,
    ) -> Result<(), String> {
        if let (Ok(()), Err(refusal)) = (result, predicted) {
            return Err(format!("done, and not refused as {refusal}"));
        }
        let killed = matches!(order, Order::Kill { .. });
        if killed {
            let process = self.users[user].process;
            if self.machine.kill(process) {
                before.end(process);
                after.end(process);
            }
            self.users[user] = User::start(self.machine)?;
        }
        let found = self.observe()?;
        found.is_between(&before, &after)?;
        if result.is_ok() && !killed && found != after {
            return Err(format!("done, but there is {found:#?}\nand not {after:#?}"));
        }
        self.model = found;
        Ok(())
    }

    /// The whole store is as the model says.
    fn compare(&mut self) -> Result<(), String> {
        let found = self.observe()?;
        match found == self.model {
            true => Ok(()),
            false => Err(format!("there is {found:#?}\nand not {:#?}", self.model)),
        }
    }

    fn end(&mut self) -> Result<(), String> {
        self.compare()?;
        let store = &self.users[1].store;
        let failed = |error: Error| words(&error);
        store.unmount_all(UnmountMode::Now).map_err(failed)?;
        self.model.unmount_all();
        store.gc(UpkeepOptions::new()).map_err(failed)?;
        let report = self.users[0].store.check().map_err(failed)?;
        if !report.is_clean() {
            return Err(format!("after all was reclaimed there is {report:#?}"));
        }
        self.compare()
    }

    /// What the store holds.
    fn observe(&mut self) -> Result<Model, String> {
        let store = &self.users[0].store;
        let failed = |error: Error| words(&error);
        let report = store.check().map_err(failed)?;
        if !report.is_sound() {
            return Err(format!("the store is damaged: {report:#?}"));
        }
        let list = store.layers().map_err(failed)?;
        if !list.broken.is_empty() {
            return Err(format!("layers are broken: {:#?}", list.broken));
        }
        let mut found = Model {
            enforced: self.model.enforced,
            ..Model::default()
        };
        for summary in &list.layers {
            let info = store.inspect(&summary.id).map_err(failed)?;
            let project = match info.quota {
                None => None,
                Some(quota) => Some(quota.usage?.limits.bytes.map(|limit| limit.get() / MIB)),
            };
            let mount = info.mount.filter(|mount| mount.holds() > 0);
            let tree = match &mount {
                Some(mount) => snapshot_at(store.kernel().tree(), &mount.target),
                None => shown(store, &summary.id).map_err(failed)?,
            };
            let mount = mount.map(|mount| Mount {
                noexec: mount.options.contains("noexec"),
                read_only: mount.access == Access::ReadOnly,
                persistent: mount.persistent,
                processes: mount
                    .processes
                    .iter()
                    .map(|(process, count)| ((process.pid, process.start_time), *count))
                    .collect(),
            });
            let layer = Layer {
                parent: summary.parent.as_ref().map(ToString::to_string),
                sealed: summary.sealed,
                tree: understood(tree.map_err(|error| error.to_string())?)?,
                mount,
                project,
            };
            found.layers.insert(summary.id.to_string(), layer);
        }
        for summary in &list.layers {
            let depth = found.depth(summary.id.as_str());
            if depth != summary.depth {
                return Err(format!("{summary:?} stands on {depth} layers"));
            }
        }
        Ok(found)
    }

    fn edit(&mut self, layer: &str, edit: &Edit) -> Result<(), String> {
        let store = &self.users[0].store;
        let Some(found) = self.model.layers.get_mut(layer) else {
            return Ok(());
        };
        let Some(mount) = &found.mount else {
            return Ok(());
        };
        let identity = store.kernel().system().identity();
        let identity = identity.map_err(|error| error.to_string())?;
        let is_mapped = |uid: u32| identity.uids.iter().any(|ids| ids.contains(&uid.into()));
        if matches!(edit, Edit::SetOwner { uid, .. } if !is_mapped(*uid)) {
            return Ok(());
        }
        let limit = found.project.flatten();
        let mut answer = edited(found.tree.clone(), edit, limit);
        if mount.read_only {
            answer = match answer {
                Answer::Leave => Answer::Leave,
                // It begins with trying what there is.
                _ if matches!(edit, Edit::DeleteAll { .. }) => Answer::Fails,
                Answer::Done(_) | Answer::DoneOrCrosses(_) => Answer::Refused(&[Errno::ROFS]),
                Answer::Refused(_) | Answer::Fails => Answer::Fails,
            };
        }
        if answer == Answer::Leave {
            return Ok(());
        }
        let result = {
            let keeps = store.kernel().quota().keep_to_limits();
            let _keeps = keeps.map_err(|error| error.to_string())?;
            let target = store.layout().layer(&id(layer)).merged().to_owned();
            self.written.insert(layer.to_owned());
            change(store.kernel().tree(), &target, edit)
        };
        let errno = result.as_ref().err().and_then(Errno::from_io_error);
        match (answer, &result) {
            (Answer::Done(tree) | Answer::DoneOrCrosses(tree), Ok(())) => found.tree = tree,
            (Answer::DoneOrCrosses(_), Err(_)) if errno == Some(Errno::XDEV) => {}
            (Answer::Refused(with), Err(_)) if errno.is_some_and(|one| with.contains(&one)) => {}
            (Answer::Fails, Err(_)) => {}
            (answer, result) => return Err(format!("{edit:?}: {result:?}, and not {answer:?}")),
        }
        match result {
            Ok(()) => self.count(edit),
            Err(error) => {
                *self.summary.refused.entry(name(&error.kind())).or_default() += 1;
            }
        }
        Ok(())
    }
}

/// What the model says of a step; nothing for one that is left out.
fn predict(model: &mut Model, step: &Step, process: ProcessId) -> Option<Result<(), Refusal>> {
    Some(match step {
        Step::Create { layer, parent, .. } => model.create(layer, *parent),
        Step::CreateWritable {
            layer,
            parent,
            limit,
            ..
        } => model.create_writable(layer, *parent, *limit),
        Step::Import {
            layer,
            parent,
            archive,
            ..
        } => model.import(layer, *parent, archive),
        Step::Apply { layer, archive, .. } => model.apply(layer, archive),
        Step::Copy { from, base, to, .. } => {
            let parent = match base_of(model, from, base) {
                Ok(parent) => parent?,
                Err(refusal) => return Some(Err(refusal)),
            };
            model.copy(from, parent.as_deref(), to)
        }
        Step::Mount {
            layer, own, noexec, ..
        } => model.mount(layer, own.then_some(process), *noexec),
        Step::Unmount { layer, .. } => model.unmount(layer, process),
        Step::UnmountAll { .. } => {
            model.unmount_all();
            Ok(())
        }
        Step::SetLimit { layer, limit, .. } => model.set_limit(layer, *limit),
        Step::Remove { layer, force, .. } => model.remove(layer, *force),
        Step::Reclaim { .. } | Step::Gc { .. } | Step::Check { .. } | Step::Repair { .. } => Ok(()),
        _ => return None,
    })
}

/// What becomes of the model by a step without a fault, when all can be done.
pub(super) fn foresee(model: &mut Model, step: &Step) {
    let process = |user: usize| ProcessId {
        pid: u32::try_from(user).unwrap_or(0),
        start_time: 0,
    };
    match step {
        Step::Kill { user } => model.end(process(*user)),
        Step::Reboot | Step::CutPower { .. } => model.unmount_all(),
        Step::Write { layer, edits } => {
            if let Some(layer) = model.layers.get_mut(*layer) {
                for edit in edits {
                    if let Answer::Done(tree) = edited(layer.tree.clone(), edit, None) {
                        layer.tree = tree;
                    }
                }
            }
        }
        Step::Mount { user, .. } | Step::Unmount { user, .. } => {
            let _ = predict(model, step, process(*user));
        }
        _ => {
            let _ = predict(model, step, process(0));
        }
    }
}

/// The layer that a copy is to stand on; `None` for a comparison of a layer with itself.
fn base_of(model: &Model, from: &str, base: &Against) -> Result<Option<Option<String>>, Refusal> {
    let found = model.layers.get(from).ok_or("LayerNotFound")?;
    Ok(match base {
        Against::Parent => Some(found.parent.clone()),
        Against::Empty => Some(None),
        Against::Layer(base) if *base == from => None,
        Against::Layer(base) if !model.layers.contains_key(*base) => return Err("LayerNotFound"),
        Against::Layer(base) => Some(Some((*base).to_owned())),
    })
}

fn perform(store: &Overlay2, model: &Model, step: &Step) -> Result<(), Error> {
    let layer =
        |name: &str, parent: Option<&str>| CreateLayer::new(id(name)).parent(parent.map(id));
    let (now, options) = (UnmountMode::Now, ImportOptions::new());
    match step {
        Step::Create {
            layer: name,
            parent,
            ..
        } => store.create(&layer(name, *parent)),
        Step::CreateWritable {
            layer: name,
            parent,
            limit,
            ..
        } => {
            let size = limit.map(|limit| Bytes::new(limit * MIB));
            store.create_writable(&layer(name, *parent).size(size))
        }
        Step::Import {
            layer: name,
            parent,
            archive,
            ..
        } => {
            let (bytes, _) = model.archive(*parent, archive);
            let made = store.import(&layer(name, *parent), &*bytes, options, &mut |_| {});
            made.map(drop)
        }
        Step::Apply {
            layer: name,
            archive,
            ..
        } => {
            let (bytes, _) = model.archive(Some(name), archive);
            let applied = store.apply(&id(name), &*bytes, options, &mut |_| {});
            applied.map(drop)
        }
        Step::Copy { from, base, to, .. } => {
            let parent = base_of(model, from, base).ok().flatten().flatten();
            let base = match base {
                Against::Parent => Base::Parent,
                Against::Empty => Base::Empty,
                Against::Layer(base) => Base::Layer(id(base)),
            };
            let mut archive = Vec::new();
            store.diff(&id(from), &base, &mut archive)?;
            let made = layer(to, parent.as_deref());
            let made = store.import(&made, &*archive, options, &mut |_| {});
            made.map(drop)
        }
        Step::Mount {
            layer: name,
            own,
            noexec,
            ..
        } => {
            let hold = if *own {
                Hold::Process
            } else {
                Hold::Persistent
            };
            let mut mount = OverlayOptions::default();
            mount.noexec = *noexec;
            let request = MountRequest::new().hold(hold).options(mount);
            store.mount(&id(name), &request).map(drop)
        }
        Step::Unmount {
            layer: name, lazy, ..
        } => {
            let mode = if *lazy { UnmountMode::Lazy } else { now };
            store.unmount(&id(name), mode).map(drop)
        }
        Step::UnmountAll { .. } => store.unmount_all(now).map(drop),
        Step::SetLimit {
            layer: name, limit, ..
        } => store.set_limits(&id(name), limits(*limit)),
        Step::Remove {
            layer: name, force, ..
        } => store.remove(&id(name), *force),
        Step::Reclaim { .. } => store.reclaim().map(drop),
        Step::Gc { .. } => store.gc(UpkeepOptions::new()).map(drop),
        Step::Check { .. } => store.check().map(drop),
        Step::Repair { .. } => store.repair(UpkeepOptions::new()).map(drop),
        _ => Ok(()),
    }
}

/// What a layer that nobody has mounted shows.
fn shown(store: &Overlay2, layer: &LayerId) -> Result<io::Result<Snapshot>, Error> {
    let target = store.mount(layer, &MountRequest::new())?;
    let shown = snapshot_at(store.kernel().tree(), &target);
    store.unmount(layer, UnmountMode::Now)?;
    Ok(shown)
}

/// The tree in the model's words.
fn understood(snapshot: Snapshot) -> Result<Tree, String> {
    let mut tree = Tree::new();
    for (path, object) in snapshot {
        let mut mode = object.mode;
        let body = match object.kind {
            FileKind::Directory => Body::Dir,
            FileKind::Regular => Body::File(object.contents.clone()),
            FileKind::Symlink if object.contents == TARGET.as_bytes() => {
                mode = 0o777;
                Body::Symlink
            }
            _ => return Err(format!("{path:?} is {object:?}")),
        };
        let mut found = Object::new(body, mode);
        found.uid = object.uid;
        for (name, value) in &object.xattrs {
            match (name == COLOUR, &value[..]) {
                (true, [colour]) => found.colour = Some(*colour),
                _ => return Err(format!("{path:?} has the attribute {name:?}")),
            }
        }
        if object.gid != 0 {
            return Err(format!("{path:?} belongs to the group {}", object.gid));
        }
        tree.insert(path, found);
    }
    Ok(tree)
}

fn change(tree: &dyn TreeBackend, target: &Path, edit: &Edit) -> io::Result<()> {
    let open = |path: &'static str| -> io::Result<(DirHandle, &'static OsStr)> {
        let mut dir = tree.open_root(target)?;
        let path = Path::new(path);
        for name in path.parent().into_iter().flatten() {
            dir = tree.open_dir(&dir, name)?;
        }
        Ok((dir, path.file_name().unwrap_or_default()))
    };
    let on = |path: &'static str, work: &dyn Fn(Node<'_>) -> io::Result<()>| {
        let (dir, name) = open(path)?;
        match name.is_empty() {
            true => work(Node::Dir(&dir)),
            false => work(Node::Entry(&dir, name)),
        }
    };
    match *edit {
        Edit::MakeDir { path, mode } => {
            let (dir, name) = open(path)?;
            tree.create_dir(&dir, name, mode)
        }
        Edit::MakeFile { path, contents } => {
            let (dir, name) = open(path)?;
            let file = tree.create_file(&dir, name, 0o644)?;
            tree.write_at(&file, 0, &[contents])
        }
        Edit::MakeSymlink { path } => {
            let (dir, name) = open(path)?;
            tree.create_symlink(&dir, name, OsStr::new(TARGET))
        }
        Edit::Rename { from, to } => {
            let ((from_dir, from), (to_dir, to)) = (open(from)?, open(to)?);
            tree.rename(&from_dir, from, &to_dir, to, RenameMode::Replace)
        }
        Edit::Delete { path } => {
            let (dir, name) = open(path)?;
            match tree.metadata(Node::Entry(&dir, name))?.is_dir() {
                true => tree.remove_dir(&dir, name),
                false => tree.unlink(&dir, name),
            }
        }
        Edit::DeleteAll { path } => {
            let (dir, name) = open(path)?;
            remove_tree(tree, &dir, name).map_err(|error| error.source)
        }
        Edit::SetMode { path, mode } => on(path, &|node| tree.set_mode(node, mode)),
        Edit::SetOwner { path, uid } => on(path, &|node| tree.set_owner(node, uid, 0)),
        Edit::SetColour { path, value } => on(path, &|node| {
            tree.set_xattr(node, OsStr::new(COLOUR), &[value])
        }),
        Edit::Fill { path } => {
            let (dir, name) = open(path)?;
            let file = tree.create_file(&dir, name, 0o600)?;
            let contents = vec![7; usize::try_from(FILL * MIB).unwrap_or(0)];
            let written = tree.write_at(&file, 0, &contents);
            let written = written.and_then(|()| tree.sync(Node::File(&file)));
            drop(file);
            tree.unlink(&dir, name)?;
            written
        }
    }
}
