//! Tapes, against the kernel's real `st` driver: a machine in user mode (`machine`) with a tape drive in
//! software (`drive`) runs virtfold as a user does. `bench` holds what the cases share.

mod archives;
mod bench;
mod drive;
mod faults;
mod refusals;
mod st;
