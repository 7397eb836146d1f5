//! Chains that the caller names instead of the headers, as a hypervisor does when it starts a guest.

use super::Lab;
use crate::{DiskImage, Format, OpenOptions};
use virtfold_base::error::ErrorKind;
use virtfold_base::units::GuestOffset;

#[test]
fn the_caller_s_chain_counts_and_not_the_headers() {
    let lab = Lab::new();
    lab.img("create -q -f qcow2 base.qcow2 1M");
    lab.img("create -q -f raw other.raw 1M");
    lab.img("create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2");
    lab.io("qcow2", "base.qcow2", &["write -P 1 0 64k"]);
    lab.io("raw", "other.raw", &["write -P 2 0 64k"]);
    let first = |below: &[(std::path::PathBuf, Format)]| {
        let options = OpenOptions::default();
        let image = DiskImage::open_chain(&lab.path("top.qcow2"), Format::Qcow2, below, &options)?;
        let mut byte = [9];
        image.read(&image.allocation()?, GuestOffset::new(0), &mut byte)?;
        assert_eq!(image.source().chain.len(), below.len() + 1);
        virtfold_base::error::Result::Ok(byte[0])
    };
    let (base, other) = ((lab.path("base.qcow2"), Format::Qcow2), (lab.path("other.raw"), Format::Raw));
    assert_eq!(first(std::slice::from_ref(&base)).unwrap(), 1);
    assert_eq!(first(std::slice::from_ref(&other)).unwrap(), 2);
    assert_eq!(first(&[]).unwrap(), 0);
    assert_eq!(first(&[other, base]).unwrap_err().kind(), ErrorKind::Unsupported);
}
