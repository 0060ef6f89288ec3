//! What changed lately, so that an index over all nodes is brought up to date by what changed and not by what exists.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::class::PodClass;
use crate::snapshot::NodeIndex;

/// Changes kept for indexes that are behind; one that is further behind is built anew, which costs no more than to replay as many.
const KEPT_MAX: usize = 1 << 14;

#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// Something of the node itself, or who is nominated to it.
    Node(NodeIndex),
    /// A pod came (1) or went (-1).
    Pod {
        node: NodeIndex,
        class: Arc<PodClass>,
        delta: i32,
        terminating: bool,
    },
}

#[derive(Debug, Default)]
pub(crate) struct Log {
    changes: VecDeque<Change>,
    /// Changes that are no longer kept.
    forgotten: u64,
}

impl Log {
    pub fn push(&mut self, change: Change) {
        if self.changes.len() == KEPT_MAX {
            self.changes.drain(..KEPT_MAX / 2);
            self.forgotten += (KEPT_MAX / 2) as u64;
        }
        self.changes.push_back(change);
    }

    /// The position after the latest change.
    pub fn end(&self) -> u64 {
        self.forgotten + self.changes.len() as u64
    }

    /// What came after a position; `None` if that is no longer known.
    pub fn since(&self, position: u64) -> Option<impl Iterator<Item = &Change>> {
        let from = position.checked_sub(self.forgotten)?;
        Some(
            self.changes
                .range((from as usize).min(self.changes.len())..),
        )
    }

    /// The nodes that something changed about after a position, each once.
    pub fn nodes_since(&self, position: u64) -> Option<Vec<NodeIndex>> {
        let mut nodes: Vec<NodeIndex> = self
            .since(position)?
            .map(|change| match change {
                Change::Node(node) | Change::Pod { node, .. } => *node,
            })
            .collect();
        nodes.sort_unstable();
        nodes.dedup();
        Some(nodes)
    }
}
