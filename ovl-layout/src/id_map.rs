use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

/// The id that stands for "no id" in every call that sets an owner.
const NO_ID: u32 = u32::MAX;

/// How owners inside a container stand for owners on disk: ranges of the same length, as in
/// `/proc/<pid>/uid_map`.
///
/// An empty map is no map: every id stands for itself.
///
/// ```
/// use ovl_layout::IdMap;
///
/// let map: IdMap = "0:100000:65536".parse()?;
/// assert_eq!(map.to_host(0), Some(100_000));
/// assert_eq!(map.to_container(100_007), Some(7));
/// assert_eq!(map.to_host(70_000), None);
/// assert_eq!(IdMap::default().to_host(70_000), Some(70_000));
/// # Ok::<(), ovl_layout::IdMapError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct IdMap(Vec<IdRange>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct IdRange {
    container: u32,
    host: u32,
    count: u32,
}

impl IdMap {
    /// Whether every id stands for itself.
    #[must_use]
    pub fn is_identity(&self) -> bool {
        self.0.is_empty()
    }

    /// The id on disk of an id inside a container, `None` where the map has none.
    #[must_use]
    pub fn to_host(&self, id: u32) -> Option<u32> {
        self.translate(id, |range| (range.container, range.host))
    }

    /// The id inside a container of an id on disk, `None` where the map has none.
    #[must_use]
    pub fn to_container(&self, id: u32) -> Option<u32> {
        self.translate(id, |range| (range.host, range.container))
    }

    /// The id on disk of the container's root.
    #[must_use]
    pub fn root(&self) -> u32 {
        // A map that is not empty holds it.
        self.to_host(0).unwrap_or(0)
    }

    fn translate(&self, id: u32, ends: impl Fn(&IdRange) -> (u32, u32)) -> Option<u32> {
        if self.0.is_empty() {
            return Some(id);
        }
        self.0.iter().find_map(|range| {
            let (from, to) = ends(range);
            let offset = id.checked_sub(from)?;
            (offset < range.count).then_some(to + offset)
        })
    }
}

/// Reads `C:H:N`, or several of them with commas between: `N` ids from `C` inside a container are
/// the ids from `H` on disk.
impl FromStr for IdMap {
    type Err = IdMapError;

    fn from_str(text: &str) -> Result<Self, IdMapError> {
        let ranges: Vec<IdRange> = text.split(',').map(parse).collect::<Result<_, _>>()?;
        for (index, range) in ranges.iter().enumerate() {
            for other in &ranges[..index] {
                let overlap = |one: u32, two: u32| {
                    u64::from(one) < u64::from(two) + u64::from(other.count)
                        && u64::from(two) < u64::from(one) + u64::from(range.count)
                };
                if overlap(range.container, other.container) || overlap(range.host, other.host) {
                    return Err(IdMapError::Overlap {
                        range: range.to_string(),
                        other: other.to_string(),
                    });
                }
            }
        }
        let map = Self(ranges);
        match map.to_host(0) {
            Some(_) => Ok(map),
            None => Err(IdMapError::NoRoot),
        }
    }
}

fn parse(text: &str) -> Result<IdRange, IdMapError> {
    let shape = || IdMapError::Shape {
        text: text.to_owned(),
    };
    let fields: Vec<&str> = text.split(':').collect();
    let [container, host, count] = fields[..] else {
        return Err(shape());
    };
    let number = |field: &str| match field.bytes().all(|byte| byte.is_ascii_digit()) {
        true => field.parse().map_err(|source| IdMapError::Number {
            text: field.to_owned(),
            source,
        }),
        false => Err(shape()),
    };
    let range = IdRange {
        container: number(container)?,
        host: number(host)?,
        count: number(count)?,
    };
    if range.count == 0 {
        return Err(IdMapError::Empty {
            range: text.to_owned(),
        });
    }
    // The end may be `NO_ID`, which is not in the range then.
    let fits = |first: u32| first.checked_add(range.count).is_some();
    match fits(range.container) && fits(range.host) {
        true => Ok(range),
        false => Err(IdMapError::TooLarge {
            range: text.to_owned(),
        }),
    }
}

impl fmt::Display for IdRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.container, self.host, self.count)
    }
}

/// Writes the form that it reads; nothing for no map.
impl fmt::Display for IdMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "," };
            write!(f, "{separator}{range}")?;
        }
        Ok(())
    }
}

/// The maps of user and group ids.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct IdMaps {
    /// Of user ids.
    pub uids: IdMap,
    /// Of group ids.
    pub gids: IdMap,
}

impl IdMaps {
    /// Whether every id stands for itself.
    #[must_use]
    pub fn is_identity(&self) -> bool {
        self.uids.is_identity() && self.gids.is_identity()
    }
}

/// Why a text is not an id map.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdMapError {
    /// Not three numbers.
    #[error("{text:?} is not CONTAINER:HOST:COUNT, three decimal numbers")]
    #[non_exhaustive]
    Shape {
        /// The text.
        text: String,
    },
    /// A number that no id can be.
    #[error("{text} is not an id")]
    #[non_exhaustive]
    Number {
        /// The number.
        text: String,
        /// What is wrong with it.
        source: ParseIntError,
    },
    /// A range of no ids.
    #[error("{range} has no ids; the third number says how many")]
    #[non_exhaustive]
    Empty {
        /// The range.
        range: String,
    },
    /// A range that goes beyond the largest id.
    #[error("{range} goes beyond {}, the largest id", NO_ID - 1)]
    #[non_exhaustive]
    TooLarge {
        /// The range.
        range: String,
    },
    /// Two ranges hold the same id.
    #[error("{range} and {other} overlap")]
    #[non_exhaustive]
    Overlap {
        /// One range.
        range: String,
        /// The other.
        other: String,
    },
    /// The container would have no root.
    #[error("no range holds the container's id 0; add one that begins with 0:")]
    NoRoot,
}
