//! Metadata that the server sets: uid, creation time, generated names, the namespace of the path.

use api::kind::Object;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use rand::Rng;

use super::{Rest, now_seconds};
use crate::status::{ApiError, ApiResult};

/// No vowels and nothing that looks alike: generated names spell no words.
const NAME_CHARACTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LEN: usize = 5;
const GENERATED_NAME_LEN_MAX: usize = 63;

/// Now, to the second, as all times of metadata are.
pub fn now() -> Time {
    at(now_seconds())
}

pub fn at(seconds: i64) -> Time {
    Time(Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH))
}

pub fn random_suffix() -> String {
    let mut rng = rand::rng();
    (0..SUFFIX_LEN)
        .map(|_| char::from(NAME_CHARACTERS[rng.random_range(0..NAME_CHARACTERS.len())]))
        .collect()
}

pub fn generate_name(base: &str) -> String {
    let mut base = base;
    while base.len() > GENERATED_NAME_LEN_MAX - SUFFIX_LEN {
        let mut characters = base.chars();
        characters.next_back();
        base = characters.as_str();
    }
    format!("{base}{}", random_suffix())
}

/// Sets what the server decides of a new object; answers the base of its generated name, if it has one.
pub fn prepare(meta: &mut ObjectMeta) -> Option<String> {
    meta.uid = Some(uuid::Uuid::new_v4().to_string());
    meta.creation_timestamp = Some(now());
    meta.deletion_timestamp = None;
    meta.deletion_grace_period_seconds = None;
    let base = meta.generate_name.clone().filter(|base| !base.is_empty());
    let base = base.filter(|_| meta.name.as_deref().unwrap_or_default().is_empty());
    if let Some(base) = &base {
        meta.name = Some(generate_name(base));
    }
    base
}

impl Rest<'_> {
    /// The object's namespace is the path's; it may be left out, but not differ.
    pub fn check_namespace(&self, object: &mut dyn Object) -> ApiResult<()> {
        let meta = object.metadata_mut();
        let own = meta.namespace.as_deref().unwrap_or_default();
        if !self.kind.namespaced {
            if own.is_empty() {
                meta.namespace = None;
            }
            return Ok(());
        }
        if own.is_empty() {
            meta.namespace = Some(self.namespace.to_owned());
        } else if own != self.namespace {
            return Err(ApiError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        Ok(())
    }

    /// The object's name is the path's.
    pub fn check_name(&self, object: &mut dyn Object) -> ApiResult<()> {
        let meta = object.metadata_mut();
        match meta.name.as_deref().unwrap_or_default() {
            "" => Err(ApiError::bad_request(format!(
                "the name of the object ({} based on URL) was undeterminable: name must be provided",
                self.name
            ))),
            own if own != self.name => Err(ApiError::bad_request(format!(
                "the name of the object ({own}) does not match the name on the URL ({})",
                self.name
            ))),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_keep_to_the_limit() {
        for (base, len) in [("web-", 9), (&"a".repeat(70), 63), ("", 5)] {
            let name = generate_name(base);
            assert_eq!(name.len(), len);
            assert!(name.starts_with(&base[..base.len().min(58)]));
        }
    }
}
