//! The file systems that directories for archives were on when they were last used.
//!
//! Imports: `error`, `medium` (`MountPoint`).

use std::path::{Path, PathBuf};

use rusqlite::{OptionalExtension, params};

use super::backups::utf8;
use super::journal::Catalog;
use super::schema::Sql;
use virtfold_base::error::Result;
use virtfold_medium::mount_point::MountPoint;

impl Catalog {
    /// What the directory `place` (absolute, as people call it) was on; nothing for one that never had a
    /// mount.
    ///
    /// # Errors
    /// The catalog can't be read.
    pub fn mount_of(&self, place: &Path) -> Result<Option<MountPoint>> {
        let place = utf8(place)?;
        let read = || -> Sql<Option<MountPoint>> {
            let query = "SELECT point, file_system FROM mount WHERE destination = ?1";
            let found = self.connection().query_row(query, [&place], |row| {
                Ok(MountPoint { point: PathBuf::from(row.get::<_, String>(0)?), file_system: row.get(1)? })
            });
            Ok(found.optional()?)
        };
        read().map_err(|e| self.unreadable(e))
    }

    /// Notes what the directory `place` is on. Durable when it returns.
    ///
    /// # Errors
    /// The catalog can't be written; a path is no UTF-8.
    pub fn remember_mount(&self, place: &Path, mount: &MountPoint) -> Result<()> {
        let (place, point) = (utf8(place)?, utf8(&mount.point)?);
        self.write(|transaction| {
            transaction.execute(
                "INSERT INTO mount (destination, point, file_system) VALUES (?1, ?2, ?3)
                 ON CONFLICT (destination) DO UPDATE SET point = ?2, file_system = coalesce(?3, file_system)",
                params![place, point, mount.file_system],
            )?;
            Ok(())
        })
    }
}
