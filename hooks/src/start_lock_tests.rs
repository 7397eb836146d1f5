//! Guards alone; that the hook obeys them is in `tests/hook.rs`.

use super::*;
use crate::domain::DiskPath;
use proptest::prelude::*;

fn guest(paths: &[(&Path, DiskAccess)]) -> HookDomain {
    let disks = paths.iter().map(|(path, role)| DiskPath { path: path.display().to_string(), role: *role });
    HookDomain { uuid: Some("U-1".into()), name: Some("vm".into()), disks: disks.collect() }
}

#[test]
fn a_guard_lives_as_long_as_its_owner_holds_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("guards");
    assert!(alive(&dir).is_empty());
    let what = LockedDisks::new(Path::new("/disk"), LockReason::Reading, "backup");
    let first = StartLock::hold(&dir, &what).unwrap();
    let second = StartLock::hold(&dir, &what).unwrap();
    assert_eq!(alive(&dir), [what.clone(), what.clone()]);
    assert_eq!(sweep(&dir).unwrap(), 0);
    drop(second);
    assert_eq!(alive(&dir), std::slice::from_ref(&what));
    // The file stays and the lock goes, as when the owner is killed.
    fs::copy(&first.path, dir.join("99999999-0.json")).unwrap();
    fs::write(dir.join("junk.json"), "{").unwrap();
    assert_eq!(alive(&dir), [what]);
    assert_eq!(sweep(&dir).unwrap(), 2);
    drop(first);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
}

#[test]
fn conflicts_depend_on_who_writes() {
    let golden = Path::new("/images/golden");
    for (access, role, refused) in [
        (LockReason::Reading, DiskAccess::Read, false),
        (LockReason::Reading, DiskAccess::Written, true),
        (LockReason::Restoring, DiskAccess::Read, true),
        (LockReason::Restoring, DiskAccess::Written, true),
    ] {
        let guards = [LockedDisks::new(golden, access, "")];
        assert_eq!(
            conflict(&guards, "vm", &guest(&[(golden, role)])).is_some(),
            refused,
            "{access:?} {role:?}"
        );
    }
    let other = LockedDisks::new(golden, LockReason::Restoring, "").of_guest(Some("u-1".into()), None);
    assert!(conflict(std::slice::from_ref(&other), "vm", &guest(&[])).is_some(), "a uuid has no case");
    let named = [other.of_guest(None, Some("vm".into()))];
    assert!(conflict(&named, "vm", &HookDomain::default()).is_some());
    assert!(conflict(&named, "VM", &HookDomain::default()).is_none());
    assert!(conflict(&named, "", &HookDomain::default()).is_none());
    let nameless = [LockedDisks::new(golden, LockReason::Restoring, "")];
    assert!(conflict(&nameless, "vm", &HookDomain::default()).is_none());
}

#[test]
fn another_path_to_the_same_file_conflicts() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, link) = (dir.path().join("disk"), dir.path().join("link"));
    fs::write(&disk, "").unwrap();
    std::os::unix::fs::symlink(&disk, &link).unwrap();
    let guards = [LockedDisks::new(&disk, LockReason::Reading, "")];
    let through_link = guest(&[(&link, DiskAccess::Written)]);
    assert!(conflict(&guards, "other", &through_link).is_none());
    assert!(conflict_by_file(&guards, &through_link).is_some());
    assert!(conflict_by_file(&guards, &guest(&[(&link, DiskAccess::Read)])).is_none());
    assert!(conflict_by_file(&guards, &guest(&[(&dir.path().join("gone"), DiskAccess::Written)])).is_none());
}

proptest! {
    #[test]
    fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..100), reason in ".*") {
        prop_assert_eq!(LockedDisks::parse(&bytes), None);
        let what = LockedDisks::new(Path::new("/"), LockReason::Restoring, reason).of_guest(Some("u".into()), None);
        prop_assert_eq!(LockedDisks::parse(&serde_json::to_vec(&what).unwrap()), Some(what));
    }
}
