//! Secret: types with required keys, at most 1 MiB, `stringData` folded into `data`, sealed by `immutable`.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use serde_json::Value;

use super::config_map::{DATA_BYTES_MAX, SEALED};
use super::pod::defaults::fill_metadata;
use crate::columns;
use crate::empty::drop_empty;
use crate::error::{ErrorList, forbidden, invalid, required, too_long};
use crate::kind::{Column, Part};
use crate::metadata::IMMUTABLE;
use crate::name;
use crate::path::root;
use crate::typed::ApiType;

const SERVICE_ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";

impl ApiType for Secret {
    const NAMESPACED: bool = true;
    const SELECTABLE: &'static [&'static str] = &["type"];
    const COLUMNS: &'static [Column] = &[
        columns::NAME,
        columns::column(
            "Type",
            "string",
            "Used to facilitate programmatic handling of secret data.",
        ),
        columns::column("Data", "string", "Number of entries"),
        columns::AGE,
    ];

    fn fill_defaults(&mut self) {
        fill_metadata(&mut self.metadata);
        if let Some(texts) = self.string_data.take() {
            let data = self.data.get_or_insert_default();
            data.extend(
                texts
                    .into_iter()
                    .map(|(key, text)| (key, ByteString(text.into_bytes()))),
            );
        }
        drop_empty!(self.data, self.type_);
        self.type_.get_or_insert_with(|| "Opaque".to_string());
    }

    fn validate(&self, errors: &mut ErrorList) {
        let data_path = root("data");
        let mut bytes = 0;
        for (key, value) in self.data.iter().flatten() {
            errors.extend(
                name::config_map_key(key)
                    .into_iter()
                    .map(|text| invalid(&data_path.key(key), key, text)),
            );
            bytes += value.0.len();
        }
        if bytes > DATA_BYTES_MAX {
            errors.push(too_long(&data_path, DATA_BYTES_MAX));
        }
        let value = |key: &str| self.data.as_ref().and_then(|data| data.get(key));
        let require = |key: &'static str, errors: &mut ErrorList| {
            if value(key).is_none() {
                errors.push(required(&data_path.key(key), ""));
            }
        };
        let require_json_object = |key: &'static str, errors: &mut ErrorList| {
            require(key, errors);
            if let Some(value) = value(key)
                && let Err(cause) =
                    serde_json::from_slice::<serde_json::Map<String, Value>>(&value.0)
            {
                errors.push(invalid(
                    &data_path.key(key),
                    "<secret contents redacted>",
                    crate::decode::syntax_error(&value.0, &cause),
                ));
            }
        };
        match self.type_.as_deref().unwrap_or("") {
            "kubernetes.io/service-account-token" => {
                let account = self
                    .metadata
                    .annotations
                    .as_ref()
                    .and_then(|all| all.get(SERVICE_ACCOUNT_NAME));
                if account.is_none_or(String::is_empty) {
                    errors.push(required(
                        &root("metadata")
                            .child("annotations")
                            .key(SERVICE_ACCOUNT_NAME),
                        "",
                    ));
                }
            }
            "kubernetes.io/dockercfg" => require_json_object(".dockercfg", errors),
            "kubernetes.io/dockerconfigjson" => require_json_object(".dockerconfigjson", errors),
            "kubernetes.io/basic-auth"
                if value("username").is_none() && value("password").is_none() =>
            {
                require("username", errors);
                require("password", errors);
            }
            "kubernetes.io/ssh-auth"
                if value("ssh-privatekey").is_none_or(|key| key.0.is_empty()) =>
            {
                errors.push(required(&data_path.key("ssh-privatekey"), ""));
            }
            "kubernetes.io/tls" => {
                require("tls.crt", errors);
                require("tls.key", errors);
            }
            _ => {}
        }
    }

    fn prepare_update(&mut self, old: &Self, _part: &Part) {
        if self.type_.as_deref().unwrap_or("").is_empty() {
            self.type_.clone_from(&old.type_);
        }
    }

    fn validate_update(&self, old: &Self, _part: &Part, errors: &mut ErrorList) {
        if self.type_ != old.type_ {
            errors.push(invalid(
                &root("type"),
                self.type_.as_deref().unwrap_or(""),
                IMMUTABLE,
            ));
        }
        if old.immutable == Some(true) {
            if self.immutable != Some(true) {
                errors.push(forbidden(&root("immutable"), SEALED));
            }
            if self.data != old.data {
                errors.push(forbidden(&root("data"), SEALED));
            }
        }
        self.validate(errors);
    }

    fn selectable_values(&self) -> Vec<String> {
        vec![self.type_.clone().unwrap_or_default()]
    }

    fn cells(&self, now_seconds: i64) -> Vec<Value> {
        vec![
            columns::name(&self.metadata),
            Value::from(self.type_.as_deref().unwrap_or("")),
            Value::from(self.data.as_ref().map_or(0, |data| data.len())),
            columns::age(&self.metadata, now_seconds),
        ]
    }
}
