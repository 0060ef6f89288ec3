//! Packets with descriptors over SOCK_SEQPACKET sockets.
//!
//! A packet is one JSON document, followed by descriptors. What exceeds [`INLINE_BYTES_MAX`] travels
//! in a memory file as the last descriptor. Neither side trusts a length before it is bounded.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::MemfdFlags;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Sockets take about 200 KiB a packet by default; stay well below.
const INLINE_BYTES_MAX: usize = 64 * 1024;
/// A container's environment may hold some MiB of ConfigMaps.
const BODY_BYTES_MAX: u64 = 64 << 20;
/// Descriptors in one packet.
const DESCRIPTORS_MAX: usize = 12;

const INLINE: u8 = b'i';
const IN_FILE: u8 = b'f';

/// Sends one message. `WouldBlock` when the socket does not take it and is not blocking.
pub fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut bytes = vec![INLINE];
    serde_json::to_writer(&mut bytes, message)?;
    let mut all: Vec<BorrowedFd<'_>> = fds.to_vec();
    let file;
    if bytes.len() > INLINE_BYTES_MAX {
        let mut f = File::from(rustix::fs::memfd_create(
            "llmagentos-message",
            MemfdFlags::CLOEXEC,
        )?);
        f.write_all(&bytes[1..])?;
        file = f;
        all.push(file.as_fd());
        bytes = vec![IN_FILE];
    }
    if all.len() > DESCRIPTORS_MAX {
        return Err(io::Error::other("too many descriptors in a message"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !all.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&all)) {
        return Err(io::Error::other("descriptors do not fit into a message"));
    }
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(
            socket.as_fd(),
            &[IoSlice::new(&bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
    })?;
    Ok(())
}

/// Receives one message; `None` at the end of the stream.
pub fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    receive_with(socket, buffer, RecvFlags::empty())
}

/// As [`receive`]; `WouldBlock` when there is none, also on a socket that blocks.
pub fn receive_now<T: DeserializeOwned>(
    socket: impl AsFd,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    receive_with(socket, buffer, RecvFlags::DONTWAIT)
}

fn receive_with<T: DeserializeOwned>(
    socket: impl AsFd,
    buffer: &mut Vec<u8>,
    flags: RecvFlags,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    buffer.resize(INLINE_BYTES_MAX + 1, 0);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            socket.as_fd(),
            &mut [IoSliceMut::new(buffer)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC | flags,
        )
    })?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    if received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "truncated message",
        ));
    }
    let message = if buffer[0] == IN_FILE {
        let file = fds.pop().ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "message without its file")
        })?;
        let mut file = File::from(file);
        file.rewind()?;
        let mut body = Vec::new();
        file.take(BODY_BYTES_MAX).read_to_end(&mut body)?;
        serde_json::from_slice(&body)?
    } else {
        serde_json::from_slice(&buffer[1..received.bytes])?
    };
    Ok(Some((message, fds)))
}
