//! The node agent: pod state machine, probes, status, eviction, streaming.
