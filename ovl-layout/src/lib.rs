//! Names, ids, paths and small-file formats of an overlay2 layer store.
//!
//! Everything here is a pure function of its arguments: no I/O, no unsafe code, no dependency but
//! `thiserror`. A home written with these formats is one that Docker 20.10 or newer can use.
//!
//! ```
//! use ovl_layout::{LayerId, Layout, LinkId, LowerChain};
//!
//! let id: LayerId = "base".parse()?;
//! let layout = Layout::new("/var/lib/ovl");
//! assert_eq!(layout.layer(&id).diff(), std::path::Path::new("/var/lib/ovl/base/diff"));
//!
//! let link = LinkId::from_entropy(*b"seventeen bytes!!");
//! let chain = LowerChain::for_child(link, &LowerChain::default(), 128)?;
//! assert_eq!(chain.to_string(), format!("l/{link}"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod chain;
mod id_map;
mod layer_id;
mod link_id;
mod paths;
mod record;
mod xattr;

pub use chain::{DepthExceeded, LowerChain, LowerFileError};
pub use id_map::{IdMap, IdMapError, IdMaps};
pub use layer_id::{LayerId, LayerIdError};
pub use link_id::{LinkId, LinkIdError};
pub use paths::{LayerPaths, Layout, LinkTargetError, names, parse_link_target};
pub use record::{Durability, DurabilityError, HomeSettings, LayerRecord, RecordError, SealReason};
pub use xattr::XattrNamespace;

/// Symbols in a link id.
pub const LINK_ID_LEN: usize = 26;
/// Random bytes behind one link id: `ceil(26 * 5 / 8)`.
pub const LINK_ID_ENTROPY: usize = 17;
/// Lower layers that Docker's driver allows below one layer.
pub const DOCKER_MAX_DEPTH: usize = 128;
/// Lower layers that a store may be raised to: a sealed layer mounts its own `diff` as one more,
/// and the kernel stops at 500 (`OVL_MAX_STACK` in `fs/overlayfs/params.h`).
pub const MAX_DEPTH: usize = 499;
