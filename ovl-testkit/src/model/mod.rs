//! The store against a model of it: random scripts of operations, by two processes on one home,
//! with kills and faults in between. After each step the result must be the one that the model
//! predicts, and at intervals the whole store must hold what the model does.
//!
//! ```
//! use ovl_testkit::model::{MockMachine, Step, replay};
//! use ovl_testkit::KernelProfile;
//!
//! let mut machine = MockMachine::new(KernelProfile::modern());
//! let script = [
//!     Step::Create { user: 0, layer: "a", parent: None },
//!     Step::Create { user: 1, layer: "b", parent: Some("a") },
//!     Step::Remove { user: 0, layer: "a", force: false },
//! ];
//! let summary = replay(&mut machine, &script)?;
//! assert_eq!(summary.done["Create"], 2);
//! assert_eq!(summary.refused["HasChildren"], 1);
//! # Ok::<(), ovl_testkit::model::Failure>(())
//! ```

mod damage;
mod machine;
mod reference;
mod run;
mod script;

pub use machine::{Machine, MockMachine};
pub use run::{Failure, Summary, replay, shrink};
pub use script::{Against, Archive, Edit, Harm, Put, Script, Step, scripts};
