//! Sets of field paths, as `FieldsV1` writes them.
//!
//! A set is a tree. The text of a path element is what stands after its prefix in JSON: `f:` a field or map key,
//! `k:` the keys of a list element as a JSON object, `v:` a set element as JSON, `i:` an index. `.` in JSON marks
//! a path that is a member besides having members below it.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt::Write as _;

use serde_json::{Map, Value};

/// What a path element is, in the order in which upstream sorts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ElementKind {
    Field,
    Key,
    Value,
    Index,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Element<'a> {
    pub(super) kind: ElementKind,
    pub(super) text: Cow<'a, str>,
}

/// A set of field paths. Nodes are sorted, and none is without a member at it or below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FieldSet<'a> {
    pub(super) nodes: Vec<Node<'a>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node<'a> {
    pub(super) element: Element<'a>,
    pub(super) member: bool,
    pub(super) children: FieldSet<'a>,
}

impl<'a> Element<'a> {
    pub(super) fn field(name: &'a str) -> Self {
        Self {
            kind: ElementKind::Field,
            text: Cow::Borrowed(name),
        }
    }

    fn parse(text: &'a str) -> Option<Self> {
        let (kind, text) = text.split_once(':')?;
        let kind = match kind {
            "f" => ElementKind::Field,
            "k" => ElementKind::Key,
            "v" => ElementKind::Value,
            "i" => ElementKind::Index,
            _ => return None,
        };
        Some(Self {
            kind,
            text: Cow::Borrowed(text),
        })
    }

    fn prefix(&self) -> &'static str {
        match self.kind {
            ElementKind::Field => "f:",
            ElementKind::Key => "k:",
            ElementKind::Value => "v:",
            ElementKind::Index => "i:",
        }
    }

    /// As paths are printed in messages: `.spec`, `[name="a"]`, `[="x"]`, `[0]`.
    pub(super) fn print(&self, out: &mut String) {
        let written = match self.kind {
            ElementKind::Field => write!(out, ".{}", self.text),
            ElementKind::Value => write!(out, "[={}]", self.text),
            ElementKind::Index => write!(out, "[{}]", self.text),
            ElementKind::Key => {
                let keys: Map<String, Value> = serde_json::from_str(&self.text).unwrap_or_default();
                let keys: Vec<String> = keys
                    .iter()
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect();
                write!(out, "[{}]", keys.join(","))
            }
        };
        written.expect("writing to a string does not fail");
    }
}

impl<'a> Node<'a> {
    pub(super) fn new(element: Element<'a>) -> Self {
        Self {
            element,
            member: false,
            children: FieldSet::default(),
        }
    }

    fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }
}

impl<'a> FieldSet<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Reads `fieldsV1`. Elements that are no path elements make it `None`.
    pub(super) fn parse(fields: &'a Value) -> Option<Self> {
        let mut nodes = Vec::new();
        for (text, below) in fields.as_object()? {
            if text == "." {
                continue;
            }
            let mut node = Node::new(Element::parse(text)?);
            let object = below.as_object()?;
            node.member = object.is_empty() || object.contains_key(".");
            node.children = Self::parse(below)?;
            nodes.push(node);
        }
        let mut set = Self { nodes };
        set.sort();
        Some(set)
    }

    pub(super) fn to_value(&self) -> Value {
        let entries = self.nodes.iter().map(|node| {
            let mut below = match node.children.to_value() {
                Value::Object(below) => below,
                _ => Map::new(),
            };
            if node.member && !below.is_empty() {
                below.insert(".".to_owned(), Value::Object(Map::new()));
            }
            (
                format!("{}{}", node.element.prefix(), node.element.text),
                Value::Object(below),
            )
        });
        Value::Object(entries.collect())
    }

    /// Adds a node if there is something in it. Call [`FieldSet::sort`] when all are added.
    pub(super) fn push(&mut self, node: Node<'a>) {
        if !node.is_empty() {
            self.nodes.push(node);
        }
    }

    pub(super) fn sort(&mut self) {
        if !self.nodes.is_sorted_by(|a, b| a.element <= b.element) {
            self.nodes.sort_by(|a, b| a.element.cmp(&b.element));
        }
    }

    pub(super) fn get(&self, element: &Element<'_>) -> Option<&Node<'a>> {
        // Compared field by field: the lifetimes differ.
        let order = |node: &Node<'a>| {
            node.element
                .kind
                .cmp(&element.kind)
                .then_with(|| node.element.text.as_ref().cmp(element.text.as_ref()))
        };
        self.nodes
            .binary_search_by(order)
            .ok()
            .map(|index| &self.nodes[index])
    }

    pub(super) fn union(&self, other: &Self) -> Self {
        self.zip(other, |ours, theirs| match (ours, theirs) {
            (Some(node), None) | (None, Some(node)) => Some(node.clone()),
            (Some(ours), Some(theirs)) => Some(Node {
                element: ours.element.clone(),
                member: ours.member || theirs.member,
                children: ours.children.union(&theirs.children),
            }),
            (None, None) => None,
        })
    }

    pub(super) fn intersection(&self, other: &Self) -> Self {
        self.zip(other, |ours, theirs| {
            let (ours, theirs) = (ours?, theirs?);
            Some(Node {
                element: ours.element.clone(),
                member: ours.member && theirs.member,
                children: ours.children.intersection(&theirs.children),
            })
        })
    }

    pub(super) fn difference(&self, other: &Self) -> Self {
        self.zip(other, |ours, theirs| match (ours, theirs) {
            (Some(ours), None) => Some(ours.clone()),
            (Some(ours), Some(theirs)) => Some(Node {
                element: ours.element.clone(),
                member: ours.member && !theirs.member,
                children: ours.children.difference(&theirs.children),
            }),
            (None, _) => None,
        })
    }

    fn zip(
        &self,
        other: &Self,
        combine: impl Fn(Option<&Node<'a>>, Option<&Node<'a>>) -> Option<Node<'a>>,
    ) -> Self {
        let mut result = Self {
            nodes: Vec::with_capacity(self.nodes.len()),
        };
        let (mut ours, mut theirs) = (self.nodes.iter().peekable(), other.nodes.iter().peekable());
        loop {
            let order = match (ours.peek(), theirs.peek()) {
                (None, None) => return result,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(our), Some(their)) => our.element.cmp(&their.element),
            };
            let node = match order {
                Ordering::Less => combine(ours.next(), None),
                Ordering::Greater => combine(None, theirs.next()),
                Ordering::Equal => combine(ours.next(), theirs.next()),
            };
            if let Some(node) = node {
                result.push(node);
            }
        }
    }

    /// Every member path, printed as in messages.
    pub(super) fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect_paths(&mut String::new(), &mut paths);
        paths
    }

    fn collect_paths(&self, prefix: &mut String, paths: &mut Vec<String>) {
        for node in &self.nodes {
            let length = prefix.len();
            node.element.print(prefix);
            if node.member {
                paths.push(prefix.clone());
            }
            node.children.collect_paths(prefix, paths);
            prefix.truncate(length);
        }
    }

    /// Removes what is never owned: type, name and what the server itself sets.
    pub(super) fn strip_metadata(&mut self) {
        const SERVER_FIELDS: &[&str] = &[
            "clusterName",
            "creationTimestamp",
            "generation",
            "managedFields",
            "name",
            "namespace",
            "resourceVersion",
            "selfLink",
            "uid",
        ];
        for node in &mut self.nodes {
            match (node.element.kind, node.element.text.as_ref()) {
                (ElementKind::Field, "apiVersion" | "kind") => node.member = false,
                (ElementKind::Field, "metadata") => {
                    node.member = false;
                    for child in &mut node.children.nodes {
                        if child.element.kind == ElementKind::Field
                            && SERVER_FIELDS.contains(&child.element.text.as_ref())
                        {
                            child.member = false;
                        }
                    }
                    node.children.nodes.retain(|child| !child.is_empty());
                }
                _ => {}
            }
        }
        self.nodes.retain(|node| !node.is_empty());
    }

    /// Removes top-level fields with everything below them.
    pub(super) fn drop_fields(&mut self, names: &[&str]) {
        self.nodes.retain(|node| {
            node.element.kind != ElementKind::Field || !names.contains(&node.element.text.as_ref())
        });
    }
}
