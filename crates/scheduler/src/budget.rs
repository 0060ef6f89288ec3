//! PodDisruptionBudgets as preemption sees them: how many more pods may be disturbed.

use std::collections::{BTreeMap, HashSet};

use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use crate::class::PodClass;
use crate::selector::Selector;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    pub namespace: String,
    selector: Selector,
    pub allowed: i64,
    /// Names of pods whose disruption the budget has counted already.
    pub disrupted: HashSet<String>,
}

impl Budget {
    /// An empty selector guards nothing here, as upstream's preemption has it.
    pub fn guards(&self, class: &PodClass) -> bool {
        self.namespace == class.namespace
            && !class.labels.is_empty()
            && !self.selector.is_empty()
            && self.selector.matches(&class.labels)
    }
}

/// All budgets, by namespace and name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Budgets(BTreeMap<(String, String), Budget>);

impl Budgets {
    pub fn observe(&mut self, budget: &PodDisruptionBudget) {
        let spec = budget.spec.as_ref();
        let status = budget.status.as_ref();
        let namespace = budget.metadata.namespace.clone().unwrap_or_default();
        let name = budget.metadata.name.clone().unwrap_or_default();
        let observed = Budget {
            namespace: namespace.clone(),
            selector: Selector::new(spec.and_then(|spec| spec.selector.as_ref())),
            allowed: status
                .and_then(|status| status.disruptions_allowed)
                .map_or(0, i64::from),
            disrupted: status
                .and_then(|status| status.disrupted_pods.as_ref())
                .map(|pods| pods.keys().cloned().collect())
                .unwrap_or_default(),
        };
        self.0.insert((namespace, name), observed);
    }

    pub fn forget(&mut self, namespace: &str, name: &str) {
        self.0.remove(&(namespace.to_string(), name.to_string()));
    }

    pub fn iter(&self) -> impl Iterator<Item = &Budget> {
        self.0.values()
    }
}
