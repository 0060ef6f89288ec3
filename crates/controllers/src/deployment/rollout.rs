//! How many replicas each replica set should have: rolling, recreating, and scaling in proportion.

use k8s_openapi::api::core::v1::Pod;

use super::revision::{DESIRED_REPLICAS, MAX_REPLICAS};
use super::{Strategy, Work, old_pods_run};

impl Work<'_> {
    /// Rolling update: first the new up, else the old down, never both in one step.
    pub(super) fn roll(&mut self) {
        self.find_new(true);
        let Some(new) = self.new else { return };
        let target = match self.replica_sets[new].replicas().cmp(&self.desired()) {
            std::cmp::Ordering::Equal => None,
            std::cmp::Ordering::Greater => Some(self.desired()),
            std::cmp::Ordering::Less => Some(self.new_replicas(new)),
        };
        if target.is_some_and(|target| self.resize(new, target, false)) || self.scale_down_old(new)
        {
            return;
        }
        if super::status::complete(
            self.desired(),
            &self.status,
            self.stored.metadata.generation,
        ) {
            self.clean_up();
        }
    }

    /// Recreate: all of the old down, and the new up once their pods are gone.
    pub(super) fn recreate(&mut self, pods: &[&Pod]) {
        let mut scaled_down = false;
        for index in self.old() {
            if self.replica_sets[index].replicas() > 0 {
                scaled_down |= self.resize(index, 0, false);
            }
        }
        if scaled_down {
            return;
        }
        let old_uids: Vec<String> = self
            .old()
            .iter()
            .filter_map(|index| self.replica_sets[*index].object.metadata.uid.clone())
            .collect();
        if old_pods_run(&old_uids, pods) {
            return;
        }
        if self.new.is_none() {
            self.find_new(true);
        }
        if let Some(new) = self.new {
            self.resize(new, self.desired(), false);
        }
        if super::status::complete(
            self.desired(),
            &self.status,
            self.stored.metadata.generation,
        ) {
            self.clean_up();
        }
    }

    /// The size that the new replica set may have now.
    pub(super) fn new_replicas(&self, new: usize) -> i32 {
        let current = self.replica_sets[new].replicas();
        if self.strategy() == Strategy::Recreate {
            return self.desired();
        }
        let room = self
            .desired()
            .saturating_add(self.max_surge_raw())
            .saturating_sub(self.total_replicas());
        if room <= 0 {
            current
        } else {
            current + room.min(self.desired() - current)
        }
    }

    /// maxSurge without the fallback to one unavailable.
    fn max_surge_raw(&self) -> i32 {
        self.fenceposts().0
    }

    /// Takes replicas from old replica sets: unhealthy ones first, then as many as availability allows.
    fn scale_down_old(&mut self, new: usize) -> bool {
        let old: Vec<usize> = self
            .old()
            .into_iter()
            .filter(|index| self.replica_sets[*index].replicas() > 0)
            .collect();
        if old.is_empty() {
            return false;
        }
        let min_available = self.desired() - self.max_unavailable();
        let new_unavailable =
            self.replica_sets[new].replicas() - self.replica_sets[new].available();
        let removable = self.total_replicas() - min_available - new_unavailable;
        if removable <= 0 {
            return false;
        }
        let mut removed = 0;
        for index in &old {
            let (replicas, available) = (
                self.replica_sets[*index].replicas(),
                self.replica_sets[*index].available(),
            );
            let unhealthy = (replicas - available).max(0);
            let count = unhealthy.min(removable - removed);
            if count > 0 {
                self.resize(*index, replicas - count, false);
                removed += count;
            }
        }
        let available: i32 = self
            .replica_sets
            .iter()
            .map(super::Working::available)
            .sum();
        let mut spare = available - min_available;
        for index in &old {
            let replicas = self.replica_sets[*index].replicas();
            let count = replicas.min(spare);
            if count > 0 {
                self.resize(*index, replicas - count, false);
                spare -= count;
                removed += count;
            }
        }
        removed > 0
    }

    /// Was the deployment's size changed since a replica set was last sized?
    pub(super) fn is_scaling_event(&self) -> bool {
        self.replica_sets
            .iter()
            .filter(|working| working.replicas() > 0)
            .any(|working| {
                let annotated = working
                    .annotation(DESIRED_REPLICAS)
                    .and_then(|text| text.parse::<i32>().ok())
                    .filter(|count| *count >= 0);
                annotated.is_some_and(|annotated| annotated != self.desired())
            })
    }

    /// Spreads a change of size over the replica sets in proportion to theirs, so that scaling does not hasten a rollout.
    pub(super) fn scale(&mut self) {
        let active: Vec<usize> = (0..self.replica_sets.len())
            .filter(|index| self.replica_sets[*index].replicas() > 0)
            .collect();
        let only = match active.as_slice() {
            [] => self.new.or_else(|| self.old().last().copied()),
            [one] => Some(*one),
            _ => None,
        };
        if let Some(index) = only {
            self.resize(index, self.desired(), false);
            return;
        }
        let Some(_) = active.first() else { return };
        if self.new_is_saturated() {
            let new = self.new;
            for index in active.into_iter().filter(|index| Some(*index) != new) {
                self.resize(index, 0, false);
            }
            return;
        }
        if self.strategy() == Strategy::RollingUpdate {
            self.scale_in_proportion(active);
        }
    }

    fn new_is_saturated(&self) -> bool {
        self.new.is_some_and(|new| {
            let working = &self.replica_sets[new];
            let annotated = working
                .annotation(DESIRED_REPLICAS)
                .and_then(|text| text.parse::<i32>().ok());
            working.replicas() == self.desired()
                && annotated == Some(self.desired())
                && working.available() == self.desired()
        })
    }

    fn scale_in_proportion(&mut self, mut active: Vec<usize>) {
        let allowed = if self.desired() > 0 {
            self.desired().saturating_add(self.max_surge())
        } else {
            0
        };
        let to_add = allowed - self.total_replicas();
        // Largest first; of equals the newer grows and the older shrinks first. The list is oldest first.
        active.sort_by_key(|index| {
            let age = if to_add > 0 {
                -(*index as i64)
            } else {
                *index as i64
            };
            (std::cmp::Reverse(self.replica_sets[*index].replicas()), age)
        });
        let mut added = 0;
        let mut sizes: Vec<(usize, i32)> = Vec::new();
        for index in &active {
            let replicas = self.replica_sets[*index].replicas();
            let share = if to_add == 0 || to_add == added {
                0
            } else {
                self.proportion(*index, to_add, added)
            };
            added += share;
            sizes.push((*index, replicas + share));
        }
        if let Some((_, size)) = sizes.first_mut() {
            *size = (*size + to_add - added).max(0);
        }
        for (index, size) in sizes {
            self.resize(index, size, true);
        }
    }

    fn proportion(&self, index: usize, to_add: i32, added: i32) -> i32 {
        let working = &self.replica_sets[index];
        let replicas = i64::from(working.replicas());
        let fraction = if self.desired() == 0 {
            -replicas
        } else {
            let annotated = working
                .annotation(MAX_REPLICAS)
                .and_then(|text| text.parse::<i64>().ok())
                .filter(|count| *count > 0);
            let before = annotated.unwrap_or_else(|| i64::from(self.status.replicas.unwrap_or(0)));
            if before <= 0 {
                return 0;
            }
            let maximum = i64::from(self.desired()) + i64::from(self.max_surge());
            // Rounded to the nearest.
            (2 * replicas * maximum + before) / (2 * before) - replicas
        };
        let fraction = fraction.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
        let allowed = to_add - added;
        if to_add > 0 {
            fraction.min(allowed)
        } else {
            fraction.max(allowed)
        }
    }
}
