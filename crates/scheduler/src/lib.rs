//! Snapshot and pending pods to a placement plan, as a multiple-knapsack problem.
