//! Carries out what `controllers::service_account` decides.

use std::sync::Arc;

use client::informer::ObjectKey;
use client::workqueue::{Backoff, WorkQueue};
use controllers::service_account;
use futures::FutureExt;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};

use super::{Context, Pending};
use crate::error;
use crate::feed::Feeds;
use crate::worker::{self, Next};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Namespace(String),
    TokenSecret(ObjectKey),
}

pub fn register(feeds: &mut Feeds, context: Arc<Context>, ca_pem: Option<String>) -> Pending {
    let ca_pem: Option<Arc<str>> = ca_pem.map(Into::into);
    let queue: WorkQueue<Key> = WorkQueue::new(Backoff::default());
    let secrets = feeds.token_secrets.index(|secret| {
        let account = service_account::account_of(secret)?;
        Some(
            ObjectKey::new(
                secret.metadata.namespace.clone().unwrap_or_default(),
                account,
            )
            .to_string(),
        )
    });
    let add = queue.clone();
    feeds.token_secrets.listen(move |change| {
        if change.after.is_some() {
            add.add(Key::TokenSecret(change.key.clone()));
        }
    });
    let add = queue.clone();
    feeds.namespaces.listen(move |change| {
        if change.after.is_some() {
            add.add(Key::Namespace(change.key.name.clone()));
        }
    });
    let add = queue.clone();
    feeds.service_accounts.listen(move |change| {
        if change.after.is_some() {
            return;
        }
        if change.key.name == service_account::DEFAULT {
            add.add(Key::Namespace(change.key.namespace.clone()));
        }
        for secret in secrets.of(&change.key.to_string()) {
            add.add(Key::TokenSecret(ObjectKey::of(&*secret)));
        }
    });
    Box::new(move |caches| {
        let reconcile = move |key| {
            let (context, caches, ca_pem) = (context.clone(), caches.clone(), ca_pem.clone());
            async move {
                match key {
                    Key::Namespace(name) => {
                        let Some(namespace) = caches.namespaces.get(&ObjectKey::new("", &name))
                        else {
                            return Ok(Next::DONE);
                        };
                        let exists = caches
                            .service_accounts
                            .get(&ObjectKey::new(&name, service_account::DEFAULT))
                            .is_some();
                        if let Some(account) = service_account::reconcile(&namespace, exists) {
                            create(&context, &name, &account).await?;
                        }
                    }
                    Key::TokenSecret(key) => {
                        if let Some(secret) = caches.token_secrets.get(&key) {
                            settle_secret(&context, &key, &secret, ca_pem.as_deref()).await?;
                        }
                    }
                }
                Ok(Next::DONE)
            }
        };
        worker::run("serviceaccount", queue, 1, reconcile).boxed()
    })
}

async fn create(
    context: &Context,
    namespace: &str,
    account: &ServiceAccount,
) -> Result<(), kube::Error> {
    let api: Api<ServiceAccount> = Api::namespaced(context.client.clone(), namespace);
    match api.create(&PostParams::default(), account).await {
        Err(error)
            if error::already_exists(&error)
                || error::namespace_is_terminating(&error)
                || error::is_not_found(&error) =>
        {
            Ok(())
        }
        Err(error) => Err(error),
        Ok(_) => Ok(()),
    }
}

/// Fills a token secret, or deletes it if its account is gone; asks the server and not the cache whether it is.
async fn settle_secret(
    context: &Context,
    key: &ObjectKey,
    secret: &Secret,
    ca_pem: Option<&str>,
) -> Result<(), kube::Error> {
    let Some(name) = service_account::account_of(secret) else {
        return Ok(());
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(context.client.clone(), &key.namespace);
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), &key.namespace);
    let account = accounts.get_opt(name).await?;
    let result = match &account {
        Some(account) if !service_account::is_stray(secret, Some(account)) => {
            let Some(request) = service_account::token_request(secret) else {
                return Ok(());
            };
            let answer: TokenRequest = accounts
                .create_subresource("token", name, &PostParams::default(), &request)
                .await?;
            let token = answer
                .status
                .and_then(|status| status.token)
                .unwrap_or_default();
            let filled = service_account::filled(secret, account, &token, ca_pem);
            secrets
                .replace(&key.name, &PostParams::default(), &filled)
                .await
                .map(|_| ())
        }
        _ => {
            let preconditions = Preconditions {
                uid: secret.metadata.uid.clone(),
                resource_version: secret.metadata.resource_version.clone(),
            };
            let parameters = DeleteParams {
                preconditions: Some(preconditions),
                ..DeleteParams::default()
            };
            secrets.delete(&key.name, &parameters).await.map(|_| ())
        }
    };
    match result {
        Err(error) if !error::is_not_found(&error) && !error::is_conflict(&error) => Err(error),
        _ => Ok(()),
    }
}
