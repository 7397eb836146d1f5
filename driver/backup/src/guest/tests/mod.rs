//! The freeze and its recovery against the simulated hypervisor: every crash point, then chance.

mod adopt;
mod cases;
mod confined;
mod crashes;
mod odd;
mod people;
mod random;
mod rest;
mod scene;
mod torn;
