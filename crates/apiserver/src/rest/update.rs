//! update, and the loop under every write to an object that exists.

use std::sync::Arc;

use api::kind::{Object, Part};
use bytes::Bytes;
use http::StatusCode;
use store::{Compare, Op, Txn};

use super::managed_fields::Writer;
use super::options::parse_resource_version;
use super::{ApiResponse, Rest, WriteOptions, encode};
use crate::admission;
use crate::cache::{Head, Item, with_resource_version};
use crate::status::{ApiError, ApiResult};

/// A write that keeps losing against others gives up after so many tries.
const CONFLICT_TRIES: usize = 20;

/// What became of an object.
pub enum Written {
    Stored(Item),
    /// The write was the last thing that a deletion waited for.
    Deleted(Item),
    Unchanged(Arc<Item>),
}

impl Written {
    pub fn item(&self) -> &Item {
        match self {
            Self::Stored(item) | Self::Deleted(item) => item,
            Self::Unchanged(item) => item,
        }
    }
}

impl Rest<'_> {
    /// PUT; `body` is JSON.
    pub async fn update(&self, part: Part, body: Bytes) -> ApiResponse {
        let options = WriteOptions::parse(&self.context.query, "UpdateOptions")?;
        let mut object = self.decode_body(&body, &options)?;
        self.check_name(&mut *object)?;
        self.check_namespace(&mut *object)?;
        if part == Part::Main && self.kind.strategy.allows_create_on_update() {
            self.core.caches.fresh().await?;
            let has_precondition = object
                .metadata()
                .resource_version
                .as_deref()
                .is_some_and(|version| !version.is_empty());
            if self.cached().is_none() && !has_precondition {
                let item = self.create_object(object, &options).await?;
                return self.respond(StatusCode::CREATED, &item);
            }
        }
        let writer = Writer::update(self, &options, subresource_name(&part));
        let written = self
            .modify(&part, &options, &writer, |_, _| Ok(object.clone_boxed()))
            .await?;
        self.respond(StatusCode::OK, written.item())
    }

    /// Reads, changes and writes, again when another write came in between. A change that names
    /// the resource version it was made for fails in the next round, where that is no longer the current one.
    pub async fn modify(
        &self,
        part: &Part,
        options: &WriteOptions,
        writer: &Writer,
        mut change: impl FnMut(&dyn Object, &Item) -> ApiResult<Box<dyn Object>>,
    ) -> ApiResult<Written> {
        let mut current = self.believed().await?;
        for _ in 0..CONFLICT_TRIES {
            let written = self
                .modify_version(&current, part, options, writer, &mut change)
                .await;
            let unwritten = match written {
                Ok(Some(written @ (Written::Stored(_) | Written::Deleted(_))))
                    if !options.dry_run =>
                {
                    return Ok(written);
                }
                Ok(Some(unwritten)) => Ok(unwritten),
                Ok(None) => {
                    current = self.current().await?;
                    continue;
                }
                Err(error) => Err(error),
            };
            match self.newer_than(&current).await? {
                None => return unwritten,
                Some(newer) => current = newer,
            }
        }
        Err(self.modified())
    }

    /// One round of [`Rest::modify`]; `None`: another write came first.
    async fn modify_version(
        &self,
        current: &Arc<Item>,
        part: &Part,
        options: &WriteOptions,
        writer: &Writer,
        change: &mut impl FnMut(&dyn Object, &Item) -> ApiResult<Box<dyn Object>>,
    ) -> ApiResult<Option<Written>> {
        let old = self.decode_stored(&current.json)?;
        let mut new = change(&*old, current)?;
        self.check_preconditions(&mut *new, &*old, current.revision)?;
        let reservation = self
            .finish_update(&mut *new, &*old, &current.json, part, writer)
            .await?;

        let deleted = is_deletion_complete(&*new, &*old);
        let value = encode(&mut *new);
        let head = self.head_of(&*new, &value)?;
        if value == current.stored_json() && !deleted {
            return Ok(Some(Written::Unchanged(current.clone())));
        }
        if options.dry_run {
            let item = Item {
                json: with_resource_version(&value, current.revision),
                revision: current.revision,
                head,
            };
            return Ok(Some(if deleted {
                Written::Deleted(item)
            } else {
                Written::Stored(item)
            }));
        }
        if deleted {
            let Some(revision) = self.remove_revision(current.revision).await? else {
                return Ok(None);
            };
            drop(reservation);
            admission::deleted(self, &*old);
            return Ok(Some(Written::Deleted(Item {
                json: with_resource_version(&value, revision),
                revision,
                head,
            })));
        }
        let stored = self.replace_revision(current.revision, value, head).await?;
        Ok(stored.map(|item| {
            reservation.commit();
            Written::Stored(item)
        }))
    }

    /// Checks what the writer says about the version it changed.
    fn check_preconditions(
        &self,
        new: &mut dyn Object,
        old: &dyn Object,
        revision: u64,
    ) -> ApiResult<()> {
        let meta = new.metadata_mut();
        if let Some(uid) = meta.uid.as_deref().filter(|uid| !uid.is_empty())
            && Some(uid) != old.metadata().uid.as_deref()
        {
            let own = old.metadata().uid.as_deref().unwrap_or_default();
            return Err(ApiError::conflict(
                &self.kind.group,
                &self.kind.plural,
                self.name,
                &format!(
                    "StorageError: invalid object, Code: 4, Key: /registry/{}/{}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {uid}, UID in object meta: {own}",
                    self.kind.plural,
                    self.key(),
                ),
            ));
        }
        match meta.resource_version.as_deref() {
            None | Some("" | "0") => {
                if self.kind.strategy.allows_unconditional_update() {
                    meta.resource_version = Some(revision.to_string());
                }
                Ok(())
            }
            Some(version) if parse_resource_version(version)? == revision => Ok(()),
            Some(_) => Err(self.modified()),
        }
    }

    async fn finish_update(
        &self,
        new: &mut dyn Object,
        old: &dyn Object,
        current: &[u8],
        part: &Part,
        writer: &Writer,
    ) -> ApiResult<admission::Reservation> {
        let strategy = &*self.kind.strategy;
        // A binding is a change of our own making, checked when it was made; to clients the fields
        // that it sets are closed. As upstream, nobody is recorded as their owner.
        if *part == Part::Other("binding") {
            return Ok(admission::Reservation::default());
        }
        strategy.prepare_update(new, old, part);
        strategy.default(new);
        self.record_update(new, current, writer)?;
        let reservation = admission::admit_update(self, new, old, part).await?;
        let errors = strategy.validate_update(new, old, part);
        if !errors.is_empty() {
            return Err(self.invalid(self.name, &errors));
        }
        for warning in strategy.warnings(new) {
            self.context.warn(warning);
        }
        Ok(reservation)
    }

    /// Writes a new version over the one of `revision`; `None`: another write came first.
    pub async fn replace_revision(
        &self,
        revision: u64,
        value: Bytes,
        head: Arc<Head>,
    ) -> ApiResult<Option<Item>> {
        let key = self.key();
        let store_key = self.cache.store_key(&key);
        let lease = self.core.leases.lease_for(self.kind).await?;
        self.cache.announce(&key, value.clone(), head.clone());
        let txn = Txn {
            compare: vec![Compare::ModRevision {
                key: store_key.clone(),
                equals: store::Revision(revision),
            }],
            success: vec![Op::Put {
                key: store_key,
                value: value.clone(),
                lease,
            }],
            failure: Vec::new(),
        };
        match self.core.store.txn(txn).await {
            Ok(response) if response.succeeded => {
                let revision = response.revision.0;
                Ok(Some(Item {
                    json: with_resource_version(&value, revision),
                    revision,
                    head,
                }))
            }
            other => {
                self.cache.retract(&key, &value);
                other?;
                Ok(None)
            }
        }
    }

    /// Deletes the version of `revision`; answers the deletion's revision, `None`: another write came first.
    pub async fn remove_revision(&self, revision: u64) -> ApiResult<Option<u64>> {
        let store_key = self.cache.store_key(&self.key());
        let txn = Txn {
            compare: vec![Compare::ModRevision {
                key: store_key.clone(),
                equals: store::Revision(revision),
            }],
            success: vec![Op::Delete {
                range: store::KeyRange::single(store_key),
            }],
            failure: Vec::new(),
        };
        let response = self.core.store.txn(txn).await?;
        Ok(response.succeeded.then_some(response.revision.0))
    }
}

pub fn subresource_name(part: &Part) -> &'static str {
    match part {
        Part::Main => "",
        Part::Status => "status",
        Part::Other(name) => name,
    }
}

/// An update that takes away the last finalizer of an object that is being deleted deletes it.
fn is_deletion_complete(new: &dyn Object, old: &dyn Object) -> bool {
    let (new_meta, old_meta) = (new.metadata(), old.metadata());
    new_meta.deletion_timestamp.is_some()
        && new_meta.finalizers.as_ref().is_none_or(Vec::is_empty)
        && old_meta.deletion_grace_period_seconds.unwrap_or(0) == 0
        && new_meta.deletion_grace_period_seconds.unwrap_or(0) == 0
        && admission::namespace::may_be_removed(new)
}
