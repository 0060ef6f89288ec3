//! delete and deletecollection.
//!
//! A deletion is done at once, or waits for a grace period (pods), for finalizers, or for a
//! namespace to be empty; then the object is marked with a deletion timestamp, and goes when the
//! last of these is over (`update` does that).

use std::sync::Arc;

use api::kind::Object;
use bytes::Bytes;
use futures::TryStreamExt;
use http::{Response, StatusCode};
use serde_json::json;

use super::options::Propagation;
use super::{ApiResponse, DeleteOptions, ListOptions, Rest, Selection, encode, meta, now_seconds};
use crate::admission;
use crate::body::ResponseBody;
use crate::cache::{Item, with_resource_version};
use crate::codec::object::{api_version, respond_bytes, respond_value};
use crate::status::{ApiError, ApiResult};

const FINALIZER_ORPHAN: &str = "orphan";
const FINALIZER_FOREGROUND: &str = "foregroundDeletion";
const CONFLICT_TRIES: usize = 20;
/// Objects of a collection that are deleted at the same time.
const COLLECTION_PARALLEL: usize = 64;

enum Deleted {
    Gone(Arc<Item>),
    /// Marked; it goes later.
    Marked(Item),
}

/// What one try on one version came to.
enum Attempt {
    Written(Deleted),
    /// A dry run, or nothing to change.
    Unwritten(Deleted),
    /// Another write came first.
    Lost,
}

impl Rest<'_> {
    /// `body` is JSON of DeleteOptions, or empty.
    pub async fn delete(&self, body: Bytes) -> ApiResponse {
        let options = DeleteOptions::parse(&self.context.query, &body)?;
        match self.delete_object(&options).await? {
            Deleted::Gone(item) => Ok(self.success(&item)?),
            Deleted::Marked(item) => self.respond(StatusCode::OK, &item),
        }
    }

    /// As [`Rest::delete`], for callers that answer themselves.
    pub async fn delete_quietly(&self, options: &DeleteOptions) -> ApiResult<()> {
        self.delete_object(options).await.map(|_| ())
    }

    fn success(&self, item: &Item) -> ApiResult<Response<ResponseBody>> {
        let mut details =
            json!({"name": self.name, "kind": self.kind.plural, "uid": &*item.head.uid});
        if !self.kind.group.is_empty() {
            details["group"] = self.kind.group.as_ref().into();
        }
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
        let mut accept = self.context.accept()?;
        accept.shape = crate::codec::Shape::Object;
        Ok(respond_value(&accept, StatusCode::OK, &status))
    }

    pub async fn delete_collection(&self, body: Bytes) -> ApiResponse {
        let options = DeleteOptions::parse(&self.context.query, &body)?;
        let list_options = ListOptions::parse(&self.context.query, false)?;
        let selection = Selection::parse(
            &*self.kind.strategy,
            &self.context.query,
            self.namespace,
            "",
        )?;
        let page = self.page(&list_options, &selection).await?;
        futures::stream::iter(page.items.iter().map(Ok::<_, ApiError>))
            .try_for_each_concurrent(COLLECTION_PARALLEL, |item| {
                let options = options.clone();
                async move {
                    let rest = Rest {
                        namespace: &item.head.namespace,
                        name: &item.head.name,
                        ..*self
                    };
                    match rest.delete_object(&options).await {
                        Err(error) if error.is_not_found() => Ok(()),
                        other => other.map(|_| ()),
                    }
                }
            })
            .await?;
        let mut text = format!(
            r#"{{"kind":"{}List","apiVersion":"{}","metadata":{{"resourceVersion":"{}"}},"items":["#,
            self.kind.kind,
            api_version(&self.kind.group, &self.kind.version),
            page.revision
        )
        .into_bytes();
        for (index, item) in page.items.iter().enumerate() {
            if index > 0 {
                text.push(b',');
            }
            text.extend_from_slice(&item.json);
        }
        text.extend_from_slice(b"]}");
        Ok(respond_bytes(
            StatusCode::OK,
            "application/json",
            text.into(),
        ))
    }

    async fn delete_object(&self, options: &DeleteOptions) -> ApiResult<Deleted> {
        let mut current = self.believed().await?;
        for _ in 0..CONFLICT_TRIES {
            let unwritten = match self.delete_version(&current, options).await {
                Ok(Attempt::Written(deleted)) => return Ok(deleted),
                Ok(Attempt::Unwritten(deleted)) => Ok(deleted),
                Ok(Attempt::Lost) => {
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

    async fn delete_version(
        &self,
        current: &Arc<Item>,
        options: &DeleteOptions,
    ) -> ApiResult<Attempt> {
        let old = self.decode_stored(&current.json)?;
        self.check_delete_preconditions(options, current)?;
        admission::admit_delete(self)?;
        let Some(mut marked) = self.marked(&*old, options) else {
            if options.dry_run {
                return Ok(Attempt::Unwritten(Deleted::Gone(current.clone())));
            }
            if self.remove_revision(current.revision).await?.is_none() {
                return Ok(Attempt::Lost);
            }
            admission::deleted(self, &*old);
            return Ok(Attempt::Written(Deleted::Gone(current.clone())));
        };
        let value = encode(&mut *marked);
        let head = self.head_of(&*marked, &value)?;
        if options.dry_run || value == current.stored_json() {
            return Ok(Attempt::Unwritten(Deleted::Marked(Item {
                json: with_resource_version(&value, current.revision),
                revision: current.revision,
                head,
            })));
        }
        let marked = self.replace_revision(current.revision, value, head).await?;
        Ok(marked.map_or(Attempt::Lost, |item| {
            Attempt::Written(Deleted::Marked(item))
        }))
    }

    pub fn check_delete_preconditions(
        &self,
        options: &DeleteOptions,
        current: &Item,
    ) -> ApiResult<()> {
        // Upstream names the kind here, not the resource.
        let failed = |detail: String| {
            Err(ApiError::conflict(
                &self.kind.group,
                &self.kind.kind,
                self.name,
                &detail,
            ))
        };
        if let Some(uid) = options
            .uid
            .as_deref()
            .filter(|uid| **uid != *current.head.uid)
        {
            return failed(format!(
                "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been deleted and then recreated",
                current.head.uid
            ));
        }
        let revision = current.revision.to_string();
        if let Some(version) = options
            .resource_version
            .as_deref()
            .filter(|version| *version != revision)
        {
            return failed(format!(
                "the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record ({revision}). The object might have been modified"
            ));
        }
        Ok(())
    }

    /// The object as the deletion leaves it; `None`: nothing keeps it.
    fn marked(&self, old: &dyn Object, options: &DeleteOptions) -> Option<Box<dyn Object>> {
        let mut object = old.clone_boxed();
        set_propagation(&mut *object, options.propagation);
        let default_grace = self.kind.strategy.default_grace_period_seconds(old);
        let removable = admission::namespace::may_be_removed(old);
        let meta = object.metadata_mut();
        let finalized = meta.finalizers.as_ref().is_none_or(Vec::is_empty);

        let grace_seconds = match (&meta.deletion_timestamp, default_grace) {
            (Some(deadline), _) => {
                let set = meta.deletion_grace_period_seconds.unwrap_or(0);
                // A grace period once set can only be shortened.
                match options.grace_period_seconds.map(|wanted| wanted.max(0)) {
                    Some(wanted) if wanted < set => {
                        meta.deletion_timestamp =
                            Some(meta::at(deadline.0.as_second() - set + wanted));
                        meta.deletion_grace_period_seconds = Some(wanted);
                        wanted
                    }
                    _ => set,
                }
            }
            (None, default_grace) => {
                let grace = default_grace
                    .map_or(0, |default| options.grace_period_seconds.unwrap_or(default))
                    .max(0);
                meta.deletion_timestamp = Some(meta::at(now_seconds() + grace));
                meta.deletion_grace_period_seconds = Some(grace);
                if let Some(generation) = &mut meta.generation {
                    *generation += 1;
                }
                grace
            }
        };
        if finalized && grace_seconds == 0 && removable {
            return None;
        }
        admission::namespace::mark_terminating(&mut *object);
        Some(object)
    }
}

/// Turns the propagation policy into the finalizers that the garbage collector obeys.
fn set_propagation(object: &mut dyn Object, propagation: Option<Propagation>) {
    let Some(propagation) = propagation else {
        return;
    };
    let finalizers = object.metadata_mut().finalizers.get_or_insert_default();
    finalizers
        .retain(|finalizer| finalizer != FINALIZER_ORPHAN && finalizer != FINALIZER_FOREGROUND);
    match propagation {
        Propagation::Orphan => finalizers.push(FINALIZER_ORPHAN.into()),
        Propagation::Foreground => finalizers.push(FINALIZER_FOREGROUND.into()),
        Propagation::Background => {}
    }
    if finalizers.is_empty() {
        object.metadata_mut().finalizers = None;
    }
}
