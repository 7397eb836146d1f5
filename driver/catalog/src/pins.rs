//! Archives that a person keeps, by their ids: all copies of one are kept.
//!
//! Imports: `error`.

use std::collections::BTreeSet;

use jiff::Timestamp;
use rusqlite::params;
use uuid::Uuid;

use super::journal::Catalog;
use super::schema::Sql;
use virtfold_base::error::Result;

impl Catalog {
    /// Notes that a person keeps an archive. Durable when it returns.
    ///
    /// # Errors
    /// The catalog can't be written.
    pub fn pin(&self, archive: Uuid, now: Timestamp) -> Result<()> {
        self.write(|transaction| {
            let insert = "INSERT OR IGNORE INTO pin (archive, since) VALUES (?1, ?2)";
            transaction.execute(insert, params![archive.to_string(), now.as_second()])?;
            Ok(())
        })
    }

    /// Takes [`Catalog::pin`] back; says whether there was one.
    ///
    /// # Errors
    /// The catalog can't be written.
    pub fn unpin(&self, archive: Uuid) -> Result<bool> {
        let mut gone = 0;
        self.write(|transaction| {
            gone = transaction.execute("DELETE FROM pin WHERE archive = ?1", [archive.to_string()])?;
            Ok(())
        })?;
        Ok(gone > 0)
    }

    /// All archives that a person keeps.
    ///
    /// # Errors
    /// The catalog can't be read.
    pub fn pins(&self) -> Result<BTreeSet<Uuid>> {
        let read = || -> Sql<BTreeSet<Uuid>> {
            let connection = self.connection();
            let mut statement = connection.prepare("SELECT archive FROM pin")?;
            let mut rows = statement.query([])?;
            let mut pins = BTreeSet::new();
            while let Some(row) = rows.next()? {
                pins.insert(row.get::<_, String>(0)?.parse()?);
            }
            Ok(pins)
        };
        read().map_err(|e| self.unreadable(e))
    }
}
