//! Service.

use k8s_openapi::api::core::v1::Service;

use crate::error::ErrorList;
use crate::typed::ApiType;

impl ApiType for Service {
    const NAMESPACED: bool = true;

    fn validate(&self, _errors: &mut ErrorList) {}

    fn validate_update(&self, _old: &Self, _part: &crate::kind::Part, _errors: &mut ErrorList) {}
}
