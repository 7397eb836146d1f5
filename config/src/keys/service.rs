//! The section `service`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{Concurrency, FilePath, Interval, LoopbackAddress, Window};

/// How the service (`virtfold serve`) runs on this host.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[schemars(inline)]
pub struct Service {
    /// How many backups run at once on this host.
    pub concurrency: Concurrency,
    /// How long work that runs may take to end, or to be parked, when the service is told to stop. A unit's
    /// `TimeoutStopSec` has to be longer.
    pub stop_timeout: Interval,
    /// Where metrics are served for Prometheus: an address of this host alone. Not set: no port is opened.
    pub metrics_listen: Option<LoopbackAddress>,
    /// The directory of node_exporter's textfile collector that metrics are written to. Not set: none are
    /// written.
    pub metrics_dir: Option<FilePath>,
    /// How late a run may begin that was missed, because the host or the service was down; one that would be
    /// later is left out. Of several missed runs of a job one is made up for. 0: none is.
    pub catch_up: Window,
}

impl Default for Service {
    fn default() -> Self {
        Self {
            concurrency: Concurrency::TWO,
            stop_timeout: Interval::from_secs(300),
            metrics_listen: None,
            metrics_dir: None,
            catch_up: Window::from_secs(86_400),
        }
    }
}
