//! Numbers out of quantities, for the few resources that a node agent computes with.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The quantity in thousandths, rounded up; `None` if it is not a quantity.
pub fn millis(quantity: &Quantity) -> Option<i128> {
    let parsed = api::quantity::Quantity::parse(&quantity.0).ok()?;
    Some(parsed.milli_value().into())
}

/// The quantity in whole units (bytes, counts), rounded up; 0 if it is not a quantity.
pub fn units(quantity: &Quantity) -> i64 {
    api::quantity::Quantity::parse(&quantity.0).map_or(0, |quantity| quantity.value())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_become_numbers() {
        for (text, expect) in [
            ("1", Some(1000)),
            ("100m", Some(100)),
            ("1.5Gi", Some(1_610_612_736_000)),
            ("1e3", Some(1_000_000)),
            ("1n", Some(1)),
            ("x", None),
        ] {
            assert_eq!(millis(&Quantity(text.into())), expect, "{text}");
        }
        assert_eq!(units(&Quantity("1500m".into())), 2);
        assert_eq!(units(&Quantity("64Mi".into())), 67_108_864);
    }
}
