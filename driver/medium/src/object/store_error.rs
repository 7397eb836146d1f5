//! What an object store's failures mean, in virtfold's words: which kind of error, what to do, whether it may
//! pass.
//!
//! Texts of a store are cut down to its error code and message: what else is in them may be anything.

use object_store::Error as StoreError;

use super::limits::Excess;
use virtfold_base::error::{Error, ErrorKind, sentence};

/// The longest message of a store that is repeated, bytes.
const MAX_MESSAGE: usize = 200;
/// Codes of statuses 400 to 499 that say that the request did not arrive whole, or too soon: the same request
/// may succeed.
const PASSING: [&str; 7] = [
    "RequestTimeout",
    "SlowDown",
    "BadDigest",
    "IncompleteBody",
    "XAmzContentSHA256Mismatch",
    "ConditionalRequestConflict",
    "OperationAborted",
];

/// Whether the same request may succeed later: the store can't be reached, is not ready, or did not get all
/// of it.
pub(super) fn may_pass(error: &StoreError) -> bool {
    if Excess::among(error).is_some() {
        return false;
    }
    let text = sentence(error);
    let code = between(&text, "<Code>", "</Code>");
    if code.is_some_and(|code| PASSING.contains(&code)) {
        return true;
    }
    match status(&text) {
        Some(status) => status >= 500 && status != 501 || status == 408 || status == 429,
        None => matches!(error, StoreError::Generic { .. }) && !is_permanent(&text),
    }
}

/// What no waiting mends although no store has answered.
fn is_permanent(text: &str) -> bool {
    ["certificate", "invalid URL", "URL scheme is not allowed", "Missing", "builder error"]
        .iter()
        .any(|what| text.contains(what))
}

/// Whether there is no such upload any more.
pub(super) fn is_gone(error: &StoreError) -> bool {
    let text = sentence(error);
    matches!(error, StoreError::NotFound { .. })
        || between(&text, "<Code>", "</Code>") == Some("NoSuchUpload")
}

/// Whether the store does not know conditions.
pub(super) fn is_not_implemented(error: &StoreError) -> bool {
    let text = sentence(error);
    status(&text) == Some(501) || between(&text, "<Code>", "</Code>") == Some("NotImplemented")
}

/// The library's error: `what` was tried, and `error` came of it.
pub(super) fn explain(what: impl Into<String>, error: &StoreError) -> Error {
    if let Some(excess) = Excess::among(error) {
        return Error::new(ErrorKind::Io, format!("{}: {excess}", what.into())).with_hint(excess.hint());
    }
    let text = sentence(error);
    let is_missing = between(&text, "<Code>", "</Code>").is_some_and(|code| code.starts_with("NoSuch"));
    let (kind, hint) = match error {
        _ if is_missing || matches!(error, StoreError::NotFound { .. }) => {
            (ErrorKind::NotFound, "look at the address: bucket and key, and AWS_ENDPOINT_URL for the store")
        }
        StoreError::AlreadyExists { .. } => {
            (ErrorKind::Exists, "nothing is ever replaced in an object store")
        }
        StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => {
            (ErrorKind::Io, "look at the keys (AWS_ACCESS_KEY_ID or a profile), their rights, and AWS_REGION")
        }
        _ if text.contains("169.254.169.254") => (
            ErrorKind::Io,
            "no keys were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SHARED_CREDENTIALS_FILE, or run where the machine has a role",
        ),
        _ if is_full(&text) => (ErrorKind::NoSpace, "make room, or raise the quota"),
        _ => (ErrorKind::Io, "look at AWS_ENDPOINT_URL, and at the store"),
    };
    Error::new(kind, format!("{}: {}", what.into(), said(&text))).with_hint(hint)
}

fn is_full(text: &str) -> bool {
    let code = between(text, "<Code>", "</Code>");
    status(text) == Some(507)
        || matches!(
            code,
            Some("QuotaExceeded" | "EntityTooLarge" | "XMinioStorageFull" | "InsufficientStorage")
        )
}

fn status(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

fn between<'a>(text: &'a str, from: &str, to: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(from)?;
    rest.split_once(to).map(|(inner, _)| inner)
}

/// What the store said, or what kept it from saying anything.
fn said(text: &str) -> String {
    if let Some(code) = between(text, "<Code>", "</Code>") {
        let message = between(text, "<Message>", "</Message>").unwrap_or_default();
        let said = format!("the store says {}: {}", shortened(code), shortened(message));
        return said.trim_end_matches([' ', ':']).to_owned();
    }
    if let Some(status) = status(text) {
        return format!("the store answers with status {status}");
    }
    // The last cause is the nearest to what happened.
    shortened(text.rsplit(": ").next().unwrap_or(text))
}

fn shortened(text: &str) -> String {
    let mut end = text.len().min(MAX_MESSAGE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &str) -> StoreError {
        StoreError::Generic { store: "S3", source: text.to_owned().into() }
    }

    fn answer(status: &str, body: &str) -> StoreError {
        generic(&format!(
            "Error performing PUT http://h/b in 1s - Server returned non-2xx status code: {status}: {body}"
        ))
    }

    #[test]
    fn what_passes_is_told_from_what_does_not() {
        for error in [
            answer("503 Service Unavailable", ""),
            answer("500 Internal Server Error", "<Code>InternalError</Code>"),
            answer("429 Too Many Requests", ""),
            answer("400 Bad Request", "<Error><Code>RequestTimeout</Code></Error>"),
            answer("400 Bad Request", "<Error><Code>BadDigest</Code></Error>"),
            generic("HTTP error: error sending request: connection refused"),
        ] {
            assert!(may_pass(&error), "{error}");
        }
        for error in [
            answer("400 Bad Request", "<Error><Code>InvalidPart</Code></Error>"),
            answer("403 Forbidden", "<Error><Code>AccessDenied</Code></Error>"),
            answer("501 Not Implemented", ""),
            generic("HTTP error: error sending request: invalid peer certificate: UnknownIssuer"),
            StoreError::NotFound { path: "x".into(), source: "gone".into() },
        ] {
            assert!(!may_pass(&error), "{error}");
        }
        assert!(is_not_implemented(&answer("501 Not Implemented", "")));
    }

    #[test]
    fn a_store_s_words_are_cut_down_to_code_and_message() {
        let body = "<Error><Code>SignatureDoesNotMatch</Code><Message>no</Message><AWSAccessKeyId>AKIA</AWSAccessKeyId></Error>";
        let denied = StoreError::PermissionDenied {
            path: "a".into(),
            source: answer("403 Forbidden", body).to_string().into(),
        };
        let error = explain("cannot write 's3://b/a'", &denied);
        assert_eq!(error.to_string(), "cannot write 's3://b/a': the store says SignatureDoesNotMatch: no");
        assert!(!format!("{error:?}").contains("AKIA"));
        assert_eq!(explain("x", &answer("507 Insufficient Storage", "")).kind(), ErrorKind::NoSpace);
        assert!(explain("x", &answer("502 Bad Gateway", "<html>")).to_string().ends_with("status 502"));
        let gone = generic(
            "HTTP error: error sending request: tcp connect error: Connection refused (os error 111)",
        );
        assert!(explain("x", &gone).to_string().ends_with("Connection refused (os error 111)"));
    }
}
