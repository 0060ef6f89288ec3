//! Label and node selectors, compiled once per distinct pod so that matching is cheap and selectors can be compared and hashed.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

pub type Labels = BTreeMap<String, String>;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    Gt(i64),
    Lt(i64),
    /// An operator or a value that means nothing: matches nothing, as upstream treats a parsing error.
    Never,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
}

impl Requirement {
    fn new(key: &str, operator: &str, values: Option<&Vec<String>>) -> Self {
        let values = || values.cloned().unwrap_or_default();
        let number = || values().first().and_then(|value| value.parse::<i64>().ok());
        let operator = match operator {
            "In" => Operator::In(values()),
            "NotIn" => Operator::NotIn(values()),
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            "Gt" => number().map_or(Operator::Never, Operator::Gt),
            "Lt" => number().map_or(Operator::Never, Operator::Lt),
            _ => Operator::Never,
        };
        Requirement {
            key: key.to_string(),
            operator,
        }
    }

    fn matches(&self, value: Option<&str>) -> bool {
        match (&self.operator, value) {
            (Operator::In(values), Some(value)) => values.iter().any(|v| v == value),
            (Operator::NotIn(values), Some(value)) => !values.iter().any(|v| v == value),
            (Operator::NotIn(_) | Operator::DoesNotExist, None) | (Operator::Exists, Some(_)) => {
                true
            }
            (Operator::Gt(bound), Some(value)) => {
                value.parse::<i64>().is_ok_and(|value| value > *bound)
            }
            (Operator::Lt(bound), Some(value)) => {
                value.parse::<i64>().is_ok_and(|value| value < *bound)
            }
            _ => false,
        }
    }
}

/// A label selector. `None` of an API object selects nothing, an empty one everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selector {
    nothing: bool,
    requirements: Vec<Requirement>,
}

impl Selector {
    pub fn new(selector: Option<&LabelSelector>) -> Self {
        let Some(selector) = selector else {
            return Selector {
                nothing: true,
                requirements: Vec::new(),
            };
        };
        let mut requirements: Vec<Requirement> = selector
            .match_labels
            .iter()
            .flatten()
            .map(|(key, value)| Requirement {
                key: key.clone(),
                operator: Operator::In(vec![value.clone()]),
            })
            .collect();
        for expression in selector.match_expressions.iter().flatten() {
            requirements.push(Requirement::new(
                &expression.key,
                &expression.operator,
                expression.values.as_ref(),
            ));
        }
        Selector {
            nothing: false,
            requirements,
        }
    }

    pub fn require(&mut self, key: &str, operator: Operator) {
        self.requirements.push(Requirement {
            key: key.to_string(),
            operator,
        });
    }

    /// A selector of exactly these labels.
    pub fn of_labels(labels: &Labels) -> Self {
        let requirements = labels.iter().map(|(key, value)| Requirement {
            key: key.clone(),
            operator: Operator::In(vec![value.clone()]),
        });
        Selector {
            nothing: false,
            requirements: requirements.collect(),
        }
    }

    /// Both selectors at once.
    pub fn and(&mut self, other: &Selector) {
        self.nothing |= other.nothing;
        self.requirements.extend(other.requirements.iter().cloned());
    }

    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        !self.nothing
            && self
                .requirements
                .iter()
                .all(|r| r.matches(labels.get(&r.key).map(String::as_str)))
    }
}

/// One term of a node selector: all of its requirements on labels and fields. An empty term matches no node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeTerm {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

impl NodeTerm {
    pub fn new(term: &NodeSelectorTerm) -> Self {
        let compile = |list: &Option<Vec<NodeSelectorRequirement>>| {
            list.iter()
                .flatten()
                .map(|r| Requirement::new(&r.key, &r.operator, r.values.as_ref()))
                .collect()
        };
        NodeTerm {
            labels: compile(&term.match_expressions),
            fields: compile(&term.match_fields),
        }
    }

    /// The node names that the term allows, if it names them.
    pub fn names(&self) -> Option<impl Iterator<Item = &str>> {
        let named = self
            .fields
            .iter()
            .find_map(|requirement| match &requirement.operator {
                Operator::In(values) if requirement.key == "metadata.name" => Some(values),
                _ => None,
            });
        named.map(|values| values.iter().map(String::as_str))
    }

    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        if self.labels.is_empty() && self.fields.is_empty() {
            return false;
        }
        self.labels
            .iter()
            .all(|r| r.matches(labels.get(&r.key).map(String::as_str)))
            && self
                .fields
                .iter()
                .all(|r| r.key == "metadata.name" && r.matches(Some(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators() {
        let check = |operator: &str, values: &[&str], value: Option<&str>, expect: bool| {
            let values: Vec<String> = values.iter().map(ToString::to_string).collect();
            assert_eq!(
                Requirement::new("k", operator, Some(&values)).matches(value),
                expect,
                "{operator} {values:?} {value:?}"
            );
        };
        check("In", &["a", "b"], Some("b"), true);
        check("In", &["a"], None, false);
        check("NotIn", &["a"], None, true);
        check("NotIn", &["a"], Some("a"), false);
        check("Exists", &[], Some(""), true);
        check("Exists", &[], None, false);
        check("DoesNotExist", &[], None, true);
        check("DoesNotExist", &[], Some("x"), false);
        check("Gt", &["5"], Some("6"), true);
        check("Gt", &["5"], Some("x"), false);
        check("Lt", &["x"], Some("1"), false);
        check("Bogus", &["x"], Some("x"), false);
    }

    #[test]
    fn an_absent_selector_selects_nothing_and_an_empty_one_everything() {
        assert!(!Selector::new(None).matches(&Labels::new()));
        assert!(Selector::new(Some(&LabelSelector::default())).matches(&Labels::new()));
        assert!(!NodeTerm::new(&NodeSelectorTerm::default()).matches("n", &Labels::new()));
    }
}
