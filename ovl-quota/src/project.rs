use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU32;

/// The number of a project: 1 to 2^32 - 2.
///
/// 0 is the project of everything that has none, and 2^32 - 1 is the kernel's invalid id.
#[doc(alias = "projid")]
#[doc(alias = "prid")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProjectId(NonZeroU32);

impl ProjectId {
    /// The smallest id.
    pub const MIN: Self = Self(NonZeroU32::MIN);
    /// The largest id.
    pub const MAX: Self = match Self::new(u32::MAX - 1) {
        Some(id) => id,
        None => Self::MIN,
    };

    /// The project with this number; `None` for 0 and for 2^32 - 1.
    #[must_use]
    pub const fn new(id: u32) -> Option<Self> {
        match NonZeroU32::new(id) {
            Some(id) if id.get() != u32::MAX => Some(Self(id)),
            _ => None,
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    fn next(self) -> Option<Self> {
        Self::new(self.get() + 1)
    }
}

impl fmt::Display for ProjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<ProjectId> for u32 {
    fn from(id: ProjectId) -> Self {
        id.get()
    }
}

/// The ids from `first` to `last`, both included; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProjectRange {
    first: ProjectId,
    last: ProjectId,
}

impl ProjectRange {
    /// The ids from `first` to `last`; `None` if `last` comes before `first`.
    #[must_use]
    pub fn new(first: ProjectId, last: ProjectId) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// The ids that a home may use whose own directory has the project `base`: from `base + 2`, or
    /// from 2, to the largest. `None` if there is no such id.
    ///
    /// # Compatibility
    ///
    /// Docker counts from there too: an administrator reserves ids by giving the home a project.
    /// Docker tries out `base + 1`, so it is left alone.
    #[must_use]
    pub fn after_base(base: Option<ProjectId>) -> Option<Self> {
        let first = base
            .map_or(0, ProjectId::get)
            .checked_add(2)
            .and_then(ProjectId::new)?;
        Self::new(first, ProjectId::MAX)
    }

    /// The smallest id.
    #[must_use]
    pub fn first(&self) -> ProjectId {
        self.first
    }

    /// The largest id.
    #[must_use]
    pub fn last(&self) -> ProjectId {
        self.last
    }

    /// Whether `id` is one of them.
    #[must_use]
    pub fn contains(&self, id: ProjectId) -> bool {
        (self.first..=self.last).contains(&id)
    }
}

impl fmt::Display for ProjectRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.first, self.last)
    }
}

/// Hands out project ids of a range; an id that is in use is never handed out again.
///
/// The smallest free id comes first, so that released ids are used again and the quota files of the
/// file system stay small.
///
/// ```
/// use ovl_quota::{ProjectId, ProjectIds, ProjectRange};
///
/// let range = ProjectRange::new(ProjectId::MIN, ProjectId::MAX).ok_or("empty range")?;
/// let mut ids = ProjectIds::new(range);
/// let first = ids.allocate()?;
/// let second = ids.allocate()?;
/// assert_ne!(first, second);
/// ids.release(first);
/// assert_eq!(ids.allocate()?, first);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct ProjectIds {
    range: ProjectRange,
    used: BTreeSet<ProjectId>,
    /// No id before this one is free; `None` if none is.
    next: Option<ProjectId>,
}

impl ProjectIds {
    /// All ids of `range` are free.
    #[must_use]
    pub fn new(range: ProjectRange) -> Self {
        Self {
            range,
            used: BTreeSet::new(),
            next: Some(range.first),
        }
    }

    /// The ids it chooses from.
    #[must_use]
    pub fn range(&self) -> ProjectRange {
        self.range
    }

    /// Whether `id` was observed or handed out and not released since.
    #[must_use]
    pub fn is_used(&self, id: ProjectId) -> bool {
        self.used.contains(&id)
    }

    /// How many ids are in use.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.len()
    }

    /// Counts an id that was found on a directory or in the file system's quota as used. Tells
    /// whether it was free before; ids outside of the range are not counted and answer `false`.
    pub fn observe(&mut self, id: ProjectId) -> bool {
        self.range.contains(id) && self.used.insert(id)
    }

    /// Takes the smallest free id into use.
    ///
    /// # Errors
    /// [`IdsExhausted`] if none is free.
    pub fn allocate(&mut self) -> Result<ProjectId, IdsExhausted> {
        let mut candidate = self.next;
        while let Some(id) = candidate.filter(|&id| self.range.contains(id)) {
            candidate = id.next();
            if self.used.insert(id) {
                self.next = candidate;
                return Ok(id);
            }
        }
        self.next = None;
        Err(IdsExhausted { range: self.range })
    }

    /// Gives an id back. Tells whether it was in use.
    pub fn release(&mut self, id: ProjectId) -> bool {
        let was_used = self.used.remove(&id);
        if was_used {
            self.next = Some(self.next.map_or(id, |next| next.min(id)));
        }
        was_used
    }
}

/// All project ids of the range are in use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all project ids from {range} are in use; remove layers, or use a wider range")]
#[non_exhaustive]
pub struct IdsExhausted {
    /// The ids that could have been chosen.
    pub range: ProjectRange,
}
