//! Which objects a list, a watch or a deletion of a collection is about.

use api::kind::Strategy;
use api::selector::{Fields, Labels};

use crate::cache::{Head, Item};
use crate::request::Query;
use crate::status::{ApiError, ApiResult};

/// Label and field selectors, and the namespace and name that the path or they demand.
pub struct Selection {
    namespace: String,
    /// From the path, or from `fieldSelector=metadata.name=x`.
    name: Option<String>,
    labels: Labels,
    fields: Fields,
}

impl Selection {
    /// `namespace` is the path's; `name` one that the path names, for a watch of one object.
    pub fn parse(
        strategy: &dyn Strategy,
        query: &Query,
        namespace: &str,
        name: &str,
    ) -> ApiResult<Self> {
        let bad = |error: api::selector::SelectorError| ApiError::bad_request(error.to_string());
        let labels =
            Labels::parse(query.value("labelSelector").unwrap_or_default()).map_err(bad)?;
        let fields =
            Fields::parse(query.value("fieldSelector").unwrap_or_default()).map_err(bad)?;
        fields
            .check_supported(strategy.selectable_field_names())
            .map_err(bad)?;
        let name = if name.is_empty() {
            fields.required_value("metadata.name").map(str::to_owned)
        } else {
            Some(name.to_owned())
        };
        Ok(Self {
            namespace: namespace.into(),
            name,
            labels,
            fields,
        })
    }

    /// Everything in the namespace (empty: everywhere).
    pub fn is_everything(&self) -> bool {
        self.name.is_none() && self.labels.selects_everything() && self.fields.terms.is_empty()
    }

    pub fn matches(&self, head: &Head) -> bool {
        (self.namespace.is_empty()
            || head.namespace.is_empty()
            || *head.namespace == *self.namespace)
            && self.name.as_ref().is_none_or(|name| *head.name == **name)
            && self.fields.matches(|field| head.field(field))
            && self.labels.matches_with(|key| head.label(key))
    }

    pub fn matches_item(&self, item: &Item) -> bool {
        self.matches(&item.head)
    }
}
