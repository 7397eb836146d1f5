//! What is known of a guest that is gone, and how that goes: its entries in the queue and its closed jobs.
//! What is known of its archives stays, as they do.
//!
//! Imports: `error`, plain types of `hypervisor`.

use rusqlite::params;

use super::journal::Catalog;
use super::schema::Sql;
use virtfold_base::error::Result;
use virtfold_hypervisor::DomainId;

/// A domain that something is known of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownDomain {
    /// Its uuid.
    pub id: DomainId,
    /// What it was called last.
    pub name: String,
}

/// What is known of a domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traces {
    /// Runs in the queue that have ended, or wait.
    pub runs: u64,
    /// Runs that go on.
    pub running: u64,
    /// Closed jobs of the journal.
    pub history: u64,
    /// Copies of archives that are not known to be gone.
    pub archives: u64,
}

impl Catalog {
    /// The domains of a name, or the one of a uuid, that anything is known of.
    ///
    /// # Errors
    /// The catalog can't be read.
    pub fn known_domains(&self, name_or_uuid: &str) -> Result<Vec<KnownDomain>> {
        self.find_domains(name_or_uuid).map_err(|e| self.unreadable(e))
    }

    fn find_domains(&self, wanted: &str) -> Sql<Vec<KnownDomain>> {
        let id = wanted.parse::<DomainId>().ok().map(|id| id.to_string());
        let connection = self.connection();
        // Each table's last row of a domain has its last name; the queue's is the youngest.
        let query = "SELECT id, name FROM (
            SELECT domain AS id, name, max(rowid), 1 AS age FROM queue GROUP BY domain
            UNION ALL SELECT domain, name, max(rowid), 2 FROM freeze_session GROUP BY domain
            UNION ALL SELECT uuid, subject, max(created), 3 FROM backup WHERE uuid IS NOT NULL AND images = 0 GROUP BY uuid)
            WHERE name = ?1 OR id = ?2 ORDER BY age";
        let mut statement = connection.prepare(query)?;
        let mut rows = statement.query(params![wanted, id])?;
        let mut found: Vec<KnownDomain> = Vec::new();
        while let Some(row) = rows.next()? {
            let (id, name) = (row.get::<_, String>(0)?, row.get::<_, String>(1)?);
            let id = DomainId(id.parse()?);
            if found.iter().all(|known| known.id != id) {
                found.push(KnownDomain { id, name });
            }
        }
        Ok(found)
    }

    /// What is known of a domain.
    ///
    /// # Errors
    /// The catalog can't be read.
    pub fn traces(&self, domain: DomainId) -> Result<Traces> {
        let count = |query: &str| -> Sql<u64> {
            let count =
                self.connection().query_row(query, [domain.to_string()], |row| row.get::<_, i64>(0))?;
            Ok(u64::try_from(count)?)
        };
        let all = || -> Sql<Traces> {
            Ok(Traces {
                runs: count("SELECT count(*) FROM queue WHERE domain = ?1 AND state != 'running'")?,
                running: count("SELECT count(*) FROM queue WHERE domain = ?1 AND state = 'running'")?,
                history: count(
                    "SELECT count(*) FROM freeze_session WHERE domain = ?1 AND outcome IS NOT NULL",
                )?,
                archives: count("SELECT count(*) FROM backup WHERE uuid = ?1 AND removed IS NULL")?,
            })
        };
        all().map_err(|e| self.unreadable(e))
    }

    /// Forgets a domain but for its archives, all of it or nothing. What runs and what is open in the journal
    /// stays.
    ///
    /// # Errors
    /// The catalog can't be written.
    pub fn forget_domain(&self, domain: DomainId) -> Result<()> {
        self.write(|transaction| {
            let domain = domain.to_string();
            transaction.execute("DELETE FROM queue WHERE domain = ?1 AND state != 'running'", [&domain])?;
            transaction
                .execute("DELETE FROM freeze_session WHERE domain = ?1 AND outcome IS NOT NULL", [&domain])?;
            Ok(())
        })
    }
}
