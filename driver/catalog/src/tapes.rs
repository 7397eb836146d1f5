//! What is known of tapes, in SQLite: a [`TapeCatalog`].
//!
//! Numbers are below 2^63: SQLite's integers have a sign, and so many blocks no tape has.

use rusqlite::{OptionalExtension, Row, Transaction, params};
use uuid::Uuid;

use super::journal::Catalog;
use super::schema::Sql;
use virtfold_base::error::Result;
use virtfold_medium::tape::{
    EarlierParts, PartHeader, PartLocation, PartTrailer, TapeBlock, TapeCatalog, VolumeContents, VolumeLabel,
    VolumePart, has_id,
};

/// The columns of [`read_placed`].
const PLACED: &str = "SELECT v.id, v.label, v.pool, v.block_size, v.created, v.retain_until, v.tool,
    p.file, p.start, p.run, p.archive, p.part, p.first_byte, p.before, p.created, p.blocks, p.bytes, p.digest, p.total, p.last
    FROM tape_part p JOIN tape_volume v ON v.id = p.volume";

fn put_volume(transaction: &Transaction<'_>, label: &VolumeLabel) -> Sql<()> {
    let block = i64::try_from(label.block_size.get())?;
    transaction.execute(
        "INSERT INTO tape_volume (id, label, pool, block_size, created, retain_until, tool)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (id) DO UPDATE SET label = ?2, pool = ?3, block_size = ?4, created = ?5, retain_until = ?6, tool = ?7",
        params![
            label.volume.to_string(),
            label.label,
            label.pool,
            block,
            label.created,
            label.retain_until,
            label.tool
        ],
    )?;
    Ok(())
}

fn put_part(transaction: &Transaction<'_>, part: &VolumePart) -> Sql<()> {
    let VolumePart { file, start, begin, end } = part;
    let number = |number: u64| i64::try_from(number);
    let optional =
        |pick: fn(&PartTrailer) -> u64| end.as_ref().map(|end| i64::try_from(pick(end))).transpose();
    transaction.execute(
        "INSERT OR REPLACE INTO tape_part
         (volume, file, start, run, archive, part, first_byte, before, created, blocks, bytes, digest, total, last)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
        params![
            begin.volume.to_string(),
            number(*file)?,
            number(*start)?,
            begin.run.to_string(),
            begin.archive,
            begin.part,
            number(begin.offset)?,
            serde_json::to_string(&begin.earlier)?,
            begin.created,
            optional(|end| end.blocks)?,
            optional(|end| end.bytes)?,
            end.as_ref().map(|end| end.digest.as_str()),
            optional(|end| end.total)?,
            end.as_ref().map(|end| end.last),
        ],
    )?;
    Ok(())
}

fn read_placed(row: &Row<'_>) -> Sql<PartLocation> {
    let text = |index: usize| row.get::<_, String>(index);
    let number = |index: usize| -> Sql<u64> { Ok(u64::try_from(row.get::<_, i64>(index)?)?) };
    let volume: Uuid = text(0)?.parse()?;
    let block_size = TapeBlock::new(number(3)?)?;
    let run: Uuid = text(9)?.parse()?;
    let part: u32 = row.get(11)?;
    let (file, start) = (number(7)?, number(8)?);
    let end = match row.get::<_, Option<String>>(17)? {
        None => None,
        Some(digest) => Some(PartTrailer {
            volume,
            run,
            part,
            file,
            start,
            blocks: number(15)?,
            bytes: number(16)?,
            digest,
            total: number(18)?,
            last: row.get(19)?,
        }),
    };
    let label = VolumeLabel {
        volume,
        label: text(1)?,
        pool: text(2)?,
        block_size,
        created: text(4)?,
        retain_until: row.get(5)?,
        tool: text(6)?,
    };
    let begin = PartHeader {
        volume,
        run,
        archive: text(10)?,
        part,
        offset: number(12)?,
        earlier: earlier(&text(13)?)?,
        block_size,
        created: text(14)?,
    };
    Ok(PartLocation { label, part: VolumePart { file, start, begin, end } })
}

/// What a begin says of the parts before it; in catalogs of before there was more to say, the labels alone.
fn earlier(text: &str) -> Sql<EarlierParts> {
    if text.starts_with('[') {
        return Ok(EarlierParts { volumes: serde_json::from_str(text)?, ..EarlierParts::default() });
    }
    Ok(serde_json::from_str(text)?)
}

fn forget(transaction: &Transaction<'_>, volume: Uuid) -> Sql<()> {
    transaction.execute("DELETE FROM tape_volume WHERE id = ?1", [volume.to_string()])?;
    Ok(())
}

impl Catalog {
    fn placed(&self, id: &str) -> Sql<Vec<PartLocation>> {
        let connection = self.connection();
        let mut statement = connection.prepare(&format!("{PLACED} ORDER BY p.run, p.part, p.file"))?;
        let mut rows = statement.query([])?;
        let mut placed = Vec::new();
        while let Some(row) = rows.next()? {
            if has_id(&row.get::<_, String>(10)?, id) {
                placed.push(read_placed(row)?);
            }
        }
        Ok(placed)
    }
}

impl TapeCatalog for Catalog {
    fn failure(&self, volume: Uuid) -> Result<Option<String>> {
        let query = "SELECT failed FROM tape_volume WHERE id = ?1";
        let failed = self.connection().query_row(query, [volume.to_string()], |row| row.get(0)).optional();
        failed.map(Option::flatten).map_err(|e| self.unreadable(e.into()))
    }

    fn committed(&self, placed: &PartLocation) -> Result<()> {
        self.write(|transaction| {
            put_volume(transaction, &placed.label)?;
            put_part(transaction, &placed.part)
        })
    }

    fn failed(&self, label: &VolumeLabel, why: &str) -> Result<()> {
        self.write(|transaction| {
            put_volume(transaction, label)?;
            let update = "UPDATE tape_volume SET failed = ?2 WHERE id = ?1";
            transaction.execute(update, params![label.volume.to_string(), why])?;
            Ok(())
        })
    }

    fn set_contents(&self, contents: &VolumeContents, replaced: Option<Uuid>) -> Result<()> {
        self.write(|transaction| {
            replaced.map_or(Ok(()), |volume| forget(transaction, volume))?;
            put_volume(transaction, &contents.label)?;
            let volume = contents.label.volume.to_string();
            transaction.execute("DELETE FROM tape_part WHERE volume = ?1", [volume])?;
            contents.parts.iter().try_for_each(|part| put_part(transaction, part))
        })
    }

    fn forget(&self, volume: Uuid) -> Result<()> {
        self.write(|transaction| forget(transaction, volume))
    }

    fn archives(&self, id: &str) -> Result<Vec<PartLocation>> {
        self.placed(id).map_err(|e| self.unreadable(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(volume: Uuid, part: u32) -> PartLocation {
        let label = VolumeLabel {
            volume,
            label: format!("VF{part}"),
            pool: "default".to_owned(),
            block_size: TapeBlock::default(),
            created: "2026-11-22T03:00:00Z".to_owned(),
            retain_until: (part == 2).then(|| "2027-11-22T03:00:00Z".to_owned()),
            tool: "virtfold 0".to_owned(),
        };
        let begin = PartHeader {
            volume,
            run: Uuid::nil(),
            archive: "web-20261122T030000Z-5f1c2d3e.tar.zst".to_owned(),
            part,
            offset: 7,
            earlier: EarlierParts { volumes: vec!["VF0".to_owned()], firsts: vec![1], again: part },
            block_size: TapeBlock::default(),
            created: "2026-11-22T03:00:01Z".to_owned(),
        };
        let end = PartTrailer {
            volume,
            run: Uuid::nil(),
            part,
            file: 2,
            start: 4,
            blocks: 5,
            bytes: 6,
            digest: "ab".repeat(32),
            total: 13,
            last: part == 2,
        };
        PartLocation { label, part: VolumePart { file: 2, start: 4, begin, end: (part != 3).then_some(end) } }
    }

    #[test]
    fn tapes_are_remembered_forgotten_and_filled_in_again() {
        let state = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(state.path()).unwrap();
        let volumes = [Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4()];
        let all: Vec<PartLocation> =
            volumes.iter().zip(1..).map(|(volume, part)| placed(*volume, part)).collect();
        all.iter().for_each(|placed| catalog.committed(placed).unwrap());
        drop(catalog);
        let catalog = Catalog::open(state.path()).unwrap();
        assert_eq!(catalog.archives("5f1c2d3e").unwrap(), all);
        assert_eq!(catalog.archives("00000000").unwrap(), []);
        catalog.failed(&all[0].label, "it broke").unwrap();
        assert_eq!(catalog.failure(volumes[0]).unwrap().as_deref(), Some("it broke"));
        assert_eq!(catalog.failure(volumes[1]).unwrap(), None);
        let parts = vec![all[0].part.clone()];
        let contents = VolumeContents { label: all[0].label.clone(), parts, blocks: 9, files: 4 };
        catalog.set_contents(&contents, Some(volumes[1])).unwrap();
        assert_eq!(catalog.archives("5f1c2d3e").unwrap(), [all[0].clone(), all[2].clone()]);
        assert!(catalog.failure(volumes[0]).unwrap().is_some(), "reading a tape makes it no better");
        catalog.forget(volumes[0]).unwrap();
        assert_eq!(catalog.archives("5f1c2d3e").unwrap(), [all[2].clone()]);
    }

    #[test]
    fn labels_alone_are_understood() {
        let known = earlier(r#"["A","B"]"#).unwrap();
        assert_eq!((known.volumes.len(), known.firsts.len(), known.again), (2, 0, 0));
        earlier("nonsense").unwrap_err();
    }
}
