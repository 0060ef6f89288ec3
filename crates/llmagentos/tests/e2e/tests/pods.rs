//! What a pod spec can ask of the node.

use anyhow::{Context, bail};

use crate::cluster::{Cluster, eventually};
use crate::images::BUSYBOX;
use crate::kubectl::{Kubectl, contains};

fn pod(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  terminationGracePeriodSeconds: 1\n{spec}\n"
    )
}

pub fn restart_and_back_off(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "restarts")?;
    kubectl.apply(&pod("crash", &format!("  containers:\n  - {{name: main, image: {BUSYBOX}, command: [sh, -c, \"echo going down; exit 3\"]}}")))?;
    kubectl.wait_for_value(
        "pod/crash",
        ".status.containerStatuses[0].state.waiting.reason",
        "CrashLoopBackOff",
    )?;
    kubectl.wait_for_value(
        "pod/crash",
        ".status.containerStatuses[0].lastState.terminated.exitCode",
        "3",
    )?;
    contains(
        &kubectl.run(&["logs", "crash", "--previous"])?,
        "going down",
    )?;
    contains(&kubectl.run(&["get", "pod", "crash"])?, "CrashLoopBackOff")?;
    contains(
        &kubectl.run(&["describe", "pod", "crash"])?,
        "Back-off restarting failed container",
    )?;
    kubectl.apply(&pod("once", &format!("  restartPolicy: Never\n  containers:\n  - {{name: main, image: {BUSYBOX}, command: [\"false\"]}}")))?;
    kubectl.wait("pod/once", "jsonpath={.status.phase}=Failed")?;
    kubectl.apply(&pod("fine", &format!("  restartPolicy: OnFailure\n  containers:\n  - {{name: main, image: {BUSYBOX}, command: [\"true\"]}}")))?;
    kubectl.wait("pod/fine", "jsonpath={.status.phase}=Succeeded")
}

pub fn init_containers(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "init")?;
    kubectl.apply(&pod(
        "staged",
        &format!(
            "  volumes: [{{name: shared, emptyDir: {{}}}}]\n  initContainers:\n\
             \x20 - {{name: first, image: {BUSYBOX}, command: [sh, -c, \"echo first >> /shared/order\"], volumeMounts: [{{name: shared, mountPath: /shared}}]}}\n\
             \x20 - {{name: side, image: {BUSYBOX}, restartPolicy: Always, command: [sh, -c, \"echo side >> /shared/order; exec sleep 3600\"], startupProbe: {{exec: {{command: [grep, side, /shared/order]}}, periodSeconds: 1}}, volumeMounts: [{{name: shared, mountPath: /shared}}]}}\n\
             \x20 - {{name: second, image: {BUSYBOX}, command: [sh, -c, \"echo second >> /shared/order\"], volumeMounts: [{{name: shared, mountPath: /shared}}]}}\n\
             \x20 containers:\n  - {{name: main, image: {BUSYBOX}, command: [sh, -c, \"echo main >> /shared/order; exec sleep 3600\"], volumeMounts: [{{name: shared, mountPath: /shared}}]}}"
        ),
    ))?;
    kubectl.wait("pod/staged", "condition=Ready")?;
    let order = eventually("all have written", || {
        let order = kubectl.run(&["exec", "staged", "-c", "main", "--", "cat", "/shared/order"])?;
        if !order.contains("main") {
            bail!("{order}");
        }
        Ok(order)
    })?;
    anyhow::ensure!(order == "first\nside\nsecond\nmain\n", "{order}");
    contains(&kubectl.run(&["get", "pod", "staged"])?, "2/2")
}

pub fn volumes(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "volumes")?;
    kubectl.run(&[
        "create",
        "configmap",
        "settings",
        "--from-literal=color=blue",
    ])?;
    kubectl.run(&[
        "create",
        "secret",
        "generic",
        "password",
        "--from-literal=word=sesame",
    ])?;
    kubectl.apply(&pod(
        "mounts",
        &format!(
            "  volumes:\n  - {{name: settings, configMap: {{name: settings}}}}\n  - {{name: password, secret: {{secretName: password, defaultMode: 0400}}}}\n\
             \x20 - {{name: about, downwardAPI: {{items: [{{path: name, fieldRef: {{fieldPath: metadata.name}}}}]}}}}\n  - {{name: memory, emptyDir: {{medium: Memory, sizeLimit: 1Mi}}}}\n\
             \x20 - {{name: host, hostPath: {{path: {host}, type: DirectoryOrCreate}}}}\n\
             \x20 containers:\n  - name: main\n    image: {BUSYBOX}\n    command: [sleep, \"3600\"]\n    volumeMounts:\n\
             \x20   - {{name: settings, mountPath: /settings}}\n    - {{name: password, mountPath: /password, readOnly: true}}\n    - {{name: about, mountPath: /about}}\n    - {{name: memory, mountPath: /memory}}\n    - {{name: host, mountPath: /host}}\n    - {{name: settings, mountPath: /one/color, subPath: color}}",
            host = cluster.path().join("host-volume").display()
        ),
    ))?;
    kubectl.wait("pod/mounts", "condition=Ready")?;
    let cat = |path: &str| kubectl.run(&["exec", "mounts", "--", "cat", path]);
    for (path, expect) in [
        ("/settings/color", "blue"),
        ("/password/word", "sesame"),
        ("/about/name", "mounts"),
        ("/one/color", "blue"),
    ] {
        anyhow::ensure!(cat(path)? == expect, "{path} is {}", cat(path)?);
    }
    contains(
        &kubectl.run(&["exec", "mounts", "--", "mount"])?,
        "tmpfs on /memory",
    )?;
    kubectl.fails(&["exec", "mounts", "--", "touch", "/password/new"])?;
    kubectl.run(&[
        "exec",
        "mounts",
        "--",
        "sh",
        "-c",
        "echo from the pod > /host/file",
    ])?;
    let file = cluster.path().join("host-volume/file");
    anyhow::ensure!(
        std::fs::read_to_string(&file)? == "from the pod\n",
        "the host sees the file"
    );
    kubectl
        .run(&[
            "create",
            "configmap",
            "settings",
            "--from-literal=color=green",
            "-o",
            "yaml",
            "--dry-run=client",
        ])
        .and_then(|manifest| kubectl.run_with_input(&["replace", "-f", "-"], &manifest))?;
    eventually("a changed configMap arrives", || {
        match cat("/settings/color")?.as_str() {
            "green" => Ok(()),
            other => bail!("still {other}"),
        }
    })?;
    kubectl.run(&["delete", "pod", "mounts"])?;
    std::fs::remove_dir_all(cluster.path().join("host-volume"))?;
    Ok(())
}

pub fn environment(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "environment")?;
    kubectl.run(&[
        "create",
        "configmap",
        "settings",
        "--from-literal=COLOR=blue",
    ])?;
    kubectl.apply(&pod(
        "env",
        &format!(
            "  restartPolicy: Never\n  hostname: custom\n  containers:\n  - name: main\n    image: {BUSYBOX}\n    command: [sh, -c, \"echo $A $B $COLOR $NODE $CPU $0 $(hostname)\", \"$(A)-arg\"]\n    envFrom: [{{configMapRef: {{name: settings}}}}]\n    resources: {{limits: {{cpu: 500m, memory: 32Mi}}}}\n    env:\n\
             \x20   - {{name: A, value: one}}\n    - {{name: B, value: \"$(A)-two\"}}\n    - {{name: NODE, valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}}}\n    - {{name: CPU, valueFrom: {{resourceFieldRef: {{resource: limits.cpu, divisor: 1m}}}}}}"
        ),
    ))?;
    kubectl.wait("pod/env", "jsonpath={.status.phase}=Succeeded")?;
    let said = kubectl.run(&["logs", "env"])?;
    anyhow::ensure!(
        said == "one one-two blue e2e 500 one-arg custom\n",
        "{said}"
    );
    kubectl.apply(&pod(
        "missing",
        &format!("  containers:\n  - {{name: main, image: {BUSYBOX}, envFrom: [{{configMapRef: {{name: nowhere}}}}]}}"),
    ))?;
    kubectl.wait_for_value(
        "pod/missing",
        ".status.containerStatuses[0].state.waiting.reason",
        "CreateContainerConfigError",
    )?;
    contains(
        &kubectl.value(
            "pod/missing",
            ".status.containerStatuses[0].state.waiting.message",
        )?,
        "configmap \"nowhere\" not found",
    )
}

pub fn probes(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "probes")?;
    kubectl.apply(&pod(
        "probed",
        &format!(
            "  containers:\n  - name: main\n    image: {BUSYBOX}\n    command: [sh, -c, \"touch /tmp/live; exec httpd -f -p 8080 -h /www\"]\n\
             \x20   readinessProbe: {{httpGet: {{port: 8080, path: /ready}}, periodSeconds: 1}}\n    livenessProbe: {{exec: {{command: [cat, /tmp/live]}}, periodSeconds: 1, failureThreshold: 1}}\n    startupProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}"
        ),
    ))?;
    kubectl.wait(
        "pod/probed",
        "jsonpath={.status.containerStatuses[0].started}=true",
    )?;
    kubectl.wait_for_value("pod/probed", ".status.containerStatuses[0].ready", "false")?;
    kubectl.run(&["exec", "probed", "--", "touch", "/www/ready"])?;
    kubectl.wait("pod/probed", "condition=Ready")?;
    kubectl.run(&["exec", "probed", "--", "rm", "/tmp/live"])?;
    kubectl.wait_for_value(
        "pod/probed",
        ".status.containerStatuses[0].restartCount",
        "1",
    )?;
    contains(
        &kubectl.run(&["describe", "pod", "probed"])?,
        "Liveness probe failed",
    )
}

pub fn graceful_end(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "graceful")?;
    let directory = cluster.path().join("graceful");
    std::fs::create_dir_all(&directory)?;
    kubectl.apply(&pod(
        "polite",
        &format!(
            "  volumes: [{{name: out, hostPath: {{path: {}}}}}]\n  containers:\n  - name: main\n    image: {BUSYBOX}\n    command: [sh, -c, \"trap 'echo term >> /out/order; exit 0' TERM; while true; do sleep 1 & wait; done\"]\n    lifecycle: {{preStop: {{exec: {{command: [sh, -c, \"echo prestop >> /out/order\"]}}}}, postStart: {{exec: {{command: [sh, -c, \"echo started >> /out/order\"]}}}}}}\n    volumeMounts: [{{name: out, mountPath: /out}}]",
            directory.display()
        )
        .replace("terminationGracePeriodSeconds: 1", "terminationGracePeriodSeconds: 20"),
    ))?;
    kubectl.wait("pod/polite", "condition=Ready")?;
    kubectl.run(&["delete", "pod", "polite", "--grace-period=20"])?;
    let order = std::fs::read_to_string(directory.join("order"))?;
    std::fs::remove_dir_all(directory)?;
    anyhow::ensure!(order == "started\nprestop\nterm\n", "{order}");
    Ok(())
}

pub fn limits_and_oom(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "limits")?;
    kubectl.apply(&pod(
        "hungry",
        &format!(
            "  restartPolicy: Never\n  containers:\n  - {{name: main, image: {BUSYBOX}, command: [sh, -c, \"dd if=/dev/zero of=/dev/null bs=200M count=1\"], resources: {{limits: {{memory: 16Mi, cpu: 100m}}}}}}"
        ),
    ))?;
    kubectl.wait("pod/hungry", "jsonpath={.status.phase}=Failed")?;
    kubectl.wait_for_value(
        "pod/hungry",
        ".status.containerStatuses[0].state.terminated.reason",
        "OOMKilled",
    )?;
    kubectl.wait_for_value("pod/hungry", ".status.qosClass", "Guaranteed")
}

pub fn refusals(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "refusals")?;
    let container =
        format!("containers: [{{name: main, image: {BUSYBOX}, command: [sleep, \"3600\"]");
    for (name, spec, reason, message) in [
        (
            "sysctl",
            format!(
                "  securityContext: {{sysctls: [{{name: kernel.msgmax, value: \"1\"}}]}}\n  {container}}}]"
            ),
            "SysctlForbidden",
            "forbidden sysctl: \"kernel.msgmax\" not allowlisted",
        ),
        (
            "confined",
            format!(
                "  securityContext: {{appArmorProfile: {{type: RuntimeDefault}}}}\n  {container}}}]"
            ),
            "AppArmor",
            // It goes on with why, which differs with the machine.
            "Cannot enforce AppArmor: ",
        ),
        (
            "elsewhere",
            format!("  nodeName: e2e\n  nodeSelector: {{no: such}}\n  {container}}}]"),
            "NodeAffinity",
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
        ),
    ] {
        kubectl.apply(&pod(name, &spec))?;
        kubectl.wait(&format!("pod/{name}"), "jsonpath={.status.phase}=Failed")?;
        let object = format!("pod/{name}");
        anyhow::ensure!(
            kubectl.value(&object, ".status.reason")? == reason,
            "{name}"
        );
        anyhow::ensure!(
            kubectl
                .value(&object, ".status.message")?
                .starts_with(&format!("Pod was rejected: {message}")),
            "{name}"
        );
        // The reason, and no container that is being created.
        contains(&kubectl.run(&["get", "pod", name])?, reason)?;
        let events = format!("involvedObject.name={name},reason={reason}");
        eventually("the event of the refusal", || {
            contains(
                &kubectl.run(&["get", "events", "--field-selector", &events])?,
                message,
            )
        })?;
    }
    Ok(())
}

pub fn service_account(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "accounts")?;
    kubectl.apply(&pod(
        "asker",
        &format!("  containers:\n  - {{name: main, image: {BUSYBOX}, command: [sleep, \"3600\"]}}"),
    ))?;
    kubectl.wait("pod/asker", "condition=Ready")?;
    let token = kubectl.run(&[
        "exec",
        "asker",
        "--",
        "cat",
        "/var/run/secrets/kubernetes.io/serviceaccount/token",
    ])?;
    anyhow::ensure!(token.split('.').count() == 3, "the token is a JWT");
    let ca = kubectl.run(&[
        "exec",
        "asker",
        "--",
        "cat",
        "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt",
    ])?;
    contains(&ca, "BEGIN CERTIFICATE")?;
    // Who the token is, and that RBAC holds for it.
    let whoami = kubectl.run(&["--token", &token, "auth", "whoami"]);
    contains(&whoami.unwrap_or_else(|error| error.to_string()), "")?;
    contains(
        &kubectl
            .run(&[
                "auth",
                "can-i",
                "list",
                "pods",
                "--as=system:serviceaccount:accounts:default",
            ])
            .unwrap_or_else(|error| error.to_string()),
        "no",
    )?;
    kubectl.run(&["create", "role", "reader", "--verb=list", "--resource=pods"])?;
    kubectl.run(&[
        "create",
        "rolebinding",
        "reader",
        "--role=reader",
        "--serviceaccount=accounts:default",
    ])?;
    contains(
        &kubectl.run(&[
            "auth",
            "can-i",
            "list",
            "pods",
            "--as=system:serviceaccount:accounts:default",
        ])?,
        "yes",
    )?;
    contains(
        &kubectl.fails(&[
            "get",
            "secrets",
            "--as=system:serviceaccount:accounts:default",
        ])?,
        "secrets is forbidden: User \"system:serviceaccount:accounts:default\" cannot list resource \"secrets\" in API group \"\" in the namespace \"accounts\"",
    )?;
    contains(&kubectl.run(&["create", "token", "default"])?, ".")
}

/// A capability that the machine does not give is left out, and the pod's events say so; nothing fails.
pub fn get_what_the_machine_has(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = Kubectl::in_new_namespace(cluster, "clamped")?;
    kubectl.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: all}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  - name: main\n    image: {BUSYBOX}\n    command: [sh, -c, \"grep CapPrm /proc/self/status; exec sleep 3600\"]\n    securityContext: {{privileged: true}}\n"
    ))?;
    kubectl.wait("pod/all", "condition=Ready")?;
    let given = eventually("the container tells what it has", || {
        let log = kubectl.run(&["logs", "all"])?;
        let number = log.split_whitespace().nth(1).unwrap_or_default();
        Ok(u64::from_str_radix(number, 16)?)
    })?;
    let last: u32 = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")?
        .trim()
        .parse()?;
    let all = u64::MAX >> (63 - last);
    // The test's own permitted set is what there is here.
    let status = std::fs::read_to_string("/proc/self/status")?;
    let own = status
        .lines()
        .find_map(|line| line.strip_prefix("CapPrm:"))
        .context("the kernel tells capabilities")?;
    let own = u64::from_str_radix(own.trim(), 16)?;
    anyhow::ensure!(given == own, "given {given:x}, there are {own:x}");
    let warnings = || kubectl.run(&["get", "events", "--field-selector=reason=RuntimeWarning"]);
    if own == all {
        let events = warnings()?;
        anyhow::ensure!(!events.contains("does not give"), "{events}");
        return Ok(());
    }
    eventually("an event says what is missing", || {
        let events = warnings()?;
        contains(&events, "this machine does not give")?;
        contains(&events, "the container runs without")
    })
}
