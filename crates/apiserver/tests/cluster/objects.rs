//! The verbs on objects.

use super::*;

#[tokio::test]
async fn objects_are_created_read_changed_and_deleted() {
    let cluster = Cluster::start().await;
    let created = cluster
        .post(CONFIG_MAPS, config_map("a", json!({"k": "1"})))
        .await;
    assert_eq!(created.code, 201, "{}", created.body);
    let meta = &created.body["metadata"];
    assert_eq!(meta["namespace"], "default");
    assert!(
        meta["uid"].is_string()
            && meta["creationTimestamp"].is_string()
            && meta["resourceVersion"].is_string()
    );
    assert_eq!(meta["managedFields"][0]["operation"], "Update");

    let again = cluster.post(CONFIG_MAPS, config_map("a", json!({}))).await;
    assert_eq!(
        (again.code.as_u16(), again.message()),
        (409, "configmaps \"a\" already exists")
    );
    assert_eq!(again.body["reason"], "AlreadyExists");

    let path = format!("{CONFIG_MAPS}/a");
    assert_eq!(cluster.get(&path).await.body, created.body);

    let mut changed = created.body.clone();
    changed["data"]["k"] = "2".into();
    let updated = cluster.put(&path, changed.clone()).await;
    assert_eq!(updated.code, 200, "{}", updated.body);
    assert_ne!(
        updated.body["metadata"]["resourceVersion"],
        meta["resourceVersion"]
    );

    let stale = cluster.put(&path, changed).await;
    assert_eq!(stale.code, 409);
    assert_eq!(
        stale.message(),
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );
    // What changes nothing writes nothing.
    let same = cluster.put(&path, updated.body.clone()).await;
    assert_eq!(
        same.body["metadata"]["resourceVersion"],
        updated.body["metadata"]["resourceVersion"]
    );

    let deleted = cluster.delete(&path).await;
    assert_eq!(
        (deleted.code.as_u16(), &deleted.body["status"]),
        (200, &json!("Success"))
    );
    assert_eq!(deleted.body["details"]["uid"], meta["uid"]);
    let gone = cluster.get(&path).await;
    assert_eq!(
        (gone.code.as_u16(), gone.message()),
        (404, "configmaps \"a\" not found")
    );
}

/// In these kinds other fields come before the metadata, long ones, or ones that hold metadata too.
#[tokio::test]
async fn every_object_has_its_resource_version() {
    let cluster = Cluster::start().await;
    let account = "/api/v1/namespaces/default/serviceaccounts";
    let default =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    assert_eq!(cluster.post(account, default).await.code, 201);
    let revisions = "/apis/apps/v1/namespaces/default/controllerrevisions";
    let pods = "/api/v1/namespaces/default/pods";
    let objects = [
        (
            CONFIG_MAPS,
            config_map("long", json!({"k": "x".repeat(5000)})),
        ),
        (
            revisions,
            json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {"name": "nested"}, "revision": 1,
                "data": {"metadata": {"managedFields": [], "name": "inner"}, "spec": {"template": {"metadata": {}}}}}),
        ),
        (
            pods,
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "annotations": {"managedFields": "[]"}},
                "spec": {"containers": [{"name": "b", "image": "i", "env": [{"name": "Z"}, {"name": "A"}]}, {"name": "a", "image": "i"}]}}),
        ),
    ];
    for (path, object) in objects {
        let created = cluster.post(path, object.clone()).await;
        assert_eq!(created.code, 201, "{}", created.body);
        let meta = &created.body["metadata"];
        assert!(meta["resourceVersion"].is_string(), "{}", created.body);
        assert_eq!(meta["managedFields"].as_array().map(Vec::len), Some(1));
        assert_eq!(created.body["data"], object["data"]);
        let path = format!("{path}/{}", meta["name"].as_str().unwrap());
        assert_eq!(cluster.get(&path).await.body, created.body);
        // What changes nothing writes nothing, right after the create too.
        let same = cluster.put(&path, created.body.clone()).await;
        assert_eq!(same.body, created.body);
        let deleted = cluster.delete(&path).await;
        assert_eq!(deleted.code, 200, "{}", deleted.body);
    }
}

#[tokio::test]
async fn bad_requests_are_told_what_is_wrong() {
    let cluster = Cluster::start().await;
    let json_type = [("content-type", "application/json")];
    let check = |answer: Answer, code: u16, reason: &str, part: &str| {
        assert_eq!(
            (
                answer.code.as_u16(),
                answer.body["reason"].as_str().unwrap_or_default()
            ),
            (code, reason),
            "{}",
            answer.body
        );
        assert!(
            answer.message().contains(part),
            "{:?} has no {part:?}",
            answer.message()
        );
    };
    let post = |body: String| cluster.request(Method::POST, CONFIG_MAPS, &json_type, body);
    check(post("{".into()).await, 400, "BadRequest", "ConfigMap");
    check(
        post(config_map("UPPER", json!({})).to_string()).await,
        422,
        "Invalid",
        "metadata.name",
    );
    check(
        post(pod("p").to_string()).await,
        400,
        "BadRequest",
        "converting (v1.Pod) to (core.ConfigMap)",
    );
    check(
        post(" ".repeat(4 << 20)).await,
        413,
        "RequestEntityTooLarge",
        "limit is 3145728",
    );
    let other = cluster
        .request(
            Method::POST,
            CONFIG_MAPS,
            &[("content-type", "text/plain")],
            "x",
        )
        .await;
    check(other, 415, "UnsupportedMediaType", "application/json");
    let yaml = cluster
        .request(
            Method::POST,
            CONFIG_MAPS,
            &[("content-type", "application/yaml")],
            ": :\n  - [",
        )
        .await;
    check(yaml, 400, "BadRequest", "YAML");
    let protobuf = cluster
        .request(
            Method::POST,
            CONFIG_MAPS,
            &[("content-type", "application/vnd.kubernetes.protobuf")],
            &b"k8s\0\x99"[..],
        )
        .await;
    check(protobuf, 400, "BadRequest", "decoded");
    check(
        cluster.get("/api/v1/nothings").await,
        404,
        "NotFound",
        "could not find",
    );
    let teapot = cluster
        .request(Method::GET, CONFIG_MAPS, &[("accept", "text/html")], "")
        .await;
    check(teapot, 406, "NotAcceptable", "application/json");
    check(
        cluster.put(CONFIG_MAPS, json!({})).await,
        405,
        "MethodNotAllowed",
        "method",
    );
    check(
        cluster
            .get(&format!("{CONFIG_MAPS}?labelSelector=a%20b"))
            .await,
        400,
        "BadRequest",
        "",
    );
    check(
        cluster
            .get(&format!("{CONFIG_MAPS}?fieldSelector=data=x"))
            .await,
        400,
        "BadRequest",
        "field",
    );
    check(
        cluster.get(&format!("{CONFIG_MAPS}?continue=x")).await,
        400,
        "BadRequest",
        "continue",
    );
    let missing = cluster
        .post(
            "/api/v1/namespaces/none/configmaps",
            config_map("a", json!({})),
        )
        .await;
    check(missing, 404, "NotFound", "namespaces \"none\" not found");
    check(
        cluster.delete("/api/v1/namespaces/default").await,
        403,
        "Forbidden",
        "may not be deleted",
    );
    let strict = config_map("a", json!({}))
        .as_object()
        .cloned()
        .map(|mut object| {
            object.insert("bogus".into(), json!(1));
            Value::Object(object)
        });
    let strict = strict.unwrap();
    check(
        cluster
            .post(
                &format!("{CONFIG_MAPS}?fieldValidation=Strict"),
                strict.clone(),
            )
            .await,
        400,
        "BadRequest",
        "unknown field \"bogus\"",
    );
    let warned = cluster.post(CONFIG_MAPS, strict).await;
    assert_eq!(warned.code, 201);
    assert!(
        warned.headers["warning"]
            .to_str()
            .unwrap()
            .contains("bogus")
    );
}

#[tokio::test]
async fn lists_are_paged_at_one_revision() {
    let cluster = Cluster::start().await;
    for index in 0..5 {
        cluster
            .post(CONFIG_MAPS, config_map(&format!("m{index}"), json!({})))
            .await;
    }
    let first = cluster.get(&format!("{CONFIG_MAPS}?limit=2")).await.body;
    assert_eq!(first["items"].as_array().unwrap().len(), 2);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    // What happens between pages is not seen.
    cluster.delete(&format!("{CONFIG_MAPS}/m4")).await;
    cluster.post(CONFIG_MAPS, config_map("m9", json!({}))).await;
    let token = first["metadata"]["continue"].as_str().unwrap().to_owned();
    let rest = cluster
        .get(&format!("{CONFIG_MAPS}?continue={token}"))
        .await
        .body;
    let names: Vec<&str> = rest["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["metadata"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["m2", "m3", "m4"]);
    assert_eq!(
        rest["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    let table = cluster
        .request(
            Method::GET,
            CONFIG_MAPS,
            &[("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")],
            "",
        )
        .await
        .body;
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
}

#[tokio::test]
async fn finalizers_and_grace_hold_objects_back() {
    let cluster = Cluster::start().await;
    let mut object = config_map("held", json!({}));
    object["metadata"]["finalizers"] = json!(["example.com/hold"]);
    cluster.post(CONFIG_MAPS, object).await;
    let path = format!("{CONFIG_MAPS}/held");
    let marked = cluster.delete(&path).await;
    assert!(
        marked.body["metadata"]["deletionTimestamp"].is_string(),
        "{}",
        marked.body
    );
    assert_eq!(cluster.get(&path).await.code, 200);
    let released = cluster
        .patch(
            &path,
            "merge-patch+json",
            json!({"metadata": {"finalizers": null}}),
        )
        .await;
    assert_eq!(released.code, 200, "{}", released.body);
    assert_eq!(cluster.get(&path).await.code, 404);

    with_default_account(&cluster).await;
    let created = cluster.post(PODS, pod("p")).await;
    assert_eq!(created.code, 201, "{}", created.body);
    assert_eq!(created.body["spec"]["serviceAccountName"], "default");
    assert_eq!(created.body["spec"]["priority"], 0);
    assert!(
        created.body["spec"]["volumes"][0]["name"]
            .as_str()
            .unwrap()
            .starts_with("kube-api-access-")
    );
    assert_eq!(
        created.body["spec"]["tolerations"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}});
    let bound = cluster
        .post(&format!("{PODS}/p/binding"), binding.clone())
        .await;
    assert_eq!(bound.code, 201, "{}", bound.body);
    assert_eq!(
        cluster
            .post(&format!("{PODS}/p/binding"), binding)
            .await
            .code,
        409
    );
    let bound = cluster.get(&format!("{PODS}/p")).await.body;
    assert_eq!(bound["spec"]["nodeName"], "n1");
    let graceful = cluster.delete(&format!("{PODS}/p")).await.body;
    assert_eq!(graceful["metadata"]["deletionGracePeriodSeconds"], 30);
    let forced = cluster
        .delete(&format!("{PODS}/p?gracePeriodSeconds=0"))
        .await;
    assert_eq!(forced.code, 200, "{}", forced.body);
    assert_eq!(cluster.get(&format!("{PODS}/p")).await.code, 404);
}

#[tokio::test]
async fn services_get_addresses_and_ports() {
    let cluster = Cluster::start().await;
    let services = "/api/v1/namespaces/default/services";
    let service = |name: &str, spec: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
    let made = cluster
        .post(
            services,
            service("a", json!({"type": "NodePort", "ports": [{"port": 80}]})),
        )
        .await;
    assert_eq!(made.code, 201, "{}", made.body);
    let port = made.body["spec"]["ports"][0]["nodePort"].as_i64().unwrap();
    assert!((30000..=32767).contains(&port));
    let address = made.body["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let taken = cluster
        .post(
            services,
            service("b", json!({"clusterIP": address, "ports": [{"port": 80}]})),
        )
        .await;
    assert_eq!(taken.code, 422);
    assert!(
        taken.message().contains("provided IP is already allocated"),
        "{}",
        taken.message()
    );
    let same_port = cluster
        .post(
            services,
            service(
                "c",
                json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]}),
            ),
        )
        .await;
    assert!(
        same_port
            .message()
            .contains("provided port is already allocated"),
        "{}",
        same_port.message()
    );
    cluster.delete(&format!("{services}/a")).await;
    let free = cluster
        .post(
            services,
            service("b", json!({"clusterIP": address, "ports": [{"port": 80}]})),
        )
        .await;
    assert_eq!(free.code, 201, "{}", free.body);
    let kubernetes = cluster.get(&format!("{services}/kubernetes")).await.body;
    assert_eq!(kubernetes["spec"]["clusterIP"], "10.43.0.1");
}

#[tokio::test]
async fn applies_remember_their_owners() {
    let cluster = Cluster::start().await;
    let path = format!("{CONFIG_MAPS}/a");
    let apply = |manager: &str, force: bool, value: &str| {
        let path = format!("{path}?fieldManager={manager}&force={force}");
        let body = config_map("a", json!({"k": value}));
        let cluster = &cluster;
        async move { cluster.patch(&path, "apply-patch+yaml", body).await }
    };
    assert_eq!(apply("one", false, "1").await.code, 201);
    let conflict = apply("two", false, "2").await;
    assert_eq!(conflict.code, 409, "{}", conflict.body);
    assert_eq!(
        conflict.body["details"]["causes"][0]["reason"],
        "FieldManagerConflict"
    );
    let forced = apply("two", true, "2").await;
    assert_eq!(
        (forced.code.as_u16(), &forced.body["data"]["k"]),
        (200, &json!("2"))
    );
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    let cluster = Cluster::start().await;
    let created = cluster
        .post(CONFIG_MAPS, config_map("a", json!({"k": "1"})))
        .await
        .body;
    let version = created["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .to_owned();
    cluster.post(CONFIG_MAPS, config_map("b", json!({}))).await;
    let cluster = cluster.restart().await;
    assert_eq!(cluster.get(&format!("{CONFIG_MAPS}/a")).await.body, created);
    // A watch goes on where it was, over the restart.
    let events = cluster
        .events(
            &format!("{CONFIG_MAPS}?watch=1&resourceVersion={version}"),
            1,
        )
        .await;
    assert_eq!(
        (&events[0]["type"], &events[0]["object"]["metadata"]["name"]),
        (&json!("ADDED"), &json!("b"))
    );
}
