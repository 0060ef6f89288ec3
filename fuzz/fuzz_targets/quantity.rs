//! Quantities: two of them, parted by a space; canonical forms keep the value, order and sums hold.
#![no_main]

use api::quantity::{Format, Quantity};

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (left, right) = text.split_once(' ').unwrap_or((text, "0"));
    let (Ok(left), Ok(right)) = (Quantity::parse(left), Quantity::parse(right)) else {
        return;
    };
    assert_eq!(left.cmp(&right), right.cmp(&left).reverse());
    let _ = (
        left.value(),
        left.milli_value(),
        left.rounded_up(0),
        left.sub(&right),
    );
    let sum = left.add(&right);
    assert_eq!(sum.cmp(&right.add(&left)), std::cmp::Ordering::Equal);
    // Sums in powers of two may pass the cap at which such texts are read.
    let sum = (sum.format() != Format::BinarySi).then_some(sum);
    for quantity in [left, right].into_iter().chain(sum) {
        let text = quantity.to_string();
        let again = Quantity::parse(&text).expect("a canonical form is a quantity");
        assert_eq!(again.to_string(), text, "canonical forms are stable");
    }
});
