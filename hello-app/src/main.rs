//! Answers every HTTP request with a greeting, its version and its host's name.
//!
//! Listens on `PORT` (8080 if unset). Built as one static binary, so that an image needs nothing
//! else. Ends at SIGTERM by that signal's default action: it holds nothing that must be saved.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

/// A client that sends nothing for this long is let go.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

fn main() -> std::io::Result<()> {
    let port: u16 = match std::env::var("PORT") {
        Ok(text) => text.parse().map_err(|_| {
            std::io::Error::other(format!(
                "PORT is \"{text}\", not a port number; unset it or give 1 to 65535"
            ))
        })?,
        Err(_) => 8080,
    };
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    let body = format!(
        "Hello, world!\nVersion: {}\nHostname: {}\n",
        env!("CARGO_PKG_VERSION"),
        hostname.trim()
    );
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    println!("hello-app listening on port {port}");
    for stream in listener.incoming() {
        let (stream, body) = (stream?, body.clone());
        std::thread::spawn(move || {
            if let Err(error) = answer(stream, &body) {
                eprintln!("request failed: {error}");
            }
        });
    }
    Ok(())
}

/// Reads one request's head and answers it; the connection is closed after it.
fn answer(stream: TcpStream, body: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(READ_TIMEOUT))?;
    let mut lines = BufReader::new(&stream).lines();
    let Some(request) = lines.next().transpose()? else {
        return Ok(());
    };
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    println!("{request}");
    let mut stream = &stream;
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
