//! Amounts of resources: `500m`, `1Gi`, `1e3`, exactly as `resource.Quantity` upstream.
//!
//! Objects keep quantities as text (k8s-openapi's `Quantity(String)`); [`Quantity`] is the number
//! behind it: `mantissa * 10^exponent` with the notation it came in. Values finer than a
//! billionth are rounded away from zero. Numbers keep at most 37 significant digits; past that,
//! sums lose their smallest digits instead of failing.

use std::cmp::Ordering;
use std::fmt;

/// Significant digits that fit an i128 with room for one carry.
const DIGITS_MAX: u32 = 37;
/// Largest exponent that has a suffix (`E`).
const EXA: i32 = 18;
const NANO: i32 = -9;
pub const MILLI: i32 = -3;

/// Which suffixes a quantity is written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `12e6`
    DecimalExponent,
    /// `12Mi`
    BinarySi,
    /// `12M`
    DecimalSi,
}

/// A parsed quantity. Equality and order are by value; the notation does not count.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    /// Without trailing decimal zeros.
    mantissa: i128,
    exponent: i32,
    format: Format,
}

/// Why a text is no quantity, in upstream's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Format,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    pub const ZERO: Quantity = Quantity {
        mantissa: 0,
        exponent: 0,
        format: Format::DecimalSi,
    };

    pub fn parse(text: &str) -> Result<Quantity, QuantityError> {
        parse(text).map(|(quantity, _)| quantity)
    }

    pub fn from_value(value: i64, format: Format) -> Quantity {
        Quantity {
            mantissa: i128::from(value),
            exponent: 0,
            format,
        }
        .normalized()
    }

    /// From thousandths: `from_millis(1500)` is `1500m`.
    pub fn from_millis(millis: i64) -> Quantity {
        Quantity {
            mantissa: i128::from(millis),
            exponent: MILLI,
            format: Format::DecimalSi,
        }
        .normalized()
    }

    pub fn format(&self) -> Format {
        self.format
    }

    pub fn is_zero(&self) -> bool {
        self.mantissa == 0
    }

    pub fn is_negative(&self) -> bool {
        self.mantissa < 0
    }

    pub fn is_positive(&self) -> bool {
        self.mantissa > 0
    }

    /// Whole units, rounded away from zero, saturating.
    pub fn value(&self) -> i64 {
        self.scaled(0)
    }

    /// Thousandths, rounded away from zero, saturating.
    pub fn milli_value(&self) -> i64 {
        self.scaled(MILLI)
    }

    /// Whether the value is a whole number of units.
    pub fn is_whole(&self) -> bool {
        self.mantissa == 0 || self.exponent >= 0
    }

    /// In units of `10^scale`, rounded away from zero, saturating.
    pub fn scaled(&self, scale: i32) -> i64 {
        let rounded = self.rounded_up(scale);
        let shift = i64::from(rounded.exponent) - i64::from(scale);
        let value = u32::try_from(shift)
            .ok()
            .and_then(|shift| 10i128.checked_pow(shift))
            .and_then(|factor| rounded.mantissa.checked_mul(factor));
        let saturated = if rounded.mantissa < 0 {
            i64::MIN
        } else {
            i64::MAX
        };
        if rounded.mantissa == 0 {
            0
        } else {
            value
                .and_then(|value| i64::try_from(value).ok())
                .unwrap_or(saturated)
        }
    }

    /// Rounded away from zero to a multiple of `10^scale`.
    pub fn rounded_up(&self, scale: i32) -> Quantity {
        if self.exponent >= scale || self.mantissa == 0 {
            return *self;
        }
        let shift = u32::try_from(i64::from(scale) - i64::from(self.exponent)).unwrap_or(u32::MAX);
        let mantissa = match 10i128.checked_pow(shift) {
            Some(factor) => {
                let carry = if self.mantissa % factor != 0 {
                    self.mantissa.signum()
                } else {
                    0
                };
                self.mantissa / factor + carry
            }
            None => self.mantissa.signum(),
        };
        Quantity {
            mantissa,
            exponent: scale,
            format: self.format,
        }
        .normalized()
    }

    pub fn add(&self, other: &Quantity) -> Quantity {
        let format = if self.is_zero() {
            other.format
        } else {
            self.format
        };
        if other.is_zero() {
            return Quantity { format, ..*self };
        }
        if self.is_zero() {
            return *other;
        }
        let (low, high) = if self.exponent <= other.exponent {
            (self, other)
        } else {
            (other, self)
        };
        // Bring both to the lower exponent; if that does not fit, give up the low digits.
        let shift =
            u32::try_from(i64::from(high.exponent) - i64::from(low.exponent)).unwrap_or(u32::MAX);
        let room = DIGITS_MAX.saturating_sub(digits(high.mantissa));
        let sum = if shift <= room {
            Quantity {
                mantissa: high.mantissa * 10i128.pow(shift) + low.mantissa,
                exponent: low.exponent,
                format,
            }
        } else {
            let exponent = high
                .exponent
                .saturating_sub(i32::try_from(room).unwrap_or(0));
            let low = low.rounded_up(exponent);
            let low_shift =
                u32::try_from(i64::from(low.exponent) - i64::from(exponent)).unwrap_or(0);
            Quantity {
                mantissa: high.mantissa * 10i128.pow(room)
                    + low
                        .mantissa
                        .saturating_mul(10i128.saturating_pow(low_shift)),
                exponent,
                format,
            }
        };
        sum.bounded().normalized()
    }

    pub fn sub(&self, other: &Quantity) -> Quantity {
        self.add(&other.negated())
    }

    pub fn negated(&self) -> Quantity {
        Quantity {
            mantissa: -self.mantissa,
            ..*self
        }
    }

    fn normalized(mut self) -> Quantity {
        if self.mantissa == 0 {
            self.exponent = 0;
            return self;
        }
        while self.mantissa % 10 == 0 {
            self.mantissa /= 10;
            self.exponent = self.exponent.saturating_add(1);
        }
        self
    }

    fn bounded(mut self) -> Quantity {
        // As many as are parsed, so that what is written reads back as it was.
        while digits(self.mantissa) >= DIGITS_MAX {
            self.mantissa = self.mantissa / 10
                + if self.mantissa % 10 != 0 {
                    self.mantissa.signum()
                } else {
                    0
                };
            self.exponent = self.exponent.saturating_add(1);
        }
        self
    }
}

fn digits(number: i128) -> u32 {
    number
        .unsigned_abs()
        .checked_ilog10()
        .map_or(0, |log| log + 1)
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        (self.mantissa, self.exponent) == (other.mantissa, other.exponent)
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_sign = self.mantissa.signum().cmp(&other.mantissa.signum());
        if by_sign != Ordering::Equal || self.mantissa == 0 {
            return by_sign;
        }
        let magnitude = |quantity: &Quantity| {
            i64::from(digits(quantity.mantissa)) + i64::from(quantity.exponent)
        };
        let by_magnitude = match magnitude(self).cmp(&magnitude(other)) {
            Ordering::Equal => {
                // The same number of digits before the point: at most 37 after bringing both to one exponent.
                let low = self.exponent.min(other.exponent);
                let aligned = |quantity: &Quantity| {
                    quantity.mantissa.abs()
                        * 10i128.pow(
                            u32::try_from(i64::from(quantity.exponent) - i64::from(low))
                                .unwrap_or(0),
                        )
                };
                aligned(self).cmp(&aligned(other))
            }
            unequal => unequal,
        };
        if self.mantissa < 0 {
            by_magnitude.reverse()
        } else {
            by_magnitude
        }
    }
}

/// The canonical form: no fraction, the largest suffix that loses nothing.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.mantissa == 0 {
            return f.write_str("0");
        }
        if self.format == Format::BinarySi
            && self.is_whole()
            && self.exponent <= EXA + 20
            && let Some(mut value) = u32::try_from(self.exponent)
                .ok()
                .and_then(|exponent| 10i128.checked_pow(exponent))
                .and_then(|factor| self.mantissa.checked_mul(factor))
            && value.abs() >= 1024
        {
            let mut power = 0;
            while power < 6 && value % 1024 == 0 {
                value /= 1024;
                power += 1;
            }
            return write!(
                f,
                "{value}{}",
                ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power]
            );
        }
        let mut exponent = self.exponent - self.exponent.rem_euclid(3);
        // Past what digits before an `E` can reasonably show, only the exponent notation is left.
        let exponential = self.format == Format::DecimalExponent || exponent > EXA + 40;
        if !exponential {
            exponent = exponent.min(EXA);
        }
        write!(f, "{}", self.mantissa)?;
        for _ in exponent..self.exponent {
            f.write_str("0")?;
        }
        if exponential {
            return if exponent == 0 {
                Ok(())
            } else {
                write!(f, "e{exponent}")
            };
        }
        f.write_str(match exponent {
            -9 => "n",
            -6 => "u",
            -3 => "m",
            3 => "k",
            6 => "M",
            9 => "G",
            12 => "T",
            15 => "P",
            18 => "E",
            _ => "",
        })
    }
}

/// Brings the text of a quantity to the form in which upstream would write it back.
pub fn canonicalize(text: &mut String) -> Result<(), QuantityError> {
    let (quantity, keep_text) = parse(text)?;
    if !keep_text {
        *text = quantity.to_string();
    }
    Ok(())
}

/// As [`canonicalize`], rounded up to thousandths: what a ResourceList does with its values.
pub fn canonicalize_millis(text: &mut String) -> Result<(), QuantityError> {
    let (quantity, keep_text) = parse(text)?;
    if !keep_text || quantity.exponent < MILLI {
        *text = quantity.rounded_up(MILLI).to_string();
    }
    Ok(())
}

/// The number, and whether upstream writes it back with the very same text.
fn parse(text: &str) -> Result<(Quantity, bool), QuantityError> {
    let bytes = text.as_bytes();
    if bytes.is_empty() {
        return Err(QuantityError::Format);
    }
    let (negative, unsigned) = match bytes[0] {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let unpadded = unsigned.trim_start_matches('0');
    let is_digit = |character: char| character.is_ascii_digit();
    let whole_end = unpadded
        .find(|character: char| !is_digit(character))
        .unwrap_or(unpadded.len());
    let (whole, rest) = unpadded.split_at(whole_end);
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(
            rest.find(|character: char| !is_digit(character))
                .unwrap_or(rest.len()),
        ),
        None => ("", rest),
    };
    let (base_power, exponent, format) = interpret(suffix)?;

    let mut mantissa: i128 = 0;
    let mut scale: i64 = 0;
    let mut dropped = false;
    for (index, digit) in whole.bytes().chain(fraction.bytes()).enumerate() {
        if digits(mantissa) < DIGITS_MAX - 1 {
            mantissa = mantissa * 10 + i128::from(digit - b'0');
            scale -= i64::from(index >= whole.len());
        } else {
            dropped |= digit != b'0';
            scale += i64::from(index < whole.len());
        }
    }
    mantissa += i128::from(dropped);

    let mut format = format;
    if format == Format::BinarySi {
        const CAP: i128 = i64::MAX as i128;
        let capped = mantissa.checked_mul(1 << base_power).filter(|_| scale <= 0);
        // A divisor that does not fit is larger than any number that does.
        let whole_part = capped.map(|value| {
            10i128
                .checked_pow(u32::try_from(-scale).unwrap_or(0))
                .map_or(0, |divisor| value / divisor)
        });
        match (capped, whole_part) {
            (Some(value), Some(whole)) if whole < CAP || (whole == CAP && scale == 0) => {
                mantissa = value
            }
            _ if mantissa != 0 => {
                (mantissa, scale) = (CAP, 0);
            }
            _ => scale = 0,
        }
    } else {
        scale += i64::from(exponent);
    }
    let exponent = i32::try_from(scale).map_err(|_| QuantityError::Suffix)?;
    let quantity = Quantity {
        mantissa,
        exponent,
        format,
    }
    .normalized()
    .rounded_up(NANO);
    if format == Format::BinarySi
        && quantity.mantissa > 0
        && quantity < Quantity::from_value(1, format)
    {
        format = Format::DecimalSi;
    }
    let quantity = Quantity {
        mantissa: if negative {
            -quantity.mantissa
        } else {
            quantity.mantissa
        },
        exponent: quantity.exponent,
        format,
    };
    Ok((
        quantity,
        keeps_text(text, whole, fraction, scale, format, base_power),
    ))
}

/// Upstream caches the text it parsed when a cheap test says that it is canonical; the test lets
/// a few others pass (`1.500`, `+1`), and clients see them come back.
fn keeps_text(
    text: &str,
    whole: &str,
    fraction: &str,
    scale: i64,
    format: Format,
    base_power: u32,
) -> bool {
    if text == "0" {
        return true;
    }
    let digit_count = whole.len().max(1) + fraction.len();
    match format {
        Format::BinarySi => {
            let digit_room = 15
                - i64::try_from(digit_count).unwrap_or(i64::MAX)
                - i64::from(base_power) * 3 / 10
                - 1;
            fraction.is_empty()
                && digit_room >= 0
                && whole.parse::<i64>().is_ok_and(|value| value & 7 != 0)
        }
        _ => {
            digit_count <= 18
                && scale >= i64::from(NANO)
                && scale % 3 == 0
                && !whole.is_empty()
                && !(whole.len() + fraction.len() >= 3
                    && whole
                        .bytes()
                        .chain(fraction.bytes())
                        .rev()
                        .take(3)
                        .all(|digit| digit == b'0'))
        }
    }
}

/// A suffix as (power of two, power of ten, notation).
fn interpret(suffix: &str) -> Result<(u32, i32, Format), QuantityError> {
    use Format::{BinarySi, DecimalExponent, DecimalSi};
    Ok(match suffix {
        "" => (0, 0, DecimalSi),
        "n" => (0, -9, DecimalSi),
        "u" => (0, -6, DecimalSi),
        "m" => (0, -3, DecimalSi),
        "k" => (0, 3, DecimalSi),
        "M" => (0, 6, DecimalSi),
        "G" => (0, 9, DecimalSi),
        "T" => (0, 12, DecimalSi),
        "P" => (0, 15, DecimalSi),
        "E" => (0, 18, DecimalSi),
        "Ki" => (10, 0, BinarySi),
        "Mi" => (20, 0, BinarySi),
        "Gi" => (30, 0, BinarySi),
        "Ti" => (40, 0, BinarySi),
        "Pi" => (50, 0, BinarySi),
        "Ei" => (60, 0, BinarySi),
        _ => {
            let letters = suffix
                .find(|character: char| !"eEinumkKMGTP".contains(character))
                .unwrap_or(suffix.len());
            let number = suffix[letters..]
                .strip_prefix(['+', '-'])
                .unwrap_or(&suffix[letters..]);
            if !number.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(QuantityError::Format);
            }
            let exponent = match suffix.strip_prefix(['e', 'E']) {
                Some(exponent) => exponent.parse().map_err(|_| QuantityError::Suffix)?,
                None => return Err(QuantityError::Suffix),
            };
            (0, exponent, DecimalExponent)
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    fn canonical(text: &str) -> String {
        let mut text = text.to_string();
        canonicalize(&mut text).unwrap();
        text
    }

    #[test]
    fn canonical_forms() {
        for (text, expect) in [
            ("0", "0"),
            ("000", "0"),
            ("0Mi", "0"),
            ("-0", "0"),
            ("1", "1"),
            ("100m", "100m"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("5.", "5."),
            ("1000", "1k"),
            ("1000m", "1"),
            ("2000m", "2"),
            ("1500m", "1500m"),
            ("1024Mi", "1Gi"),
            ("1025Mi", "1025Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Ki", "512"),
            ("0.5Gi", "512Mi"),
            ("100Ki", "100Ki"),
            ("1024", "1024"),
            ("128974848", "128974848"),
            ("129e6", "129e6"),
            ("129M", "129M"),
            ("123Mi", "123Mi"),
            ("1e3", "1e3"),
            ("1E3", "1E3"),
            ("1000e3", "1e6"),
            ("100e2", "10e3"),
            ("1.1Ki", "1126400m"),
            ("0.1n", "1n"),
            ("1.0000000001", "1000000001n"),
            ("-1", "-1"),
            ("-500m", "-500m"),
            ("-0.1n", "-1n"),
            ("8Ei", "9223372036854775807"),
            ("100Ei", "9223372036854775807"),
            ("10E", "10E"),
            ("1.234", "1.234"),
            ("12345678901234567890", "12345678901234567890"),
        ] {
            assert_eq!(canonical(text), expect, "{text}");
        }
    }

    #[test]
    fn errors() {
        for (text, expect) in [
            ("", QuantityError::Format),
            ("a", QuantityError::Format),
            ("1 ", QuantityError::Format),
            ("1..2", QuantityError::Format),
            ("1Mi2x", QuantityError::Format),
            ("1mm", QuantityError::Suffix),
            ("1ki", QuantityError::Suffix),
            ("1Mi3", QuantityError::Suffix),
            ("1e", QuantityError::Suffix),
            ("1e99999999999", QuantityError::Suffix),
        ] {
            assert_eq!(
                Quantity::parse(text).map(|q| q.to_string()),
                Err(expect),
                "{text:?}"
            );
        }
    }

    #[test]
    fn values_round_up() {
        let parse = |text| Quantity::parse(text).unwrap();
        assert_eq!(parse("1.1").value(), 2);
        assert_eq!(parse("-1.1").value(), -2);
        assert_eq!(parse("1n").milli_value(), 1);
        assert_eq!(parse("250m").milli_value(), 250);
        assert_eq!(parse("1Gi").value(), 1 << 30);
        assert_eq!(parse("1e30").value(), i64::MAX);
        assert_eq!(parse("-1e30").value(), i64::MIN);
        assert_eq!(parse("1e2000000000").milli_value(), i64::MAX);
        let mut text = "100u".to_string();
        canonicalize_millis(&mut text).unwrap();
        assert_eq!(text, "1m");
    }

    #[test]
    fn sums_keep_the_first_notation() {
        let sum = |a: &str, b: &str| {
            Quantity::parse(a)
                .unwrap()
                .add(&Quantity::parse(b).unwrap())
                .to_string()
        };
        assert_eq!(sum("500m", "0.5"), "1");
        assert_eq!(sum("1Gi", "1G"), "2073741824");
        assert_eq!(sum("512Mi", "512Mi"), "1Gi");
        assert_eq!(sum("0", "1Mi"), "1Mi");
        assert_eq!(sum("8Ei", "8Ei"), "18446744073709551614");
        let tiny = format!("0.{}1Ki", "0".repeat(130));
        assert_eq!(sum(&tiny, "1"), "1000000001n");
        // Far apart: what is written reads back as the same.
        let far = sum("1e126", "0.1");
        assert_eq!(Quantity::parse(&far).unwrap().to_string(), far);
        let difference = |a, b| {
            Quantity::parse(a)
                .unwrap()
                .sub(&Quantity::parse(b).unwrap())
                .to_string()
        };
        assert_eq!(difference("1", "1500m"), "-500m");
        assert_eq!(difference("1", "1"), "0");
    }

    #[test]
    fn order_is_by_value() {
        let cmp = |a, b| {
            Quantity::parse(a)
                .unwrap()
                .cmp(&Quantity::parse(b).unwrap())
        };
        assert_eq!(cmp("1", "1000m"), Ordering::Equal);
        assert_eq!(cmp("1Ki", "1k"), Ordering::Greater);
        assert_eq!(cmp("-1", "-2"), Ordering::Greater);
        assert_eq!(cmp("-1", "0"), Ordering::Less);
        assert_eq!(cmp("1e2000000000", "1"), Ordering::Greater);
        assert_eq!(
            cmp("999999999999999999999999999999999999999", "1e39"),
            Ordering::Equal
        );
    }

    proptest! {
        #[test]
        fn safety_never_panics(text in "[-+]?[0-9.]{0,45}[eEinumkKMGTP]{0,3}[-+]?[0-9]{0,11}", other in "[0-9]{1,30}(e[0-9]{1,9}|Ki|m)?") {
            if let (Ok(a), Ok(b)) = (Quantity::parse(&text), Quantity::parse(&other)) {
                let _ = (a.add(&b).to_string().len(), a.sub(&b), a.cmp(&b), a.value(), a.milli_value());
                prop_assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
            }
        }

        #[test]
        fn safety_any_text(text in ".{0,20}") {
            let _ = Quantity::parse(&text);
        }

        #[test]
        fn canonical_form_has_the_same_value(whole in 0i64..1_000_000_000, fraction in "[0-9]{0,6}", suffix in "(|n|u|m|k|M|Ki|Mi|Gi|e3|e-3)") {
            let text = format!("{whole}.{fraction}{suffix}");
            let quantity = Quantity::parse(&text).unwrap();
            prop_assert_eq!(Quantity::parse(&quantity.to_string()).unwrap(), quantity);
        }
    }
}
