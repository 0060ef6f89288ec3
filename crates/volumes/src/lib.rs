//! Pod volumes: plan and apply.
