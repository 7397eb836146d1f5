//! The room that a restore needs, in words.

use virtfold_backup::restore::Room;
use virtfold_base::error::{Error, ErrorKind};
use virtfold_base::units::Human;

use super::report::printable;

/// A line for each file system.
pub(super) fn text(rooms: &[Room]) -> String {
    let line = |room: &Room| {
        let (needed, free) = (Human(room.needed), Human(room.free));
        let places = printable(&room.directories.join(", "));
        let shared = room
            .shared
            .map(|bytes| format!(" ({} where the data are shared with the archive)", Human(bytes)));
        format!("room: {needed} wanted in {places}{}, {free} free\n", shared.unwrap_or_default())
    };
    rooms.iter().map(line).collect()
}

/// Ends a plan that there is no room for.
///
/// # Errors
/// NoSpace, with the directories.
pub(super) fn check(rooms: &[Room]) -> Result<(), Error> {
    let short = rooms.iter().filter(|room| room.is_short());
    let short: Vec<String> = short.map(|room| room.directories.join("', '")).collect();
    if short.is_empty() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::NoSpace, format!("not enough free space in '{}'", short.join("', '"))))
}
