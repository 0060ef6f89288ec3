//! Node.

use k8s_openapi::api::core::v1::Node;

use crate::error::ErrorList;
use crate::typed::ApiType;

impl ApiType for Node {
    const NAMESPACED: bool = false;

    fn validate(&self, _errors: &mut ErrorList) {}

    fn validate_update(&self, _old: &Self, _part: &crate::kind::Part, _errors: &mut ErrorList) {}
}
