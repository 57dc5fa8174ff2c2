use std::fmt;

use crate::paths::names;
use crate::{LINK_ID_LEN, LinkId, LinkIdError};

/// The complete list of layers below one layer, uppermost first: what its `lower` file says.
///
/// It is never expanded again: the first entry is the parent, the rest is the parent's own chain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LowerChain(Vec<LinkId>);

impl LowerChain {
    /// The chain of a child of the layer with link id `parent` and chain `parent_chain`.
    ///
    /// # Errors
    ///
    /// [`DepthExceeded`] when the result would have more than `max_depth` entries.
    pub fn for_child(
        parent: LinkId,
        parent_chain: &Self,
        max_depth: usize,
    ) -> Result<Self, DepthExceeded> {
        let depth = parent_chain.depth() + 1;
        if depth > max_depth {
            return Err(DepthExceeded { depth, max_depth });
        }
        let mut links = Vec::with_capacity(depth);
        links.push(parent);
        links.extend_from_slice(&parent_chain.0);
        Ok(Self(links))
    }

    /// Reads the contents of a `lower` file. One trailing newline is tolerated.
    ///
    /// # Errors
    ///
    /// [`LowerFileError`] for an empty file, for any entry that is not `l/` and a link id, and for
    /// an entry that stands there twice. Docker's driver mounts the whole home for an empty file.
    pub fn parse_file(contents: &[u8]) -> Result<Self, LowerFileError> {
        let contents = contents.strip_suffix(b"\n").unwrap_or(contents);
        if contents.is_empty() {
            return Err(LowerFileError::Empty);
        }
        let mut links: Vec<LinkId> = Vec::with_capacity(contents.len() / Self::ENTRY_LEN + 1);
        let prefix = [names::LINK_DIR.as_bytes(), b"/"].concat();
        for (index, entry) in contents.split(|&byte| byte == b':').enumerate() {
            let symbols =
                entry
                    .strip_prefix(prefix.as_slice())
                    .ok_or_else(|| LowerFileError::NotALink {
                        index,
                        entry: String::from_utf8_lossy(entry).into(),
                    })?;
            let link = LinkId::from_bytes(symbols)
                .map_err(|source| LowerFileError::BadLink { index, source })?;
            links.push(link);
        }
        let mut sorted = links.clone();
        sorted.sort_unstable();
        match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(LowerFileError::Duplicate { link: pair[0] }),
            None => Ok(Self(links)),
        }
    }

    /// How many layers are below.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is below: a base layer has no `lower` file.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The link of the parent, if there is one.
    #[must_use]
    pub fn parent(&self) -> Option<LinkId> {
        self.0.first().copied()
    }

    /// The links, uppermost first.
    #[must_use]
    pub fn links(&self) -> &[LinkId] {
        &self.0
    }

    /// Bytes in the `lower` file of a chain with `depth` entries: 3,711 for 128.
    #[must_use]
    pub const fn encoded_len(depth: usize) -> usize {
        // Each entry and a ':' between two of them.
        (depth * (Self::ENTRY_LEN + 1)).saturating_sub(1)
    }

    const ENTRY_LEN: usize = names::LINK_DIR.len() + 1 + LINK_ID_LEN;
}

impl FromIterator<LinkId> for LowerChain {
    fn from_iter<I: IntoIterator<Item = LinkId>>(links: I) -> Self {
        Self(links.into_iter().collect())
    }
}

/// Writes the form of the `lower` file: `l/AAA:l/BBB`, no newline.
impl fmt::Display for LowerChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, link) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ":" };
            write!(f, "{separator}{}/{link}", names::LINK_DIR)?;
        }
        Ok(())
    }
}

/// A layer would have more layers below it than the store allows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "max depth exceeded: the layer would stand on {depth} layers, this store allows {max_depth}"
)]
#[non_exhaustive]
pub struct DepthExceeded {
    /// Layers that would be below.
    pub depth: usize,
    /// Layers that may be below.
    pub max_depth: usize,
}

/// Why the contents of a `lower` file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LowerFileError {
    /// The file is empty.
    #[error("the file is empty")]
    Empty,
    /// An entry does not start with `l/`.
    #[error("entry {index} is {entry:?}, not l/ and a link id")]
    #[non_exhaustive]
    NotALink {
        /// Position in the list, from 0.
        index: usize,
        /// The entry.
        entry: String,
    },
    /// An entry names something that is not a link id.
    #[error("entry {index} does not name a link")]
    #[non_exhaustive]
    BadLink {
        /// Position in the list, from 0.
        index: usize,
        /// What is wrong with the name.
        source: LinkIdError,
    },
    /// The same link twice.
    #[error("the link {link} stands in the list twice")]
    #[non_exhaustive]
    Duplicate {
        /// The repeated link.
        link: LinkId,
    },
}
