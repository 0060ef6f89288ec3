//! The Kubernetes API over HTTP: storage, watch, authentication, authorization, admission.
