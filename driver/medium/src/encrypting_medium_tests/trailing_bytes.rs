//! What is behind an encrypted archive that comes down a pipe: zeros are passed over, and nothing else is.

use super::{Lab, MARK, PLAIN, kind, noise};
use virtfold_base::error::ErrorKind;

#[test]
fn zeros_behind_a_pipe_are_passed_over() {
    let lab = Lab::new();
    for len in [0, 1, PLAIN - 1, PLAIN, PLAIN + 1, 2 * PLAIN + 500] {
        let plain = noise(len);
        let sealed = lab.seal(&plain);
        for zeros in [1, 15, 16, 17, 512, PLAIN + MARK, 3 * PLAIN] {
            let padded = [&sealed[..], &vec![0; zeros]].concat();
            assert_eq!(lab.pipe(&padded).unwrap(), plain, "{len} and {zeros} zeros");
            let odd = [&padded[..], &[1]].concat();
            assert!(
                matches!(kind(lab.pipe(&odd)), ErrorKind::Incomplete | ErrorKind::Damaged),
                "{len}, {zeros}"
            );
        }
    }
}

/// The authenticator is of random bytes: one in 256 ends with a zero.
#[test]
fn an_authenticator_that_ends_with_zeros_is_not_cut_short() {
    let lab = Lab::new();
    let plain = noise(300);
    let sealed = (0..100_000).map(|_| lab.seal(&plain)).find(|sealed| sealed.ends_with(&[0])).unwrap();
    assert_eq!(lab.pipe(&sealed).unwrap(), plain);
    assert_eq!(lab.pipe(&[&sealed[..], &[0; 700]].concat()).unwrap(), plain);
    assert_eq!(kind(lab.pipe(&sealed[..sealed.len() - 1])), ErrorKind::Incomplete);
}

/// Plain bytes that are zeros are none in the file.
#[test]
fn an_archive_of_zeros_keeps_them() {
    let lab = Lab::new();
    let plain = vec![0; PLAIN + 1000];
    assert_eq!(lab.pipe(&[&lab.seal(&plain)[..], &[0; 99]].concat()).unwrap(), plain);
}
