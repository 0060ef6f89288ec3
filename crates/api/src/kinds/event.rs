//! Event in its two groups, core/v1 and events.k8s.io/v1: one storage, the same facts under other names.
//!
//! Objects are stored as they were written; each kind decodes the other's form too.

use k8s_openapi::Resource;
use k8s_openapi::api::core::v1::{self as core, EventSource, ObjectReference};
use k8s_openapi::api::events::v1 as events;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use serde::Serialize;
use serde_json::Value;

use super::pod::defaults::fill_metadata;
use crate::columns::{self, column, since, since_micro, wide};
use crate::decode;
use crate::empty::drop_empty;
use crate::error::{DecodeError, ErrorList, invalid, invalid_each, required};
use crate::kind::{Column, Part};
use crate::metadata::IMMUTABLE;
use crate::name::{self, NameRule};
use crate::path::root;
use crate::typed::ApiType;

const COLUMNS: &[Column] = &[
    column("Last Seen", "string", "Time since the event was last seen."),
    column("Type", "string", "Normal or Warning."),
    column(
        "Reason",
        "string",
        "Why the event was written, in one word.",
    ),
    column("Object", "string", "Object that the event is about."),
    wide("Subobject", "string", "Part of the object."),
    wide("Source", "string", "Component that wrote the event."),
    column("Message", "string", "What happened."),
    wide(
        "First Seen",
        "string",
        "Time since the event was first seen.",
    ),
    wide("Count", "string", "How often the event was seen."),
    Column {
        name: "Name",
        type_: "string",
        format: "name",
        description: "Name must be unique within a namespace.",
        priority: 1,
    },
];

impl ApiType for core::Event {
    const NAMESPACED: bool = true;
    const NAME_RULE: NameRule = NameRule::PathSegment;
    const CREATE_ON_UPDATE: bool = true;
    const COLUMNS: &'static [Column] = COLUMNS;
    const SHARES_STORAGE: bool = true;
    const SELECTABLE: &'static [&'static str] = &[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ];

    fn decode_foreign(api_version: &str, json: &[u8]) -> Option<Result<Self, DecodeError>> {
        if api_version != events::Event::API_VERSION {
            return None;
        }
        Some(decode::decode::<events::Event>(json, false).map(|(event, _)| to_core(event)))
    }

    fn fill_defaults(&mut self) {
        fill_metadata(&mut self.metadata);
        drop_empty!(
            self.action,
            self.count,
            self.message,
            self.reason,
            self.type_
        );
        fill_reference(&mut self.involved_object);
        // Go writes these even when they are empty.
        self.reporting_component.get_or_insert_default();
        self.reporting_instance.get_or_insert_default();
        let source = self.source.get_or_insert_default();
        drop_empty!(source.component, source.host);
    }

    fn validate(&self, errors: &mut ErrorList) {
        validate_any(self, "reportingComponent", errors);
    }

    fn validate_update(&self, _old: &Self, _part: &Part, errors: &mut ErrorList) {
        validate_any(self, "reportingComponent", errors);
    }

    fn selectable_values(&self) -> Vec<String> {
        selectable(self)
    }

    fn cells(&self, now_seconds: i64) -> Vec<Value> {
        cells(self, now_seconds)
    }
}

impl ApiType for events::Event {
    const NAMESPACED: bool = true;
    const CREATE_ON_UPDATE: bool = true;
    const COLUMNS: &'static [Column] = COLUMNS;
    const SHARES_STORAGE: bool = true;
    const SELECTABLE: &'static [&'static str] = &[
        "regarding.kind",
        "regarding.namespace",
        "regarding.name",
        "regarding.uid",
        "regarding.apiVersion",
        "regarding.resourceVersion",
        "regarding.fieldPath",
        "reason",
        "reportingController",
        "source",
        "type",
    ];

    fn decode_foreign(api_version: &str, json: &[u8]) -> Option<Result<Self, DecodeError>> {
        if api_version != core::Event::API_VERSION {
            return None;
        }
        Some(decode::decode::<core::Event>(json, false).map(|(event, _)| to_events(event)))
    }

    fn fill_defaults(&mut self) {
        fill_metadata(&mut self.metadata);
        drop_empty!(
            self.action,
            self.deprecated_count,
            self.note,
            self.reason,
            self.reporting_controller,
            self.reporting_instance,
            self.type_,
        );
        fill_reference(self.regarding.get_or_insert_default());
        let source = self.deprecated_source.get_or_insert_default();
        drop_empty!(source.component, source.host);
    }

    fn validate(&self, errors: &mut ErrorList) {
        let event = to_core(self.clone());
        validate_any(&event, "reportingController", errors);
        validate_series(&event, errors);
        if self.event_time.is_none() {
            errors.push(required(&root("eventTime"), ""));
        }
        let type_ = self.type_.as_deref().unwrap_or("");
        if !matches!(type_, "Normal" | "Warning") {
            errors.push(invalid(
                &root("type"),
                "",
                format!("has invalid value: {type_}"),
            ));
        }
        let source = self.deprecated_source.clone().unwrap_or_default();
        for (field, is_set) in [
            ("firstTimestamp", self.deprecated_first_timestamp.is_some()),
            ("lastTimestamp", self.deprecated_last_timestamp.is_some()),
            ("count", self.deprecated_count.unwrap_or(0) != 0),
            ("source", source != EventSource::default()),
        ] {
            if is_set {
                errors.push(invalid(&root(field), "", "needs to be unset"));
            }
        }
    }

    fn validate_update(&self, old: &Self, _part: &Part, errors: &mut ErrorList) {
        let (new, old) = (to_core(self.clone()), to_core(old.clone()));
        validate_any(&new, "reportingController", errors);
        if new.series != old.series {
            validate_series(&new, errors);
        }
        let mut same = |field: &str, new: &dyn erased::Comparable, old: &dyn erased::Comparable| {
            if new.shown() != old.shown() {
                let mut error = invalid(&root(field), "", IMMUTABLE);
                error.bad_value = new.shown();
                errors.push(error);
            }
        };
        same("involvedObject", &new.involved_object, &old.involved_object);
        same("reason", &new.reason, &old.reason);
        same("message", &new.message, &old.message);
        same("source", &new.source, &old.source);
        same("firstTimestamp", &new.first_timestamp, &old.first_timestamp);
        same("lastTimestamp", &new.last_timestamp, &old.last_timestamp);
        same("count", &new.count, &old.count);
        same("type", &new.type_, &old.type_);
        same("eventTime", &new.event_time, &old.event_time);
        same("action", &new.action, &old.action);
        same("related", &new.related, &old.related);
        same(
            "reportingController",
            &new.reporting_component,
            &old.reporting_component,
        );
        same(
            "reportingInstance",
            &new.reporting_instance,
            &old.reporting_instance,
        );
    }

    fn selectable_values(&self) -> Vec<String> {
        selectable(&to_core(self.clone()))
    }

    fn cells(&self, now_seconds: i64) -> Vec<Value> {
        cells(&to_core(self.clone()), now_seconds)
    }
}

/// Values of different types compared by how they print.
mod erased {
    use super::Serialize;

    pub(super) trait Comparable {
        fn shown(&self) -> String;
    }

    impl<T: Serialize> Comparable for T {
        fn shown(&self) -> String {
            crate::error::print_value(self)
        }
    }
}

fn fill_reference(reference: &mut ObjectReference) {
    drop_empty!(
        reference.api_version,
        reference.field_path,
        reference.kind,
        reference.name,
        reference.namespace,
        reference.resource_version,
        reference.uid,
    );
}

fn to_core(event: events::Event) -> core::Event {
    core::Event {
        action: event.action,
        count: event.deprecated_count,
        event_time: event.event_time,
        first_timestamp: event.deprecated_first_timestamp,
        involved_object: event.regarding.unwrap_or_default(),
        last_timestamp: event.deprecated_last_timestamp,
        message: event.note,
        metadata: event.metadata,
        reason: event.reason,
        related: event.related,
        reporting_component: event.reporting_controller,
        reporting_instance: event.reporting_instance,
        series: event.series.map(|series| core::EventSeries {
            count: Some(series.count),
            last_observed_time: Some(series.last_observed_time),
        }),
        source: event.deprecated_source,
        type_: event.type_,
    }
}

fn to_events(event: core::Event) -> events::Event {
    let never = || MicroTime(k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
    events::Event {
        action: event.action,
        deprecated_count: event.count,
        deprecated_first_timestamp: event.first_timestamp,
        deprecated_last_timestamp: event.last_timestamp,
        deprecated_source: event.source,
        event_time: event.event_time,
        metadata: event.metadata,
        note: event.message,
        reason: event.reason,
        regarding: Some(event.involved_object),
        related: event.related,
        reporting_controller: event.reporting_component,
        reporting_instance: event.reporting_instance,
        series: event.series.map(|series| events::EventSeries {
            count: series.count.unwrap_or(0),
            last_observed_time: series.last_observed_time.unwrap_or_else(never),
        }),
        type_: event.type_,
    }
}

fn validate_any(event: &core::Event, controller_field: &str, errors: &mut ErrorList) {
    let namespace = event.metadata.namespace.as_deref().unwrap_or("");
    let object_namespace = event.involved_object.namespace.as_deref().unwrap_or("");
    let mismatched = match (object_namespace, event.event_time.is_some()) {
        ("", false) => !matches!(namespace, "" | "default"),
        ("", true) => !matches!(namespace, "default" | "kube-system"),
        (object_namespace, false) => namespace != object_namespace,
        (_, true) => false,
    };
    if mismatched {
        let path = root("involvedObject");
        errors.push(invalid(
            &path.child("namespace"),
            object_namespace,
            "does not match event.namespace",
        ));
    }
    if event.event_time.is_some() {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let controller = text(&event.reporting_component);
        if controller.is_empty() {
            errors.push(required(&root(controller_field), ""));
        }
        invalid_each(
            errors,
            &root(controller_field),
            &controller,
            name::qualified_name(&controller),
        );
        for (field, value) in [
            ("reportingInstance", text(&event.reporting_instance)),
            ("action", text(&event.action)),
            ("reason", text(&event.reason)),
        ] {
            if value.is_empty() {
                errors.push(required(&root(field), ""));
            }
            if value.len() > 128 {
                errors.push(invalid(&root(field), "", "can have at most 128 characters"));
            }
        }
        if event
            .message
            .as_ref()
            .is_some_and(|message| message.len() > 1024)
        {
            errors.push(invalid(
                &root("message"),
                "",
                "can have at most 1024 characters",
            ));
        }
    }
    invalid_each(
        errors,
        &root("namespace"),
        namespace,
        name::dns1123_subdomain(namespace),
    );
}

fn validate_series(event: &core::Event, errors: &mut ErrorList) {
    let Some(series) = &event.series else { return };
    if series.count.unwrap_or(0) < 2 {
        errors.push(invalid(&root("series.count"), "", "should be at least 2"));
    }
    if series.last_observed_time.is_none() {
        errors.push(required(&root("series.lastObservedTime"), ""));
    }
}

fn selectable(event: &core::Event) -> Vec<String> {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let object = &event.involved_object;
    let component = event
        .source
        .as_ref()
        .map(|source| text(&source.component))
        .unwrap_or_default();
    let controller = text(&event.reporting_component);
    vec![
        text(&object.kind),
        text(&object.namespace),
        text(&object.name),
        text(&object.uid),
        text(&object.api_version),
        text(&object.resource_version),
        text(&object.field_path),
        text(&event.reason),
        controller.clone(),
        if component.is_empty() {
            controller
        } else {
            component
        },
        text(&event.type_),
    ]
}

fn cells(event: &core::Event, now_seconds: i64) -> Vec<Value> {
    let first = match &event.first_timestamp {
        Some(time) => since(Some(time), now_seconds),
        None => since_micro(event.event_time.as_ref(), now_seconds),
    };
    let mut last = event
        .last_timestamp
        .as_ref()
        .map_or_else(|| first.clone(), |time| since(Some(time), now_seconds));
    let mut count = event.count.unwrap_or(0).max(1);
    if let Some(series) = &event.series {
        last = since_micro(series.last_observed_time.as_ref(), now_seconds);
        count = series.count.unwrap_or(0);
    }
    let object = &event.involved_object;
    let kind = object.kind.as_deref().unwrap_or("").to_lowercase();
    let target = match object.name.as_deref().unwrap_or("") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let text = |field: &Option<String>| Value::from(field.as_deref().unwrap_or(""));
    vec![
        Value::from(last),
        text(&event.type_),
        text(&event.reason),
        Value::from(target),
        text(&object.field_path),
        Value::from(source_of(event)),
        Value::from(event.message.as_deref().unwrap_or("").trim()),
        Value::from(first),
        Value::from(count),
        name_cell(&event.metadata),
    ]
}

fn name_cell(meta: &ObjectMeta) -> Value {
    columns::name(meta)
}

fn source_of(event: &core::Event) -> String {
    let first_of = |own: Option<&String>, other: &Option<String>| {
        own.filter(|text| !text.is_empty())
            .or(other.as_ref())
            .cloned()
            .unwrap_or_default()
    };
    let source = event.source.as_ref();
    let component = first_of(
        source.and_then(|source| source.component.as_ref()),
        &event.reporting_component,
    );
    let instance = first_of(
        source.and_then(|source| source.host.as_ref()),
        &event.reporting_instance,
    );
    if instance.is_empty() {
        component
    } else {
        format!("{component}, {instance}")
    }
}
