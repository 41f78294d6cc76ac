//! gRPC calls: how many, how they ended, how long they took.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::seconds;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct MethodLabels {
    service: String,
    method: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CodeLabels {
    service: String,
    method: String,
    code: &'static str,
}

/// gRPC's status codes in the order of their numbers.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
const OK: i32 = 0;
const CANCELLED: i32 = 1;
const UNKNOWN: usize = 2;

/// The families; one [`Method`] of them for each method of the contract.
pub struct CallMetrics {
    ended: Family<CodeLabels, Counter>,
    seconds: Family<MethodLabels, Histogram, fn() -> Histogram>,
    open: Family<MethodLabels, Gauge>,
    /// Calls refused because too many were in progress.
    pub shed: Counter,
}

impl CallMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let ended = Family::default();
        let durations = Family::new_with_constructor((|| Histogram::new(seconds())) as fn() -> Histogram);
        let open = Family::default();
        let shed = Counter::default();
        registry.register("grpc_calls", "gRPC calls that ended, by their status", ended.clone());
        registry.register("grpc_call_seconds", "How long unary gRPC calls took", durations.clone());
        registry.register("grpc_calls_open", "gRPC calls in progress, streams among them", open.clone());
        registry.register("grpc_calls_shed", "Calls refused because too many were in progress", shed.clone());
        Self { ended, seconds: durations, open, shed }
    }

    /// The measures of one method. Its series appear with the first call.
    pub fn method(&self, service: &str, method: &str) -> Arc<Method> {
        Arc::new(Method {
            service: service.to_owned(),
            method: method.to_owned(),
            ended_family: self.ended.clone(),
            seconds_family: self.seconds.clone(),
            open_family: self.open.clone(),
            ended: Default::default(),
            seconds: OnceLock::new(),
            open: OnceLock::new(),
        })
    }
}

/// The measures of one method, found without a look-up or an allocation.
pub struct Method {
    service: String,
    method: String,
    ended_family: Family<CodeLabels, Counter>,
    seconds_family: Family<MethodLabels, Histogram, fn() -> Histogram>,
    open_family: Family<MethodLabels, Gauge>,
    ended: [OnceLock<Counter>; CODES.len()],
    seconds: OnceLock<Histogram>,
    open: OnceLock<Gauge>,
}

impl Method {
    fn labels(&self) -> MethodLabels {
        MethodLabels { service: self.service.clone(), method: self.method.clone() }
    }

    fn open(&self) -> &Gauge {
        self.open.get_or_init(|| self.open_family.get_or_create_owned(&self.labels()))
    }

    fn count(&self, code: i32) {
        let index = usize::try_from(code).ok().filter(|code| *code < CODES.len()).unwrap_or(UNKNOWN);
        let counter = self.ended[index].get_or_init(|| {
            let MethodLabels { service, method } = self.labels();
            self.ended_family.get_or_create_owned(&CodeLabels { service, method, code: CODES[index] })
        });
        counter.inc();
    }

    fn observe(&self, started: Instant) {
        let histogram = self.seconds.get_or_init(|| self.seconds_family.get_or_create_owned(&self.labels()));
        histogram.observe(started.elapsed().as_secs_f64());
    }
}

/// A call in progress. Dropped without a code, its caller went away.
pub struct Open {
    method: Arc<Method>,
    started: Instant,
    timed: bool,
    code: i32,
}

impl Open {
    /// `timed`: its duration says something, as a stream's does not.
    pub fn new(method: Arc<Method>, timed: bool) -> Self {
        method.open().inc();
        Self { method, started: Instant::now(), timed, code: CANCELLED }
    }

    /// How it ends, as gRPC's number.
    pub fn code(&mut self, code: i32) {
        self.code = code;
    }

    pub fn ok(&mut self) {
        self.code = OK;
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.method.open().dec();
        self.method.count(self.code);
        if self.timed {
            self.method.observe(self.started);
        }
    }
}
