//! Owner references: who controls an object, and how a controller takes over or lets go of one.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};

use crate::label;

/// The reference to the object's managing controller, if it has one.
pub fn controller_of(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    metadata
        .owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true))
}

/// Is the object managed by the controller with this UID?
pub fn is_controlled_by(metadata: &ObjectMeta, uid: &str) -> bool {
    controller_of(metadata).is_some_and(|owner| owner.uid == uid)
}

/// The reference that a controller puts on what it makes.
pub fn controller_reference(api_version: &str, kind: &str, owner: &ObjectMeta) -> OwnerReference {
    OwnerReference {
        api_version: api_version.into(),
        kind: kind.into(),
        name: owner.name.clone().unwrap_or_default(),
        uid: owner.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// What a controller may do with an object that it could or does own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is the controller's, and matches.
    Owned,
    /// It matches and nobody controls it: take it over.
    Adopt,
    /// It is the controller's but matches no more: let it go.
    Release,
    /// None of the controller's business.
    Foreign,
}

/// Decides by controller reference, selector and deletion, as upstream's ControllerRefManager does.
pub fn claim(controller: &ObjectMeta, selector: &LabelSelector, object: &ObjectMeta) -> Claim {
    let matches = label::selects(selector, object.labels.as_ref());
    match controller_of(object) {
        Some(owner) if Some(&owner.uid) != controller.uid.as_ref() => Claim::Foreign,
        Some(_) if matches => Claim::Owned,
        Some(_) if controller.deletion_timestamp.is_some() => Claim::Foreign,
        Some(_) => Claim::Release,
        None if !matches
            || controller.deletion_timestamp.is_some()
            || object.deletion_timestamp.is_some() =>
        {
            Claim::Foreign
        }
        None => Claim::Adopt,
    }
}
