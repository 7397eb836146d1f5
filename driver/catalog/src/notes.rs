//! What became known of archives when their heads were written: for example that a disk was detached from its
//! guest while it was copied. Like pins, by the archives' ids.
//!
//! Imports: `error`.

use std::collections::BTreeMap;

use rusqlite::params;
use uuid::Uuid;

use super::journal::Catalog;
use super::schema::Sql;
use virtfold_base::error::Result;

impl Catalog {
    /// Adds notes to an archive. Durable when it returns.
    ///
    /// # Errors
    /// The catalog can't be written.
    pub fn annotate(&self, archive: Uuid, notes: &[String]) -> Result<()> {
        self.write(|transaction| {
            for note in notes {
                let insert = "INSERT OR IGNORE INTO archive_note (archive, note) VALUES (?1, ?2)";
                transaction.execute(insert, params![archive.to_string(), note])?;
            }
            Ok(())
        })
    }

    /// The notes of all archives that have some.
    ///
    /// # Errors
    /// The catalog can't be read.
    pub fn notes(&self) -> Result<BTreeMap<Uuid, Vec<String>>> {
        let read = || -> Sql<BTreeMap<Uuid, Vec<String>>> {
            let connection = self.connection();
            let mut statement = connection.prepare("SELECT archive, note FROM archive_note ORDER BY note")?;
            let mut rows = statement.query([])?;
            let mut notes: BTreeMap<Uuid, Vec<String>> = BTreeMap::new();
            while let Some(row) = rows.next()? {
                notes.entry(row.get::<_, String>(0)?.parse()?).or_default().push(row.get(1)?);
            }
            Ok(notes)
        };
        read().map_err(|e| self.unreadable(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_kept_once() {
        let state = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(state.path()).unwrap();
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let notes = ["disk 'vdb' was detached".to_owned(), "disk 'vda' was detached".to_owned()];
        catalog.annotate(one, &notes).unwrap();
        catalog.annotate(one, &notes).unwrap();
        catalog.annotate(other, &[]).unwrap();
        drop(catalog);
        let known = Catalog::open(state.path()).unwrap().notes().unwrap();
        assert_eq!(known, BTreeMap::from([(one, vec![notes[1].clone(), notes[0].clone()])]));
    }
}
