//! What happens to layers, at random.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::PAGE;

#[derive(Clone, Debug)]
pub(super) enum Step {
    Create {
        slot: u8,
        child: bool,
        limits: Wanted,
    },
    /// Through the mount where there is one, else in the layer's directory.
    Write {
        slot: u8,
        name: u8,
        len: u64,
    },
    MakeDir {
        slot: u8,
        name: u8,
    },
    /// Removes a file or an empty directory of the layer's own, or hides one below.
    Remove {
        slot: u8,
        name: u8,
    },
    CopyUp {
        slot: u8,
        lower: u8,
    },
    Limit {
        slot: u8,
        limits: Wanted,
    },
    /// No inode more than there are.
    Tighten {
        slot: u8,
    },
    Apply {
        slot: u8,
        name: u8,
        len: u64,
    },
    Mount {
        slot: u8,
    },
    Unmount {
        slot: u8,
    },
    Drop {
        slot: u8,
    },
    Reclaim,
    Reopen,
    /// The process is killed after so many calls, and another one goes on.
    Kill {
        calls: u64,
        at: Box<Self>,
    },
}

impl Step {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Create { .. } => "Create",
            Self::Write { .. } => "Write",
            Self::MakeDir { .. } => "MakeDir",
            Self::Remove { .. } => "Remove",
            Self::CopyUp { .. } => "CopyUp",
            Self::Limit { .. } => "Limit",
            Self::Tighten { .. } => "Tighten",
            Self::Apply { .. } => "Apply",
            Self::Mount { .. } => "Mount",
            Self::Unmount { .. } => "Unmount",
            Self::Drop { .. } => "Drop",
            Self::Reclaim => "Reclaim",
            Self::Reopen => "Reopen",
            Self::Kill { .. } => "Kill",
        }
    }
}

/// Limits relative to what an empty layer takes, which is not for this test to know.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) bytes: Option<Amount>,
    pub(super) inodes: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Amount {
    OneByte,
    /// Bytes more than an empty layer has, not all of them whole blocks.
    More(u64),
}

/// A life begins with a layer that has something below, mounted, which is not short of much.
pub(super) fn life() -> impl Strategy<Value = Vec<Step>> {
    let bytes = option::of((6 * PAGE..30 * PAGE).prop_map(Amount::More));
    let limits = (bytes, option::of(6..14_u64));
    (limits, vec(step(), 1..40)).prop_map(|((bytes, inodes), steps)| {
        let limits = Wanted { bytes, inodes };
        let (slot, child) = (0, true);
        let first = [
            Step::Create {
                slot,
                child,
                limits,
            },
            Step::Mount { slot },
        ];
        first.into_iter().chain(steps).collect()
    })
}

fn step() -> impl Strategy<Value = Step> {
    let slot = 0..3_u8;
    let at = (slot.clone(), 0..4_u8);
    let len = prop_oneof![Just(0), 1..20 * PAGE];
    let killed = prop_oneof![
        (slot.clone(), any::<bool>(), wanted()).prop_map(|(slot, child, limits)| Step::Create {
            slot,
            child,
            limits
        }),
        (slot.clone(), wanted()).prop_map(|(slot, limits)| Step::Limit { slot, limits }),
        (at.clone(), len.clone()).prop_map(|((slot, name), len)| Step::Apply { slot, name, len }),
        slot.clone().prop_map(|slot| Step::Drop { slot }),
    ];
    prop_oneof![
        4 => (slot.clone(), any::<bool>(), wanted())
            .prop_map(|(slot, child, limits)| Step::Create { slot, child, limits }),
        8 => (at.clone(), len.clone()).prop_map(|((slot, name), len)| Step::Write { slot, name, len }),
        2 => at.clone().prop_map(|(slot, name)| Step::MakeDir { slot, name }),
        5 => (slot.clone(), 0..8_u8).prop_map(|(slot, name)| Step::Remove { slot, name }),
        5 => (slot.clone(), 0..3_u8).prop_map(|(slot, lower)| Step::CopyUp { slot, lower }),
        3 => (slot.clone(), wanted()).prop_map(|(slot, limits)| Step::Limit { slot, limits }),
        3 => slot.clone().prop_map(|slot| Step::Tighten { slot }),
        3 => (at, len).prop_map(|((slot, name), len)| Step::Apply { slot, name, len }),
        4 => slot.clone().prop_map(|slot| Step::Mount { slot }),
        2 => slot.clone().prop_map(|slot| Step::Unmount { slot }),
        2 => slot.prop_map(|slot| Step::Drop { slot }),
        1 => Just(Step::Reclaim),
        1 => Just(Step::Reopen),
        3 => (0..300_u64, killed).prop_map(|(calls, at)| Step::Kill { calls, at: Box::new(at) }),
    ]
}

fn wanted() -> impl Strategy<Value = Wanted> {
    let bytes = prop_oneof![
        1 => Just(Amount::OneByte),
        6 => (0..40 * PAGE).prop_map(Amount::More),
    ];
    (option::of(bytes), option::of(0..12_u64)).prop_map(|(bytes, inodes)| Wanted { bytes, inodes })
}
