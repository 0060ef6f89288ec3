//! Tables over all kinds: a body, and what creating or updating it comes to.

#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::{Value, json};

use crate::kind::{Kind, Object, Part};
use crate::registry::Registry;

fn kind_of(body: &Value) -> std::sync::Arc<Kind> {
    let api_version = body["apiVersion"].as_str().unwrap();
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    Registry::builtin()
        .by_kind(group, version, body["kind"].as_str().unwrap())
        .unwrap()
        .clone()
}

/// The object as the server would store it, or the errors.
fn create(mut body: Value) -> Result<Box<dyn Object>, Vec<String>> {
    let kind = kind_of(&body);
    if kind.namespaced && body["metadata"]["namespace"].is_null() {
        body["metadata"]["namespace"] = json!("default");
    }
    let decoded = kind
        .strategy
        .decode(body.to_string().as_bytes(), true)
        .map_err(|cause| vec![cause.to_string()])?;
    let problems: Vec<String> = decoded
        .problems
        .into_iter()
        .map(|problem| problem.message)
        .collect();
    assert_eq!(problems, Vec::<String>::new());
    let mut object = decoded.object;
    kind.strategy.default(object.as_mut());
    kind.strategy.prepare_create(object.as_mut());
    kind.strategy.default(object.as_mut());
    let errors: Vec<String> = kind
        .strategy
        .validate_create(object.as_ref())
        .iter()
        .map(ToString::to_string)
        .collect();
    if errors.is_empty() {
        Ok(object)
    } else {
        Err(errors)
    }
}

fn errors_of(body: Value) -> Vec<String> {
    create(body).err().unwrap_or_default()
}

/// The errors of changing `body` by `change` (a merge patch) through `part`.
fn update_errors(body: &Value, change: &Value, part: &Part) -> Vec<String> {
    match update(body, change, part) {
        Ok(_) => Vec::new(),
        Err(errors) => errors,
    }
}

fn update(body: &Value, change: &Value, part: &Part) -> Result<Value, Vec<String>> {
    let kind = kind_of(body);
    let old = create(body.clone()).unwrap();
    let mut value = old.to_value();
    merge(&mut value, change);
    let mut new = kind.strategy.from_value(value).unwrap();
    kind.strategy
        .prepare_update(new.as_mut(), old.as_ref(), part);
    kind.strategy.default(new.as_mut());
    let errors: Vec<String> = kind
        .strategy
        .validate_update(new.as_ref(), old.as_ref(), part)
        .iter()
        .map(ToString::to_string)
        .collect();
    if errors.is_empty() {
        Ok(new.to_value())
    } else {
        Err(errors)
    }
}

fn merge(value: &mut Value, change: &Value) {
    match (value, change) {
        (Value::Object(object), Value::Object(changes)) => {
            for (key, change) in changes {
                if change.is_null() {
                    object.remove(key);
                } else {
                    merge(object.entry(key.clone()).or_insert(Value::Null), change);
                }
            }
        }
        (value, change) => *value = change.clone(),
    }
}

fn pod(spec: Value) -> Value {
    let mut full = json!({"containers": [{"name": "c", "image": "nginx"}]});
    merge(&mut full, &spec);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": full})
}

/// A pod whose only container has these fields besides its name and image.
fn container(fields: Value) -> Value {
    let mut full = json!({"name": "c", "image": "nginx:1"});
    merge(&mut full, &fields);
    pod(json!({"containers": [full]}))
}

#[test]
fn a_pod_gets_its_defaults() {
    let object = create(
        container(json!({
            "env": [{"name": "A", "value": ""}],
            "ports": [{"containerPort": 80}],
            "livenessProbe": {"httpGet": {"port": 80}},
            "resources": {"limits": {"cpu": "0.5", "memory": "1024Mi"}},
            "volumeMounts": [{"name": "v", "mountPath": "/v"}],
        }))
        .as_object()
        .map(|pod| {
            let mut pod = Value::Object(pod.clone());
            pod["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "s"}}]);
            pod["spec"]["nodeSelector"] = json!({});
            pod["spec"]["hostNetwork"] = json!(false);
            pod["spec"]["serviceAccount"] = json!("sa");
            pod
        })
        .unwrap(),
    )
    .map_err(|errors| errors.join("\n"))
    .unwrap();
    assert_eq!(
        object.to_value(),
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "p", "namespace": "default", "generation": 1},
            "spec": {
                "containers": [{
                    "name": "c",
                    "image": "nginx:1",
                    "imagePullPolicy": "IfNotPresent",
                    "env": [{"name": "A"}],
                    "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "livenessProbe": {
                        "httpGet": {"path": "/", "port": 80, "scheme": "HTTP"},
                        "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3,
                    },
                    "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}},
                    "terminationMessagePath": "/dev/termination-log",
                    "terminationMessagePolicy": "File",
                    "volumeMounts": [{"name": "v", "mountPath": "/v"}],
                }],
                "dnsPolicy": "ClusterFirst",
                "enableServiceLinks": true,
                "restartPolicy": "Always",
                "schedulerName": "default-scheduler",
                "securityContext": {},
                "serviceAccount": "sa",
                "serviceAccountName": "sa",
                "terminationGracePeriodSeconds": 30,
                "volumes": [{"name": "v", "secret": {"secretName": "s", "defaultMode": 420}}],
            },
            "status": {"phase": "Pending", "qosClass": "Guaranteed"},
        })
    );
}

#[test]
fn pods_that_are_refused() {
    let check = |body: Value, expect: &[&str]| assert_eq!(errors_of(body), expect);
    check(pod(json!({})), &[]);
    check(
        pod(json!({"containers": []})),
        &["spec.containers: Required value"],
    );
    check(
        container(json!({"name": "A", "image": ""})),
        &[
            "spec.containers[0].name: Invalid value: \"A\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
            "spec.containers[0].image: Required value",
        ],
    );
    check(
        container(json!({"image": " nginx"})),
        &[
            "spec.containers[0].image: Invalid value: \" nginx\": must not have leading or trailing whitespace",
        ],
    );
    check(
        pod(json!({"containers": [{"name": "c", "image": "a"}, {"name": "c", "image": "b"}]})),
        &["spec.containers[1].name: Duplicate value: \"c\""],
    );
    check(
        pod(json!({"initContainers": [{"name": "c", "image": "a"}]})),
        &["spec.initContainers[0].name: Duplicate value: \"c\""],
    );
    check(
        container(
            json!({"ports": [{"containerPort": 0}, {"containerPort": 70000, "name": "Web", "protocol": "HTTP"}]}),
        ),
        &[
            "spec.containers[0].ports[0].containerPort: Required value",
            "spec.containers[0].ports[1].name: Invalid value: \"Web\": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
            "spec.containers[0].ports[1].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            "spec.containers[0].ports[1].protocol: Unsupported value: \"HTTP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
        ],
    );
    check(
        container(json!({"env": [{"name": ""}, {"name": "A=B"}, {"name": "C", "valueFrom": {}}]})),
        &[
            "spec.containers[0].env[0].name: Required value",
            "spec.containers[0].env[1].name: Invalid value: \"A=B\": a valid environment variable name must consist only of printable ASCII characters other than '='",
            "spec.containers[0].env[2].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        ],
    );
    check(
        container(
            json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.foo"}}}]}),
        ),
        &[
            "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.foo\": error converting fieldPath: field label not supported: spec.foo",
        ],
    );
    check(
        container(
            json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a']"}}}]}),
        ),
        &[],
    );
    check(
        container(json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]})),
        &["spec.containers[0].volumeMounts[0].name: Not found: \"v\""],
    );
    check(
        pod(json!({"volumes": [{"name": "v", "hostPath": {"path": "/a/../b"}, "emptyDir": {}}]})),
        &["spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type"],
    );
    check(
        pod(json!({"volumes": [{"name": "v", "hostPath": {"path": "/a/../b", "type": "Bad"}}]})),
        &[
            "spec.volumes[0].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
            "spec.volumes[0].hostPath.type: Unsupported value: \"Bad\": supported values: \"\", \"BlockDevice\", \"CharDevice\", \"Directory\", \"DirectoryOrCreate\", \"File\", \"FileOrCreate\", \"Socket\"",
        ],
    );
    check(
        pod(
            json!({"volumes": [{"name": "v", "configMap": {"name": "", "items": [{"key": "k", "path": "../x"}]}}]}),
        ),
        &[
            "spec.volumes[0].configMap.name: Required value",
            "spec.volumes[0].configMap.items[0].path: Invalid value: \"../x\": must not contain '..'",
        ],
    );
    check(
        container(
            json!({"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2", "memory": "-1", "foo": "1"}}}),
        ),
        &[
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            "spec.containers[0].resources.requests[foo]: Invalid value: \"foo\": must be a standard resource type or fully qualified",
            "spec.containers[0].resources.requests[foo]: Invalid value: \"foo\": must be a standard resource for containers",
            "spec.containers[0].resources.requests[memory]: Invalid value: \"-1\": must be greater than or equal to 0",
        ],
    );
    check(
        container(json!({"resources": {"limits": {"cpu": "x"}}})),
        &[
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ],
    );
    check(
        container(json!({"livenessProbe": {"successThreshold": 2}})),
        &[
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
            "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
        ],
    );
    check(
        container(json!({"lifecycle": {"preStop": {"sleep": {"seconds": 31}}}})),
        &[
            "spec.containers[0].lifecycle.preStop.sleep: Invalid value: 31: must be non-negative and less than terminationGracePeriodSeconds (30)",
        ],
    );
    check(
        container(
            json!({"securityContext": {"privileged": true, "allowPrivilegeEscalation": false}}),
        ),
        &[
            "spec.containers[0].securityContext: Invalid value: {\"Capabilities\":null,\"Privileged\":true,\"SELinuxOptions\":null,\"WindowsOptions\":null,\"RunAsUser\":null,\"RunAsGroup\":null,\"RunAsNonRoot\":null,\"ReadOnlyRootFilesystem\":null,\"AllowPrivilegeEscalation\":false,\"ProcMount\":null,\"SeccompProfile\":null,\"AppArmorProfile\":null}: cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
        ],
    );
    check(
        pod(json!({"restartPolicy": "Sometimes", "dnsPolicy": "None"})),
        &[
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
            "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None",
        ],
    );
    check(
        pod(
            json!({"tolerations": [{"key": "a", "operator": "Maybe"}, {"tolerationSeconds": 1, "operator": "Exists"}]}),
        ),
        &[
            "spec.tolerations[0].operator: Unsupported value: \"Maybe\": supported values: \"Equal\", \"Exists\"",
            "spec.tolerations[1].effect: Invalid value: \"\": effect must be 'NoExecute' when `tolerationSeconds` is set",
        ],
    );
    check(
        pod(
            json!({"topologySpreadConstraints": [{"maxSkew": 0, "topologyKey": "", "whenUnsatisfiable": "x"}]}),
        ),
        &[
            "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
            "spec.topologySpreadConstraints[0].topologyKey: Required value: can not be empty",
            "spec.topologySpreadConstraints[0].whenUnsatisfiable: Unsupported value: \"x\": supported values: \"DoNotSchedule\", \"ScheduleAnyway\"",
        ],
    );
    check(
        pod(
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}}),
        ),
        &[
            "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: must have at least one node selector term",
        ],
    );
    check(
        pod(json!({"nodeName": "n", "schedulingGates": [{"name": "g"}]})),
        &["spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared"],
    );
    check(
        pod(json!({"hostAliases": [{"ip": "1.2.3"}], "hostname": "A.b"})),
        &[
            "spec.hostname: Invalid value: \"A.b\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
            "spec.hostAliases[0].ip: Invalid value: \"1.2.3\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ],
    );
    check(
        pod(json!({"activeDeadlineSeconds": 0})),
        &[
            "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
        ],
    );
    check(
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a b": "-"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}),
        &[
            "metadata.labels: Invalid value: \"a b\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
            "metadata.labels: Invalid value: \"-\": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
        ],
    );
}

#[test]
fn changes_of_pods() {
    let body = pod(json!({"tolerations": [{"key": "a", "operator": "Exists"}]}));
    let check = |change: Value, part: Part, expect: &[&str]| {
        let errors = update_errors(&body, &change, &part);
        let heads: Vec<&str> = errors
            .iter()
            .map(|error| error.lines().next().unwrap())
            .collect();
        assert_eq!(heads, expect, "{change}");
    };
    const REFUSED: &str = "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
    check(json!({"metadata": {"labels": {"a": "b"}}}), Part::Main, &[]);
    check(
        json!({"spec": {"activeDeadlineSeconds": 5}}),
        Part::Main,
        &[],
    );
    check(json!({"spec": {"nodeName": "n"}}), Part::Main, &[REFUSED]);
    check(json!({"spec": {"hostname": "h"}}), Part::Main, &[REFUSED]);
    check(
        json!({"spec": {"tolerations": []}}),
        Part::Main,
        &[
            "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds",
        ],
    );
    check(
        json!({"spec": {"schedulingGates": [{"name": "g"}]}}),
        Part::Main,
        &[
            "spec.schedulingGates[0].name: Forbidden: only deletion is allowed, but found new scheduling gate 'g'",
        ],
    );
    check(
        json!({"status": {"podIPs": [{"ip": "x"}], "podIP": "x"}}),
        Part::Status,
        &[
            "status.podIPs[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ],
    );
    check(
        json!({"status": {"qosClass": "Guaranteed"}}),
        Part::Status,
        &["status.qosClass: Invalid value: \"Guaranteed\": field is immutable"],
    );
    check(
        json!({"spec": {"ephemeralContainers": [{"name": "d", "image": "busybox"}]}}),
        Part::Other("ephemeralcontainers"),
        &[],
    );
    check(
        json!({"spec": {"ephemeralContainers": [{"name": "c", "image": "busybox", "ports": [{"containerPort": 1}]}]}}),
        Part::Other("ephemeralcontainers"),
        &[
            "spec.ephemeralContainers[0].name: Duplicate value: \"c\"",
            "spec.ephemeralContainers[0].ports: Forbidden: cannot be set for an Ephemeral Container",
        ],
    );
    // A status write leaves the spec alone, a spec write the status.
    let changed = update(
        &body,
        &json!({"spec": {"hostname": "h"}, "status": {"phase": "Running"}}),
        &Part::Status,
    )
    .unwrap();
    assert_eq!(
        (
            changed["spec"]["hostname"].as_str(),
            changed["status"]["phase"].as_str()
        ),
        (None, Some("Running"))
    );
    let changed = update(
        &body,
        &json!({"spec": {"containers": [{"name": "c", "image": "b"}]}, "status": {"phase": "Running"}}),
        &Part::Main,
    );
    let changed = changed.unwrap();
    assert_eq!(
        (
            changed["status"]["phase"].as_str(),
            changed["metadata"]["generation"].as_i64()
        ),
        (Some("Pending"), Some(2))
    );
}

#[test]
fn pods_are_resized() {
    let body = container(json!({"resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}}));
    let resize = |resources: Value| {
        let change = json!({"spec": {"containers": [{"name": "c", "image": "other", "resources": resources}]}});
        update(&body, &change, &Part::Other("resize"))
    };
    let changed = resize(json!({"requests": {"cpu": "1500m"}, "limits": {"cpu": "2"}})).unwrap();
    assert_eq!(
        changed["spec"]["containers"][0]["resources"]["requests"]["cpu"],
        "1500m"
    );
    assert_eq!(changed["spec"]["containers"][0]["image"], "nginx:1");
    assert_eq!(changed["metadata"]["generation"], 2);
    assert_eq!(resize(json!({"limits": {"cpu": "2"}})).map(|_| ()), Ok(()));
    assert_eq!(
        resize(json!({"requests": {"cpu": "1", "ephemeral-storage": "1"}, "limits": {"cpu": "2"}}))
            .unwrap_err(),
        ["spec: Forbidden: only cpu and memory resources are mutable"]
    );
    assert_eq!(
        resize(json!({"requests": {"cpu": "1"}})).unwrap_err(),
        ["spec.containers[0].resources.limits: Forbidden: resource limits cannot be removed"]
    );
}

fn deployment(spec: Value) -> Value {
    let mut full = json!({
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}},
    });
    merge(&mut full, &spec);
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": full})
}

#[test]
fn deployments() {
    let object = create(deployment(json!({"paused": false, "strategy": {}})))
        .map_err(|errors| errors.join("\n"))
        .unwrap();
    let value = object.to_value();
    assert_eq!(value["spec"]["replicas"], 1);
    assert_eq!(
        value["spec"]["strategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
    );
    assert_eq!(
        (
            &value["spec"]["revisionHistoryLimit"],
            &value["spec"]["progressDeadlineSeconds"]
        ),
        (&json!(10), &json!(600))
    );
    assert_eq!(
        (
            value["spec"].get("paused"),
            &value["status"],
            &value["metadata"]["generation"]
        ),
        (None, &json!({}), &json!(1))
    );

    let check = |spec: Value, expect: &[&str]| assert_eq!(errors_of(deployment(spec)), expect);
    check(
        json!({"replicas": -1}),
        &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
    );
    check(
        json!({"selector": {"matchLabels": {"a": "c"}}}),
        &[
            "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`",
        ],
    );
    check(
        json!({"selector": null}),
        &[
            "spec.selector: Required value",
            "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`",
        ],
    );
    check(
        json!({"template": {"spec": {"restartPolicy": "Never"}}}),
        &[
            "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
        ],
    );
    check(
        json!({"strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}}),
        &[
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0",
        ],
    );
    check(
        json!({"strategy": {"type": "Recreate", "rollingUpdate": {}}}),
        &[
            "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
        ],
    );
    check(
        json!({"minReadySeconds": 600}),
        &["spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds"],
    );

    let body = deployment(json!({}));
    let generation = |change: Value| {
        update(&body, &change, &Part::Main).unwrap()["metadata"]["generation"].clone()
    };
    assert_eq!(generation(json!({"metadata": {"labels": {"x": "y"}}})), 1);
    assert_eq!(
        generation(json!({"metadata": {"annotations": {"x": "y"}}})),
        2
    );
    assert_eq!(generation(json!({"spec": {"replicas": 3}})), 2);
    assert_eq!(
        generation(json!({"spec": {"strategy": null, "revisionHistoryLimit": null}})),
        1
    );
    assert_eq!(
        update_errors(
            &body,
            &json!({"spec": {"selector": {"matchLabels": {"c": "d"}}, "template": {"metadata": {"labels": {"c": "d"}}}}}),
            &Part::Main
        ),
        [
            "spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"b\",\"c\":\"d\"}}: field is immutable"
        ]
    );
    let scale = object_scale(&body);
    assert_eq!(scale["spec"], json!({"replicas": 1}));
    assert_eq!(scale["status"], json!({"replicas": 0, "selector": "a=b"}));
}

fn object_scale(body: &Value) -> Value {
    kind_of(body)
        .strategy
        .scale(create(body.clone()).unwrap().as_ref())
        .unwrap()
}

fn service(spec: Value) -> Value {
    let mut full = json!({"ports": [{"port": 80}]});
    merge(&mut full, &spec);
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": full})
}

#[test]
fn services() {
    let spec_of = |spec: Value| {
        create(service(spec))
            .map_err(|errors| errors.join("\n"))
            .unwrap()
            .to_value()["spec"]
            .clone()
    };
    assert_eq!(
        spec_of(json!({"clusterIP": "10.0.0.1"})),
        json!({
            "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
            "sessionAffinity": "None", "type": "ClusterIP",
        })
    );
    let headless = spec_of(json!({"clusterIP": "None"}));
    assert_eq!(
        (&headless["ipFamilies"], &headless["ipFamilyPolicy"]),
        (&json!(["IPv4", "IPv6"]), &json!("RequireDualStack"))
    );
    assert_eq!(
        spec_of(json!({"sessionAffinity": "ClientIP"}))["sessionAffinityConfig"],
        json!({"clientIP": {"timeoutSeconds": 10800}})
    );
    assert_eq!(
        spec_of(json!({"type": "NodePort"}))["externalTrafficPolicy"],
        "Cluster"
    );
    assert_eq!(
        spec_of(json!({"type": "ExternalName", "externalName": "a.b.", "ports": null}))["ipFamilyPolicy"],
        Value::Null
    );

    let check = |spec: Value, expect: &[&str]| assert_eq!(errors_of(service(spec)), expect);
    check(json!({"ports": []}), &["spec.ports: Required value"]);
    check(
        json!({"ports": [{"port": 1}, {"port": 1}]}),
        &[
            "spec.ports[0].name: Required value",
            "spec.ports[1].name: Required value",
            "spec.ports[1]: Duplicate value: {\"Name\":\"\",\"Protocol\":\"TCP\",\"AppProtocol\":null,\"Port\":1,\"TargetPort\":0,\"NodePort\":0}",
        ],
    );
    check(
        json!({"ports": [{"port": 0, "nodePort": 30000}]}),
        &[
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            "spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive",
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ],
    );
    check(
        json!({"type": "Foo"}),
        &[
            "spec.type: Unsupported value: \"Foo\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
        ],
    );
    check(
        json!({"clusterIP": "1.2.3"}),
        &[
            "spec.clusterIPs[0]: Invalid value: \"1.2.3\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ],
    );
    check(
        json!({"type": "NodePort", "clusterIP": "None", "selector": {"a": "b"}}),
        &[
            "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services",
        ],
    );
    check(
        json!({"type": "ExternalName"}),
        &["spec.externalName: Required value"],
    );
    check(
        json!({"externalIPs": ["127.0.0.1"]}),
        &[
            "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
        ],
    );
    check(
        json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}}),
        &[
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 0: must be greater than 0 and less than 86400",
        ],
    );

    let body = service(
        json!({"type": "NodePort", "clusterIP": "10.0.0.1", "ports": [{"port": 80, "nodePort": 30080}]}),
    );
    let kept = update(
        &body,
        &json!({"spec": {"clusterIP": null, "clusterIPs": null, "ports": [{"port": 80}]}}),
        &Part::Main,
    )
    .unwrap();
    assert_eq!(
        (
            &kept["spec"]["clusterIPs"],
            &kept["spec"]["ports"][0]["nodePort"]
        ),
        (&json!(["10.0.0.1"]), &json!(30080))
    );
    let plain = update(&body, &json!({"spec": {"type": "ClusterIP"}}), &Part::Main).unwrap();
    assert_eq!(
        (
            plain["spec"]["ports"][0].get("nodePort"),
            plain["spec"].get("externalTrafficPolicy")
        ),
        (None, None)
    );
    assert_eq!(
        update_errors(
            &body,
            &json!({"spec": {"clusterIP": "10.0.0.2"}}),
            &Part::Main
        ),
        ["spec.clusterIPs[0]: Invalid value: [\"10.0.0.2\"]: may not change once set"]
    );
}

#[test]
fn data_of_config_maps_and_secrets() {
    let config = |fields: Value| {
        let mut body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}});
        merge(&mut body, &fields);
        body
    };
    assert_eq!(
        errors_of(config(
            json!({"data": {"a": "b"}, "binaryData": {"a": "Yg=="}})
        )),
        ["data[a]: Invalid value: \"a\": duplicate of key present in binaryData",]
    );
    assert_eq!(
        errors_of(config(
            json!({"data": {"a": "x".repeat(1 << 20), "b": "x"}})
        )),
        ["[]: Too long: may not be more than 1048576 bytes",]
    );
    let sealed = config(json!({"data": {"a": "b"}, "immutable": true}));
    assert_eq!(
        update_errors(
            &sealed,
            &json!({"data": {"a": "c"}, "immutable": null}),
            &Part::Main
        ),
        [
            "immutable: Forbidden: field is immutable when `immutable` is set",
            "data: Forbidden: field is immutable when `immutable` is set",
        ]
    );
    let secret = |fields: Value| {
        let mut body = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}});
        merge(&mut body, &fields);
        body
    };
    let value = create(secret(
        json!({"stringData": {"a": "b"}, "data": {"a": "eA=="}}),
    ))
    .map_err(|errors| errors.join("\n"))
    .unwrap()
    .to_value();
    assert_eq!(
        (&value["data"], &value["type"], value.get("stringData")),
        (&json!({"a": "Yg=="}), &json!("Opaque"), None)
    );
    assert_eq!(
        errors_of(secret(
            json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}})
        )),
        ["data[tls.key]: Required value"]
    );
    assert_eq!(
        errors_of(secret(
            json!({"type": "kubernetes.io/service-account-token"})
        )),
        ["metadata.annotations[kubernetes.io/service-account.name]: Required value",]
    );
    assert_eq!(
        update_errors(&secret(json!({})), &json!({"type": "x"}), &Part::Main),
        ["type: Invalid value: \"x\": field is immutable",]
    );
}

#[test]
fn other_kinds() {
    let check = |body: Value, expect: &[&str]| assert_eq!(errors_of(body), expect);
    check(
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "A"}}),
        &[
            "metadata.name: Invalid value: \"A\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
        ],
    );
    check(
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a", "namespace": "b"}}),
        &["metadata.namespace: Forbidden: not allowed on this type"],
    );
    check(
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {}}),
        &["metadata.name: Required value: name or generateName is required"],
    );
    check(
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "spec": {"taints": [{"key": "a", "effect": "Go"}], "podCIDR": "10.0.0.1/24"}}),
        &[
            "metadata.taints[0].effect: Unsupported value: \"Go\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"",
            "spec.podCIDRs[0]: Invalid value: \"10.0.0.1/24\": must not have bits set beyond the prefix length",
        ],
    );
    check(
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "system:a"}, "rules": [{"verbs": [], "nonResourceURLs": ["/x"]}]}),
        &[
            "rules[0].verbs: Required value: verbs must contain at least one value",
            "rules[0].nonResourceURLs: Invalid value: [\"/x\"]: namespaced rules cannot apply to non-resource URLs",
        ],
    );
    check(
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "b"}, "roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "ServiceAccount", "name": "a"}, {"kind": "User", "name": "u"}]}),
        &[
            "roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\"",
            "subjects[0].namespace: Required value",
        ],
    );
    check(
        json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "p"}, "value": 1_000_000_001}),
        &["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"],
    );
    check(
        json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "system-node-critical"}, "value": 2_000_001_000}),
        &[],
    );
    check(
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"}, "spec": {"leaseDurationSeconds": 0}}),
        &["spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"],
    );
    check(
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "e"}, "addressType": "IPv4", "endpoints": [{"addresses": ["fd00::1"]}, {"addresses": []}], "ports": [{"port": 1}, {"port": 2}]}),
        &[
            "ports[1].name: Duplicate value: \"\"",
            "endpoints[0].addresses: Invalid value: \"fd00::1\": must be an IPv4 address",
            "endpoints[1].addresses: Required value: must contain at least 1 address",
        ],
    );
    check(
        json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "e"}, "subsets": [{"addresses": [{"ip": "127.0.0.1"}], "ports": [{"port": 0}]}]}),
        &[
            "subsets[0].addresses[0].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
            "subsets[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ],
    );
    check(
        json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "involvedObject": {"namespace": "other"}}),
        &["involvedObject.namespace: Invalid value: \"other\": does not match event.namespace"],
    );
    check(
        json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {"name": "e"}, "revision": -1}),
        &[
            "data: Required value: data is mandatory",
            "revision: Invalid value: -1: must be greater than or equal to 0",
        ],
    );
    check(
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {}}),
        &[
            "spec.resourceAttributes: Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ],
    );
    check(
        json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Pod"}}),
        &[
            "target.kind: Unsupported value: \"Pod\": supported values: \"Node\", \"<empty>\"",
            "target.name: Required value",
        ],
    );
    check(
        json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b"},
            "spec": {"minAvailable": -1, "maxUnavailable": "101%", "unhealthyPodEvictionPolicy": "Never",
                "selector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}}),
        &[
            "spec: Invalid value: {\"MinAvailable\":-1,\"Selector\":{\"matchExpressions\":[{\"key\":\"a\",\"operator\":\"In\"}]},\"MaxUnavailable\":\"101%\",\"UnhealthyPodEvictionPolicy\":\"Never\"}: minAvailable and maxUnavailable cannot be both set",
            "spec.minAvailable: Invalid value: -1: must be greater than or equal to 0",
            "spec.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%",
            "spec.selector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
            "spec.unhealthyPodEvictionPolicy: Unsupported value: \"Never\": supported values: \"AlwaysAllow\", \"IfHealthyBudget\"",
        ],
    );
    check(
        json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b"},
            "spec": {"minAvailable": "half"}}),
        &[
            "spec.minAvailable: Invalid value: \"half\": a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
        ],
    );
    check(
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "s", "finalizers": ["x"], "annotations": {"A/b": "x".repeat(300_000)}}}),
        &[
            "metadata.annotations: Too long: may not be more than 262144 bytes",
            "metadata.finalizers[0]: Invalid value: \"x\": name is neither a standard finalizer name nor is it fully qualified",
        ],
    );
}

#[test]
fn disruption_budgets() {
    let body = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"a": "b"}}}, "status": {"disruptionsAllowed": 7}});
    let made = create(body.clone())
        .map_err(|errors| errors.join("\n"))
        .unwrap();
    let value = made.to_value();
    assert_eq!(
        (&value["status"], &value["metadata"]["generation"]),
        (
            &json!({"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0}),
            &json!(1)
        )
    );
    // The resource version is demanded: the last write does not win here.
    let change = |change: Value, part: Part| {
        let mut with_version = json!({"metadata": {"resourceVersion": "1"}});
        merge(&mut with_version, &change);
        update(&body, &with_version, &part)
    };
    let spec = change(
        json!({"spec": {"minAvailable": 2}, "status": {"expectedPods": 3}}),
        Part::Main,
    )
    .unwrap();
    assert_eq!(
        (
            &spec["metadata"]["generation"],
            &spec["status"]["expectedPods"]
        ),
        (&json!(2), &json!(0))
    );
    let status = change(
        json!({"spec": {"minAvailable": 2}, "status": {"expectedPods": 3}}),
        Part::Status,
    )
    .unwrap();
    assert_eq!(
        (
            &status["spec"]["minAvailable"],
            &status["status"]["expectedPods"]
        ),
        (&json!(1), &json!(3))
    );
    let condition = json!({"type": "DisruptionAllowed", "status": "Maybe", "reason": "", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"});
    assert_eq!(
        change(
            json!({"status": {"currentHealthy": -1, "conditions": [condition]}}),
            Part::Status
        )
        .unwrap_err(),
        [
            "status.conditions[0].status: Unsupported value: \"Maybe\": supported values: \"False\", \"True\", \"Unknown\"",
            "status.conditions[0].reason: Required value: must be set",
            "status.currentHealthy: Invalid value: -1: must be greater than or equal to 0",
        ]
    );
}

#[test]
fn events_are_one_in_two_groups() {
    let registry = Registry::builtin();
    let (core, events) = (
        registry.by_resource("", "v1", "events").unwrap(),
        registry
            .by_resource("events.k8s.io", "v1", "events")
            .unwrap(),
    );
    assert!(core.strategy.shares_storage() && events.strategy.shares_storage());
    let written = create(json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "message": "m", "reason": "r", "count": 2,
        "involvedObject": {"kind": "Pod", "namespace": "default", "name": "p"}, "source": {"component": "kubelet"},
        "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:01:00Z", "type": "Normal",
    }))
    .map_err(|errors| errors.join("\n"))
    .unwrap();
    let seen = events.strategy.decode(&written.to_json(), true).unwrap();
    let value = seen.object.to_value();
    assert_eq!(
        (
            &value["apiVersion"],
            &value["note"],
            &value["deprecatedCount"]
        ),
        (&json!("events.k8s.io/v1"), &json!("m"), &json!(2))
    );
    assert_eq!(value["regarding"]["name"], "p");
    let back = core.strategy.from_value(value).unwrap().to_value();
    assert_eq!(
        (
            &back["apiVersion"],
            &back["message"],
            &back["involvedObject"]["name"]
        ),
        (&json!("v1"), &json!("m"), &json!("p"))
    );
    let now = 1_767_225_600 + 120;
    let cells = core.strategy.cells(written.as_ref(), now);
    assert_eq!(
        cells,
        [
            json!("60s"),
            json!("Normal"),
            json!("r"),
            json!("pod/p"),
            json!(""),
            json!("kubelet"),
            json!("m"),
            json!("2m"),
            json!(2),
            json!("e"),
        ]
    );
}

#[test]
fn rows_of_other_kinds() {
    let check = |body: Value, expect: Value| {
        let kind = kind_of(&body);
        let mut object = create(body).map_err(|errors| errors.join("\n")).unwrap();
        object.metadata_mut().creation_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                k8s_openapi::jiff::Timestamp::UNIX_EPOCH,
            ));
        assert_eq!(
            Value::from(kind.strategy.cells(object.as_ref(), 3600 * 5)),
            expect
        );
    };
    check(
        deployment(json!({})),
        json!(["d", "0/1", 0, 0, "5h", "c", "i:1", "a=b"]),
    );
    check(
        service(
            json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30000}], "selector": {"a": "b"}}),
        ),
        json!([
            "s",
            "NodePort",
            "<none>",
            "<none>",
            "80:30000/TCP",
            "5h",
            "a=b"
        ]),
    );
    check(
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "labels": {"node-role.kubernetes.io/control-plane": ""}},
            "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}}),
        json!([
            "n",
            "Ready,SchedulingDisabled",
            "control-plane",
            "5h",
            "",
            "10.0.0.1",
            "<none>",
            "<unknown>",
            "<unknown>",
            "<unknown>"
        ]),
    );
    check(
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "e"}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"name": "http", "port": 80}]}),
        json!(["e", "IPv4", "80", "10.0.0.1", "5h"]),
    );
    check(
        json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "e"},
            "subsets": [{"addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}], "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}]}]}),
        json!(["e", "10.0.0.1:80,10.0.0.2:80,10.0.0.1:81 + 1 more...", "5h"]),
    );
    check(
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "b"},
            "roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s", "namespace": "n"}]}),
        json!(["b", "Role/r", "5h", "u", "", "n/s"]),
    );
    check(
        json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b"}, "spec": {"maxUnavailable": "20%"}}),
        json!(["b", "N/A", "20%", 0, "5h"]),
    );
    check(
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": ""}}),
        json!(["c", 1, "5h"]),
    );
}

/// Not a test of a limit: prints what decoding, defaulting and validating a typical pod costs.
#[test]
#[ignore = "a measurement: run with --release --ignored --nocapture"]
fn speed_of_a_pod() {
    let mut body = container(json!({
        "env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "ports": [{"containerPort": 80, "name": "http"}],
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": "http"}},
        "resources": {"limits": {"cpu": "500m", "memory": "128Mi"}, "requests": {"cpu": "250m", "memory": "64Mi"}},
        "volumeMounts": [{"name": "v", "mountPath": "/v"}],
    }));
    body["metadata"] = json!({"name": "web-5d4f8c7b9-abcde", "namespace": "default", "labels": {"app": "web", "pod-template-hash": "5d4f8c7b9"},
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d4f8c7b9", "uid": "8f6d7f3e-0000-4000-8000-000000000000", "controller": true, "blockOwnerDeletion": true}]});
    body["spec"]["volumes"] = json!([{"name": "v", "configMap": {"name": "c"}}]);
    let json = body.to_string().into_bytes();
    let kind = kind_of(&body);
    let count = 20_000;
    let time = |what: &str, work: &mut dyn FnMut()| {
        let start = std::time::Instant::now();
        for _ in 0..count {
            work();
        }
        println!(
            "{what}: {:.2} us",
            start.elapsed().as_secs_f64() * 1e6 / f64::from(count)
        );
    };
    println!("{} bytes", json.len());
    time("decode", &mut || {
        drop(kind.strategy.decode(&json, false).unwrap())
    });
    time("decode strict", &mut || {
        drop(kind.strategy.decode(&json, true).unwrap())
    });
    let decoded = kind.strategy.decode(&json, false).unwrap().object;
    time("clone", &mut || drop(decoded.clone_boxed()));
    time("clone, prepare, default, validate", &mut || {
        let mut object = decoded.clone_boxed();
        kind.strategy.prepare_create(object.as_mut());
        kind.strategy.default(object.as_mut());
        assert!(kind.strategy.validate_create(object.as_ref()).is_empty());
    });
    time("encode", &mut || drop(decoded.to_json()));
}
