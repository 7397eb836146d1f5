//! The freeze and its recovery against the simulated hypervisor: every crash point, then chance.

mod administrator;
mod cases;
mod checkpoints;
mod confined;
mod crashes;
mod fleet;
mod lost_answers;
mod odd;
mod offline;
mod random;
mod scene;
mod take_over;
