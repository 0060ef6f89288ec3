//! Who may do what, and who is who.

use super::*;

#[tokio::test]
async fn rbac_is_enforced_in_upstreams_words() {
    let cluster = Cluster::start().await;
    let user = || Identity::new("ann", ["devs"]);
    let get = |path: &'static str| cluster.request_as(user(), Method::GET, path, &[], "");
    let refused = get(PODS).await;
    assert_eq!(refused.code, 403);
    assert_eq!(
        refused.message(),
        "pods is forbidden: User \"ann\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    assert_eq!(
        get("/apis/apps/v1/deployments").await.message(),
        "deployments.apps is forbidden: User \"ann\" cannot list resource \"deployments\" in API group \"apps\" at the cluster scope"
    );
    assert_eq!(
        get("/metrics").await.message(),
        "forbidden: User \"ann\" cannot get path \"/metrics\""
    );
    assert_eq!(get("/version").await.code, 200);
    let anonymous = cluster
        .request_as(
            Identity::new("system:anonymous", ["system:unauthenticated"]),
            Method::GET,
            "/api",
            &[],
            "",
        )
        .await;
    assert_eq!(anonymous.code, 403);

    let binding = |name: &str, role: &str| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "ann"}],
        })
    };
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    assert_eq!(
        cluster.post(bindings, binding("b", "admin")).await.code,
        201
    );
    cluster.get(bindings).await;
    assert_eq!(get(PODS).await.code, 200, "the aggregated role lets her");
    let greedy = cluster
        .request_as(
            user(),
            Method::POST,
            bindings,
            &[],
            binding("c", "cluster-admin").to_string(),
        )
        .await;
    assert_eq!(greedy.code, 403);
    assert!(
        greedy
            .message()
            .contains("is attempting to grant RBAC permissions not currently held"),
        "{}",
        greedy.message()
    );
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": {"namespace": "default", "verb": "create", "resource": "pods"}}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let answer = cluster
        .request_as(user(), Method::POST, path, &[], review.to_string())
        .await;
    assert_eq!(
        (answer.code.as_u16(), &answer.body["status"]["allowed"]),
        (201, &json!(true)),
        "{}",
        answer.body
    );
    let acting = cluster
        .request(
            Method::GET,
            "/apis/apps/v1/deployments",
            &[("impersonate-user", "bob")],
            "",
        )
        .await;
    assert!(
        acting.message().contains("User \"bob\""),
        "{}",
        acting.message()
    );
}

#[tokio::test]
async fn tokens_prove_service_accounts_until_they_are_gone() {
    let cluster = Cluster::start().await;
    with_default_account(&cluster).await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 600}});
    let made = cluster
        .post(&format!("{accounts}/default/token"), request)
        .await;
    assert_eq!(made.code, 201, "{}", made.body);
    let token = made.body["status"]["token"].as_str().unwrap().to_owned();
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let known = cluster.post(reviews, review.clone()).await.body;
    assert_eq!(known["status"]["authenticated"], true, "{known}");
    assert_eq!(
        known["status"]["user"]["username"],
        "system:serviceaccount:default:default"
    );
    cluster.delete(&format!("{accounts}/default")).await;
    cluster.get(accounts).await;
    let gone = cluster.post(reviews, review).await.body;
    assert_eq!(
        gone["status"],
        json!({"error": "invalid bearer token", "user": {}}),
        "{gone}"
    );
    let short = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 10}});
    with_default_account(&cluster).await;
    let short = cluster
        .post(&format!("{accounts}/default/token"), short)
        .await;
    assert_eq!(short.code, 422);
    assert!(
        short
            .message()
            .contains("may not specify a duration less than 10 minutes"),
        "{}",
        short.message()
    );
}
