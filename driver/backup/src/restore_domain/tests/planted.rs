//! Links that QEMU's and swtpm's users, or the directory's owner, have planted where root restores.

use std::path::Path;

use super::world::{Lab, UUID};
use crate::attachments::{TOTAL_LIMIT, limit_of};
use virtfold_archive::reader::Visitor;
use virtfold_base::error::ErrorKind;
use virtfold_base::partial_file::Overwrite;
use virtfold_base::units::MIB;

/// A link of somebody else's.
fn plant(target: &Path, link: &Path) {
    std::fs::create_dir_all(link.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(target, link).unwrap();
    std::os::unix::fs::lchown(link, Some(65_533), None).unwrap();
}

fn forced(lab: &Lab) -> super::RestoreDomainRequest {
    super::RestoreDomainRequest { existing: Overwrite::Replace, ..lab.request() }
}

#[test]
fn a_planted_link_is_replaced_and_not_what_it_points_at() {
    let lab = Lab::new();
    lab.archive(&lab.xml(), 7);
    std::fs::create_dir(lab.at("root")).unwrap();
    let victims = ["disk", "nvram", "kernel"].map(|name| lab.at("root").join(name));
    for victim in &victims {
        std::fs::write(victim, b"root's own").unwrap();
    }
    std::fs::create_dir(lab.at("root/tpm")).unwrap();
    std::fs::write(lab.at("root/tpm/tpm2-00.permall"), b"root's own").unwrap();
    let tpm = lab.at(&format!("lib/swtpm/{UUID}/tpm2"));
    let places = [lab.at("out/web.img"), lab.at("out/web_VARS.fd"), lab.at("out/web.kernel")];
    for (victim, place) in victims.iter().zip(&places) {
        plant(victim, place);
    }
    plant(&lab.at("root/tpm"), &tpm);
    // Not replaced unless asked.
    let (kind, said) = lab.refused(&lab.request());
    assert_eq!(kind, ErrorKind::Exists, "{said}");
    lab.run(&forced(&lab)).unwrap();
    for victim in &victims {
        assert_eq!(std::fs::read(victim).unwrap(), b"root's own", "{}", victim.display());
    }
    assert_eq!(std::fs::read(lab.at("root/tpm/tpm2-00.permall")).unwrap(), b"root's own");
    assert_eq!((lab.first("out/web.img"), lab.first("out/web_VARS.fd")), (7, b'v'));
    for place in &places {
        assert!(place.symlink_metadata().unwrap().is_file(), "{}", place.display());
    }
    assert!(tpm.symlink_metadata().unwrap().is_dir());
    assert_eq!(std::fs::read(tpm.join("tpm2-00.permall")).unwrap(), b"tpm");
}

#[test]
fn a_planted_directory_leads_nowhere() {
    for planted in ["out", "lib/swtpm", &format!("lib/swtpm/{UUID}")] {
        let lab = Lab::new();
        lab.archive(&lab.xml(), 7);
        std::fs::create_dir(lab.at("root")).unwrap();
        if planted == "out" {
            std::fs::remove_dir(lab.at("out")).unwrap();
        }
        plant(&lab.at("root"), &lab.at(planted));
        let (kind, said) = lab.refused(&forced(&lab));
        assert_eq!(kind, ErrorKind::Denied, "{planted}: {said}");
        assert!(said.contains("others can have made"), "{planted}: {said}");
        assert_eq!(std::fs::read_dir(lab.at("root")).unwrap().count(), 0);
    }
}

/// An image that an administrator reaches by a link of root's own.
#[test]
fn a_link_of_root_s_own_is_followed() {
    let lab = Lab::new();
    lab.archive(&lab.xml(), 7);
    std::fs::create_dir(lab.at("elsewhere")).unwrap();
    std::fs::write(lab.at("elsewhere/web.img"), b"old").unwrap();
    std::os::unix::fs::symlink(lab.at("elsewhere/web.img"), lab.at("out/web.img")).unwrap();
    lab.run(&forced(&lab)).unwrap();
    assert_eq!(lab.first("elsewhere/web.img"), 7);
    assert!(lab.at("out/web.img").symlink_metadata().unwrap().is_symlink());
}

/// A small archive of a thousand TPM files of 4 MiB, front to back.
#[test]
fn attachments_that_are_many_are_bounded_together() {
    let mut visitor = super::archived_domain::HeadVisitor::default();
    let size = limit_of("tpm/a").unwrap();
    let fit = TOTAL_LIMIT / size;
    for number in 0..fit {
        visitor.other(&format!("tpm/{number}"), size).unwrap();
    }
    let error = visitor.other("tpm/more", size).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.to_string().contains(&format!("more than {} MiB", TOTAL_LIMIT / MIB)), "{error}");
}
