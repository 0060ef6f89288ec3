//! Exec and attach, whatever protocol carries the streams: pumps bytes between a [`Session`] and [`Channels`].
//!
//! The order at the end is fixed: the process has exited, its output is read to the end and queued, then the
//! status follows on the error stream, then the connection closes. A client that leaves early drops the
//! session, which kills what exec started and leaves an attached container alone.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use runtime::service::{Reader, RuntimeError, Session, TerminalSize, Writer};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::stream::{CHUNK_BYTES_MAX, ClientGone, Connection, Inlet, StreamWriter};

/// No size of a terminal is longer than this.
const RESIZE_BYTES_MAX: usize = 4 << 10;
/// How long a client that has ended its input is still told what an attached container writes.
const LAST_OUTPUT: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Exec,
    Attach,
}

/// Which streams the client asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// What the end of the client's input means to its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputEnd {
    /// The process reads an end, and the session waits for the process.
    Waits,
    /// The process goes on without this client, whose session is over: an attached container that keeps its
    /// standard input open for the next one.
    Leaves,
}

/// How the end is told on the error stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusForm {
    /// Protocols before v4: the message of a failure; nothing on success.
    Text,
    /// From v4 on: a `metav1.Status`.
    Json,
}

/// The client's streams of one command.
pub struct Channels {
    pub stdin: Option<Inlet>,
    pub stdout: Option<StreamWriter>,
    pub stderr: Option<StreamWriter>,
    pub error: StreamWriter,
    pub resize: Option<Inlet>,
    pub status_form: StatusForm,
}

/// Opens the session (runs the command, or attaches) and stays until its end or the client's.
pub async fn serve(
    verb: Verb,
    session: impl Future<Output = Result<Session, RuntimeError>>,
    connection: Connection,
    channels: Channels,
    input_end: InputEnd,
) {
    let Channels {
        stdin,
        stdout,
        stderr,
        error,
        resize,
        status_form,
    } = channels;
    let lost = connection.lost.clone();
    let work = async {
        let result = match session.await {
            Ok(session) => pump(session, stdin, &stdout, &stderr, resize, input_end).await?,
            Err(error) => Err(error),
        };
        for writer in [&stdout, &stderr].into_iter().flatten() {
            writer.end().await?;
        }
        if let Some(text) = status_text(&status(verb, result), status_form) {
            error.send(Bytes::from(text)).await?;
        }
        error.end().await
    };
    let done = tokio::select! {
        done = work => done,
        () = lost.cancelled() => Err(ClientGone),
    };
    match done {
        Ok(()) => connection.finish().await,
        Err(gone) => tracing::debug!(?verb, "{gone}"),
    }
}

async fn pump(
    session: Session,
    stdin: Option<Inlet>,
    stdout: &Option<StreamWriter>,
    stderr: &Option<StreamWriter>,
    resize: Option<Inlet>,
    input_end: InputEnd,
) -> Result<Result<i32, RuntimeError>, ClientGone> {
    let Session {
        stdin: process_stdin,
        stdout: process_stdout,
        stderr: process_stderr,
        resize: process_resize,
        exit,
        kill_on_drop,
    } = session;
    let output = async {
        tokio::try_join!(
            copy_output(process_stdout, stdout.as_ref()),
            copy_output(process_stderr, stderr.as_ref())
        )?;
        let ended = exit.await.unwrap_or_else(|_| {
            Err(RuntimeError::Internal(
                "the runtime lost the process".into(),
            ))
        });
        Ok(ended)
    };
    let input = async {
        let has_input = stdin.is_some();
        let copied = async {
            copy_input(stdin, process_stdin).await;
            if has_input && input_end == InputEnd::Leaves {
                // What the process answers at once still reaches the client.
                tokio::time::sleep(LAST_OUTPUT).await;
                return;
            }
            std::future::pending::<()>().await;
        };
        let sizes = async {
            copy_sizes(resize, process_resize).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = copied => {}
            () = sizes => {}
        }
    };
    let result = tokio::select! {
        result = output => result,
        () = input => Ok(Ok(0)),
    };
    drop(kill_on_drop);
    result
}

async fn copy_output(
    reader: Option<Reader>,
    writer: Option<&StreamWriter>,
) -> Result<(), ClientGone> {
    let Some(mut reader) = reader else {
        return Ok(());
    };
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK_BYTES_MAX);
        match (&mut reader)
            .take(CHUNK_BYTES_MAX as u64)
            .read_buf(&mut buffer)
            .await
        {
            // A terminal whose last process has gone answers with an error (EIO) instead of an end.
            Ok(0) | Err(_) => return Ok(()),
            Ok(_) => {
                let chunk = buffer.split().freeze();
                if let Some(writer) = writer {
                    writer.send(chunk).await?;
                }
            }
        }
    }
}

/// Copies until the client's end, then closes the process's input. What a process does not want is thrown away.
async fn copy_input(inlet: Option<Inlet>, writer: Option<Writer>) {
    let Some(mut inlet) = inlet else {
        return;
    };
    let mut writer = writer;
    while let Some(chunk) = inlet.recv().await {
        if let Some(open) = &mut writer {
            let written = async {
                open.write_all(&chunk).await?;
                open.flush().await
            };
            if written.await.is_err() {
                writer = None;
            }
        }
    }
    if let Some(mut open) = writer {
        let _ = open.shutdown().await;
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Size {
    width: u16,
    height: u16,
}

async fn copy_sizes(inlet: Option<Inlet>, sender: Option<mpsc::Sender<TerminalSize>>) {
    let Some(mut inlet) = inlet else {
        return;
    };
    let mut buffer = Vec::new();
    while let Some(chunk) = inlet.recv().await {
        for size in sizes(&mut buffer, &chunk) {
            if let Some(sender) = &sender {
                let _ = sender.send(size).await;
            }
        }
    }
}

/// The sizes that are complete with this chunk; the rest stays in the buffer. What is not JSON is dropped.
fn sizes(buffer: &mut Vec<u8>, chunk: &[u8]) -> Vec<TerminalSize> {
    buffer.extend_from_slice(chunk);
    let mut found = Vec::new();
    let mut documents = serde_json::Deserializer::from_slice(buffer).into_iter::<Size>();
    let mut used_bytes = 0;
    loop {
        match documents.next() {
            Some(Ok(Size { width, height })) => {
                found.push(TerminalSize { width, height });
                used_bytes = documents.byte_offset();
            }
            None => {
                used_bytes = buffer.len();
                break;
            }
            Some(Err(error)) if error.is_eof() && buffer.len() - used_bytes < RESIZE_BYTES_MAX => {
                break;
            }
            Some(Err(_)) => {
                used_bytes = buffer.len();
                break;
            }
        }
    }
    buffer.drain(..used_bytes);
    found
}

/// The `metav1.Status` of the end. Attach succeeds whatever the container's exit code.
fn status(verb: Verb, result: Result<i32, RuntimeError>) -> Value {
    let doing = match verb {
        Verb::Exec => "error executing command in container",
        Verb::Attach => "error attaching to container",
    };
    match result {
        Ok(exit_code) if exit_code != 0 && verb == Verb::Exec => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {exit_code}"),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": exit_code.to_string()}]},
        }),
        Ok(_) => json!({"metadata": {}, "status": "Success"}),
        Err(error) => {
            let message = format!("{doing}: {error}");
            json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("Internal error occurred: {message}"),
                "reason": "InternalError",
                "details": {"causes": [{"message": message}]},
                "code": 500,
            })
        }
    }
}

fn status_text(status: &Value, form: StatusForm) -> Option<String> {
    match form {
        StatusForm::Json => Some(status.to_string()),
        StatusForm::Text if status["status"] == "Success" => None,
        StatusForm::Text => Some(status["message"].as_str().unwrap_or_default().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_come_whole_in_pieces_or_many_at_once() {
        let size = |width, height| TerminalSize { width, height };
        let check = |chunks: &[&str], expect: &[TerminalSize]| {
            let mut buffer = Vec::new();
            let found: Vec<_> = chunks
                .iter()
                .flat_map(|chunk| sizes(&mut buffer, chunk.as_bytes()))
                .collect();
            assert_eq!(found, expect, "{chunks:?}");
        };
        check(&[r#"{"Width":80,"Height":24}"#], &[size(80, 24)]);
        check(&[r#"{"Width":80,"#, "\"Height\":24}\n"], &[size(80, 24)]);
        check(
            &[
                "{\"Width\":1,\"Height\":2}\n{\"Width\":3,\"Height\":4}\n{",
                "}",
            ],
            &[size(1, 2), size(3, 4), size(0, 0)],
        );
        check(&["nonsense", r#"{"Width":5,"Height":6}"#], &[size(5, 6)]);
        check(&[r#"{"Width":70000,"Height":6}"#], &[]);
        check(&["", " "], &[]);
    }

    #[test]
    fn ends_are_told_as_upstream_does() {
        let check = |verb, result, json: Value, text: Option<&str>| {
            let status = status(verb, result);
            assert_eq!(status, json);
            assert_eq!(status_text(&status, StatusForm::Text).as_deref(), text);
        };
        check(
            Verb::Exec,
            Ok(0),
            json!({"metadata": {}, "status": "Success"}),
            None,
        );
        check(
            Verb::Attach,
            Ok(3),
            json!({"metadata": {}, "status": "Success"}),
            None,
        );
        check(
            Verb::Exec,
            Ok(7),
            json!({
                "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
                "message": "command terminated with non-zero exit code: exit status 7",
                "details": {"causes": [{"reason": "ExitCode", "message": "7"}]},
            }),
            Some("command terminated with non-zero exit code: exit status 7"),
        );
        check(
            Verb::Exec,
            Err(RuntimeError::InvalidArgument("no".into())),
            json!({
                "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
                "message": "Internal error occurred: error executing command in container: no",
                "details": {"causes": [{"message": "error executing command in container: no"}]},
            }),
            Some("Internal error occurred: error executing command in container: no"),
        );
    }
}
