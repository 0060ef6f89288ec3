//! Go writes no empty value of a field marked `omitempty`; k8s-openapi keeps `Some("")`.
//!
//! Defaulting drops such values with [`drop_empty!`], so that what a Go client reads, changes and
//! writes back compares equal to what is stored. Only for fields that are no pointers in Go: a
//! pointer to an empty value is a value.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;

pub trait Empty {
    fn is_empty_value(&self) -> bool;
}

impl Empty for String {
    fn is_empty_value(&self) -> bool {
        self.is_empty()
    }
}

impl<T> Empty for Vec<T> {
    fn is_empty_value(&self) -> bool {
        self.is_empty()
    }
}

impl<K, V> Empty for BTreeMap<K, V> {
    fn is_empty_value(&self) -> bool {
        self.is_empty()
    }
}

impl Empty for ByteString {
    fn is_empty_value(&self) -> bool {
        self.0.is_empty()
    }
}

impl Empty for bool {
    fn is_empty_value(&self) -> bool {
        !self
    }
}

impl Empty for i32 {
    fn is_empty_value(&self) -> bool {
        *self == 0
    }
}

impl Empty for i64 {
    fn is_empty_value(&self) -> bool {
        *self == 0
    }
}

/// Makes `None` of each named `Option` that holds an empty value.
macro_rules! drop_empty {
    ($($place:expr),+ $(,)?) => {
        $(if $place.as_ref().is_some_and($crate::empty::Empty::is_empty_value) { $place = None; })+
    };
}
pub(crate) use drop_empty;
