//! The server over real TLS.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::json;

use crate::Kubelet;
use crate::config::{Config, ServerConfig};
use crate::fake::api::FakeApi;
use crate::fake::runtime::FakeRuntime;
use crate::fake::wait_for;

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "ca");
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Certificate and key as PEM.
    fn issue(&self, user: &str, group: &str) -> (String, String) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, user);
        params
            .distinguished_name
            .push(DnType::OrganizationName, group);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

async fn get(
    address: SocketAddr,
    path: &str,
    identity: Option<&(String, String)>,
) -> Result<(u16, String), String> {
    let mut tls = crate::probe::http::trusting_tls();
    if let Some((certificate, key)) = identity {
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let provider = Arc::clone(tls.crypto_provider());
        let key = provider.key_provider.load_private_key(key).unwrap();
        tls.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(
            rustls::sign::CertifiedKey::new(chain, key),
        ));
    }
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(tls))
        .connect(name, stream)
        .await
        .map_err(|error| error.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection);
    let request = http::Request::get(path)
        .header("host", "localhost")
        .body(Empty::<bytes::Bytes>::new())
        .unwrap();
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| error.to_string())?;
    let status = response.status().as_u16();
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(|error| error.to_string())?
        .to_bytes();
    connection.abort();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

#[tokio::test]
async fn logs_pods_and_stats_for_the_api_server_only() {
    let (authority, foreign) = (Authority::new(), Authority::new());
    let (certificate, key) = authority.issue("node", "");
    let directory = tempfile::tempdir().unwrap();
    let (api, runtime) = (FakeApi::new(), FakeRuntime::default());
    let mut config = Config::new(
        "node",
        directory.path().join("kubelet"),
        directory.path().join("logs"),
    );
    config.server = Some(ServerConfig {
        address: "127.0.0.1:0".parse().unwrap(),
        certificate_pem: certificate.into_bytes(),
        key_pem: key.into_bytes(),
        client_ca_pem: authority.0.pem().into_bytes(),
        allowed_users: vec!["kube-apiserver".to_owned()],
    });
    let service = Arc::new(runtime.clone());
    let kubelet = Kubelet::start(config, api.client(), service.clone(), service)
        .await
        .unwrap();
    let address = kubelet.server_address().unwrap();
    api.put_pod(
        "web",
        json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "img"}]}),
    );
    wait_for("the pod", || {
        api.pod("web")
            .filter(|pod| pod["status"]["phase"] == "Running")
    })
    .await;

    let server = authority.issue("kube-apiserver", "");
    let ask = async |path: &str| get(address, path, Some(&server)).await.unwrap();
    assert_eq!(ask("/healthz").await, (200, "ok".to_owned()));
    assert_eq!(
        ask("/containerLogs/default/web/c?tailLines=5").await,
        (200, "hello from c\n".to_owned())
    );
    assert_eq!(
        ask("/containerLogs/default/web/c?timestamps=true").await,
        (200, "2026-01-01T00:00:00Z hello from c\n".to_owned())
    );
    assert_eq!(ask("/containerLogs/default/none/c").await.0, 404);
    assert_eq!(ask("/containerLogs/default/web/c?tailLines=x").await.0, 400);
    let previous = ask("/containerLogs/default/web/c?previous=true").await;
    assert_eq!(
        previous,
        (
            400,
            "previous terminated container \"c\" in pod \"web\" not found".to_owned()
        )
    );
    assert!(ask("/pods").await.1.contains("\"name\":\"web\""));
    assert!(
        ask("/stats/summary")
            .await
            .1
            .contains("\"nodeName\":\"node\"")
    );
    assert!(ask("/metrics").await.1.contains("kubelet_running_pods 1"));

    assert_eq!(
        get(
            address,
            "/pods",
            Some(&authority.issue("admin", "system:masters"))
        )
        .await
        .unwrap()
        .0,
        200
    );
    assert_eq!(
        get(
            address,
            "/pods",
            Some(&authority.issue("system:node:x", "system:nodes"))
        )
        .await
        .unwrap()
        .0,
        403
    );
    assert_eq!(get(address, "/pods", None).await.unwrap().0, 401);
    assert!(
        get(
            address,
            "/pods",
            Some(&foreign.issue("kube-apiserver", "system:masters"))
        )
        .await
        .is_err()
    );

    // A follower is told the rest and then the end.
    let follower = tokio::spawn(async move {
        get(
            address,
            "/containerLogs/default/web/c?follow=true",
            Some(&server),
        )
        .await
        .unwrap()
    });
    tokio::task::yield_now().await;
    runtime.exit("c", 0);
    let (status, text) = follower.await.unwrap();
    assert_eq!((status, text.as_str()), (200, "hello from c\n"));
}
