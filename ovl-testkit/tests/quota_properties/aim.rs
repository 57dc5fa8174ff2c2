//! Where a step can do something.

use super::steps::Step;
use super::{Layer, Object, World, name_of};

impl World {
    /// The same step where it can do something, if there is such a place. Every fourth is left as
    /// it is.
    pub(super) fn aimed(&self, number: usize, step: &Step) -> Step {
        let mut step = step.clone();
        if number % 4 != 3 {
            self.aim(number, &mut step);
        }
        step
    }

    fn aim(&self, number: usize, step: &mut Step) {
        fn among<T: Copy>(place: &mut T, all: impl Iterator<Item = T>, number: usize) {
            let fitting: Vec<T> = all.collect();
            if let Some(chosen) = fitting.get(number % fitting.len().max(1)) {
                *place = *chosen;
            }
        }
        let slots = |fits: &dyn Fn(&Layer) -> bool| {
            let fitting = self.layers.iter().filter(|(_, layer)| fits(layer));
            fitting.map(|(slot, _)| *slot).collect::<Vec<_>>()
        };
        let has = |slot: u8, name: &str| {
            let layer = self.layers.get(&slot);
            layer.is_some_and(|layer| layer.contents.contains_key(name))
        };
        match step {
            Step::Create { slot, .. } => {
                let free = (0..3).filter(|slot| !self.layers.contains_key(slot));
                among(slot, free, number);
            }
            Step::Write { slot, name, .. } | Step::MakeDir { slot, name } => {
                among(slot, slots(&|_| true).into_iter(), number);
                let slot = *slot;
                among(
                    name,
                    (0..4).filter(|name| !has(slot, &name_of(*name))),
                    number,
                );
            }
            Step::Remove { slot, name } => {
                among(slot, slots(&|layer| layer.mounted).into_iter(), number);
                if let Some(layer) = self.layers.get(slot) {
                    let visible = |name: &u8| match layer.contents.get(&name_of(*name)) {
                        Some(here) => *here != Object::Whiteout,
                        None => layer.mounted && layer.has_below(&name_of(*name)),
                    };
                    among(name, (0..7).filter(visible), number);
                }
            }
            Step::CopyUp { slot, lower } => {
                let fits = |layer: &Layer| layer.mounted && layer.child;
                among(slot, slots(&fits).into_iter(), number);
                let slot = *slot;
                let below = |lower: &u8| !has(slot, &name_of(4 + lower));
                among(lower, (0..3).filter(below), number);
            }
            Step::Tighten { slot } => {
                among(slot, slots(&|layer| layer.mounted).into_iter(), number);
            }
            Step::Limit { slot, .. } | Step::Drop { slot } => {
                among(slot, slots(&|_| true).into_iter(), number);
            }
            Step::Apply { slot, .. } | Step::Mount { slot } => {
                among(slot, slots(&|layer| !layer.mounted).into_iter(), number);
            }
            Step::Unmount { slot } => {
                among(slot, slots(&|layer| layer.mounted).into_iter(), number);
            }
            Step::Kill { at, .. } => self.aim(number, at),
            Step::Reclaim | Step::Reopen => {}
        }
    }
}
