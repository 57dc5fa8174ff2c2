//! Every fault and every power cut, for each operation of a store and for short scripts.

mod cases;
mod crashes;
mod faults;
mod scene;
