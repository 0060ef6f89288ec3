//! A few good packings that improve one another.
//!
//! Members start from the relaxation's order, shaken, and go up by deciding small sets of the core anew. Then two
//! members are crossed: what they disagree about, filled up from the core, is decided anew by branch and
//! bound, and what is better than both takes the place of the worse (a solution's offspring by an exact
//! search: Rothberg, INFORMS Journal on Computing 19, 2007). Or one is changed: a unit is turned round and the
//! best is made of it, which may cost a little. The size of the set follows what branch and bound finishes.
//! When nothing has come of that for long the pool is filled afresh, now and then with the best packing in it.

use super::branch::Branch;
use super::packing::Packing;
use crate::{Random, Work};

/// Members.
const MEMBERS: usize = 14;
/// Steps up of a new member.
const CLIMB: usize = 60;
/// Nodes of a step up or a change, and of a crossing, at most.
const NODES_MAX: u64 = 60;
const CROSSING_NODES_MAX: u64 = 500;
/// Share of crossings among the steps.
const CROSSINGS: f64 = 0.75;
/// What a change may cost at most, as a share of the gap.
const COST_MAX: f64 = 0.01;
/// Units that a crossing looks at, at least.
const CROSSING_SIZE: usize = 30;
/// Units that two members disagree about and a crossing looks at, at most.
const DISAGREED_MAX: usize = 45;
/// How far into the core to look: usually, and once in so many crossings and changes.
const NEAR: f64 = 1.0;
const FAR: f64 = 3.0;
const FAR_EVERY: usize = 8;
/// Steps without gain after which the pool is filled afresh.
const PATIENCE: u32 = 1_500;

struct Member {
    inside: Vec<bool>,
    value: i128,
}

pub(super) struct Pool<'a, 'w, 'c> {
    packing: &'a mut Packing,
    random: Random,
    work: &'w mut Work<'c>,
    branch: Branch,
    bound: i128,
    members: Vec<Member>,
    best: Member,
    /// Work when the best was found.
    gained_at: u64,
    /// The gap for which the core was chosen.
    core_gap: f64,
    size: Size,
    idle: u32,
}

/// How many units to decide anew: more while branch and bound finishes four times out of five.
struct Size(f64);

impl Size {
    fn learn(&mut self, ended: bool, most: usize) {
        let next = if ended { self.0 + 0.05 } else { self.0 - 0.2 };
        self.0 = next.clamp(4.0, most.max(4) as f64);
    }

    fn get(&self) -> usize {
        self.0.round() as usize
    }
}

impl<'a, 'w, 'c> Pool<'a, 'w, 'c> {
    pub(super) fn new(
        packing: &'a mut Packing,
        bound: i64,
        seed: u64,
        work: &'w mut Work<'c>,
    ) -> Self {
        let best = Member {
            inside: packing.inside.clone(),
            value: packing.value,
        };
        let mut pool = Pool {
            random: Random::new(seed),
            gained_at: work.done(),
            packing,
            work,
            branch: Branch::default(),
            bound: i128::from(bound),
            members: Vec::new(),
            best,
            core_gap: f64::INFINITY,
            size: Size(20.0),
            idle: 0,
        };
        pool.choose_core();
        pool
    }

    /// Searches until the work is done, the bound is met, or nothing improved for `idle_max` of work; the packing is then the best.
    pub(super) fn run(mut self, idle_max: u64) {
        while !self.packing.core.is_empty()
            && self.best.value < self.bound
            && !self.work.exhausted()
            && self.work.done() - self.gained_at <= idle_max
        {
            if self.members.len() < MEMBERS {
                self.add();
            } else if self.random.unit() < CROSSINGS {
                self.cross();
            } else {
                self.change();
            }
            self.consider();
            if self.idle > PATIENCE {
                self.idle = 0;
                self.members.clear();
                if self.random.below(2) == 0 {
                    self.members.push(Member {
                        inside: self.best.inside.clone(),
                        value: self.best.value,
                    });
                }
            }
        }
        self.packing.become_like(&self.best.inside);
    }

    fn gap(&self) -> f64 {
        (self.bound - self.best.value) as f64
    }

    fn choose_core(&mut self) {
        // Sorting is dear where there are many units.
        if self.gap() < self.core_gap * 0.95 {
            self.core_gap = self.gap();
            self.packing.choose_core(self.core_gap);
            self.work.spend(self.packing.unit_count() as u64);
        }
    }

    fn consider(&mut self) {
        if self.packing.value > self.best.value {
            self.best.value = self.packing.value;
            self.best.inside.clone_from(&self.packing.inside);
            self.gained_at = self.work.done();
            self.choose_core();
        }
    }

    /// A new member; the first is where the search started.
    fn add(&mut self) {
        let noise = self.gap() * 0.5 * self.random.unit();
        if self.members.is_empty() && self.core_gap.is_finite() && self.idle == 0 {
            self.packing.become_like(&self.best.inside);
        } else {
            let (random, work) = (&mut self.random, &mut *self.work);
            self.packing.start_anew(noise, random, work);
        }
        for _ in 0..CLIMB {
            if self.work.exhausted() {
                break;
            }
            self.turn(self.packing.value, NEAR);
        }
        self.idle += 1;
        self.settle(None);
    }

    /// How far into the core to look: rarely far, else what needs a unit from there would hardly ever be found.
    fn reach(&mut self) -> f64 {
        if self.random.below(FAR_EVERY) == 0 {
            FAR
        } else {
            NEAR
        }
    }

    /// Turns a unit of the core round, and makes the best of it, if that is worth more than `least`.
    fn turn(&mut self, least: i128, reach: f64) {
        let mut chosen = Vec::new();
        let size = self.size.get();
        self.packing
            .draw(&mut chosen, size, reach, &mut self.random);
        let (branch, work) = (&mut self.branch, &mut *self.work);
        let ended = self
            .packing
            .decide_otherwise(&chosen, least, NODES_MAX, branch, work);
        self.size.learn(ended, self.packing.core.len());
    }

    fn cross(&mut self) {
        self.idle += 1;
        let reach = self.reach();
        let first = self.random.below(self.members.len());
        let other = 1 + self.random.below(self.members.len() - 1);
        let other = (first + other) % self.members.len();
        let (better, worse) = if self.members[first].value >= self.members[other].value {
            (first, other)
        } else {
            (other, first)
        };
        let (a, b) = (&self.members[better], &self.members[worse]);
        let mut chosen: Vec<usize> = (0..a.inside.len())
            .filter(|unit| a.inside[*unit] != b.inside[*unit])
            .collect();
        while chosen.len() > DISAGREED_MAX {
            let at = self.random.below(chosen.len());
            chosen.swap_remove(at);
        }
        let value = a.value;
        self.packing.become_like(&a.inside);
        self.packing
            .draw(&mut chosen, CROSSING_SIZE, reach, &mut self.random);
        let (branch, work) = (&mut self.branch, &mut *self.work);
        self.packing
            .decide(&chosen, value, CROSSING_NODES_MAX, branch, work);
        if self.packing.value > value {
            self.settle(Some(worse));
        }
    }

    fn change(&mut self) {
        self.idle += 1;
        let at = self.random.below(self.members.len());
        let before = self.members[at].value;
        self.packing.become_like(&self.members[at].inside);
        let cost = self.gap() * COST_MAX * self.random.unit();
        // The best member stays unless something better is found.
        let best = self.members.iter().all(|member| member.value <= before);
        let least = if best {
            before
        } else {
            before - 1 - cost as i128
        };
        let reach = self.reach();
        self.turn(least, reach);
        if self.packing.inside != self.members[at].inside {
            self.settle(Some(at));
        }
    }

    /// The packing becomes a member, in the place of another or as one more, if none is like it.
    fn settle(&mut self, at: Option<usize>) {
        let packing = &self.packing;
        let alike = |m: &Member| m.value == packing.value && m.inside == packing.inside;
        if self.members.iter().any(alike) {
            return;
        }
        let member = Member {
            inside: packing.inside.clone(),
            value: packing.value,
        };
        match at {
            Some(at) => {
                if member.value > self.members[at].value {
                    self.idle = 0;
                }
                self.members[at] = member;
            }
            None => self.members.push(member),
        }
    }
}
