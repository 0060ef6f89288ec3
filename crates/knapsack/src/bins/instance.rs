//! A problem made ready for search: identical items merged, idle dimensions dropped, sizes packed into words.

use std::collections::BTreeMap;

use super::packed::{Layout, Packed};
use super::{BinError, BinGroup, BinProblem, DIMENSION_MAX};

/// Types in one bin, with how often each: type index ascending.
pub(super) type Pattern = Vec<(u32, u64)>;

/// What the search works on. Every type has a positive size in some dimension, and every dimension can bind.
pub(super) struct Instance<const W: usize> {
    pub(super) capacity_raw: Vec<i64>,
    pub(super) sizes_raw: Vec<Vec<i64>>,
    /// Copies of each type, positive.
    pub(super) counts: Vec<u64>,
    pub(super) item_count: u64,
    pub(super) capacity: Packed<W>,
    pub(super) guard: Packed<W>,
    pub(super) sizes: Vec<Packed<W>>,
    /// Size as a share of the capacity: `type * dimensions + dimension`.
    shares: Vec<f64>,
    layout: Layout,
    /// Most copies of each type in one bin.
    pub(super) copies_max: Vec<u32>,
}

/// The merged problem before packing into words, and how to get back to the items.
pub(super) struct Merged {
    pub(super) capacity: Vec<i64>,
    pub(super) sizes: Vec<Vec<i64>>,
    pub(super) counts: Vec<u64>,
    /// The items of each type.
    members: Vec<Vec<usize>>,
    /// Items that weigh nothing in any dimension that can bind.
    weightless: Vec<usize>,
    pub(super) layout: Layout,
}

pub(super) fn validate(problem: &BinProblem) -> Result<(), BinError> {
    let expected = problem.capacity.len();
    if expected > DIMENSION_MAX {
        return Err(BinError::TooManyDimensions(expected));
    }
    for (dimension, &value) in problem.capacity.iter().enumerate() {
        if value < 0 {
            return Err(BinError::NegativeCapacity { dimension, value });
        }
    }
    let mut total: u64 = 0;
    for (index, item) in problem.items.iter().enumerate() {
        if item.size.len() != expected {
            return Err(BinError::DimensionCount {
                item: index,
                expected,
                actual: item.size.len(),
            });
        }
        for (dimension, (&size, &capacity)) in item.size.iter().zip(&problem.capacity).enumerate() {
            if size < 0 {
                return Err(BinError::NegativeSize {
                    item: index,
                    dimension,
                    value: size,
                });
            }
            if size > capacity && item.count > 0 {
                return Err(BinError::LargerThanBin {
                    item: index,
                    dimension,
                    size,
                    capacity,
                });
            }
        }
        total = total
            .checked_add(item.count)
            .filter(|&total| total <= 1 << 63)
            .ok_or(BinError::TooManyItems)?;
    }
    Ok(())
}

impl Merged {
    pub(super) fn new(problem: &BinProblem) -> Merged {
        // A dimension in which everything together fits into one bin never binds.
        let binding: Vec<usize> = (0..problem.capacity.len())
            .filter(|&dimension| {
                let total: i128 = problem
                    .items
                    .iter()
                    .map(|item| i128::from(item.size[dimension]) * i128::from(item.count))
                    .sum();
                total > i128::from(problem.capacity[dimension])
            })
            .collect();
        let mut by_size: BTreeMap<Vec<i64>, Vec<usize>> = BTreeMap::new();
        let mut weightless = Vec::new();
        for (index, item) in problem
            .items
            .iter()
            .enumerate()
            .filter(|(_, item)| item.count > 0)
        {
            let size: Vec<i64> = binding
                .iter()
                .map(|&dimension| item.size[dimension])
                .collect();
            if size.iter().all(|&size| size == 0) {
                weightless.push(index);
            } else {
                by_size.entry(size).or_default().push(index);
            }
        }
        let capacity: Vec<i64> = binding
            .iter()
            .map(|&dimension| problem.capacity[dimension])
            .collect();
        let mut merged = Merged {
            layout: Layout::new(&capacity),
            capacity,
            sizes: Vec::with_capacity(by_size.len()),
            counts: Vec::with_capacity(by_size.len()),
            members: Vec::with_capacity(by_size.len()),
            weightless,
        };
        for (size, members) in by_size {
            merged.sizes.push(size);
            merged
                .counts
                .push(members.iter().map(|&item| problem.items[item].count).sum());
            merged.members.push(members);
        }
        merged
    }

    /// Bins of types turned into bins of items.
    pub(super) fn expand(&self, problem: &BinProblem, bins: &[(Pattern, u64)]) -> Vec<BinGroup> {
        let mut left: Vec<Vec<(usize, u64)>> = self
            .members
            .iter()
            .map(|members| {
                members
                    .iter()
                    .rev()
                    .map(|&item| (item, problem.items[item].count))
                    .collect()
            })
            .collect();
        let mut groups: Vec<BinGroup> = Vec::new();
        for (pattern, count) in bins {
            let mut todo = *count;
            while todo > 0 {
                // As many bins at once as can be filled from the same items.
                let mut content: Vec<(usize, u64)> = Vec::new();
                let mut bins = todo;
                for &(kind, copies) in pattern {
                    let queue = &left[kind as usize];
                    let (item, available) = *queue
                        .last()
                        .expect("a packing holds no more copies than there are");
                    if available >= copies {
                        bins = bins.min(available / copies);
                        content.push((item, copies));
                    } else {
                        bins = 1;
                        let mut missing = copies;
                        for &(item, available) in queue.iter().rev() {
                            let taken = missing.min(available);
                            content.push((item, taken));
                            missing -= taken;
                            if missing == 0 {
                                break;
                            }
                        }
                    }
                }
                for &(kind, copies) in pattern {
                    let mut missing = copies * bins;
                    let queue = &mut left[kind as usize];
                    while missing > 0 {
                        let last = queue.last_mut().expect("checked above");
                        let taken = missing.min(last.1);
                        last.1 -= taken;
                        missing -= taken;
                        if last.1 == 0 {
                            queue.pop();
                        }
                    }
                }
                groups.push(BinGroup { content, bins });
                todo -= bins;
            }
        }
        if !self.weightless.is_empty() {
            self.place_weightless(problem, &mut groups);
        }
        groups
    }

    /// Weightless items go together into one bin, or a new one if there is none.
    fn place_weightless(&self, problem: &BinProblem, groups: &mut Vec<BinGroup>) {
        let content: Vec<(usize, u64)> = self
            .weightless
            .iter()
            .map(|&item| (item, problem.items[item].count))
            .collect();
        match groups.iter().position(|group| group.bins > 0) {
            None => groups.push(BinGroup { content, bins: 1 }),
            Some(index) => {
                let mut first = BinGroup {
                    content: groups[index].content.clone(),
                    bins: 1,
                };
                first.content.extend(content);
                groups[index].bins -= 1;
                if groups[index].bins == 0 {
                    groups[index] = first;
                } else {
                    groups.push(first);
                }
            }
        }
    }

    /// Whether there is anything with weight to pack.
    pub(super) fn is_trivial(&self) -> bool {
        self.sizes.is_empty()
    }
}

impl<const W: usize> Instance<W> {
    pub(super) fn new(merged: &Merged) -> Instance<W> {
        let capacity = &merged.capacity;
        let copies_max = merged
            .sizes
            .iter()
            .zip(&merged.counts)
            .map(|(size, &count)| {
                let by_size = size
                    .iter()
                    .zip(capacity)
                    .filter(|(size, _)| **size > 0)
                    .map(|(size, capacity)| capacity / size)
                    .min();
                let fits = by_size.expect("weightless items are taken out before");
                u32::try_from(fits.unsigned_abs().min(count).min(u64::from(COPIES_MAX)))
                    .expect("limited above")
            })
            .collect();
        Instance {
            capacity: merged.layout.pack(capacity),
            guard: merged.layout.guard(),
            sizes: merged
                .sizes
                .iter()
                .map(|size| merged.layout.pack(size))
                .collect(),
            shares: merged
                .sizes
                .iter()
                .flat_map(|size| {
                    size.iter()
                        .zip(capacity)
                        .map(|(&size, &capacity)| size as f64 / capacity as f64)
                })
                .collect(),
            copies_max,
            layout: merged.layout.clone(),
            item_count: merged.counts.iter().sum(),
            capacity_raw: capacity.clone(),
            sizes_raw: merged.sizes.clone(),
            counts: merged.counts.clone(),
        }
    }

    pub(super) fn dimensions(&self) -> usize {
        self.capacity_raw.len()
    }

    /// Packs a vector none of whose numbers exceeds the capacity.
    pub(super) fn pack(&self, vector: &[i64]) -> Packed<W> {
        self.layout.pack(vector)
    }

    pub(super) fn types(&self) -> usize {
        self.sizes.len()
    }

    pub(super) fn share(&self, kind: usize) -> &[f64] {
        let dimensions = self.dimensions();
        &self.shares[kind * dimensions..(kind + 1) * dimensions]
    }
}

/// Most copies of one type in one bin that column generation counts; problems with more get greedy packings and volume bounds only.
pub(super) const COPIES_MAX: u32 = 1 << 20;
