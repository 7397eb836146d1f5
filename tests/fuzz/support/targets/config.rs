//! The configuration: whatever is read can be shown, and every job resolved; a refusal names a place in the
//! text.

use std::path::Path;

use virtfold_config::parse;

/// One input.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match parse(text, Path::new("c.yaml")) {
        Ok(config) => {
            assert!(!config.show().is_empty());
            for name in config.jobs.keys() {
                let job = config.job(name.as_str()).expect("a job of this name");
                assert_eq!(job.media.len(), job.job.to.len(), "every medium is there");
                job.job.domains.selects(name.as_str(), &["gold"]);
            }
        }
        Err(error) => assert!(error.to_string().starts_with("c.yaml:"), "{error}"),
    }
}
