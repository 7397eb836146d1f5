//! The numbers of signed archives, and which one came last: what makes a chain of a subject's archives, and
//! what nothing at a destination can tell.
//!
//! Numbers ascend for each subject and signer, over all destinations, and none is given twice: taking one is
//! durable before the archive is begun. Which archive is the last is noted for each destination when it is
//! finished.
//!
//! Imports: `error`.

use rusqlite::{OptionalExtension, Transaction, params};
use uuid::Uuid;

use super::journal::Catalog;
use super::schema::Sql;
use virtfold_base::error::Result;

/// A chain of archives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChainName {
    /// What they are of.
    pub subject: String,
    /// Who signs them.
    pub signer: String,
    /// Where they go, as the catalog calls it; several, where copies of each go to several.
    pub destination: String,
}

/// A finished archive of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainEntry {
    /// Its id.
    pub archive: Uuid,
    /// Its root, hexadecimal.
    pub root: String,
    /// Its number.
    pub sequence: u64,
}

/// The next archive of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextInChain {
    /// Its number.
    pub sequence: u64,
    /// The one that was finished last.
    pub previous: Option<ChainEntry>,
}

fn last(transaction: &Transaction<'_>, chain: &ChainName) -> Sql<Option<ChainEntry>> {
    let query = "SELECT archive, root, sequence FROM chain_last
                 WHERE subject = ?1 AND signer = ?2 AND destination = ?3";
    let row = transaction
        .query_row(query, params![chain.subject, chain.signer, chain.destination], |row| {
            Ok((row.get::<_, String>(0)?, row.get(1)?, row.get::<_, i64>(2)?))
        })
        .optional()?;
    let Some((archive, root, sequence)) = row else { return Ok(None) };
    Ok(Some(ChainEntry { archive: archive.parse()?, root, sequence: u64::try_from(sequence)? }))
}

/// Has later numbers of a subject begin behind `sequence`.
fn raise(transaction: &Transaction<'_>, chain: &ChainName, sequence: i64) -> Sql<()> {
    let raise = "INSERT INTO chain_number (subject, signer, taken) VALUES (?1, ?2, ?3)
                 ON CONFLICT (subject, signer) DO UPDATE SET taken = max(taken, ?3)";
    transaction.execute(raise, params![chain.subject, chain.signer, sequence])?;
    Ok(())
}

impl Catalog {
    /// Takes the next number of a chain. Durable when it returns.
    ///
    /// # Errors
    /// The catalog can't be written.
    pub fn next_in_chain(&self, chain: &ChainName) -> Result<NextInChain> {
        let mut next = NextInChain { sequence: 0, previous: None };
        self.write(|transaction| {
            let query = "SELECT taken FROM chain_number WHERE subject = ?1 AND signer = ?2";
            let key = params![chain.subject, chain.signer];
            let taken: Option<i64> = transaction.query_row(query, key, |row| row.get(0)).optional()?;
            let sequence = taken.unwrap_or(0).checked_add(1).ok_or("the numbers of archives are used up")?;
            raise(transaction, chain, sequence)?;
            next = NextInChain { sequence: u64::try_from(sequence)?, previous: last(transaction, chain)? };
            Ok(())
        })?;
        Ok(next)
    }

    /// Notes that an archive of a chain is finished: it is the last one, unless one with a higher number is.
    /// Durable when it returns.
    ///
    /// # Errors
    /// The catalog can't be written.
    pub fn note_in_chain(&self, chain: &ChainName, entry: &ChainEntry) -> Result<()> {
        self.write(|transaction| {
            let sequence = i64::try_from(entry.sequence)?;
            raise(transaction, chain, sequence)?;
            let put = "INSERT INTO chain_last (subject, signer, destination, archive, root, sequence)
                       VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                       ON CONFLICT (subject, signer, destination)
                       DO UPDATE SET archive = ?4, root = ?5, sequence = ?6 WHERE sequence < ?6";
            let archive = entry.archive.to_string();
            let ChainName { subject, signer, destination } = chain;
            transaction.execute(put, params![subject, signer, destination, archive, entry.root, sequence])?;
            Ok(())
        })
    }

    /// The last archive of each chain.
    ///
    /// # Errors
    /// The catalog can't be read.
    pub fn chains(&self) -> Result<Vec<(ChainName, ChainEntry)>> {
        let read = || -> Sql<Vec<(ChainName, ChainEntry)>> {
            let connection = self.connection();
            let query = "SELECT subject, signer, destination, archive, root, sequence FROM chain_last
                         ORDER BY subject, signer, destination";
            let mut statement = connection.prepare(query)?;
            let mut rows = statement.query([])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                let chain = ChainName { subject: row.get(0)?, signer: row.get(1)?, destination: row.get(2)? };
                let (archive, sequence) = (row.get::<_, String>(3)?, row.get::<_, i64>(5)?);
                let sequence = u64::try_from(sequence)?;
                found.push((chain, ChainEntry { archive: archive.parse()?, root: row.get(4)?, sequence }));
            }
            Ok(found)
        };
        read().map_err(|e| self.unreadable(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(destination: &str) -> ChainName {
        ChainName { subject: "domain:1".into(), signer: "web".into(), destination: destination.into() }
    }

    fn entry(sequence: u64) -> ChainEntry {
        ChainEntry { archive: Uuid::from_u128(u128::from(sequence)), root: "0f".repeat(32), sequence }
    }

    #[test]
    fn no_number_is_given_twice_and_each_destination_has_its_last() {
        let state = tempfile::tempdir().unwrap();
        let open = || Catalog::open(state.path()).unwrap();
        let first = open().next_in_chain(&chain("/a")).unwrap();
        assert_eq!(first, NextInChain { sequence: 1, previous: None });
        // A backup that failed: its number is gone, and it is nobody's predecessor.
        assert_eq!(open().next_in_chain(&chain("/a")).unwrap().sequence, 2);
        open().note_in_chain(&chain("/a"), &entry(2)).unwrap();
        let other = open().next_in_chain(&chain("/b")).unwrap();
        assert_eq!(other, NextInChain { sequence: 3, previous: None });
        assert_eq!(
            open().next_in_chain(&chain("/a")).unwrap(),
            NextInChain { sequence: 4, previous: Some(entry(2)) }
        );
        let second_signer = ChainName { signer: "db".into(), ..chain("/a") };
        assert_eq!(open().next_in_chain(&second_signer).unwrap().sequence, 1);
    }

    #[test]
    fn the_last_one_is_that_with_the_highest_number() {
        let state = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(state.path()).unwrap();
        for sequence in [5, 9, 7] {
            catalog.note_in_chain(&chain("/a"), &entry(sequence)).unwrap();
        }
        assert_eq!(catalog.chains().unwrap(), [(chain("/a"), entry(9))]);
        // A rebuilt catalog goes on behind what it was shown.
        assert_eq!(catalog.next_in_chain(&chain("/b")).unwrap().sequence, 10);
    }
}
