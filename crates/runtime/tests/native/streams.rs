//! exec, attach, port-forward, logs.

use std::time::Duration;

use runtime::service::{RuntimeError, RuntimeService, StreamRequest, TerminalSize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Harness, container, wait_for};

fn request(id: &str, command: &[&str], tty: bool) -> StreamRequest {
    StreamRequest {
        container_id: id.to_owned(),
        command: command.iter().map(|s| (*s).to_owned()).collect(),
        stdin: true,
        stdout: true,
        stderr: !tty,
        tty,
    }
}

#[tokio::test]
async fn exec_sync() {
    let harness = Harness::new();
    let sandbox = harness.sandbox().await;
    let id = harness.start(&sandbox, container(&["sleep", "1000"])).await;
    let run = |line: &str| {
        let command = vec!["sh".to_owned(), "-c".to_owned(), line.to_owned()];
        let runtime = harness.runtime().clone();
        let id = id.clone();
        async move { runtime.exec_sync(&id, command, 1).await }
    };
    let result = run("echo out; echo err >&2; exit 5").await.unwrap();
    assert_eq!(
        (result.stdout, result.stderr, result.exit_code),
        (b"out\n".to_vec(), b"err\n".to_vec(), 5)
    );
    let result = run("hostname; cat /proc/1/comm; grep Seccomp: /proc/self/status | tr -d '\\t'; ls /proc/self/fd | wc -l").await.unwrap();
    // 0, 1, 2 and the directory that ls reads.
    assert_eq!(
        String::from_utf8_lossy(&result.stdout),
        "pod-host\nsleep\nSeccomp:2\n4\n"
    );
    assert!(matches!(
        run("sleep 100").await,
        Err(RuntimeError::Timeout { .. })
    ));
    wait_for(|| async {
        (run("ps")
            .await
            .unwrap()
            .stdout
            .windows(9)
            .filter(|w| w == b"sleep 100")
            .count()
            <= 1)
            .then_some(())
    })
    .await;
    let missing = harness
        .runtime()
        .exec_sync(&id, vec!["nope".into()], 5)
        .await;
    assert!(
        matches!(&missing, Err(RuntimeError::ExecFailed(message)) if message.contains("executable file not found in $PATH")),
        "{missing:?}"
    );
    let large = run("head -c 300000 /dev/zero").await.unwrap();
    assert_eq!(large.stdout.len(), 300_000);
    harness
        .runtime()
        .remove_pod_sandbox(&sandbox)
        .await
        .unwrap();
}

#[tokio::test]
async fn exec_with_streams() {
    let harness = Harness::new();
    let sandbox = harness.sandbox().await;
    let id = harness.start(&sandbox, container(&["sleep", "1000"])).await;
    let mut session = harness
        .runtime()
        .exec(request(
            &id,
            &["sh", "-c", "cat; echo end >&2; exit 3"],
            false,
        ))
        .await
        .unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"through\n").await.unwrap();
    drop(stdin);
    let (mut out, mut err) = (String::new(), String::new());
    session
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut out)
        .await
        .unwrap();
    session
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut err)
        .await
        .unwrap();
    assert_eq!((out.as_str(), err.as_str()), ("through\n", "end\n"));
    assert_eq!(session.exit.await.unwrap().unwrap(), 3);

    // Dropped sessions leave nothing behind.
    let session = harness
        .runtime()
        .exec(request(&id, &["sleep", "999"], false))
        .await
        .unwrap();
    drop(session);
    wait_for(|| async {
        let ps = harness
            .runtime()
            .exec_sync(&id, vec!["ps".into()], 10)
            .await
            .unwrap();
        (!String::from_utf8_lossy(&ps.stdout).contains("999")).then_some(())
    })
    .await;
    harness
        .runtime()
        .remove_pod_sandbox(&sandbox)
        .await
        .unwrap();
}

#[tokio::test]
async fn exec_with_a_terminal() {
    let harness = Harness::new();
    let sandbox = harness.sandbox().await;
    let id = harness.start(&sandbox, container(&["sleep", "1000"])).await;
    let mut session = harness
        .runtime()
        .exec(request(&id, &["sh"], true))
        .await
        .unwrap();
    session
        .resize
        .as_ref()
        .unwrap()
        .send(TerminalSize {
            width: 99,
            height: 33,
        })
        .await
        .unwrap();
    let mut stdin = session.stdin.take().unwrap();
    let mut stdout = session.stdout.take().unwrap();
    let text = wait_for_text(
        &mut stdin,
        &mut stdout,
        "stty size; tty; echo done$((1+1))\n",
        "done2",
    )
    .await;
    assert!(text.contains("33 99"), "{text}");
    assert!(text.contains("/dev/pts/0"), "{text}");
    stdin.write_all(b"exit 9\n").await.unwrap();
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).await.unwrap();
    assert_eq!(session.exit.await.unwrap().unwrap(), 9);
    harness
        .runtime()
        .remove_pod_sandbox(&sandbox)
        .await
        .unwrap();
}

async fn wait_for_text(
    stdin: &mut runtime::service::Writer,
    stdout: &mut runtime::service::Reader,
    line: &str,
    expect: &str,
) -> String {
    // The size may arrive after the first prompt; ask until it is there.
    let mut text = String::new();
    let mut buffer = [0; 4096];
    tokio::time::sleep(Duration::from_millis(20)).await;
    stdin.write_all(line.as_bytes()).await.unwrap();
    while !text.contains(expect) {
        let count = tokio::time::timeout(Duration::from_secs(10), stdout.read(&mut buffer))
            .await
            .unwrap()
            .unwrap();
        assert!(count > 0, "ended: {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    text
}

#[tokio::test]
async fn attach_and_stdin() {
    let harness = Harness::new();
    let sandbox = harness.sandbox().await;
    let mut config = container(&[
        "sh",
        "-c",
        "while read line; do echo got $line; done; echo eof; exit 6",
    ]);
    config.stdin = true;
    config.stdin_once = true;
    config.log_path = "attach.log".into();
    let id = harness.start(&sandbox, config).await;
    let mut session = harness
        .runtime()
        .attach(request(&id, &[], false))
        .await
        .unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"one\ntwo\n").await.unwrap();
    drop(stdin);
    let mut out = String::new();
    session
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut out)
        .await
        .unwrap();
    assert_eq!(out, "got one\ngot two\neof\n");
    assert_eq!(session.exit.await.unwrap().unwrap(), 6);
    let status = harness.ended(&id).await;
    assert_eq!(harness.log_text(&status), out);

    let mut config = container(&["sh"]);
    config.stdin = true;
    config.tty = true;
    config.log_path = "tty.log".into();
    let id = harness.start(&sandbox, config).await;
    let mut session = harness
        .runtime()
        .attach(request(&id, &[], true))
        .await
        .unwrap();
    let mut stdin = session.stdin.take().unwrap();
    let mut stdout = session.stdout.take().unwrap();
    wait_for_text(&mut stdin, &mut stdout, "echo a$((40+2))\n", "a42").await;
    stdin.write_all(b"exit 4\n").await.unwrap();
    assert_eq!(session.exit.await.unwrap().unwrap(), 4);
    let status = harness.ended(&id).await;
    assert!(harness.log_text(&status).contains("a42"));
    harness
        .runtime()
        .remove_pod_sandbox(&sandbox)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_slow_reader_stops_nobody() {
    let harness = Harness::new();
    let sandbox = harness.sandbox().await;
    let mut config = container(&[
        "sh",
        "-c",
        "head -c 8000000 /dev/zero | tr '\\0' 'x'; echo; echo last",
    ]);
    config.stdin = true;
    config.log_path = "big.log".into();
    let id = harness
        .runtime()
        .create_container(&sandbox, config)
        .await
        .unwrap();
    harness.runtime().start_container(&id).await.unwrap();
    // Attached, and never read.
    let _session = harness.runtime().attach(request(&id, &[], false)).await;
    let status = harness.ended(&id).await;
    let text = std::fs::read_to_string(&status.log_path).unwrap();
    assert!(text.lines().last().unwrap().ends_with("stdout F last"));
    let bytes: usize = text
        .lines()
        .map(|l| l.splitn(4, ' ').nth(3).unwrap().len())
        .sum();
    assert_eq!(bytes, 8_000_004);
    harness
        .runtime()
        .remove_pod_sandbox(&sandbox)
        .await
        .unwrap();
}

#[tokio::test]
async fn log_rotation() {
    let harness = Harness::new();
    let sandbox = harness.sandbox().await;
    let mut config = container(&[
        "sh",
        "-c",
        "n=0; while :; do n=$((n+1)); echo $n; sleep 0.01; done",
    ]);
    config.log_path = "rotate.log".into();
    let id = harness.start(&sandbox, config).await;
    let path = harness
        .runtime()
        .container_status(&id)
        .await
        .unwrap()
        .log_path;
    let has_lines = |path: std::path::PathBuf| async move {
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .lines()
            .nth(2)
            .map(drop)
    };
    wait_for(|| has_lines(path.clone())).await;
    let old = path.with_extension("old");
    std::fs::rename(&path, &old).unwrap();
    harness.runtime().reopen_container_log(&id).await.unwrap();
    wait_for(|| has_lines(path.clone())).await;
    harness
        .runtime()
        .remove_pod_sandbox(&sandbox)
        .await
        .unwrap();
    let numbers: Vec<u32> = [&old, &path]
        .iter()
        .flat_map(|p| {
            std::fs::read_to_string(p)
                .unwrap()
                .lines()
                .map(|l| l.rsplit(' ').next().unwrap().parse().unwrap())
                .collect::<Vec<u32>>()
        })
        .collect();
    assert!(
        numbers.iter().enumerate().all(|(i, n)| *n == i as u32 + 1),
        "{numbers:?}"
    );
}

#[tokio::test]
async fn port_forward() {
    let harness = Harness::new();
    let sandbox = harness.sandbox().await;
    let id = harness
        .start(
            &sandbox,
            container(&["nc", "-ll", "-p", "8080", "-e", "cat"]),
        )
        .await;
    let mut stream =
        wait_for(|| async { harness.runtime().port_forward(&sandbox, 8080).await.ok() }).await;
    stream.write_all(b"hello\n").await.unwrap();
    let mut buffer = [0; 6];
    stream.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"hello\n");
    assert!(harness.runtime().port_forward(&sandbox, 9).await.is_err());
    // Not on the node.
    assert!(
        tokio::net::TcpStream::connect("127.0.0.1:8080")
            .await
            .is_err()
    );
    harness.runtime().stop_container(&id, 0).await.unwrap();
    harness
        .runtime()
        .remove_pod_sandbox(&sandbox)
        .await
        .unwrap();
}
