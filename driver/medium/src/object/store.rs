//! The connection to a bucket, and the asynchronous runtime, which nothing outside of this room sees.
//!
//! What the environment says of the store (endpoint, region, keys, style of addresses, proxies) is read by
//! the `object_store` crate; the file of keys by [`credentials`]. The crate repeats requests that fail for
//! the moment a few times; [`persist`] goes on for as long as the archive's writer has patience.
//!
//! What a store may answer, and that it replaces nothing, is the business of [`limits`](super::limits).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::future::Future;
use std::pin::pin;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, Checksum};
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, Error as StoreError, RetryConfig};
use tokio::runtime::Runtime;

use super::credentials;
use super::limits::{InTheClear, LimitedConnector, Overwrites};
use super::store_error::{explain, may_pass};
use crate::ObjectAddress;
use virtfold_archive::stream::{Cancel, check_cancel};
use virtfold_base::error::{Error, ErrorKind, Result};

/// How often a wait looks whether the run is to end.
const GLANCE: Duration = Duration::from_millis(200);
/// The time a request has beside that for its bytes.
const REQUEST: Duration = Duration::from_secs(60);
/// Bytes a second that a line has at least: with fewer, requests run out of time.
const SLOWEST: u64 = 128 << 10;
/// The first and the longest pause between attempts of [`persist`].
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What the crate answers.
pub(super) type StoreResult<T> = std::result::Result<T, StoreError>;

/// A bucket.
#[derive(Clone, Debug)]
pub(super) struct Store {
    pub(super) s3: AmazonS3,
    bucket: String,
}

impl Store {
    /// Gets ready to speak to the bucket of `address`, in requests of at most `largest` bytes. Nothing is
    /// sent yet. Whoever does so again gets the same client: its connections are used again, and the host's
    /// certificates and the keys are read once.
    ///
    /// # Errors
    /// What the environment says makes no sense; keys are in a file that is not theirs alone.
    pub(super) fn open(address: &ObjectAddress, largest: u64) -> Result<Self> {
        static CLIENTS: Mutex<BTreeMap<(String, u64), AmazonS3>> = Mutex::new(BTreeMap::new());
        let bucket = address.bucket.clone();
        let mut clients = CLIENTS.lock().unwrap_or_else(PoisonError::into_inner);
        let s3 = match clients.entry((bucket.clone(), largest)) {
            Entry::Occupied(known) => known.get().clone(),
            Entry::Vacant(new) => new.insert(client(address, largest)?).clone(),
        };
        Ok(Self { s3, bucket })
    }

    /// What an object is called.
    pub(super) fn name(&self, key: &Path) -> String {
        format!("s3://{}/{key}", self.bucket)
    }
}

/// A client for the bucket of `address`.
fn client(address: &ObjectAddress, largest: u64) -> Result<AmazonS3> {
    let cannot = |e: StoreError| {
        let message = format!("cannot use the object store of '{address}'");
        explain(message, &e).with_hint("look at the variables AWS_* of the environment")
    };
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(&address.bucket);
    let given = |key: &AmazonS3ConfigKey| builder.get_config_value(key);
    let has_keys = [
        AmazonS3ConfigKey::AccessKeyId,
        AmazonS3ConfigKey::SecretAccessKey,
        AmazonS3ConfigKey::WebIdentityTokenFile,
    ]
    .iter()
    .any(|key| given(key).is_some());
    let in_the_clear = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint]
        .iter()
        .find_map(given)
        .is_some_and(|endpoint| endpoint.starts_with("http://"));
    let has_checksum = given(&AmazonS3ConfigKey::Checksum).is_some();
    let keys = if has_keys || asks_machine() { None } else { credentials::from_file()? };
    if let Some(keys) = keys {
        builder = builder.with_access_key_id(keys.id).with_secret_access_key(keys.secret);
        builder = keys.token.into_iter().fold(builder, AmazonS3Builder::with_token);
    }
    if !has_checksum {
        // The signature needs the same digest: it is made once.
        builder = builder.with_checksum_algorithm(Checksum::SHA256);
    }
    let time = REQUEST + Duration::from_secs(largest / SLOWEST);
    // Whoever names such an endpoint wants it: a store of one's own.
    let in_the_clear = if in_the_clear { InTheClear::Allowed } else { InTheClear::Never };
    let retry = RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(5),
            base: 2.0,
        },
        max_retries: 4,
        retry_timeout: Duration::from_secs(60),
    };
    let unchecked = std::env::var("AWS_CONDITIONAL_PUT").is_ok_and(|how| how == "disabled");
    let overwrites = if unchecked { Overwrites::Unchecked } else { Overwrites::Refused };
    let connector = LimitedConnector { time, in_the_clear, overwrites };
    let mut options = ClientOptions::new();
    if in_the_clear == InTheClear::Allowed {
        options = options.with_allow_http(true);
    }
    let builder = builder.with_client_options(options).with_retry(retry).with_http_connector(connector);
    builder.build().map_err(cannot)
}

/// Whether the environment says that keys come from the container.
fn asks_machine() -> bool {
    ["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_SKIP_SIGNATURE"]
        .iter()
        .any(|name| std::env::var_os(name).is_some())
}

/// A key of an object, whole.
///
/// # Errors
/// When it can be none.
pub(super) fn key(text: &str) -> Result<Path> {
    Path::parse(text).map_err(|_| {
        Error::new(ErrorKind::Usage, format!("'{}' can't be the key of an object", text.escape_debug()))
    })
}

/// The runtime: made when it is first needed, and there until the process ends.
///
/// # Errors
/// When its threads can't be made.
pub(super) fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<std::io::Result<Runtime>> = OnceLock::new();
    let made = RUNTIME.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(2).thread_name("object").enable_all().build()
    });
    made.as_ref().map_err(|e| {
        Error::new(ErrorKind::Io, format!("cannot start the threads that speak to object stores: {e}"))
    })
}

/// Waits for `work`, or until the run is told to end.
///
/// # Errors
/// Interrupted; the runtime can't be made.
pub(super) fn wait<T>(cancel: &Cancel, work: impl Future<Output = T>) -> Result<T> {
    runtime()?.block_on(async {
        let mut work = pin!(work);
        loop {
            if let Ok(done) = tokio::time::timeout(GLANCE, work.as_mut()).await {
                return Ok(done);
            }
            check_cancel(cancel)?;
        }
    })
}

/// Tries until it succeeds, fails for good, or has failed for as long as `patience`. `what` is what is said
/// meanwhile.
pub(super) async fn persist<T, F>(
    patience: Duration,
    what: impl Fn() -> String,
    mut attempt: impl FnMut() -> F,
) -> StoreResult<T>
where
    F: Future<Output = StoreResult<T>>,
{
    let began = Instant::now();
    let mut pause = PAUSES.0;
    loop {
        let error = match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) if may_pass(&error) && began.elapsed() + pause < patience => error,
            Err(error) => return Err(error),
        };
        let said = explain(what(), &error);
        tracing::warn!("{said}; trying again for up to {} s", (patience - began.elapsed()).as_secs());
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}
