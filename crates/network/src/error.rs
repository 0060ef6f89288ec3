//! Errors of the network crate.

use std::net::Ipv4Addr;

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The kernel refused a request.
    #[error("{operation}: {source}")]
    Kernel {
        operation: String,
        source: std::io::Error,
    },
    #[error("{operation} {path}: {source}")]
    File {
        operation: &'static str,
        path: String,
        source: std::io::Error,
    },
    #[error("no free address is left in {cidr}; delete pods or give nodes a larger range")]
    AddressesExhausted { cidr: String },
    #[error("\"{text}\" is no IPv4 range of the form 10.42.0.0/24")]
    InvalidCidr { text: String },
    #[error("link {name} exists and is no bridge; remove it or choose another name with --bridge")]
    NotABridge { name: String },
    /// A firewall that is not ours did not do what it was asked.
    #[error(transparent)]
    Firewall(#[from] crate::firewall::ToolError),
    #[error("{address} is not in the pod range {cidr}")]
    ForeignAddress { address: Ipv4Addr, cidr: String },
}

impl NetworkError {
    pub(crate) fn kernel(operation: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self::Kernel {
            operation: operation.into(),
            source: source.into(),
        }
    }

    pub(crate) fn file(
        operation: &'static str,
        path: &std::path::Path,
        source: std::io::Error,
    ) -> Self {
        Self::File {
            operation,
            path: path.display().to_string(),
            source,
        }
    }
}
