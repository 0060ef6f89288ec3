//! Who wrote which field last: the records that every write leaves, and server-side apply.

use api::kind::{Object, Part};
use api::managed_fields::{ApplyError, Write, apply, created, update};
use http::StatusCode;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use serde_json::Value;

use super::update::{Written, subresource_name};
use super::{ApiResponse, Rest, WriteOptions, meta};
use crate::codec::object::api_version;
use crate::status::{ApiError, ApiResult};

/// Whoever a write is recorded under.
pub struct Writer {
    pub manager: String,
    pub subresource: &'static str,
    /// The object's managed fields are in it already: an apply made them.
    pub recorded: bool,
}

impl Writer {
    /// A create, update or patch that is no apply.
    pub fn update(rest: &Rest<'_>, options: &WriteOptions, subresource: &'static str) -> Self {
        let manager = if options.field_manager.is_empty() {
            rest.context.user_agent_manager()
        } else {
            options.field_manager.clone()
        };
        Self {
            manager,
            subresource,
            recorded: false,
        }
    }

    /// A part of the server itself.
    pub fn server(manager: &str) -> Self {
        Self {
            manager: manager.into(),
            subresource: "",
            recorded: false,
        }
    }
}

impl Rest<'_> {
    fn with_write<T>(&self, writer: &Writer, work: impl FnOnce(&Write<'_>) -> T) -> T {
        let version = api_version(&self.kind.group, &self.kind.version);
        let has_status = self
            .kind
            .subresources
            .iter()
            .any(|own| own.name == "status");
        let ignored_fields: &[&str] = match writer.subresource {
            "" if has_status => &["status"],
            "status" => &["spec"],
            _ => &[],
        };
        let now = meta::now().0.to_string();
        work(&Write {
            manager: &writer.manager,
            api_version: &version,
            subresource: writer.subresource,
            now: &now,
            type_: api::schema::table().kind(&version, &self.kind.kind),
            ignored_fields,
        })
    }

    /// Records that `writer` wrote all fields of a new object.
    ///
    /// In the ordinary case the record is answered as text, to be put where the object, which has an
    /// empty list now, is encoded ([`super::encode_with`]); else it is in the object.
    pub fn record_creation(
        &self,
        object: &mut dyn Object,
        writer: &Writer,
    ) -> ApiResult<Option<Vec<u8>>> {
        if writer.recorded {
            return Ok(None);
        }
        let untracked = object
            .metadata()
            .managed_fields
            .as_ref()
            .is_none_or(Vec::is_empty);
        if untracked {
            object.metadata_mut().managed_fields = None;
            let json = object.to_json();
            if let Some(entries) = self.with_write(writer, |write| created(&json, write)) {
                object.metadata_mut().managed_fields = Some(Vec::new());
                return Ok(Some(entries));
            }
        }
        let mut value = object.to_value();
        self.with_write(writer, |write| update(None, &mut value, write));
        take_entries(object, &mut value)?;
        Ok(None)
    }

    /// Records in `new` which of its fields `writer` changed from `old`.
    pub fn record_update(
        &self,
        new: &mut dyn Object,
        old: &[u8],
        writer: &Writer,
    ) -> ApiResult<()> {
        if writer.recorded {
            return Ok(());
        }
        let old: Value = serde_json::from_slice(old).map_err(ApiError::internal)?;
        let mut value = new.to_value();
        self.with_write(writer, |write| update(Some(&old), &mut value, write));
        take_entries(new, &mut value)
    }

    /// Server-side apply.
    pub async fn apply(&self, part: Part, applied: &Value, options: &WriteOptions) -> ApiResponse {
        let config = self.check_config(applied)?;
        let writer = Writer {
            manager: options.field_manager.clone(),
            subresource: subresource_name(&part),
            recorded: true,
        };
        self.core.caches.fresh().await?;
        if self.cached().is_none() && part == Part::Main {
            let wants_existing = ["uid", "resourceVersion"].iter().any(|field| {
                config["metadata"][*field]
                    .as_str()
                    .is_some_and(|text| !text.is_empty())
            });
            if wants_existing {
                return Err(self.not_found());
            }
            let object = self.applied(None, &config, options, &writer)?;
            match self.create_written(object, options, &writer).await {
                // Someone else made it meanwhile: then it is applied to that.
                Err(error) if error.reason() == "AlreadyExists" => {}
                created => return self.respond(StatusCode::CREATED, &created?),
            }
        }
        let written = self
            .modify(&part, options, &writer, |_, current| {
                self.applied(Some(&current.json), &config, options, &writer)
            })
            .await?;
        let item = match &written {
            Written::Stored(item) | Written::Deleted(item) => item,
            Written::Unchanged(item) => item,
        };
        self.respond(StatusCode::OK, item)
    }

    fn applied(
        &self,
        live: Option<&[u8]>,
        config: &Value,
        options: &WriteOptions,
        writer: &Writer,
    ) -> ApiResult<Box<dyn Object>> {
        let live: Option<Value> = live
            .map(serde_json::from_slice)
            .transpose()
            .map_err(ApiError::internal)?;
        let result = self.with_write(writer, |write| {
            apply(live.as_ref(), config, write, options.force)
        });
        let applied = result.map_err(|error| match error {
            ApplyError::Conflicts(conflicts) => {
                let causes: Vec<(String, String)> = conflicts
                    .0
                    .iter()
                    .map(|conflict| (conflict.field.clone(), conflict.message()))
                    .collect();
                ApiError::apply_conflict(&conflicts.message(), &causes)
            }
            ApplyError::BadRequest(message) => ApiError::bad_request(message),
            ApplyError::Malformed(message) => ApiError::unexplained(message),
        })?;
        let mut object = self
            .kind
            .strategy
            .from_value(applied.object)
            .map_err(|error| ApiError::undecodable_patch(&config.to_string(), &error))?;
        self.check_namespace(&mut *object)?;
        Ok(object)
    }

    /// The configuration with its name; unknown fields are refused when it is applied, whatever the request wants.
    fn check_config(&self, applied: &Value) -> ApiResult<Value> {
        let mut config = applied.clone();
        let text = |field: &str| applied[field].as_str().unwrap_or_default();
        let (version, kind) = (text("apiVersion"), text("kind"));
        if kind != self.kind.kind || version.is_empty() {
            let separator = if version.contains('/') { "" } else { "/" };
            return Err(ApiError::bad_request(format!(
                "invalid object type: {separator}{version}, Kind={kind}"
            )));
        }
        let api_version = api_version(&self.kind.group, &self.kind.version);
        if let Some(type_) = api::schema::table().kind(&api_version, &self.kind.kind) {
            api::nulls::fill(&mut config, type_);
        }
        match config["metadata"]["name"].as_str() {
            Some(name) if name != self.name => {
                return Err(ApiError::bad_request(format!(
                    "the name of the object ({name}) does not match the name on the URL ({})",
                    self.name
                )));
            }
            Some(_) => {}
            None => config["metadata"]["name"] = self.name.into(),
        }
        Ok(config)
    }
}

fn take_entries(object: &mut dyn Object, value: &mut Value) -> ApiResult<()> {
    let entries = value
        .get_mut("metadata")
        .and_then(|meta| meta.get_mut("managedFields"))
        .map(Value::take);
    let entries: Option<Vec<ManagedFieldsEntry>> = entries
        .map(serde_json::from_value)
        .transpose()
        .map_err(ApiError::internal)?;
    object.metadata_mut().managed_fields = entries.filter(|entries| !entries.is_empty());
    Ok(())
}
