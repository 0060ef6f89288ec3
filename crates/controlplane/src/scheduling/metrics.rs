//! What the loop counts, by kube-scheduler's names where they mean the same, in Prometheus' text form.

use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use scheduler::{CPU, Decision, EGRESS, INGRESS, Plan, Snapshot};

/// Upper bounds of the buckets of durations, in seconds (upstream: from 1 ms, doubled).
const BUCKETS: [f64; 12] = [
    0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.512, 2.048,
];

#[derive(Debug, Default)]
pub struct SchedulerMetrics {
    scheduled: AtomicU64,
    unschedulable: AtomicU64,
    errors: AtomicU64,
    preemption_attempts: AtomicU64,
    preemption_victims: AtomicU64,
    plan_count: AtomicU64,
    plan_microseconds: AtomicU64,
    plan_buckets: [AtomicU64; BUCKETS.len()],
    active: AtomicU64,
    backoff: AtomicU64,
    parked: AtomicU64,
    value: AtomicI64,
    upper_bound: AtomicI64,
    /// By resource, and for bandwidth by direction.
    utilisation: Mutex<Vec<Utilisation>>,
}

#[derive(Debug)]
struct Utilisation {
    resource: String,
    used: f64,
    allocatable: f64,
}

impl SchedulerMetrics {
    pub(super) fn observe_plan(&self, plan: &Plan, took: Duration) {
        for (_, decision) in &plan.decisions {
            match decision {
                Decision::Place { .. } => self.scheduled.fetch_add(1, Ordering::Relaxed),
                Decision::Preempt { victims, .. } => {
                    self.preemption_attempts.fetch_add(1, Ordering::Relaxed);
                    self.preemption_victims
                        .fetch_add(victims.len() as u64, Ordering::Relaxed);
                    self.unschedulable.fetch_add(1, Ordering::Relaxed)
                }
                Decision::Wait { .. } => self.unschedulable.fetch_add(1, Ordering::Relaxed),
            };
        }
        self.plan_count.fetch_add(1, Ordering::Relaxed);
        let microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.plan_microseconds
            .fetch_add(microseconds, Ordering::Relaxed);
        if let Some(at) = BUCKETS
            .iter()
            .position(|bound| took.as_secs_f64() <= *bound)
        {
            self.plan_buckets[at].fetch_add(1, Ordering::Relaxed);
        }
        self.value.store(plan.value, Ordering::Relaxed);
        self.upper_bound.store(plan.upper_bound, Ordering::Relaxed);
    }

    pub(super) fn count_error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn set_queue(&self, (active, backoff, parked): (usize, usize, usize)) {
        self.active.store(active as u64, Ordering::Relaxed);
        self.backoff.store(backoff as u64, Ordering::Relaxed);
        self.parked.store(parked as u64, Ordering::Relaxed);
    }

    /// Takes over what pods were given of the nodes' allocatable, resource by resource.
    pub(super) fn set_utilisation(&self, snapshot: &Snapshot) {
        let used = snapshot.used_totals();
        let rows = snapshot.totals().iter().map(|(index, allocatable)| {
            let direction = match index {
                INGRESS => "-ingress",
                EGRESS => "-egress",
                _ => "",
            };
            // Cores, bytes, bits a second, counts.
            let unit = if index == CPU { 1e-3 } else { 1.0 };
            Utilisation {
                resource: format!("{}{direction}", snapshot.space.name(index)),
                used: used.amount(index) as f64 * unit,
                allocatable: allocatable as f64 * unit,
            }
        });
        *self.utilisation.lock().expect("nobody panics holding it") = rows.collect();
    }

    /// All numbers, for `/metrics`.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut family = |name: &str, kind: &str, help: &str, samples: &[(String, f64)]| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in samples {
                let _ = writeln!(text, "{name}{labels} {value}");
            }
        };
        let labelled = |key: &str, pairs: &[(&str, &AtomicU64)]| -> Vec<(String, f64)> {
            let sample = |(value, counter): &(&str, &AtomicU64)| {
                (format!("{{{key}=\"{value}\"}}"), read(counter) as f64)
            };
            pairs.iter().map(sample).collect()
        };
        family(
            "scheduler_schedule_attempts_total",
            "counter",
            "Attempts to schedule pods, by result",
            &labelled(
                "result",
                &[
                    ("scheduled", &self.scheduled),
                    ("unschedulable", &self.unschedulable),
                    ("error", &self.errors),
                ],
            ),
        );
        family(
            "scheduler_pending_pods",
            "gauge",
            "Pending pods, by queue",
            &labelled(
                "queue",
                &[
                    ("active", &self.active),
                    ("backoff", &self.backoff),
                    ("unschedulable", &self.parked),
                ],
            ),
        );
        let plain = |value: f64| vec![(String::new(), value)];
        family(
            "scheduler_preemption_attempts_total",
            "counter",
            "Preemption attempts",
            &plain(read(&self.preemption_attempts) as f64),
        );
        family(
            "llmagentos_scheduler_preemption_victims_total",
            "counter",
            "Pods that were chosen as victims",
            &plain(read(&self.preemption_victims) as f64),
        );
        family(
            "llmagentos_scheduler_plan_value",
            "gauge",
            "Value of the latest plan",
            &plain(self.value.load(Ordering::Relaxed) as f64),
        );
        family(
            "llmagentos_scheduler_plan_upper_bound",
            "gauge",
            "Proven upper bound of the latest plan's value",
            &plain(self.upper_bound.load(Ordering::Relaxed) as f64),
        );
        let (value, upper_bound) = (
            self.value.load(Ordering::Relaxed),
            self.upper_bound.load(Ordering::Relaxed),
        );
        family(
            "llmagentos_scheduler_plan_gap_ratio",
            "gauge",
            "How far the latest plan's value may be from the best one's, as a share of the upper bound",
            &plain(
                Plan {
                    value,
                    upper_bound,
                    ..Plan::default()
                }
                .gap(),
            ),
        );
        let utilisation = self.utilisation.lock().expect("nobody panics holding it");
        let by_resource = |number: fn(&Utilisation) -> f64| -> Vec<(String, f64)> {
            let sample =
                |row: &Utilisation| (format!("{{resource=\"{}\"}}", row.resource), number(row));
            utilisation.iter().map(sample).collect()
        };
        family(
            "llmagentos_scheduler_requested",
            "gauge",
            "What placed pods ask for on all nodes, in base units",
            &by_resource(|row| row.used),
        );
        family(
            "llmagentos_scheduler_allocatable",
            "gauge",
            "What all nodes offer, in base units",
            &by_resource(|row| row.allocatable),
        );
        family(
            "llmagentos_scheduler_utilisation_ratio",
            "gauge",
            "Requested as a share of allocatable",
            &by_resource(|row| row.used / row.allocatable),
        );
        let mut sum = 0;
        let mut samples: Vec<(String, f64)> = Vec::new();
        for (bound, bucket) in BUCKETS.iter().zip(&self.plan_buckets) {
            sum += read(bucket);
            samples.push((format!("_bucket{{le=\"{bound}\"}}"), sum as f64));
        }
        samples.push(("_bucket{le=\"+Inf\"}".into(), read(&self.plan_count) as f64));
        samples.push(("_sum".into(), read(&self.plan_microseconds) as f64 / 1e6));
        samples.push(("_count".into(), read(&self.plan_count) as f64));
        family(
            "scheduler_scheduling_algorithm_duration_seconds",
            "histogram",
            "Time of a plan",
            &samples,
        );
        text
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_come_out_as_prometheus_text() {
        let metrics = SchedulerMetrics::default();
        let plan = Plan {
            value: 3,
            upper_bound: 4,
            ..Plan::default()
        };
        metrics.observe_plan(&plan, Duration::from_micros(700));
        metrics.set_queue((1, 2, 3));
        let mut snapshot = Snapshot::new();
        let node = json!({"metadata": {"name": "a"}, "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"}}});
        snapshot.observe_node(&serde_json::from_value(node).unwrap());
        let pod = json!({"metadata": {"name": "p", "namespace": "default", "uid": "u"}, "spec": {"nodeName": "a",
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "1500m"}}}]}});
        snapshot.observe_pod(&serde_json::from_value(pod).unwrap());
        metrics.set_utilisation(&snapshot);
        let text = metrics.render();
        for line in [
            "scheduler_pending_pods{queue=\"unschedulable\"} 3",
            "scheduler_schedule_attempts_total{result=\"scheduled\"} 0",
            "llmagentos_scheduler_plan_upper_bound 4",
            "llmagentos_scheduler_plan_gap_ratio 0.25",
            "llmagentos_scheduler_requested{resource=\"cpu\"} 1.5",
            "llmagentos_scheduler_allocatable{resource=\"memory\"} 8589934592",
            "llmagentos_scheduler_utilisation_ratio{resource=\"pods\"} 0.1",
            "scheduler_scheduling_algorithm_duration_seconds_bucket{le=\"0.0005\"} 0",
            "scheduler_scheduling_algorithm_duration_seconds_bucket{le=\"0.001\"} 1",
            "scheduler_scheduling_algorithm_duration_seconds_count 1",
        ] {
            assert!(
                text.lines().any(|own| own == line),
                "{line} is not in {text}"
            );
        }
    }
}
