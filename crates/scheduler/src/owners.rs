//! Which pods belong together by their services and their owner: what default spread constraints count.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::class::PodClass;
use crate::selector::{Labels, Selector};

#[derive(Debug, Default)]
pub struct Owners {
    /// Selectors of services, by namespace and name.
    services: BTreeMap<String, BTreeMap<String, Labels>>,
    /// Selectors of ReplicaSets, StatefulSets and ReplicationControllers, by UID.
    controllers: HashMap<String, Selector>,
}

impl Owners {
    pub fn observe_service(&mut self, service: &Service) {
        let namespace = service.metadata.namespace.clone().unwrap_or_default();
        let name = service.metadata.name.clone().unwrap_or_default();
        let selector = service.spec.as_ref().and_then(|spec| spec.selector.clone());
        let services = self.services.entry(namespace).or_default();
        match selector.filter(|selector| !selector.is_empty()) {
            Some(selector) => services.insert(name, selector),
            None => services.remove(&name),
        };
    }

    pub fn forget_service(&mut self, namespace: &str, name: &str) {
        if let Some(services) = self.services.get_mut(namespace) {
            services.remove(name);
            if services.is_empty() {
                self.services.remove(namespace);
            }
        }
    }

    pub fn observe_controller(&mut self, uid: &str, selector: &LabelSelector) {
        self.controllers
            .insert(uid.to_string(), Selector::new(Some(selector)));
    }

    pub fn forget_controller(&mut self, uid: &str) {
        self.controllers.remove(uid);
    }

    /// All of the pod's services and its owner together; `None` if it has neither.
    pub(crate) fn selector_of(&self, pod: &Pod, class: &PodClass) -> Option<Selector> {
        let mut merged = Labels::new();
        for selector in self
            .services
            .get(&class.namespace)
            .into_iter()
            .flat_map(|s| s.values())
        {
            if selector
                .iter()
                .all(|(key, value)| class.labels.get(key) == Some(value))
            {
                merged.extend(
                    selector
                        .iter()
                        .map(|(key, value)| (key.clone(), value.clone())),
                );
            }
        }
        let mut selector = Selector::of_labels(&merged);
        let owners = pod.metadata.owner_references.iter().flatten();
        let owner = owners
            .filter(|owner| owner.controller == Some(true))
            .find_map(|owner| self.controllers.get(&owner.uid));
        if let Some(owner) = owner {
            selector.and(owner);
        }
        (!selector.is_empty()).then_some(selector)
    }
}
