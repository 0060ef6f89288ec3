//! `Table` and `PartialObjectMetadata`: what `kubectl get` and metadata informers ask for.

use api::kind::{Column, Kind};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::accept::IncludeObject;
use crate::cache::Item;
use crate::status::{ApiError, ApiResult};

#[derive(Deserialize)]
struct MetadataOnly<'a> {
    #[serde(borrow)]
    metadata: &'a RawValue,
}

/// `{"kind":"PartialObjectMetadata",…,"metadata":…}`; the metadata is copied, not decoded.
pub fn partial_metadata(json: &[u8]) -> ApiResult<String> {
    let parsed: MetadataOnly<'_> = serde_json::from_slice(json).map_err(ApiError::internal)?;
    Ok(format!(
        r#"{{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{}}}"#,
        parsed.metadata.get()
    ))
}

pub fn column_definitions(columns: &[Column]) -> Value {
    columns
        .iter()
        .map(|column| {
            json!({
                "name": column.name,
                "type": column.type_,
                "format": column.format,
                "description": column.description,
                "priority": column.priority,
            })
        })
        .collect()
}

/// One row of a table.
pub fn row(kind: &Kind, item: &Item, include: IncludeObject, now_seconds: i64) -> ApiResult<Value> {
    let decoded = kind
        .strategy
        .decode(&item.json, false)
        .map_err(ApiError::internal)?;
    let mut row = json!({"cells": kind.strategy.cells(&*decoded.object, now_seconds)});
    row["object"] = match include {
        IncludeObject::None => Value::Null,
        IncludeObject::Metadata => {
            serde_json::from_str(&partial_metadata(&item.json)?).map_err(ApiError::internal)?
        }
        IncludeObject::Object => serde_json::from_slice(&item.json).map_err(ApiError::internal)?,
    };
    Ok(row)
}

/// A table of rows; `columns` are left out of all but the first event of a watch.
pub fn table(metadata: Value, columns: Option<&[Column]>, rows: Vec<Value>) -> Value {
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": columns.map_or_else(|| json!([]), column_definitions),
        "rows": rows,
    })
}
