//! From creation to removal, and what happens in between.

use std::path::PathBuf;

use runtime::service::{ContainerState, RuntimeError, RuntimeService, SandboxState};

use crate::harness::{Harness, container};

#[tokio::test]
async fn a_command_runs_and_ends() {
    let harness = Harness::new();
    let (code, text) = harness
        .shell("echo hello; hostname; id -u; echo $$; exit 3")
        .await;
    assert_eq!(text, "hello\npod-host\n0\n1\n");
    assert_eq!(code, 3);
}

#[tokio::test]
async fn states_and_reasons() {
    let harness = Harness::new();
    let sandbox = harness.sandbox().await;
    for (command, code, reason) in [
        (&["true"][..], 0, "Completed"),
        (&["false"], 1, "Error"),
        (&["sh", "-c", "kill -9 $$; exit 4"], 4, "Error"),
    ] {
        let id = harness.start(&sandbox, container(command)).await;
        let status = harness.ended(&id).await;
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (code, reason),
            "{command:?}"
        );
        assert!(status.started_at_nanos <= status.finished_at_nanos);
        assert!(status.created_at_nanos <= status.started_at_nanos);
    }
    let id = harness.start(&sandbox, container(&["sleep", "1000"])).await;
    assert_eq!(
        harness.runtime().container_status(&id).await.unwrap().state,
        ContainerState::Running
    );
    harness.runtime().stop_container(&id, 0).await.unwrap();
    let status = harness.ended(&id).await;
    assert_eq!((status.exit_code, status.signal), (137, 9));
    harness.runtime().stop_container(&id, 0).await.unwrap();
    harness.runtime().remove_container(&id).await.unwrap();
    assert!(matches!(
        harness.runtime().container_status(&id).await,
        Err(RuntimeError::NotFound { .. })
    ));
    harness.runtime().remove_container(&id).await.unwrap();
    harness.runtime().stop_pod_sandbox(&sandbox).await.unwrap();
    assert_eq!(
        harness.runtime().list_pod_sandboxes().await.unwrap()[0].state,
        SandboxState::NotReady
    );
    harness
        .runtime()
        .remove_pod_sandbox(&sandbox)
        .await
        .unwrap();
    harness
        .runtime()
        .remove_pod_sandbox(&sandbox)
        .await
        .unwrap();
    assert!(
        harness
            .runtime()
            .list_containers()
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn a_command_that_cannot_start() {
    let harness = Harness::new();
    harness.layer("files", |root| {
        std::fs::create_dir(root.join("opt")).unwrap();
        std::fs::write(root.join("opt/plain"), "text").unwrap();
    });
    let sandbox = harness.sandbox().await;
    for (command, expect) in [
        (
            &["foo"][..],
            "exec: \"foo\": executable file not found in $PATH",
        ),
        (
            &["/foo"],
            "exec: \"/foo\": stat /foo: no such file or directory",
        ),
        (&["/opt/plain"], "exec: \"/opt/plain\": permission denied"),
        (&["/tmp"], "exec: \"/tmp\": is a directory"),
    ] {
        let mut config = container(command);
        config.image_id = "files".to_owned();
        let id = harness
            .runtime()
            .create_container(&sandbox, config)
            .await
            .unwrap();
        match harness.runtime().start_container(&id).await {
            Err(RuntimeError::StartFailed { message, .. }) => assert_eq!(message, expect),
            other => panic!("{other:?}"),
        }
        let status = harness.runtime().container_status(&id).await.unwrap();
        assert_eq!(
            (
                status.exit_code,
                status.reason.as_str(),
                status.message.as_str()
            ),
            (128, "StartError", expect)
        );
    }
    harness
        .runtime()
        .remove_pod_sandbox(&sandbox)
        .await
        .unwrap();
}

#[tokio::test]
async fn stop_signal_first() {
    let harness = Harness::new();
    let sandbox = harness.sandbox().await;
    let mut config = container(&[
        "sh",
        "-c",
        "trap 'echo bye; exit 7' USR1; echo ready; while :; do sleep 0.01; done",
    ]);
    config.stop_signal = Some("SIGUSR1".to_owned());
    config.log_path = PathBuf::from("a.log");
    let id = harness.start(&sandbox, config).await;
    crate::harness::wait_for(|| async {
        let status = harness.runtime().container_status(&id).await.unwrap();
        harness.log_text(&status).contains("ready").then_some(())
    })
    .await;
    harness.runtime().stop_container(&id, 20).await.unwrap();
    let status = harness.ended(&id).await;
    assert_eq!(status.exit_code, 7);
    assert_eq!(harness.log_text(&status), "ready\nbye\n");
    harness
        .runtime()
        .remove_pod_sandbox(&sandbox)
        .await
        .unwrap();
}
