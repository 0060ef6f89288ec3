//! Numbers out of quantities, for the few resources that a node agent computes with.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The quantity in thousandths, rounded up; `None` if it is not a quantity.
pub fn millis(quantity: &Quantity) -> Option<i128> {
    let text = quantity.0.trim();
    let (number, suffix) =
        match text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '+' || c == '-')) {
            Some(index) => text.split_at(index),
            None => (text, ""),
        };
    // A decimal as an integer and its count of fraction digits.
    let (negative, digits) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() || whole.len() + fraction.len() > 30 {
        return None;
    }
    let mut value: i128 = 0;
    for digit in whole.chars().chain(fraction.chars()) {
        value = value
            .checked_mul(10)?
            .checked_add(i128::from(digit.to_digit(10)?))?;
    }
    let mut numerator: i128 = 1000;
    let mut denominator: i128 = 10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    match suffix {
        "" => {}
        "n" => denominator = denominator.checked_mul(1_000_000_000)?,
        "u" => denominator = denominator.checked_mul(1_000_000)?,
        "m" => denominator = denominator.checked_mul(1000)?,
        "k" => numerator *= 1000,
        "M" => numerator *= 1_000_000,
        "G" => numerator *= 1_000_000_000,
        "T" => numerator *= 1_000_000_000_000,
        "P" => numerator *= 1_000_000_000_000_000,
        "E" => numerator *= 1_000_000_000_000_000_000,
        "Ki" => numerator <<= 10,
        "Mi" => numerator <<= 20,
        "Gi" => numerator <<= 30,
        "Ti" => numerator <<= 40,
        "Pi" => numerator <<= 50,
        "Ei" => numerator <<= 60,
        exponent => {
            let exponent: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10i128.checked_pow(exponent.unsigned_abs())?;
            if exponent >= 0 {
                numerator = numerator.checked_mul(power)?;
            } else {
                denominator = denominator.checked_mul(power)?;
            }
        }
    }
    let scaled = value.checked_mul(numerator)?;
    let rounded = scaled / denominator + i128::from(scaled % denominator != 0);
    Some(if negative { -rounded } else { rounded })
}

/// The quantity in whole units (bytes, counts), rounded up; 0 if it is not a quantity.
pub fn units(quantity: &Quantity) -> i64 {
    let millis = millis(quantity).unwrap_or(0);
    i64::try_from((millis + 999).div_euclid(1000)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_become_numbers() {
        for (text, expect) in [
            ("1", Some(1000)),
            ("100m", Some(100)),
            ("0.5", Some(500)),
            ("1.5Gi", Some(1_610_612_736_000)),
            ("2k", Some(2_000_000)),
            ("1e3", Some(1_000_000)),
            ("12e-1", Some(1200)),
            ("1n", Some(1)),
            ("-1", Some(-1000)),
            ("", None),
            ("x", None),
            ("1Q", None),
        ] {
            assert_eq!(millis(&Quantity(text.into())), expect, "{text}");
        }
        assert_eq!(units(&Quantity("1500m".into())), 2);
        assert_eq!(units(&Quantity("64Mi".into())), 67_108_864);
    }
}
