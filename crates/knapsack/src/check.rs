//! An independent check of a solution; shares no code with the solver.

use std::collections::HashMap;

use crate::problem::{Problem, Profit, UNCONSTRAINED, Weight};
use crate::solution::Solution;

/// The first rule that a solution breaks, in words; `Ok` if it breaks none.
pub fn check(problem: &Problem, solution: &Solution) -> Result<(), String> {
    let mut load: HashMap<(u32, usize), i128> = HashMap::new();
    let mut count: HashMap<u32, u64> = HashMap::new();
    let mut value: i128 = 0;
    for placed in &solution.placed {
        let item = problem
            .items
            .get(placed.item as usize)
            .ok_or_else(|| format!("no item {}", placed.item))?;
        if placed.knapsack as usize >= problem.knapsacks.len() {
            return Err(format!("no knapsack {}", placed.knapsack));
        }
        if item
            .allowed
            .as_ref()
            .is_some_and(|set| !set.contains(placed.knapsack as usize))
        {
            return Err(format!(
                "item {} may not go to knapsack {}",
                placed.item, placed.knapsack
            ));
        }
        let weight = match &item.weight {
            Weight::Same(weight) => weight,
            Weight::PerKnapsack(weights) => &weights[placed.knapsack as usize],
        };
        for (dimension, weight) in weight.iter().enumerate() {
            *load.entry((placed.knapsack, dimension)).or_insert(0) +=
                i128::from(*weight) * i128::from(placed.count);
        }
        let profit = match &item.profit {
            Profit::Same(profit) => *profit,
            Profit::PerKnapsack(profits) => profits[placed.knapsack as usize],
        };
        if profit < 0 {
            return Err(format!(
                "item {} has no business in knapsack {}",
                placed.item, placed.knapsack
            ));
        }
        value += i128::from(profit) * i128::from(placed.count);
        *count.entry(placed.item).or_insert(0) += u64::from(placed.count);
    }
    for ((knapsack, dimension), load) in load {
        let capacity = i128::from(problem.knapsacks[knapsack as usize].capacity[dimension]);
        if load > 0 && load > capacity {
            return Err(format!(
                "knapsack {knapsack} holds {load} of {capacity} in dimension {dimension}"
            ));
        }
    }
    for (item, count) in &count {
        if *count > u64::from(problem.items[*item as usize].multiplicity) {
            return Err(format!("item {item} is placed {count} times"));
        }
    }
    for (index, conflict) in problem.conflicts.iter().enumerate() {
        let mut in_domain: HashMap<u32, u64> = HashMap::new();
        for placed in solution
            .placed
            .iter()
            .filter(|placed| conflict.members.contains(&placed.item))
        {
            let domain = conflict
                .domains
                .as_ref()
                .map_or(placed.knapsack, |domains| domains[placed.knapsack as usize]);
            if domain != UNCONSTRAINED {
                *in_domain.entry(domain).or_insert(0) += u64::from(placed.count);
            }
        }
        if let Some((domain, count)) = in_domain
            .iter()
            .find(|(_, count)| **count > u64::from(conflict.limit))
        {
            return Err(format!(
                "conflict {index} has {count} copies in domain {domain}"
            ));
        }
    }
    for (index, gang) in problem.gangs.iter().enumerate() {
        let placed = |item: &u32| count.get(item).copied().unwrap_or(0);
        let all = gang
            .members
            .iter()
            .all(|item| placed(item) == u64::from(problem.items[*item as usize].multiplicity));
        let none = gang.members.iter().all(|item| placed(item) == 0);
        if !all && !none {
            return Err(format!("gang {index} is placed in part"));
        }
    }
    let value = value.clamp(0, i128::from(i64::MAX)) as i64;
    if value != solution.value {
        return Err(format!(
            "the value is {value}, the solution says {}",
            solution.value
        ));
    }
    if solution.value > solution.upper_bound {
        return Err(format!(
            "the bound {} is below the value {value}",
            solution.upper_bound
        ));
    }
    Ok(())
}
