//! IP addresses and CIDRs in fields that predate strict validation.
//!
//! Such fields accept any notation of an address (`FE80::1`), but no leading zeros, no IPv4 in
//! IPv6 clothing and no bits past a prefix; the words are upstream's.

use std::net::{IpAddr, Ipv4Addr};

use crate::error::{ErrorList, invalid};
use crate::path::Path;

/// Parses an address, IPv4 octets with leading zeros included.
pub fn parse_sloppy(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts
            .next()
            .filter(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))?;
        *octet = part
            .trim_start_matches('0')
            .parse()
            .or_else(|cause| {
                if part.trim_start_matches('0').is_empty() {
                    Ok(0)
                } else {
                    Err(cause)
                }
            })
            .ok()?;
    }
    parts
        .next()
        .is_none()
        .then(|| IpAddr::V4(Ipv4Addr::from(octets)))
}

/// Parses `address/length`, leading zeros included; the address keeps its low bits.
pub fn parse_cidr_sloppy(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = text.split_once('/')?;
    let address = parse_sloppy(address)?;
    if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let length: u8 = length.parse().ok()?;
    (length <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, length))
}

/// Whether both families are there (a dual-stack pair).
pub fn is_dual_stack<'a>(mut texts: impl Iterator<Item = &'a str>) -> bool {
    let (mut v4, mut v6) = (false, false);
    let all_parse = texts.all(|text| match text.parse::<IpAddr>() {
        Ok(address) => {
            v4 |= address.is_ipv4();
            v6 |= address.is_ipv6();
            true
        }
        Err(_) => false,
    });
    all_parse && v4 && v6
}

/// Validates an address; those in `known` (from the old object) pass as they are.
pub fn validate(text: &str, known: &[&str], path: &Path<'_>, errors: &mut ErrorList) {
    if known.contains(&text) {
        return;
    }
    match (parse_sloppy(text), text.parse::<IpAddr>()) {
        (None, _) => errors.push(invalid(
            path,
            text,
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        )),
        (Some(_), Err(_)) => errors.push(invalid(path, text, "must not have leading 0s")),
        (Some(_), Ok(IpAddr::V6(address))) if address.to_ipv4_mapped().is_some() => {
            errors.push(invalid(
                path,
                text,
                "must not be an IPv4-mapped IPv6 address",
            ));
        }
        _ => {}
    }
}

/// Validates a subnet.
pub fn validate_cidr(text: &str, known: &[&str], path: &Path<'_>, errors: &mut ErrorList) {
    if known.contains(&text) {
        return;
    }
    let Some((address, length)) = parse_cidr_sloppy(text) else {
        errors.push(invalid(
            path,
            text,
            "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
        ));
        return;
    };
    let (address_text, length_text) = text.split_once('/').unwrap_or((text, ""));
    let padded = length_text.len() > 1 && length_text.starts_with('0');
    if address_text.parse::<IpAddr>().is_err() || padded {
        errors.push(invalid(
            path,
            text,
            "must not have leading 0s in IP or prefix length",
        ));
    } else if matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some()) {
        errors.push(invalid(
            path,
            text,
            "must not have an IPv4-mapped IPv6 address",
        ));
    } else if has_host_bits(address, length) {
        errors.push(invalid(
            path,
            text,
            "must not have bits set beyond the prefix length",
        ));
    }
}

fn has_host_bits(address: IpAddr, length: u8) -> bool {
    let (bits, width) = match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()), 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    let host_bits = width - u32::from(length);
    host_bits > 0 && bits & (u128::MAX >> (128 - host_bits)) != 0
}

/// Validates an address in a field with strict rules: valid and in canonical notation.
pub fn validate_strict(text: &str, path: &Path<'_>, errors: &mut ErrorList) {
    let before = errors.len();
    validate(text, &[], path, errors);
    if errors.len() == before
        && let Ok(address) = text.parse::<IpAddr>()
        && address.to_string() != text
    {
        errors.push(invalid(
            path,
            text,
            format!("must be in canonical form (\"{address}\")"),
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::root;

    #[test]
    fn addresses() {
        let check = |text: &str, expect: Option<&str>| {
            let mut errors = Vec::new();
            validate(text, &["::ffff:9.9.9.9"], &root("ip"), &mut errors);
            assert_eq!(
                errors.first().map(|error| error.detail.as_str()),
                expect,
                "{text}"
            );
        };
        check("10.0.0.1", None);
        check("FE80::0001", None);
        check("::ffff:9.9.9.9", None);
        check("010.0.0.1", Some("must not have leading 0s"));
        check(
            "::ffff:1.2.3.4",
            Some("must not be an IPv4-mapped IPv6 address"),
        );
        for text in ["", "1.2.3", "1.2.3.4.5", "1.2.3.256", "a", "1.2.3.4/8"] {
            check(
                text,
                Some("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"),
            );
        }
    }

    #[test]
    fn subnets() {
        let check = |text: &str, expect: Option<&str>| {
            let mut errors = Vec::new();
            validate_cidr(text, &[], &root("cidr"), &mut errors);
            assert_eq!(
                errors.first().map(|error| error.detail.as_str()),
                expect,
                "{text}"
            );
        };
        check("10.0.0.0/8", None);
        check("0.0.0.0/0", None);
        check("2001:db8::/32", None);
        check(
            "10.0.0.1/8",
            Some("must not have bits set beyond the prefix length"),
        );
        check(
            "10.0.0.0/08",
            Some("must not have leading 0s in IP or prefix length"),
        );
        check(
            "10.0.0.0",
            Some("must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"),
        );
        check(
            "10.0.0.0/33",
            Some("must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"),
        );
    }

    #[test]
    fn strict_wants_the_canonical_form() {
        let mut errors = Vec::new();
        validate_strict("FE80::1", &root("ip"), &mut errors);
        assert_eq!(errors[0].detail, "must be in canonical form (\"fe80::1\")");
        assert!(is_dual_stack(["10.0.0.1", "fd00::1"].into_iter()));
        assert!(!is_dual_stack(["10.0.0.1", "10.0.0.2"].into_iter()));
    }
}
