//! What a store remembers of layers that others stand on: a chain of hundreds is not read again for
//! each mount.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ovl_diff::{DeviceNumber, Node, Timestamp};
use ovl_layout::{LayerId, LinkId};
use ovl_mount::{MountPlan, Strategy};

use super::Overlay2;
use super::layer::{Below, Contents, Layer, Lower, MOUNTED_OVER};
use crate::error::Error;

/// Many more than all chains of a busy machine have; whoever has more reads some again.
const MOST: usize = 16 * 1024;

/// Longer than a tick of any file system's clock: up to Linux 6.12 changes have the time of the last
/// timer interrupt, of which there are 100 to 1000 a second.
const YOUNG: Duration = Duration::from_millis(20);

/// Lower layers that were found in order, by their links.
#[derive(Debug, Default)]
pub(super) struct KnownLowers(Mutex<HashMap<LinkId, KnownLower>>);

#[derive(Clone, Debug)]
struct KnownLower {
    id: LayerId,
    seen: Seen,
    /// The next link of its chain, and how many there are.
    below: (Option<LinkId>, usize),
    recorded: bool,
    contents: Contents,
}

/// How the directory of all links was before anything was read, and the layer's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// None while it was too young.
    links: Option<Stamp>,
    dir: Stamp,
}

/// What tells a directory from any other, and from itself with other entries, unless it is younger
/// than [`YOUNG`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    dev: DeviceNumber,
    ino: u64,
    ctime: Timestamp,
}

/// What the file system's clock showed lately, and how the directory of links was then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    now: Timestamp,
    links: Stamp,
}

impl Moment {
    /// A change in the same tick of the clock as the one before would not be seen.
    fn is_young(&self, stamp: Stamp) -> bool {
        let nanos =
            |time: Timestamp| i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos);
        nanos(self.now) - nanos(stamp.ctime) < YOUNG.as_nanos().cast_signed()
    }

    fn old_links(&self) -> Option<Stamp> {
        (!self.is_young(self.links)).then_some(self.links)
    }
}

impl KnownLowers {
    fn lock(&self) -> MutexGuard<'_, HashMap<LinkId, KnownLower>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Overlay2 {
    /// None where something cannot be seen: reading will tell why.
    pub(super) fn moment(&self, layer: &Layer) -> Option<Moment> {
        let links = self.stamp_of(Node::Dir(&self.links))?;
        let dir = self.stamp_of(Node::Dir(&layer.dir))?;
        let now = links.ctime.max(dir.ctime);
        Some(Moment { now, links })
    }

    /// The layer at a place of a chain, if it was in order and has not changed.
    pub(super) fn known_lower(
        &self,
        chain: &[LinkId],
        at: usize,
        moment: Moment,
        contents: Contents,
    ) -> Option<Lower> {
        let link = chain[at];
        let known = self.known_lowers.lock().get(&link).cloned()?;
        if contents == Contents::Opened && known.contents != contents {
            return None;
        }
        let KnownLower { id, recorded, .. } = known;
        if known.below != below(chain, at) || known.seen.dir != self.dir_stamp(&id)? {
            return None;
        }
        if known.seen.links != Some(moment.links) {
            // Some link has come or gone.
            if self.resolve(&id, link).ok()? != id {
                return None;
            }
            if let Some(known) = self.known_lowers.lock().get_mut(&link)
                && known.id == id
            {
                known.seen.links = moment.old_links();
            }
        }
        Some(Lower {
            id,
            recorded,
            volatile: None,
        })
    }

    /// How a layer is before it is read; none for one that has changed just now.
    pub(super) fn see_lower(&self, id: &LayerId, moment: Moment) -> Option<Seen> {
        let dir = self.dir_stamp(id)?;
        let links = moment.old_links();
        (!moment.is_young(dir)).then_some(Seen { links, dir })
    }

    /// Remembers a layer that was found in order. One that was mounted volatile is read every time.
    pub(super) fn remember_lower(
        &self,
        chain: &[LinkId],
        at: usize,
        seen: Seen,
        lower: &Lower,
        contents: Contents,
    ) {
        if lower.volatile.is_some() {
            return;
        }
        let mut known = self.known_lowers.lock();
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(
            chain[at],
            KnownLower {
                id: lower.id.clone(),
                seen,
                below: below(chain, at),
                recorded: lower.recorded,
                contents,
            },
        );
    }

    /// Refuses layers over whose contents or links something is mounted, which their stamps do not
    /// tell, where the kernel is given paths: other ways open them and find it.
    pub(super) fn refuse_covered(
        &self,
        layer: &Layer,
        below: &Below,
        plan: &MountPlan,
    ) -> Result<(), Error> {
        if matches!(plan.strategy(), None | Some(Strategy::LayersByFd)) {
            return Ok(());
        }
        let covered = |id: &LayerId, path: &Path| match self.is_mounted(path)? {
            false => Ok(()),
            true => Err(Error::damaged(id, path.to_owned(), MOUNTED_OVER)),
        };
        covered(&layer.id, &self.layout.link_dir())?;
        // Else all of them were opened just now.
        let mut ids = below.ids.iter().filter(|_| below.remembered > 0);
        ids.try_for_each(|id| covered(id, self.layout.layer(id).diff()))
    }

    fn dir_stamp(&self, id: &LayerId) -> Option<Stamp> {
        self.stamp_of(Node::Entry(&self.home, id.as_ref()))
    }

    fn stamp_of(&self, node: Node<'_>) -> Option<Stamp> {
        let found = self.kernel.tree().metadata(node).ok()?;
        Some(Stamp {
            dev: found.dev,
            ino: found.ino,
            ctime: found.ctime,
        })
    }
}

/// Its own chain is this one's rest: the first link and the length say which, as each of the layers
/// was compared in whole with the one above it.
fn below(chain: &[LinkId], at: usize) -> (Option<LinkId>, usize) {
    let rest = &chain[at + 1..];
    (rest.first().copied(), rest.len())
}
