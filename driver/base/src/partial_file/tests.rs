//! Files that appear whole or not at all, whatever others do beside them.

use super::*;
use std::io::Write;

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn appears_only_by_commit() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.tar");
    let mut partial = PartialFile::create(&path, Overwrite::Refuse).unwrap();
    partial.file().write_all(b"data").unwrap();
    partial.wrote(WRITE_BACK_EVERY).unwrap();
    let seen = names(directory.path());
    assert!(seen.len() == 1 && seen[0].starts_with(".a.tar.") && seen[0].ends_with(".partial"), "{seen:?}");
    partial.commit(Overwrite::Refuse).unwrap();
    assert_eq!(names(directory.path()), ["a.tar"]);
    assert_eq!(std::fs::read(&path).unwrap(), b"data");
}

#[test]
fn a_dropped_one_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    drop(PartialFile::create(&directory.path().join("a"), Overwrite::Refuse).unwrap());
    assert!(names(directory.path()).is_empty());
}

#[test]
fn goes_on_behind_what_is_on_the_disk() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.tar");
    let mut partial = PartialFile::create(&path, Overwrite::Refuse).unwrap();
    let told = Arc::new(AtomicU64::new(0));
    let heard = Arc::clone(&told);
    partial.on_synced(Box::new(move |bytes| heard.store(bytes, Ordering::SeqCst)));
    let (temporary, identity) = (partial.temporary().to_owned(), partial.identity().unwrap());
    std::thread::sleep(SYNC_EVERY);
    let start = Instant::now();
    while told.load(Ordering::SeqCst) == 0 {
        assert!(start.elapsed() < Duration::from_secs(30));
        partial.file().write_all(b"12").unwrap();
        partial.wrote(2).unwrap();
        // As if it had been a lot.
        partial.flusher.due = WRITE_BACK_EVERY;
    }
    let len = told.load(Ordering::SeqCst);
    // As a process that dies: nothing is removed.
    partial.committed = true;
    drop(partial);
    let left = LeftoverFile { path: &path, temporary: &temporary, identity };
    let other = LeftoverFile { identity: (identity.0, identity.1 + 1), ..left };
    assert!(PartialFile::reopen(&other, len).unwrap().is_none(), "another file");
    assert!(PartialFile::reopen(&left, 1 << 30).unwrap().is_none(), "too short");
    let partial = PartialFile::reopen(&left, len).unwrap().unwrap();
    partial.file().write_all(b"end").unwrap();
    partial.commit(Overwrite::Refuse).unwrap();
    let all = std::fs::read(&path).unwrap();
    assert_eq!((all.len() as u64, &all[all.len() - 5..]), (len + 3, b"12end".as_slice()));
    assert!(PartialFile::reopen(&left, len).unwrap().is_none(), "it is not there");
}

#[test]
fn only_that_file_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a");
    std::fs::write(&path, b"theirs").unwrap();
    let found = path.metadata().unwrap();
    remove_partial(&path, (found.dev(), found.ino() + 1));
    assert!(path.exists());
    remove_partial(&path, (found.dev(), found.ino()));
    assert!(!path.exists());
    remove_partial(&path, (0, 0));
}

#[test]
fn never_replaces_unless_asked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a");
    let late = PartialFile::create(&path, Overwrite::Refuse).unwrap();
    std::fs::write(&path, b"theirs").unwrap();
    let early = PartialFile::create(&path, Overwrite::Refuse).unwrap_err();
    assert_eq!(early.kind(), ErrorKind::Exists);
    let left = late.temporary().to_owned();
    let error = late.commit(Overwrite::Refuse).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists);
    assert!(error.to_string().contains(left.to_str().unwrap()) && error.hint().is_some(), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"theirs");
    std::fs::remove_file(left).expect("what is finished stays");
    let small = PartialFile::create(&directory.path().join("b"), Overwrite::Refuse).unwrap();
    std::fs::write(directory.path().join("b"), b"theirs").unwrap();
    assert_eq!(small.commit_or_drop(Overwrite::Refuse).unwrap_err().kind(), ErrorKind::Exists);
    std::fs::remove_file(directory.path().join("b")).unwrap();
    PartialFile::create(&path, Overwrite::Replace).unwrap().commit(Overwrite::Replace).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"");
    assert_eq!(names(directory.path()), ["a"]);
}

/// The directory's owner puts another file under the partial name, at whatever moment.
#[test]
fn a_file_that_somebody_else_put_under_the_name_is_not_taken_for_ours() {
    for done in [PartialFile::commit, PartialFile::commit_or_drop] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        std::fs::write(&path, b"the good one of yesterday").unwrap();
        let partial = PartialFile::create(&path, Overwrite::Replace).unwrap();
        partial.file().write_all(b"ours").unwrap();
        let left = partial.temporary().to_owned();
        std::fs::rename(&left, folder.path().join("stolen")).unwrap();
        std::fs::write(&left, b"theirs").unwrap();
        let error = done(partial, Overwrite::Replace).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
        assert!(error.to_string().contains("is another file than the one that was written"), "{error:?}");
        assert_eq!(std::fs::read(&path).unwrap(), b"the good one of yesterday");
        assert_eq!(std::fs::read(&left).unwrap(), b"theirs", "what is not ours is not removed");
    }
    let folder = tempfile::tempdir().unwrap();
    let partial = PartialFile::create(&folder.path().join("a"), Overwrite::Refuse).unwrap();
    std::fs::rename(partial.temporary(), folder.path().join("stolen")).unwrap();
    let error = partial.commit(Overwrite::Refuse).unwrap_err();
    assert!(error.to_string().contains("is not there any more"), "{error:?}");
    assert_eq!(names(folder.path()), ["stolen"]);
}

#[test]
fn a_link_is_replaced_itself_and_one_of_others_leads_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("victim")).unwrap();
    std::fs::write(at("victim/a"), b"victim").unwrap();
    std::os::unix::fs::symlink("victim/a", at("a")).unwrap();
    PartialFile::create(&at("a"), Overwrite::Replace).unwrap().commit(Overwrite::Replace).unwrap();
    assert!(at("a").symlink_metadata().unwrap().is_file());
    std::os::unix::fs::symlink("victim", at("theirs")).unwrap();
    std::os::unix::fs::lchown(at("theirs"), Some(65_533), None).unwrap();
    let error = PartialFile::create(&at("theirs/a"), Overwrite::Replace).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    assert_eq!(names(&at("victim")), ["a"]);
    // The directory is moved away and a link takes its place in the midst.
    std::fs::create_dir(at("open")).unwrap();
    let partial = PartialFile::create(&at("open/a"), Overwrite::Replace).unwrap();
    std::fs::rename(at("open"), at("moved")).unwrap();
    std::os::unix::fs::symlink("victim", at("open")).unwrap();
    partial.commit(Overwrite::Replace).unwrap();
    assert!(at("moved/a").exists());
    assert_eq!(std::fs::read(at("victim/a")).unwrap(), b"victim");
}
