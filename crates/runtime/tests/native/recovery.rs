//! Containers outlive the server; nothing that happens while it is away is lost.

use runtime::native::planned_reset;
use runtime::service::{ContainerState, RuntimeEvent, RuntimeService, SandboxState, StreamRequest};

use crate::harness::{Harness, container, wait_for};

#[tokio::test]
async fn a_restarted_server_finds_everything() {
    let mut harness = Harness::new();
    let sandbox = harness.sandbox().await;
    let mut config = container(&[
        "sh",
        "-c",
        "n=0; while :; do n=$((n+1)); echo $n; sleep 0.01; done",
    ]);
    config.log_path = "long.log".into();
    let long = harness.start(&sandbox, config).await;
    let mut config = container(&["sh", "-c", "read x; exit 42"]);
    config.stdin = true;
    config.stdin_once = true;
    let short = harness.start(&sandbox, config).await;
    let created = harness
        .runtime()
        .create_container(&sandbox, container(&["true"]))
        .await
        .unwrap();
    let zygote = harness.runtime().zygote_pid();
    let before = harness.runtime().container_status(&long).await.unwrap();
    // Ends while no server is there: the zygote drops the only writer of its input.
    let session = harness
        .runtime()
        .attach(StreamRequest {
            container_id: short.clone(),
            stdin: true,
            ..Default::default()
        })
        .await
        .unwrap();
    let keep = session.stdin;
    harness.restart();
    drop(keep);
    assert_eq!(harness.runtime().zygote_pid(), zygote);
    // Images are held by these and by no other.
    let mut held = harness.retained.lock().unwrap().clone();
    held.sort();
    let mut expect = vec![long.clone(), short.clone(), created.clone()];
    expect.sort();
    assert_eq!(held, expect);
    let after = harness.runtime().container_status(&long).await.unwrap();
    assert_eq!(
        (after.state, after.pid, after.started_at_nanos),
        (ContainerState::Running, before.pid, before.started_at_nanos)
    );
    assert_eq!(harness.ended(&short).await.exit_code, 42);
    assert_eq!(
        harness.runtime().list_pod_sandboxes().await.unwrap()[0].state,
        SandboxState::Ready
    );
    harness.runtime().start_container(&created).await.unwrap();
    assert_eq!(harness.ended(&created).await.exit_code, 0);
    let result = harness
        .runtime()
        .exec_sync(&long, vec!["hostname".into()], 10)
        .await
        .unwrap();
    assert_eq!(result.stdout, b"pod-host\n");
    harness.runtime().stop_container(&long, 0).await.unwrap();
    let status = harness.ended(&long).await;
    let numbers: Vec<u32> = harness
        .log_text(&status)
        .lines()
        .map(|l| l.parse().unwrap())
        .collect();
    assert!(
        numbers.iter().enumerate().all(|(i, n)| *n == i as u32 + 1),
        "a gap in the log"
    );
    harness
        .runtime()
        .remove_pod_sandbox(&sandbox)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_killed_zygote_is_replaced() {
    let harness = Harness::new();
    let sandbox = harness.sandbox().await;
    let id = harness.start(&sandbox, container(&["sleep", "1000"])).await;
    let pid = harness
        .runtime()
        .container_status(&id)
        .await
        .unwrap()
        .pid
        .unwrap();
    let mut events = harness.runtime().events();
    let zygote = harness.runtime().zygote_pid();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(zygote as i32).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    wait_for(|| async {
        let status = harness.runtime().container_status(&id).await.unwrap();
        (status.state == ContainerState::Exited).then(|| assert_eq!(status.reason, "Unknown"))
    })
    .await;
    // Its containers went with it.
    wait_for(|| async { (!std::path::Path::new(&format!("/proc/{pid}")).exists()).then_some(()) })
        .await;
    assert_eq!(
        harness.runtime().list_pod_sandboxes().await.unwrap()[0].state,
        SandboxState::NotReady
    );
    wait_for(|| {
        let event = events.try_recv();
        async move { matches!(event, Ok(RuntimeEvent::Resync)).then_some(()) }
    })
    .await;
    harness
        .runtime()
        .remove_pod_sandbox(&sandbox)
        .await
        .unwrap();
    let (code, text) = harness.shell("echo again").await;
    assert_eq!((code, text.as_str()), (0, "again\n"));
}

#[tokio::test]
async fn events_tell_what_happens() {
    let harness = Harness::new();
    let mut events = harness.runtime().events();
    let sandbox = harness.sandbox().await;
    let id = harness.start(&sandbox, container(&["sleep", "1000"])).await;
    harness.runtime().stop_container(&id, 0).await.unwrap();
    harness
        .runtime()
        .remove_pod_sandbox(&sandbox)
        .await
        .unwrap();
    let mut seen = Vec::new();
    while let Ok(event) = events.try_recv() {
        seen.push(match event {
            RuntimeEvent::ContainerStarted { .. } => "started",
            RuntimeEvent::ContainerStopped { .. } => "stopped",
            RuntimeEvent::ContainerRemoved { .. } => "removed",
            RuntimeEvent::SandboxStopped { .. } => "sandbox stopped",
            RuntimeEvent::Resync => "resync",
        });
    }
    assert_eq!(seen, ["started", "stopped", "sandbox stopped", "removed"]);
}

#[tokio::test]
async fn reset_lists_and_removes_all() {
    let harness = Harness::new();
    let sandbox = harness.sandbox().await;
    let id = harness.start(&sandbox, container(&["sleep", "1000"])).await;
    let pid = harness
        .runtime()
        .container_status(&id)
        .await
        .unwrap()
        .pid
        .unwrap();
    let plan = planned_reset(&harness.config).unwrap();
    for expect in [
        format!("process {pid} sleep"),
        format!("process {} zygote", harness.runtime().zygote_pid()),
    ] {
        assert!(plan.contains(&expect), "{expect} in {plan:#?}");
    }
    assert!(
        plan.iter()
            .any(|l| l.starts_with("mount ") && l.contains("/shm/"))
    );
    assert!(plan.iter().any(|l| l.starts_with("cgroup ")));
    assert!(
        std::path::Path::new(&format!("/proc/{pid}")).exists(),
        "a plan touches nothing"
    );
    let config = harness.config.clone();
    harness.runtime().stop_container(&id, 0).await.unwrap();
    drop(harness);
    assert!(planned_reset(&config).unwrap().is_empty());
    assert!(!config.run_dir.exists() && !config.data_dir.exists());
}
