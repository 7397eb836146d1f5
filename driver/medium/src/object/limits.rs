//! What a store may answer: an endpoint that means harm, or is none, costs neither memory without bound nor a
//! key.
//!
//! - No redirect is followed. A signature is for one host, and a session's token would go to any other with
//!   it.
//! - A body ends where it must: a range has its length, everything else [`MAX_BODY`]. It is counted as it
//!   comes, for its head may lie.
//! - A listing has [`MAX_PAGES`] pages, counted from its first one, which names no page before it.
//!
//! And the crate completes an upload over whatever is there: the condition `If-None-Match: *` on that one
//! request has the store itself refuse to replace an object.
//!
//! Imports: `object_store`, and whatever HTTP it stands on.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt, LengthLimitError, Limited};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody,
    HttpService,
};

/// The longest answer that is no range, bytes. A page of a listing has up to 1000 keys of 1 KiB.
const MAX_BODY: u64 = 16 << 20;
/// What an error may have in the place of a range.
const ERROR: u64 = 64 << 10;
/// The most pages of a listing: a million objects, and as much again for pages that are not full.
const MAX_PAGES: u64 = 2000;

/// What is not taken of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Excess {
    /// It sends elsewhere.
    Redirect(u16),
    /// It sends more than was asked for.
    Length(u64),
    /// It lists without end.
    Pages,
}

impl Excess {
    /// The one that is among the causes of an error.
    pub(super) fn among(error: &(dyn std::error::Error + 'static)) -> Option<Self> {
        let mut cause = Some(error);
        while let Some(inner) = cause {
            if let Some(found) = inner.downcast_ref::<Self>() {
                return Some(*found);
            }
            cause = inner.source();
        }
        None
    }

    /// What a person can do.
    pub(super) fn hint(self) -> &'static str {
        match self {
            Self::Redirect(_) => {
                "no redirect is followed: it would take the keys' token elsewhere. Set AWS_ENDPOINT_URL and AWS_REGION to where the bucket is"
            }
            Self::Length(_) => {
                "the store, or what stands before it, is not to be trusted: look at AWS_ENDPOINT_URL"
            }
            Self::Pages => {
                "give the archives a prefix of their own in the bucket; a store that lists fewer objects than that is not to be trusted"
            }
        }
    }
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redirect(status) => write!(f, "the store answers with a redirect (status {status})"),
            Self::Length(limit) => write!(f, "the store sends more than was asked for (over {limit} bytes)"),
            Self::Pages => write!(f, "the store lists without end (over {MAX_PAGES} pages)"),
        }
    }
}

impl std::error::Error for Excess {}

impl From<Excess> for HttpError {
    fn from(excess: Excess) -> Self {
        // Of this kind nothing is tried again.
        Self::new(HttpErrorKind::Decode, excess)
    }
}

/// Makes connections within these limits.
#[derive(Clone, Copy, Debug)]
pub(super) struct LimitedConnector {
    /// The time that a request has.
    pub(super) time: Duration,
    /// Whether the endpoint may be one in the clear.
    pub(super) in_the_clear: InTheClear,
    /// Whether the store knows conditions.
    pub(super) overwrites: Overwrites,
}

/// Whether `http://` is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InTheClear {
    Never,
    Allowed,
}

/// Whether the completion of an upload asks for the name to be free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overwrites {
    Refused,
    Unchecked,
}

impl HttpConnector for LimitedConnector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = reqwest::Client::builder()
            .user_agent(concat!("virtfold/", env!("CARGO_PKG_VERSION")))
            .timeout(self.time)
            .connect_timeout(Duration::from_secs(10))
            .https_only(self.in_the_clear == InTheClear::Never)
            .redirect(reqwest::redirect::Policy::none())
            // A length is that of the object.
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            .build();
        let client = client.map_err(|e| object_store::Error::Generic { store: "S3", source: Box::new(e) })?;
        let inner = HttpClient::new(client);
        Ok(HttpClient::new(LimitedService { inner, overwrites: self.overwrites, pages: AtomicU64::new(0) }))
    }
}

struct LimitedService {
    inner: HttpClient,
    overwrites: Overwrites,
    pages: AtomicU64,
}

impl fmt::Debug for LimitedService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LimitedService")
    }
}

impl HttpService for LimitedService {
    fn call<'life0, 'async_trait>(
        &'life0 self,
        mut request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        let query = request.uri().query().unwrap_or_default();
        // POST with ?uploadId=... is CompleteMultipartUpload, and nothing else is. A header that is not
        // signed is allowed.
        let completes = request.method() == "POST" && query.contains("uploadId=");
        let lists = request.method() == "GET" && query.contains("list-type=2");
        let begins = lists && !query.contains("continuation-token=");
        if completes && self.overwrites == Overwrites::Refused {
            request.headers_mut().insert("if-none-match", object_store::HeaderValue::from_static("*"));
        }
        let limit = body_limit(&request);
        Box::pin(async move {
            if begins {
                self.pages.store(0, Ordering::Relaxed);
            }
            if lists && self.pages.fetch_add(1, Ordering::Relaxed) >= MAX_PAGES {
                return Err(Excess::Pages.into());
            }
            limited(self.inner.execute(request).await?, limit)
        })
    }
}

/// Bytes that the answer to `request` may have.
fn body_limit(request: &HttpRequest) -> u64 {
    let range = request.headers().get("range").and_then(|range| range.to_str().ok());
    let ends = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let ends = ends.and_then(|(from, to)| Some((from.parse::<u64>().ok()?, to.parse::<u64>().ok()?)));
    ends.map_or(MAX_BODY, |(from, to)| to.saturating_sub(from).saturating_add(1).max(ERROR))
}

/// The answer, where it is one, with its body counted.
fn limited(answer: HttpResponse, limit: u64) -> Result<HttpResponse, HttpError> {
    let status = answer.status();
    if status.is_redirection() && status.as_u16() != 304 {
        return Err(Excess::Redirect(status.as_u16()).into());
    }
    let most = usize::try_from(limit).unwrap_or(usize::MAX);
    Ok(answer.map(|body| {
        HttpResponseBody::new(Limited::new(body, most).map_err(move |error| {
            match error.downcast::<HttpError>() {
                Ok(theirs) => *theirs,
                Err(error) if error.is::<LengthLimitError>() => Excess::Length(limit).into(),
                Err(error) => HttpError::new_boxed(HttpErrorKind::Unknown, error),
            }
        }))
    }))
}
