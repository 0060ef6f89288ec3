//! What a plan did to the snapshot, so that it can be taken back in reverse: a whole plan that is only
//! asked for, or a gang that did not find room for all.

use std::sync::Arc;

use crate::class::PodClass;
use crate::snapshot::{Snapshot, Uid};

#[derive(Debug)]
pub(crate) enum Undo {
    Placed(Uid),
    Nominated(Uid),
    Withdrawn {
        uid: Uid,
        class: Arc<PodClass>,
        node: Arc<str>,
    },
    Doomed {
        uid: Uid,
        doomed: bool,
    },
}

#[derive(Debug, Default)]
pub(crate) struct Journal {
    active: bool,
    steps: Vec<Undo>,
}

impl Journal {
    pub fn note(&mut self, step: impl FnOnce() -> Undo) {
        if self.active {
            self.steps.push(step());
        }
    }
}

impl Snapshot {
    /// From now on steps are noted.
    pub(crate) fn begin(&mut self) {
        self.journal.active = true;
        self.journal.steps.clear();
    }

    /// What was done stays done.
    pub(crate) fn commit(&mut self) {
        self.journal.active = false;
        self.journal.steps.clear();
    }

    /// A point to return to.
    pub(crate) fn mark(&self) -> usize {
        self.journal.steps.len()
    }

    pub(crate) fn undo_to(&mut self, mark: usize) {
        let was_active = std::mem::replace(&mut self.journal.active, false);
        while self.journal.steps.len() > mark {
            match self.journal.steps.pop().expect("longer than the mark") {
                Undo::Placed(uid) => {
                    self.forget_pod(&uid);
                }
                Undo::Nominated(uid) => {
                    self.withdraw_nomination(&uid);
                }
                Undo::Withdrawn { uid, class, node } => self.nominate(&uid, &class, &node),
                Undo::Doomed { uid, doomed } => {
                    if doomed {
                        self.spare(&uid);
                    } else {
                        self.doom(&uid);
                    }
                }
            }
        }
        self.journal.active = was_active;
    }
}
