//! Watches.

use super::*;

fn summary(events: &[Value]) -> Vec<(&str, &str)> {
    events
        .iter()
        .map(|event| {
            (
                event["type"].as_str().unwrap(),
                event["object"]["metadata"]["name"].as_str().unwrap_or(""),
            )
        })
        .collect()
}

#[tokio::test]
async fn a_selector_turns_changes_into_comings_and_goings() {
    let cluster = Cluster::start().await;
    let begin = cluster.get(CONFIG_MAPS).await.body["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .to_owned();
    let label =
        |name: &str, value: &str| json!({"metadata": {"name": name, "labels": {"l": value}}});
    cluster.post(CONFIG_MAPS, label("a", "x")).await;
    let path = format!("{CONFIG_MAPS}/a");
    cluster
        .patch(
            &path,
            "merge-patch+json",
            json!({"metadata": {"labels": {"l": "y"}}}),
        )
        .await;
    cluster
        .patch(&path, "merge-patch+json", json!({"data": {"k": "1"}}))
        .await;
    cluster
        .patch(
            &path,
            "merge-patch+json",
            json!({"metadata": {"labels": {"l": "x"}}}),
        )
        .await;
    cluster.delete(&path).await;
    let watch = |selector: &str| {
        format!("{CONFIG_MAPS}?watch=1&resourceVersion={begin}&labelSelector={selector}")
    };
    assert_eq!(
        summary(&cluster.events(&watch("l=y"), 3).await),
        [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]
    );
    assert_eq!(
        summary(&cluster.events(&watch("l=x"), 4).await),
        [
            ("ADDED", "a"),
            ("DELETED", "a"),
            ("ADDED", "a"),
            ("DELETED", "a")
        ]
    );
}

#[tokio::test]
async fn a_streamed_list_ends_with_a_bookmark() {
    let cluster = Cluster::start().await;
    cluster.post(CONFIG_MAPS, config_map("a", json!({}))).await;
    let path = format!(
        "{CONFIG_MAPS}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&fieldSelector=metadata.name=a"
    );
    let events = cluster.events(&path, 2).await;
    assert_eq!(summary(&events), [("ADDED", "a"), ("BOOKMARK", "")]);
    assert_eq!(
        events[1]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    let wrong = cluster
        .get(&format!("{CONFIG_MAPS}?watch=1&sendInitialEvents=true"))
        .await;
    assert_eq!(wrong.code, 422, "{}", wrong.body);
}

#[tokio::test]
async fn a_watch_ends_at_its_timeout_and_at_shutdown() {
    let cluster = Cluster::start().await;
    let path = format!("{CONFIG_MAPS}?watch=1&timeoutSeconds=1&fieldSelector=metadata.name=none");
    assert_eq!(cluster.get(&path).await.code, 200);
    let client = cluster.server.client(Identity::admin());
    let request = Request::builder()
        .uri(format!("{CONFIG_MAPS}?watch=1"))
        .body(kube::client::Body::empty())
        .unwrap();
    let response = client.send(request).await.unwrap();
    let reader = tokio::spawn(async move { response.into_body().collect().await.is_ok() });
    cluster.server.shutdown().await;
    assert!(
        tokio::time::timeout(Duration::from_secs(5), reader)
            .await
            .unwrap()
            .unwrap()
    );
}
