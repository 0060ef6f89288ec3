//! Label selectors as controllers need them: does this object belong to that selector.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// True if every requirement of the selector holds. An operator that does not exist holds for nothing.
pub fn selects(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    let value = |key: &str| labels.and_then(|labels| labels.get(key));
    let pairs = selector.match_labels.iter().flatten();
    let expressions = selector.match_expressions.iter().flatten();
    pairs
        .into_iter()
        .all(|(key, wanted)| value(key) == Some(wanted))
        && expressions.into_iter().all(|requirement| {
            let listed = |value: &String| {
                requirement
                    .values
                    .as_ref()
                    .is_some_and(|values| values.contains(value))
            };
            match (requirement.operator.as_str(), value(&requirement.key)) {
                ("In", Some(value)) => listed(value),
                ("NotIn", Some(value)) => !listed(value),
                ("NotIn" | "DoesNotExist", None) | ("Exists", Some(_)) => true,
                _ => false,
            }
        })
}

/// A selector without requirements, which selects everything.
pub fn selects_everything(selector: &LabelSelector) -> bool {
    selector
        .match_labels
        .as_ref()
        .is_none_or(BTreeMap::is_empty)
        && selector
            .match_expressions
            .as_ref()
            .is_none_or(Vec::is_empty)
}

/// True if `labels` has every pair of `wanted`.
pub fn contains_all(
    labels: Option<&BTreeMap<String, String>>,
    wanted: &BTreeMap<String, String>,
) -> bool {
    wanted
        .iter()
        .all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

    #[test]
    fn selectors() {
        let labels = BTreeMap::from([("app".to_string(), "web".to_string())]);
        let check = |operator: &str, key: &str, values: &[&str], expect: bool| {
            let requirement = LabelSelectorRequirement {
                key: key.into(),
                operator: operator.into(),
                values: Some(values.iter().map(ToString::to_string).collect()),
            };
            let selector = LabelSelector {
                match_expressions: Some(vec![requirement]),
                ..LabelSelector::default()
            };
            assert_eq!(
                selects(&selector, Some(&labels)),
                expect,
                "{operator} {key} {values:?}"
            );
        };
        check("In", "app", &["web"], true);
        check("In", "tier", &["web"], false);
        check("NotIn", "app", &["web"], false);
        check("NotIn", "tier", &["web"], true);
        check("Exists", "app", &[], true);
        check("DoesNotExist", "app", &[], false);
        check("Like", "app", &["web"], false);
        assert!(
            selects(&LabelSelector::default(), None)
                && selects_everything(&LabelSelector::default())
        );
    }
}
