//! ConfigMap: at most 1 MiB of data, sealed by `immutable`.

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::Value;

use super::pod::defaults::fill_metadata;
use crate::columns;
use crate::empty::drop_empty;
use crate::error::{ErrorList, forbidden, invalid, too_long};
use crate::kind::{Column, Part};
use crate::name;
use crate::path::root;
use crate::typed::ApiType;

/// All values of a ConfigMap or Secret together.
pub(super) const DATA_BYTES_MAX: usize = 1024 * 1024;
pub(super) const SEALED: &str = "field is immutable when `immutable` is set";

impl ApiType for ConfigMap {
    const NAMESPACED: bool = true;
    const COLUMNS: &'static [Column] = &[
        columns::NAME,
        columns::column("Data", "string", "Number of entries"),
        columns::AGE,
    ];

    fn fill_defaults(&mut self) {
        fill_metadata(&mut self.metadata);
        drop_empty!(self.data, self.binary_data);
    }

    fn validate(&self, errors: &mut ErrorList) {
        let (data_path, binary_path) = (root("data"), root("binaryData"));
        let mut bytes = 0;
        for (key, value) in self.data.iter().flatten() {
            errors.extend(
                name::config_map_key(key)
                    .into_iter()
                    .map(|text| invalid(&data_path.key(key), key, text)),
            );
            if self
                .binary_data
                .as_ref()
                .is_some_and(|binary| binary.contains_key(key))
            {
                errors.push(invalid(
                    &data_path.key(key),
                    key,
                    "duplicate of key present in binaryData",
                ));
            }
            bytes += value.len();
        }
        for (key, value) in self.binary_data.iter().flatten() {
            errors.extend(
                name::config_map_key(key)
                    .into_iter()
                    .map(|text| invalid(&binary_path.key(key), key, text)),
            );
            bytes += value.0.len();
        }
        if bytes > DATA_BYTES_MAX {
            // The object as a whole has no field's name; upstream prints that so.
            errors.push(too_long(&root("[]"), DATA_BYTES_MAX));
        }
    }

    fn validate_update(&self, old: &Self, _part: &Part, errors: &mut ErrorList) {
        if old.immutable == Some(true) {
            if self.immutable != Some(true) {
                errors.push(forbidden(&root("immutable"), SEALED));
            }
            if self.data != old.data {
                errors.push(forbidden(&root("data"), SEALED));
            }
            if self.binary_data != old.binary_data {
                errors.push(forbidden(&root("binaryData"), SEALED));
            }
        }
        self.validate(errors);
    }

    fn cells(&self, now_seconds: i64) -> Vec<Value> {
        let count = self.data.as_ref().map_or(0, |data| data.len())
            + self.binary_data.as_ref().map_or(0, |data| data.len());
        vec![
            columns::name(&self.metadata),
            Value::from(count),
            columns::age(&self.metadata, now_seconds),
        ]
    }
}
