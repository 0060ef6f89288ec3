//! Which addresses may stand for an endpoint: none that means the machine itself or its link.

use std::net::IpAddr;

use crate::error::{ErrorList, invalid};
use crate::ip;
use crate::path::Path;

/// Forbids unspecified, loopback, link-local and link-local multicast addresses.
pub fn validate_endpoint_ip(text: &str, path: &Path<'_>, errors: &mut ErrorList) {
    let Some(address) = ip::parse_sloppy(text) else {
        errors.push(invalid(path, text, "must be a valid IP address"));
        return;
    };
    if address.is_unspecified() {
        errors.push(invalid(
            path,
            text,
            format!("may not be unspecified ({text})"),
        ));
    }
    if address.is_loopback() {
        errors.push(invalid(
            path,
            text,
            "may not be in the loopback range (127.0.0.0/8, ::1/128)",
        ));
    }
    let (link_local, link_local_multicast) = match address {
        IpAddr::V4(address) => (
            address.is_link_local(),
            address.octets()[..3] == [224, 0, 0],
        ),
        IpAddr::V6(address) => (
            address.is_unicast_link_local(),
            address.segments()[0] & 0xff0f == 0xff02,
        ),
    };
    if link_local {
        errors.push(invalid(
            path,
            text,
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
        ));
    }
    if link_local_multicast {
        errors.push(invalid(
            path,
            text,
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)",
        ));
    }
}
