//! Clients against sessions that answer from memory, over pipes instead of sockets.
#![allow(clippy::unwrap_used, reason = "tests")]

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use runtime::service::{RuntimeError, Session, TerminalSize};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::remote_command::{InputEnd, Options, Verb, serve};
use super::{port_forward, websocket};

/// The process's side of a session.
pub struct Process {
    pub stdin: DuplexStream,
    pub stdout: DuplexStream,
    pub stderr: DuplexStream,
    pub sizes: mpsc::Receiver<TerminalSize>,
    pub exit: oneshot::Sender<Result<i32, RuntimeError>>,
    /// Ends when the session is dropped.
    pub dropped: oneshot::Receiver<()>,
}

pub fn session() -> (Session, Process) {
    let (stdin, process_stdin) = tokio::io::duplex(1 << 10);
    let (stdout, process_stdout) = tokio::io::duplex(1 << 10);
    let (stderr, process_stderr) = tokio::io::duplex(1 << 10);
    let (resize, sizes) = mpsc::channel(1);
    let (exit_sender, exit) = oneshot::channel();
    let (kill, dropped) = oneshot::channel();
    let session = Session {
        stdin: Some(Box::new(stdin)),
        stdout: Some(Box::new(stdout)),
        stderr: Some(Box::new(stderr)),
        resize: Some(resize),
        exit,
        kill_on_drop: Box::new(kill),
    };
    let process = Process {
        stdin: process_stdin,
        stdout: process_stdout,
        stderr: process_stderr,
        sizes,
        exit: exit_sender,
        dropped,
    };
    (session, process)
}

pub const ALL: Options = Options {
    stdin: true,
    stdout: true,
    stderr: true,
    tty: false,
};

async fn websocket_client(
    protocol: &str,
    options: Options,
) -> (WebSocketStream<DuplexStream>, Process) {
    let (client, server) = tokio::io::duplex(1 << 12);
    let (session, process) = session();
    let protocol = websocket::choose_remote_command(&[protocol.to_owned()]).unwrap();
    tokio::spawn(async move {
        let socket = websocket::socket(server).await;
        let (connection, channels) = websocket::remote_command(socket, protocol, options).await;
        serve(
            Verb::Exec,
            async { Ok(session) },
            connection,
            channels,
            InputEnd::Waits,
        )
        .await;
    });
    let client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
    (client, process)
}

/// What came on each channel, and the code of the end.
async fn collect(client: &mut WebSocketStream<DuplexStream>) -> (Vec<Vec<u8>>, Option<u16>) {
    let mut channels = vec![Vec::new(); 5];
    let mut code = None;
    while let Some(Ok(message)) = client.next().await {
        match message {
            Message::Binary(bytes) => {
                channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..])
            }
            Message::Close(frame) => code = frame.map(|frame| frame.code.into()),
            _ => {}
        }
    }
    (channels, code)
}

#[tokio::test]
async fn websocket_runs_a_filter_to_its_end() {
    let (client, process) = websocket_client("v5.channel.k8s.io", ALL).await;
    // Twice a queue, so that both sides have to wait for each other.
    let input: Vec<u8> = (0..1_200_000_u32)
        .map(|index| index.to_le_bytes()[1])
        .collect();
    let echo = tokio::spawn(async move {
        let Process {
            mut stdin,
            mut stdout,
            mut stderr,
            exit,
            dropped,
            ..
        } = process;
        tokio::io::copy(&mut stdin, &mut stdout).await.unwrap();
        stderr.write_all(b"done").await.unwrap();
        exit.send(Ok(7)).unwrap();
        drop((stdin, stdout, stderr));
        dropped.await.unwrap_err();
    });
    let (mut sink, mut stream) = client.split();
    let sent = async {
        for chunk in input.chunks(30_000) {
            let message = [&[0][..], chunk].concat();
            sink.send(Message::Binary(Bytes::from(message)))
                .await
                .unwrap();
        }
        sink.send(Message::Binary(Bytes::from_static(&[255, 0])))
            .await
            .unwrap();
    };
    let received = async {
        let mut channels = vec![Vec::new(); 5];
        let mut code = None;
        while let Some(Ok(message)) = stream.next().await {
            match message {
                Message::Binary(bytes) => {
                    channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..])
                }
                Message::Close(frame) => code = frame.map(|frame| u16::from(frame.code)),
                _ => {}
            }
        }
        (channels, code)
    };
    let ((), (channels, code)) = tokio::join!(sent, received);
    assert!(channels[1] == input, "the echo differs");
    assert_eq!(channels[2], b"done");
    let status: Value = serde_json::from_slice(&channels[3]).unwrap();
    assert_eq!(
        status["details"]["causes"],
        json!([{"reason": "ExitCode", "message": "7"}])
    );
    assert_eq!(code, Some(1000));
    echo.await.unwrap();
}

#[tokio::test]
async fn a_client_that_leaves_drops_the_session() {
    let (client, process) = websocket_client("v4.channel.k8s.io", ALL).await;
    drop(client);
    process.dropped.await.unwrap_err();
}

#[tokio::test]
async fn a_terminal_changes_its_size() {
    let options = Options {
        tty: true,
        stderr: false,
        ..ALL
    };
    let (mut client, mut process) = websocket_client("v4.channel.k8s.io", options).await;
    let size = Bytes::from_static(b"\x04{\"Width\":100,\"Height\":40}");
    client.send(Message::Binary(size)).await.unwrap();
    let size = process.sizes.recv().await.unwrap();
    assert_eq!((size.width, size.height), (100, 40));
    drop((process.stdout, process.stderr));
    process.exit.send(Ok(0)).unwrap();
    let (channels, code) = collect(&mut client).await;
    assert_eq!(channels[3], br#"{"metadata":{},"status":"Success"}"#);
    assert_eq!(code, Some(1000));
}

#[tokio::test]
async fn the_first_protocol_tells_a_failure_as_text() {
    let (mut client, mut process) = websocket_client("base64.channel.k8s.io", ALL).await;
    client.send(Message::Text("0aGk=".into())).await.unwrap();
    let mut input = [0; 2];
    process.stdin.read_exact(&mut input).await.unwrap();
    assert_eq!(&input, b"hi");
    process.stdout.write_all(b"ho").await.unwrap();
    drop((process.stdout, process.stderr));
    process.exit.send(Ok(1)).unwrap();
    let mut texts = Vec::new();
    while let Some(Ok(message)) = client.next().await {
        if let Message::Text(text) = message {
            texts.push(text.to_string());
        }
    }
    assert_eq!(texts[..2], ["1", "1aG8="]);
    assert!(texts[2].starts_with('3'), "{texts:?}");
}

#[tokio::test]
async fn ports_are_forwarded_over_channels() {
    let (client, server) = tokio::io::duplex(1 << 12);
    let protocol = websocket::choose_port_forward(&["v4.channel.k8s.io".to_owned()]).unwrap();
    tokio::spawn(async move {
        let socket = websocket::socket(server).await;
        let (connection, channels) = websocket::port_channels(socket, protocol, &[80, 81]);
        let target = port_forward::Target {
            pod: "p".into(),
            uid: "u".into(),
        };
        let connect = |port| async move {
            if port == 81 {
                return Err(RuntimeError::Internal("connection refused".into()));
            }
            let (pod, mut process) = tokio::io::duplex(1 << 10);
            tokio::spawn(async move {
                let mut input = [0; 5];
                process.read_exact(&mut input).await.unwrap();
                process.write_all(b"echo ").await.unwrap();
                process.write_all(&input).await.unwrap();
            });
            Ok(Box::new(pod) as Box<dyn runtime::service::Connection>)
        };
        port_forward::serve_channels(connection, channels, target, connect).await;
    });
    let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
    client
        .send(Message::Binary(Bytes::from_static(b"\x00hello")))
        .await
        .unwrap();
    let (channels, code) = collect(&mut client).await;
    // Every channel begins with its port, low byte first.
    assert_eq!(channels[0], b"\x50\x00echo hello");
    assert_eq!(channels[1], b"\x50\x00");
    assert_eq!(channels[2], b"\x51\x00");
    let error = String::from_utf8(channels[3][2..].to_vec()).unwrap();
    assert!(
        error.starts_with("error forwarding port 81 to pod p, uid u: ")
            && error.ends_with("connection refused"),
        "{error}"
    );
    assert_eq!(code, Some(1000));
}
