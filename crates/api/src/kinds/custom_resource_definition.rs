//! CustomResourceDefinition: there are none, and none can be made.
//!
//! The list is served, empty, because clients ask it whether a kind that no group has is a custom one: kubectl says
//! `no matches for kind` only where it gets an answer. Every write is refused as a method that is not allowed.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

use crate::error::ErrorList;
use crate::kind::Part;
use crate::typed::ApiType;

impl ApiType for CustomResourceDefinition {
    const NAMESPACED: bool = false;

    fn validate(&self, _errors: &mut ErrorList) {}

    fn validate_update(&self, _old: &Self, _part: &Part, _errors: &mut ErrorList) {}
}
