//! What the server itself adds to, and demands of, objects before it stores them.
//!
//! Enter at [`admit_create`], [`admit_update`], [`admit_delete`]; each plug-in is a file, named as
//! upstream's. Order: those that change objects first, then those that only refuse.
//!
//! Deliberately absent: webhooks, validating policies, quotas, limit ranges.

pub mod namespace;
mod pod;
pub mod priority;
mod rbac;
pub mod service;
mod service_account;

use api::kind::{Object, Part};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::scheduling::v1::PriorityClass;

use crate::rest::Rest;
use crate::status::ApiResult;

/// What an admission set aside (addresses, ports) for an object that is not stored yet; given back
/// when it is dropped uncommitted.
#[derive(Default)]
pub struct Reservation {
    on_failure: Vec<Hook>,
    on_success: Vec<Hook>,
}

type Hook = Box<dyn FnOnce() + Send>;

impl Reservation {
    /// Runs when the object is not stored.
    pub fn on_failure(&mut self, hook: impl FnOnce() + Send + 'static) {
        self.on_failure.push(Box::new(hook));
    }

    /// Runs when the object is stored.
    pub fn on_success(&mut self, hook: impl FnOnce() + Send + 'static) {
        self.on_success.push(Box::new(hook));
    }

    /// The object is stored.
    pub fn commit(mut self) {
        self.on_failure.clear();
        self.on_success.drain(..).for_each(|hook| hook());
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.on_failure.drain(..).for_each(|hook| hook());
    }
}

/// The object has its name and defaults.
pub async fn admit_create(rest: &Rest<'_>, object: &mut dyn Object) -> ApiResult<Reservation> {
    namespace::check_create(rest).await?;
    let mut reservation = Reservation::default();
    if let Some(pod) = object.as_any_mut().downcast_mut::<Pod>() {
        service_account::admit(rest, pod).await?;
        pod::default_tolerations(pod);
        priority::admit(rest, pod)?;
        pod::check_runtime_class(pod)?;
    } else if let Some(new) = object.as_any_mut().downcast_mut::<Service>() {
        service::admit(rest, new, None, &mut reservation)?;
    } else if let Some(class) = object.as_any().downcast_ref::<PriorityClass>() {
        priority::admit_class(rest, class)?;
    } else {
        rbac::admit(rest, object, None)?;
    }
    Ok(reservation)
}

pub async fn admit_update(
    rest: &Rest<'_>,
    new: &mut dyn Object,
    old: &dyn Object,
    part: &Part,
) -> ApiResult<Reservation> {
    let mut reservation = Reservation::default();
    if *part != Part::Main {
        return Ok(reservation);
    }
    if let Some(pod) = new.as_any_mut().downcast_mut::<Pod>() {
        pod::default_tolerations(pod);
    } else if let Some(service) = new.as_any_mut().downcast_mut::<Service>() {
        service::admit(
            rest,
            service,
            old.as_any().downcast_ref::<Service>(),
            &mut reservation,
        )?;
    } else if let Some(class) = new.as_any().downcast_ref::<PriorityClass>() {
        priority::admit_class(rest, class)?;
    } else {
        rbac::admit(rest, new, Some(old))?;
    }
    Ok(reservation)
}

pub fn admit_delete(rest: &Rest<'_>) -> ApiResult<()> {
    namespace::check_delete(rest)
}

/// After an object is gone from the store.
pub fn deleted(rest: &Rest<'_>, old: &dyn Object) {
    if let Some(service) = old.as_any().downcast_ref::<Service>() {
        rest.core.allocations.release(service);
    }
}
