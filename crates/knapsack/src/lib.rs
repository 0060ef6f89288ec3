//! Multi-dimensional multiple-knapsack solver: items, knapsacks, weights, profits, bounds.
