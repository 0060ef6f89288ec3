//! Reconcilers as pure functions: observed objects and the time to actions and status.
