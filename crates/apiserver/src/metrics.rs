//! `/metrics`: a few numbers in Prometheus' text form.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::Response;
use http::header::{CONTENT_TYPE, HeaderValue};

use crate::body::ResponseBody;
use crate::core::Core;

/// Upper bounds of the buckets of request durations, in seconds.
const BUCKETS: [f64; 8] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5];
const VERBS: [&str; 9] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
    "other",
];

/// Counters of requests; watches are counted, but not timed.
#[derive(Default)]
pub struct Metrics {
    verbs: [VerbMetrics; VERBS.len()],
    errors_client: AtomicU64,
    errors_server: AtomicU64,
}

#[derive(Default)]
struct VerbMetrics {
    count: AtomicU64,
    sum_microseconds: AtomicU64,
    buckets: [AtomicU64; BUCKETS.len()],
}

impl Metrics {
    pub fn observe(&self, verb: &str, code: u16, took: Duration) {
        let index = VERBS
            .iter()
            .position(|own| *own == verb)
            .unwrap_or(VERBS.len() - 1);
        let own = &self.verbs[index];
        own.count.fetch_add(1, Ordering::Relaxed);
        own.sum_microseconds.fetch_add(
            u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            Ordering::Relaxed,
        );
        if let Some(bucket) = BUCKETS
            .iter()
            .position(|bound| took.as_secs_f64() <= *bound)
        {
            own.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        }
        match code {
            400..=499 => self.errors_client.fetch_add(1, Ordering::Relaxed),
            500.. => self.errors_server.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
    }
}

/// Writing to a string cannot fail; the results are only there for the trait.
pub fn answer(core: &Arc<Core>) -> Response<ResponseBody> {
    let mut text = String::new();
    let _ = render(core, &mut text);
    if let Some(further) = &core.config.further_metrics {
        text.push_str(&(further.0)());
    }
    let mut response = Response::new(ResponseBody::from(text));
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
    );
    response
}

fn render(core: &Core, text: &mut String) -> std::fmt::Result {
    writeln!(
        text,
        "# HELP apiserver_request_duration_seconds Time from a request's head to its response's head."
    )?;
    writeln!(text, "# TYPE apiserver_request_duration_seconds histogram")?;
    for (verb, own) in VERBS.iter().zip(&core.metrics.verbs) {
        let count = own.count.load(Ordering::Relaxed);
        if count == 0 {
            continue;
        }
        let mut below = 0;
        for (bound, bucket) in BUCKETS.iter().zip(&own.buckets) {
            below += bucket.load(Ordering::Relaxed);
            writeln!(
                text,
                "apiserver_request_duration_seconds_bucket{{verb={verb:?},le=\"{bound}\"}} {below}"
            )?;
        }
        writeln!(
            text,
            "apiserver_request_duration_seconds_bucket{{verb={verb:?},le=\"+Inf\"}} {count}"
        )?;
        let sum = Duration::from_micros(own.sum_microseconds.load(Ordering::Relaxed)).as_secs_f64();
        writeln!(
            text,
            "apiserver_request_duration_seconds_sum{{verb={verb:?}}} {sum}"
        )?;
        writeln!(
            text,
            "apiserver_request_duration_seconds_count{{verb={verb:?}}} {count}"
        )?;
    }
    writeln!(
        text,
        "# HELP apiserver_request_errors_total Requests answered with an error."
    )?;
    writeln!(text, "# TYPE apiserver_request_errors_total counter")?;
    for (class, count) in [
        ("4xx", &core.metrics.errors_client),
        ("5xx", &core.metrics.errors_server),
    ] {
        writeln!(
            text,
            "apiserver_request_errors_total{{code={class:?}}} {}",
            count.load(Ordering::Relaxed)
        )?;
    }
    writeln!(
        text,
        "# HELP apiserver_storage_objects Count of stored objects by resource."
    )?;
    writeln!(text, "# TYPE apiserver_storage_objects gauge")?;
    for resource in &core.resources {
        if let Some(cache) = &resource.cache {
            let name = crate::status::qualified(&resource.kind.group, &resource.kind.plural);
            writeln!(
                text,
                "apiserver_storage_objects{{resource={name:?}}} {}",
                cache.len()
            )?;
        }
    }
    writeln!(
        text,
        "# HELP apiserver_watch_cache_revision Revision that the watch cache has reached."
    )?;
    writeln!(text, "# TYPE apiserver_watch_cache_revision gauge")?;
    writeln!(
        text,
        "apiserver_watch_cache_revision {}",
        core.caches.reached()
    )
}
