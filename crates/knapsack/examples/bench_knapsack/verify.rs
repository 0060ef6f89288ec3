//! Is an answer feasible, and is it worth what it says? Written against the problem's definition alone.

use knapsack::{Problem, Profit, Solution, UNCONSTRAINED, Weight};

/// The first rule that the answer breaks, in words.
pub fn verify(problem: &Problem, solution: &Solution) -> Result<(), String> {
    let dimensions = problem.dimension_count;
    let mut used = vec![0i128; problem.knapsacks.len() * dimensions];
    let mut touched = vec![false; problem.knapsacks.len() * dimensions];
    let mut copies = vec![0u64; problem.items.len()];
    let mut value = 0i128;
    for placed in &solution.placed {
        let (i, k) = (placed.item as usize, placed.knapsack as usize);
        if i >= problem.items.len() || k >= problem.knapsacks.len() {
            return Err(format!("item {i} in knapsack {k}: no such pair"));
        }
        let item = &problem.items[i];
        let profit = match &item.profit {
            Profit::Same(profit) => *profit,
            Profit::PerKnapsack(profits) => profits[k],
        };
        if profit < 0 || item.allowed.as_ref().is_some_and(|set| !set.contains(k)) {
            return Err(format!("item {i} in knapsack {k} is forbidden"));
        }
        let weight = match &item.weight {
            Weight::Same(weight) => weight,
            Weight::PerKnapsack(weights) => &weights[k],
        };
        for d in 0..dimensions {
            used[k * dimensions + d] += i128::from(weight[d]) * i128::from(placed.count);
            touched[k * dimensions + d] |= weight[d] > 0 && placed.count > 0;
        }
        copies[i] += u64::from(placed.count);
        value += i128::from(profit) * i128::from(placed.count);
    }
    for (k, knapsack) in problem.knapsacks.iter().enumerate() {
        for d in 0..dimensions {
            let at = k * dimensions + d;
            if touched[at] && used[at] > i128::from(knapsack.capacity[d]) {
                return Err(format!("knapsack {k} is overcommitted in dimension {d}"));
            }
        }
    }
    for (i, item) in problem.items.iter().enumerate() {
        if copies[i] > u64::from(item.multiplicity) {
            return Err(format!("item {i} is placed {} times", copies[i]));
        }
    }
    for (c, conflict) in problem.conflicts.iter().enumerate() {
        let mut member = vec![false; problem.items.len()];
        for item in &conflict.members {
            member[*item as usize] = true;
        }
        let mut counts = std::collections::BTreeMap::<u32, u64>::new();
        for placed in &solution.placed {
            let domain = match &conflict.domains {
                Some(domains) => domains[placed.knapsack as usize],
                None => placed.knapsack,
            };
            if member[placed.item as usize] && domain != UNCONSTRAINED {
                *counts.entry(domain).or_default() += u64::from(placed.count);
            }
        }
        if counts
            .values()
            .any(|count| *count > u64::from(conflict.limit))
        {
            return Err(format!("conflict {c} is broken"));
        }
    }
    for (g, gang) in problem.gangs.iter().enumerate() {
        let full = |item: &&u32| {
            copies[**item as usize] == u64::from(problem.items[**item as usize].multiplicity)
        };
        let whole = gang.members.iter().filter(full).count() == gang.members.len();
        if !whole && gang.members.iter().any(|item| copies[*item as usize] > 0) {
            return Err(format!("gang {g} is placed in part"));
        }
    }
    if value.min(i128::from(i64::MAX)) != i128::from(solution.value) {
        return Err(format!("worth {value}, not {}", solution.value));
    }
    if solution.upper_bound < solution.value {
        return Err("the bound is below the value".into());
    }
    if solution.optimal && solution.upper_bound != solution.value {
        return Err("called optimal, but the bound is above the value".into());
    }
    Ok(())
}
