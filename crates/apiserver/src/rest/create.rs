//! create.

use api::kind::{Decoded, Object};
use bytes::Bytes;
use http::StatusCode;
use store::{Compare, Op, Txn};

use super::managed_fields::Writer;
use super::options::FieldValidation;
use super::{ApiResponse, Rest, WriteOptions, encode, encode_with, meta, object_key};
use crate::admission;
use crate::cache::{Item, with_resource_version};
use crate::codec::object::decode;
use crate::status::{ApiError, ApiResult};

/// How often a generated name is tried that turns out to be taken, as upstream.
const GENERATED_NAME_TRIES: usize = 8;

impl Rest<'_> {
    /// `body` is JSON.
    pub async fn create(&self, body: Bytes) -> ApiResponse {
        let options = WriteOptions::parse(&self.context.query, "CreateOptions")?;
        let object = self.decode_body(&body, &options)?;
        let item = self.create_object(object, &options).await?;
        self.respond(StatusCode::CREATED, &item)
    }

    /// Decodes a body, and treats its unknown fields as the request wants.
    pub fn decode_body(&self, body: &[u8], options: &WriteOptions) -> ApiResult<Box<dyn Object>> {
        let Decoded { object, problems } = decode(
            self.kind,
            body,
            options.field_validation != FieldValidation::Ignore,
        )?;
        if !problems.is_empty() {
            match options.field_validation {
                FieldValidation::Strict => {
                    let messages: Vec<String> = problems
                        .into_iter()
                        .map(|problem| problem.message)
                        .collect();
                    return Err(ApiError::strict(
                        &self.kind.kind,
                        &self.kind.version,
                        &messages,
                    ));
                }
                FieldValidation::Warn => problems
                    .into_iter()
                    .for_each(|problem| self.context.warn(problem.message)),
                FieldValidation::Ignore => {}
            }
        }
        Ok(object)
    }

    pub async fn create_object(
        &self,
        object: Box<dyn Object>,
        options: &WriteOptions,
    ) -> ApiResult<Item> {
        self.create_written(object, options, &Writer::update(self, options, ""))
            .await
    }

    /// As [`Rest::create_object`], on behalf of a writer.
    pub async fn create_written(
        &self,
        mut object: Box<dyn Object>,
        options: &WriteOptions,
        writer: &Writer,
    ) -> ApiResult<Item> {
        let strategy = &*self.kind.strategy;
        self.check_namespace(&mut *object)?;
        if object
            .metadata()
            .resource_version
            .as_deref()
            .is_some_and(|version| !version.is_empty())
        {
            return Err(ApiError::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        let base = meta::prepare(object.metadata_mut());
        strategy.default(&mut *object);
        // What the server adds from here on is owned by nobody.
        let managed_fields = self.record_creation(&mut *object, writer)?;
        strategy.prepare_create(&mut *object);
        // A new status has defaults too.
        strategy.default(&mut *object);
        if managed_fields.is_some() {
            // The place of the record in the encoding, which defaulting takes for an empty list like others.
            object.metadata_mut().managed_fields = Some(Vec::new());
        }
        let reservation = admission::admit_create(self, &mut *object).await?;

        let mut tries = 0;
        loop {
            tries += 1;
            let errors = strategy.validate_create(&*object);
            if !errors.is_empty() {
                let name = object.metadata().name.clone().unwrap_or_default();
                return Err(self.invalid(&name, &errors));
            }
            for warning in strategy.warnings(&*object) {
                self.context.warn(warning);
            }
            let stored = self
                .store_new(&mut *object, managed_fields.as_deref(), options.dry_run)
                .await?;
            match stored {
                Some(item) => {
                    if !options.dry_run {
                        reservation.commit();
                    }
                    return Ok(item);
                }
                None => {
                    let name = object.metadata().name.clone().unwrap_or_default();
                    let Some(base) = &base else {
                        return Err(ApiError::already_exists(
                            &self.kind.group,
                            &self.kind.plural,
                            &name,
                        ));
                    };
                    if tries >= GENERATED_NAME_TRIES {
                        return Err(ApiError::generated_name_taken(
                            &self.kind.group,
                            &self.kind.plural,
                            &name,
                        ));
                    }
                    object.metadata_mut().name = Some(meta::generate_name(base));
                }
            }
        }
    }

    /// `None`: the name is taken.
    async fn store_new(
        &self,
        object: &mut dyn Object,
        managed_fields: Option<&[u8]>,
        dry_run: bool,
    ) -> ApiResult<Option<Item>> {
        let name = object.metadata().name.clone().unwrap_or_default();
        let key = object_key(
            self.kind,
            object.metadata().namespace.as_deref().unwrap_or_default(),
            &name,
        );
        let value = match managed_fields {
            Some(managed_fields) => encode_with(object, managed_fields)?,
            None => encode(object),
        };
        let head = self.head_of(object, &value)?;
        if dry_run {
            self.core.caches.fresh().await?;
            return Ok(self.cache.get(&key).is_none().then_some(Item {
                json: value,
                revision: 0,
                head,
            }));
        }
        let store_key = self.cache.store_key(&key);
        let lease = self.core.leases.lease_for(self.kind).await?;
        let txn = Txn {
            compare: vec![Compare::Exists {
                key: store_key.clone(),
                exists: false,
            }],
            success: vec![Op::Put {
                key: store_key,
                value: value.clone(),
                lease,
            }],
            failure: Vec::new(),
        };
        self.cache.announce(&key, value.clone(), head.clone());
        let response = match self.core.store.txn(txn).await {
            Ok(response) if response.succeeded => response,
            other => {
                self.cache.retract(&key, &value);
                other?;
                return Ok(None);
            }
        };
        let revision = response.revision.0;
        Ok(Some(Item {
            json: with_resource_version(&value, revision),
            revision,
            head,
        }))
    }
}
