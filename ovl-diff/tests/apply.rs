//! Archives into layers. Tests that are named after a row tick off that row of the catalogue of
//! adversarial input.

mod catalogue;
mod compatibility;
mod links;
mod metadata;
mod names;
mod shapes;
mod sparse;
mod whiteouts;
