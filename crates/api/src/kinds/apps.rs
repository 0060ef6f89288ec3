//! Deployment and ReplicaSet.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use crate::error::ErrorList;
use crate::kind::Part;
use crate::typed::ApiType;

impl ApiType for Deployment {
    const NAMESPACED: bool = true;
    fn validate(&self, _errors: &mut ErrorList) {}
    fn validate_update(&self, _old: &Self, _part: &Part, _errors: &mut ErrorList) {}
}

impl ApiType for ReplicaSet {
    const NAMESPACED: bool = true;
    fn validate(&self, _errors: &mut ErrorList) {}
    fn validate_update(&self, _old: &Self, _part: &Part, _errors: &mut ErrorList) {}
}
