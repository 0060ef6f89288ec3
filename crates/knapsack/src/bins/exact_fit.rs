//! Packings without waste: where a bound leaves no room in some dimension, every bin is exactly full in it.
//!
//! If the items' volume in a dimension is that of `K` bins to the last unit, a packing of `K` bins fills
//! each of them exactly. The contents that do are few and can be listed: all sets of up to four items
//! whose sizes add up, found by looking up what pairs leave over. [`pack`] lists them and looks for an
//! exact cover by them (Knuth's Algorithm X on types with copies: branch where the fewest contents are
//! left). It does not prove anything if it finds none: fuller contents than four items are not listed.

use std::collections::HashMap;

use super::Budget;
use super::greedy::unit;
use super::instance::{Instance, Pattern};
use crate::Random;

/// Most contents listed.
const CONTENTS_MAX: usize = 200_000;
/// Most distinct types: pairs are listed.
const TYPES_MAX: usize = 3_000;
/// Branches of the first attempt of the cover (every next one gets a quarter more), and how many attempts.
const BRANCHES_FIRST: u64 = 1_000;
const ATTEMPTS_MAX: u32 = 24;
/// Most items: the search is as deep as there are bins.
const ITEMS_MAX: u64 = 10_000;

/// A packing of exactly `bins` bins, if there is no waste in some dimension and the search finds one.
pub(super) fn pack<const W: usize>(
    instance: &Instance<W>,
    bins: u64,
    budget: &mut Budget,
) -> Option<Vec<(Pattern, u64)>> {
    let full: Vec<usize> = (0..instance.dimensions())
        .filter(|&dimension| {
            let volume: i128 = instance
                .sizes_raw
                .iter()
                .zip(&instance.counts)
                .map(|(size, &count)| i128::from(size[dimension]) * i128::from(count))
                .sum();
            volume == i128::from(instance.capacity_raw[dimension]) * i128::from(bins)
        })
        .collect();
    if full.is_empty() || instance.types() > TYPES_MAX {
        return None;
    }
    let mut listing = Listing::new(instance, &full);
    listing.up_to_three(budget);
    if let Some(packing) = cover(instance, &listing.contents, budget) {
        return Some(packing);
    }
    listing.four(budget);
    cover(instance, &listing.contents, budget)
}

/// The contents that fill a bin exactly in the full dimensions.
struct Listing<'i, const W: usize> {
    instance: &'i Instance<W>,
    full: &'i [usize],
    /// One number a type, additive: equal sums of sizes have equal sums of keys.
    keys: Vec<u64>,
    target: u64,
    by_key: HashMap<u64, Vec<u32>>,
    contents: Vec<Pattern>,
}

impl<'i, const W: usize> Listing<'i, W> {
    fn new(instance: &'i Instance<W>, full: &'i [usize]) -> Self {
        // An odd factor a dimension makes a linear hash; what it claims is checked on the sizes.
        let factor = |index: usize| {
            (0x9E37_79B9_7F4A_7C15u64)
                .wrapping_mul(2 * index as u64 + 1)
                .rotate_left(17 * index as u32 % 64)
                | 1
        };
        let key = |vector: &[i64]| {
            full.iter()
                .enumerate()
                .fold(0u64, |sum, (index, &dimension)| {
                    sum.wrapping_add(vector[dimension].unsigned_abs().wrapping_mul(factor(index)))
                })
        };
        let keys: Vec<u64> = instance.sizes_raw.iter().map(|size| key(size)).collect();
        let mut by_key: HashMap<u64, Vec<u32>> = HashMap::new();
        for (kind, &key) in keys.iter().enumerate() {
            by_key.entry(key).or_default().push(kind as u32);
        }
        Listing {
            instance,
            full,
            target: key(&instance.capacity_raw),
            keys,
            by_key,
            contents: Vec::new(),
        }
    }

    /// Takes a multiset of types if it fits, fills the bin, and there are so many copies.
    fn offer(&mut self, kinds: &[u32]) {
        let mut pattern: Pattern = Vec::with_capacity(kinds.len());
        let mut rest = self.instance.capacity;
        for &kind in kinds {
            match rest.minus(&self.instance.sizes[kind as usize], &self.instance.guard) {
                Some(smaller) => rest = smaller,
                None => return,
            }
            match pattern.last_mut() {
                Some((last, copies)) if *last == kind => *copies += 1,
                _ => pattern.push((kind, 1)),
            }
        }
        let instance = self.instance;
        let exact = self.full.iter().all(|&dimension| {
            kinds
                .iter()
                .map(|&kind| i128::from(instance.sizes_raw[kind as usize][dimension]))
                .sum::<i128>()
                == i128::from(instance.capacity_raw[dimension])
        });
        if exact
            && pattern
                .iter()
                .all(|&(kind, copies)| copies <= instance.counts[kind as usize])
        {
            self.contents.push(pattern);
        }
    }

    fn up_to_three(&mut self, budget: &mut Budget) {
        let types = self.keys.len() as u32;
        let by_key = std::mem::take(&mut self.by_key);
        let none = Vec::new();
        for &kind in by_key.get(&self.target).unwrap_or(&none) {
            self.offer(&[kind]);
        }
        for first in 0..types {
            let left = self.target.wrapping_sub(self.keys[first as usize]);
            for &second in by_key
                .get(&left)
                .unwrap_or(&none)
                .iter()
                .filter(|&&second| second >= first)
            {
                self.offer(&[first, second]);
            }
            for second in first..types {
                if let Some(thirds) = by_key.get(&left.wrapping_sub(self.keys[second as usize])) {
                    for &third in thirds.iter().filter(|&&third| third >= second) {
                        self.offer(&[first, second, third]);
                    }
                }
            }
            budget.spend(u64::from(types) * 4);
            if budget.exhausted() || self.contents.len() > CONTENTS_MAX {
                break;
            }
        }
        self.by_key = by_key;
    }

    fn four(&mut self, budget: &mut Budget) {
        let types = self.keys.len() as u32;
        // Pairs whose smaller member comes later than both of a pair seen before: each foursome once, in order.
        let mut pairs: HashMap<u64, Vec<(u32, u32)>> = HashMap::new();
        for third in 0..types {
            for fourth in third..types {
                let left = self
                    .target
                    .wrapping_sub(self.keys[third as usize])
                    .wrapping_sub(self.keys[fourth as usize]);
                if let Some(before) = pairs.get(&left) {
                    for &(first, second) in before {
                        self.offer(&[first, second, third, fourth]);
                    }
                }
            }
            // Pairs that end at `third` may be followed by pairs that begin with it: put in before the next round.
            for first in 0..=third {
                let sum = self.keys[first as usize].wrapping_add(self.keys[third as usize]);
                pairs.entry(sum).or_default().push((first, third));
            }
            budget.spend(u64::from(types) * 8);
            if budget.exhausted() || self.contents.len() > CONTENTS_MAX {
                break;
            }
        }
    }
}

/// The search for contents that together hold every copy exactly once.
struct Cover<'c> {
    contents: &'c [Pattern],
    /// Contents of each type.
    of_type: Vec<Vec<u32>>,
    left: Vec<u64>,
    /// How many of a content's types have too few copies left; zero: it can be chosen.
    short: Vec<u32>,
    /// Contents that can be chosen, for each type.
    open: Vec<u32>,
    /// How often a type was left without contents: such types are chosen earlier the next time.
    failures: Vec<u32>,
    chosen: Vec<u32>,
    branches: u64,
    branches_max: u64,
    random: Random,
}

fn cover<const W: usize>(
    instance: &Instance<W>,
    contents: &[Pattern],
    budget: &mut Budget,
) -> Option<Vec<(Pattern, u64)>> {
    let types = instance.types();
    let mut of_type = vec![Vec::new(); types];
    for (index, content) in contents.iter().enumerate() {
        for &(kind, _) in content {
            of_type[kind as usize].push(index as u32);
        }
    }
    if of_type.iter().any(Vec::is_empty) || instance.item_count > ITEMS_MAX {
        return None;
    }
    let mut cover = Cover {
        contents,
        open: of_type.iter().map(|list| list.len() as u32).collect(),
        of_type,
        left: instance.counts.clone(),
        short: vec![0; contents.len()],
        failures: vec![1; types],
        chosen: Vec::new(),
        branches: 0,
        branches_max: BRANCHES_FIRST,
        random: Random(0x5EED | 1),
    };
    for _ in 0..ATTEMPTS_MAX {
        match cover.search(budget) {
            Some(true) => {
                return Some(
                    cover
                        .chosen
                        .iter()
                        .map(|&index| (contents[index as usize].clone(), 1))
                        .collect(),
                );
            }
            Some(false) => return None,
            None => {}
        }
        while let Some(content) = cover.chosen.pop() {
            cover.take(content, false);
        }
        if budget.exhausted() {
            return None;
        }
        cover.branches = 0;
        cover.branches_max += cover.branches_max / 4;
    }
    None
}

impl Cover<'_> {
    /// `None`: gave up, and what was chosen stays so.
    fn search(&mut self, budget: &mut Budget) -> Option<bool> {
        // Fewest contents for the trouble it made (dom/wdeg of Boussemart et al. 2004), compared as fractions.
        let scarce = (0..self.left.len())
            .filter(|&kind| self.left[kind] > 0)
            .min_by(|&a, &b| {
                let (left, right) = (
                    u64::from(self.open[a]) * u64::from(self.failures[b]),
                    u64::from(self.open[b]) * u64::from(self.failures[a]),
                );
                left.cmp(&right)
            });
        budget.spend(self.left.len() as u64 / 4);
        let Some(kind) = scarce else {
            return Some(true);
        };
        if self.open[kind] == 0 {
            self.failures[kind] += 1;
            return Some(false);
        }
        // Scarce company first: it would be hard to place later.
        let mut choices: Vec<(f64, u32)> = Vec::with_capacity(self.open[kind] as usize);
        for &content in &self.of_type[kind] {
            if self.short[content as usize] == 0 {
                let ease: f64 = self.contents[content as usize]
                    .iter()
                    .map(|&(member, _)| 1.0 / f64::from(self.open[member as usize]))
                    .sum();
                choices.push((-ease * (0.5 + unit(&mut self.random)), content));
            }
        }
        choices.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let forced = choices.len() == 1;
        for (_, content) in choices {
            if !forced {
                self.branches += 1;
                if self.branches > self.branches_max || budget.exhausted() {
                    return None;
                }
            }
            self.take(content, true);
            self.chosen.push(content);
            match self.search(budget) {
                Some(false) => {}
                ended => return ended,
            }
            self.chosen.pop();
            self.take(content, false);
        }
        Some(false)
    }

    /// Takes a content's copies, or gives them back, and keeps `short` and `open`.
    fn take(&mut self, content: u32, taken: bool) {
        let contents = self.contents;
        for &(kind, copies) in &contents[content as usize] {
            let kind = kind as usize;
            let before = self.left[kind];
            let after = if taken {
                before - copies
            } else {
                before + copies
            };
            self.left[kind] = after;
            for &other in &self.of_type[kind] {
                let needed = contents[other as usize]
                    .iter()
                    .find(|(member, _)| *member as usize == kind)
                    .map_or(0, |(_, copies)| *copies);
                let (was_short, is_short) = (needed > before, needed > after);
                if was_short == is_short {
                    continue;
                }
                let short = &mut self.short[other as usize];
                let opened_before = *short == 0;
                *short = if is_short { *short + 1 } else { *short - 1 };
                if opened_before != (*short == 0) {
                    for &(member, _) in &contents[other as usize] {
                        let open = &mut self.open[member as usize];
                        *open = if opened_before { *open - 1 } else { *open + 1 };
                    }
                }
            }
        }
    }
}
