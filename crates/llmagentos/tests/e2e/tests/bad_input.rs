//! Bad input gets a specific error, and changes nothing.

use std::process::Stdio;

use anyhow::{Context, bail};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, date_time_ymd};

use crate::cluster::{Cluster, eventually, fail, succeed};
use crate::http::{Credential, Http};
use crate::images::{self, BUSYBOX};
use crate::kubectl::{Kubectl, contains};

pub fn status_errors(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "bad-input")?;
    let said = |manifest: &str, further: &[&str]| {
        let mut arguments = vec!["create", "-f", "-"];
        arguments.extend(further);
        kubectl.run_with_input(&arguments, manifest).map_or_else(
            |error| error.to_string(),
            |output| format!("it was accepted: {output}"),
        )
    };
    let check =
        |manifest: &str, expect: &str| contains(&said(manifest, &["--validate=strict"]), expect);
    check(
        "{\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"metadata\": {\"name\": \"a\"}, \"extra\": 1}",
        "unknown field \"extra\"",
    )?;
    check(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: Not_A_Name}\n",
        "a lowercase RFC 1123 subdomain must consist of",
    )?;
    check(
        &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec: {{containers: [{{name: a, image: {BUSYBOX}, resources: {{limits: {{cpu: lots}}}}}}]}}\n"
        ),
        "quantities must match the regular expression",
    )?;
    check(
        &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec: {{containers: [{{name: a, image: {BUSYBOX}, ports: [{{containerPort: 70000}}]}}]}}\n"
        ),
        "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
    )?;
    check(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: c}}, spec: {containers: [{name: a, image: b}]}}}\n",
        "`selector` does not match template `labels`",
    )?;
    contains(
        &said(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: warned}\nextra: 1\n",
            &["--validate=ignore"],
        ),
        "created",
    )?;
    contains(
        &kubectl.fails(&["get", "pods", "-l", "a in (b"])?,
        "unable to parse requirement",
    )?;
    contains(
        &kubectl.fails(&["get", "pods", "--field-selector=nonsense=1"])?,
        "field label not supported",
    )?;
    contains(
        &kubectl.fails(&["create", "namespace", "bad-input"])?,
        "already exists",
    )?;
    contains(
        &kubectl.fails(&["get", "configmap", "nowhere"])?,
        "configmaps \"nowhere\" not found",
    )?;
    let stale = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: warned, resourceVersion: \"1\"}\ndata: {a: b}\n";
    let conflict = kubectl
        .run_with_input(&["replace", "-f", "-"], stale)
        .map_or_else(|error| error.to_string(), |_| String::new());
    contains(
        &conflict,
        "the object has been modified; please apply your changes to the latest version and try again",
    )?;
    // Kinds that are not served, of a group that is and of one that is not.
    for (api_version, kind) in [("apps/v1", "StatefulSet"), ("example.com/v1", "Foo")] {
        let manifest = format!("apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: a}}\n");
        for verb in ["create", "apply"] {
            let error = kubectl
                .run_with_input(&[verb, "-f", "-"], &manifest)
                .map_or_else(|error| error.to_string(), |_| String::new());
            contains(
                &error,
                &format!("no matches for kind \"{kind}\" in version \"{api_version}\""),
            )?;
        }
    }
    anyhow::ensure!(
        kubectl
            .run(&["get", "customresourcedefinitions", "-o", "name"])?
            .is_empty(),
        "there are no custom kinds"
    );
    contains(
        &kubectl.fails(&[
            "create",
            "--raw",
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            "-f",
            "/dev/null",
        ])?,
        "the server does not allow this method on the requested resource",
    )?;
    Ok(())
}

/// Bodies that kubectl itself would never send: each gets a `Status`, and nothing is stored.
pub fn raw_bodies(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "bad-bodies")?;
    let http = Http::new(cluster)?;
    let path = "/api/v1/namespaces/bad-bodies/configmaps";
    let check = |media_type: &str, body: &[u8], code, reason, part: &str| {
        let header = format!("Content-Type: {media_type}");
        http.post(path, &[&header], body)?
            .refuses(code, reason, part)
            .with_context(|| format!("{media_type} {:.40}", String::from_utf8_lossy(body)))
    };
    let json = "application/json";
    check(
        json,
        b"{\"apiVersion\": \"v1\", ",
        400,
        "BadRequest",
        "unexpected end of JSON input",
    )?;
    check(json, b"[]", 400, "BadRequest", "")?;
    check(json, b"\xff\xfe", 400, "BadRequest", "")?;
    check(json, &b"[".repeat(1 << 20), 400, "BadRequest", "")?;
    check(
        json,
        b"{\"apiVersion\": \"v1\", \"kind\": \"Secret\", \"metadata\": {\"name\": \"a\"}}",
        400,
        "BadRequest",
        "Secret",
    )?;
    let yaml = "application/yaml";
    check(yaml, b"a: [", 400, "BadRequest", "yaml")?;
    check(yaml, b"a: b: c", 400, "BadRequest", "yaml")?;
    check(yaml, &b"[".repeat(3 << 20), 400, "BadRequest", "yaml")?;
    let protobuf = "application/vnd.kubernetes.protobuf";
    check(protobuf, b"{}", 400, "BadRequest", "")?;
    check(protobuf, b"k8s\0", 400, "BadRequest", "")?;
    check(
        protobuf,
        b"k8s\0\x0a\xff\xff\xff\xff\x0f",
        400,
        "BadRequest",
        "",
    )?;
    check(
        "text/plain",
        b"hello",
        415,
        "UnsupportedMediaType",
        "application/json",
    )?;
    let large = format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{{\"name\":\"large\"}},\"data\":{{\"a\":\"{}\"}}}}",
        "x".repeat(4 << 20)
    );
    for headers in [&[][..], &["Transfer-Encoding: chunked"]] {
        let headers = [headers, &["Content-Type: application/json"]].concat();
        http.post(path, &headers, large.as_bytes())?.refuses(
            413,
            "RequestEntityTooLarge",
            "limit",
        )?;
    }
    let strict = format!("{path}?fieldValidation=Strict");
    http.post(
        &strict,
        &["Content-Type: application/json"],
        b"{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"a\"},\"extra\":1,\"data\":{\"b\":\"1\",\"b\":\"2\"}}",
    )?
    .refuses(400, "BadRequest", "unknown field \"extra\"")?;
    let query = |query: &str, code, reason, part: &str| {
        http.request(
            Credential::Administrator,
            "GET",
            &format!("{path}?{query}"),
            &[],
            b"",
        )?
        .refuses(code, reason, part)
        .with_context(|| query.to_owned())
    };
    query(
        "labelSelector=a%20in%20(b",
        400,
        "BadRequest",
        "unable to parse",
    )?;
    query(
        "fieldSelector=nonsense%3D1",
        400,
        "BadRequest",
        "is not a known field selector",
    )?;
    query("limit=many", 400, "BadRequest", "strconv.ParseInt")?;
    query(
        "resourceVersion=x",
        400,
        "BadRequest",
        "invalid resource version",
    )?;
    query("continue=x", 400, "BadRequest", "continue")?;
    let left = kubectl.run(&["get", "configmaps", "-o", "name"])?;
    anyhow::ensure!(
        left.lines()
            .all(|name| name == "configmap/kube-root-ca.crt"),
        "nothing was stored: {left}"
    );
    Ok(())
}

/// Archives that are damaged or hostile: each is refused with its reason, and no image comes of it.
pub fn image_archives(cluster: &Cluster) -> anyhow::Result<()> {
    let outside = cluster.path().join("outside");
    let directory = tempfile::tempdir()?;
    let archive = directory.path().join("image.tar");
    let check = |layer: &[u8], diff_id: Option<&str>, expect: &str| {
        images::write_archive_of(&archive, &["localhost/hostile:1"], layer, diff_id)?;
        let path = archive.display().to_string();
        contains(
            &fail(cluster.llmagentos(&["image", "load", "--input", &path]))?,
            expect,
        )
    };
    let up = format!("{}{}", "../".repeat(12), outside.display());
    let file = |name: &str| images::Member::File(name.to_owned());
    let link =
        |name: &str, target: &str| images::Member::Symlink(name.to_owned(), target.to_owned());
    let layer = |members: &[images::Member]| images::layer_of(members);
    check(&layer(&[file(&up)])?, None, "contains \"..\"")?;
    check(
        &layer(&[file(&outside.display().to_string())])?,
        None,
        "is an absolute path",
    )?;
    check(
        &layer(&[link("way", &up), file("way/file")])?,
        None,
        "leads out of the layer's root",
    )?;
    let sound = layer(&[file("a")])?;
    // Within the first file, which is seven bytes long.
    check(&sound[..515], None, "cut short")?;
    check(b"no archive at all", None, "")?;
    let other = format!("sha256:{}", "0".repeat(64));
    check(&sound, Some(&other), "but the image's configuration says")?;
    std::fs::write(&archive, b"no archive")?;
    fail(cluster.llmagentos(&["image", "load", "--input", &archive.display().to_string()]))?;
    anyhow::ensure!(!outside.exists(), "nothing was written outside");
    anyhow::ensure!(
        !succeed(cluster.llmagentos(&["image", "list"]))?.contains("hostile"),
        "no image came of it"
    );
    Ok(())
}

pub fn images_and_commands(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "bad-images")?;
    for (name, image, reason) in [
        ("name", "Not/An Image!", "InvalidImageName"),
        ("missing", "localhost/no-such-image:1", "ErrImagePull"),
    ] {
        // Applied, because `kubectl run` itself refuses such names.
        kubectl.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{restartPolicy: Never, containers: [{{name: main, image: \"{image}\"}}]}}\n"
        ))?;
        eventually(&format!("pod {name} says {reason}"), || {
            let actual = kubectl.value(
                &format!("pod/{name}"),
                ".status.containerStatuses[0].state.waiting.reason",
            )?;
            // The back-off after the first failure has a name of its own.
            if actual != reason && actual != "ImagePullBackOff" {
                bail!("the reason is \"{actual}\"");
            }
            Ok(())
        })?;
    }
    kubectl.run(&[
        "run",
        "command",
        &format!("--image={BUSYBOX}"),
        "--restart=Never",
        "--command",
        "--",
        "no-such-program",
    ])?;
    kubectl.wait_for_value("pod/command", ".status.phase", "Failed")?;
    contains(
        &kubectl.run(&["describe", "pod", "command"])?,
        "exec: \"no-such-program\": executable file not found in $PATH",
    )
}

pub fn credentials(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "bad-credentials")?;
    let server = kubectl.run(&[
        "config",
        "view",
        "--raw",
        "-o",
        "jsonpath={.clusters[0].cluster.server}",
    ])?;
    let mut command =
        cluster.inside(&std::env::var("KUBECTL").unwrap_or_else(|_| "kubectl".to_owned()));
    command
        .args([
            "--server",
            &server,
            "--insecure-skip-tls-verify",
            "--token",
            "not.a.token",
            "get",
            "pods",
        ])
        .env("HOME", cluster.path().join("nobody"))
        .env("KUBECONFIG", "/dev/null")
        .stdin(Stdio::null());
    let said = crate::cluster::fail(command)?;
    if !said.contains("Unauthorized") && !said.contains("You must be logged in") {
        bail!("{said}");
    }
    let http = Http::new(cluster)?;
    let path = "/api/v1/namespaces/bad-credentials/pods";
    let token = |token: &str, part: &str| {
        http.request(Credential::Token(token), "GET", path, &[], b"")?
            .refuses(401, "Unauthorized", part)
    };
    token("not.a.token", "no JSON web token")?;
    let good = kubectl.run(&["create", "token", "default"])?;
    let (signed, _) = good.rsplit_once('.').context("a token has a signature")?;
    token(
        &format!("{signed}.{}", "A".repeat(86)),
        "signed by another key",
    )?;
    // Good as it is, but its account may not list pods.
    http.request(Credential::Token(&good), "GET", path, &[], b"")?
        .refuses(403, "Forbidden", "cannot list resource \"pods\"")?;
    let pki = cluster.path().join("data/pki");
    let authority = Issuer::from_ca_cert_pem(
        &std::fs::read_to_string(pki.join("ca.crt"))?,
        KeyPair::from_pem(&std::fs::read_to_string(pki.join("ca.key"))?)?,
    )?;
    let key = KeyPair::generate()?;
    let mut parameters = CertificateParams::default();
    parameters
        .distinguished_name
        .push(DnType::OrganizationName, "system:masters");
    parameters
        .distinguished_name
        .push(DnType::CommonName, "foreign");
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let foreign = parameters.self_signed(&key)?;
    parameters.not_before = date_time_ymd(2020, 1, 1);
    parameters.not_after = date_time_ymd(2020, 1, 2);
    let expired = parameters.signed_by(&key, &authority)?;
    for (certificate, part) in [(foreign, "certificate"), (expired, "expired")] {
        let (certificate, key) = (certificate.pem(), key.serialize_pem());
        http.request(
            Credential::Certificate(&certificate, &key),
            "GET",
            path,
            &[],
            b"",
        )?
        .refuses(401, "Unauthorized", part)?;
    }
    Ok(())
}
