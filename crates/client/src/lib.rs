//! kube::Client over HTTPS or in-process over the API router; work queues.
