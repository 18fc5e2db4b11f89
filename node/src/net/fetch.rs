//! Requests and responses: raw bytes behind a length, each bounded before it is read.
//!
//! For what is asked for once (a manifest, a stretch of history). A request opens a stream of its
//! own, about 800 bytes on the wire over TCP, so it is nothing for what flows.

use std::io;

use libp2p::StreamProtocol;
use libp2p::futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::request_response;

/// The name both ends negotiate.
pub(super) const PROTOCOL: StreamProtocol = StreamProtocol::new("/rumormill/fetch/1");

/// Reads and writes messages of at most the given lengths.
#[derive(Debug, Clone)]
pub(super) struct RawCodec {
    pub(super) request_len_max: usize,
    pub(super) response_len_max: usize,
}

/// A message longer than this node accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("message of {len} bytes, at most {max} are allowed")]
pub struct TooLong {
    /// The length announced.
    pub len: u64,
    /// The limit.
    pub max: usize,
}

/// The length in front of a message, little endian.
const LEN_BYTES: usize = 4;

async fn read<T>(io: &mut T, len_max: usize) -> io::Result<Vec<u8>>
where
    T: AsyncRead + Unpin + Send,
{
    let mut len = [0; LEN_BYTES];
    io.read_exact(&mut len).await?;
    let len = u64::from(u32::from_le_bytes(len));
    if len > len_max as u64 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, TooLong { len, max: len_max }));
    }
    // Grows with what arrives, not with what was announced.
    let mut message = Vec::new();
    io.take(len).read_to_end(&mut message).await?;
    if message.len() as u64 != len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(message)
}

async fn write<T>(io: &mut T, message: &[u8]) -> io::Result<()>
where
    T: AsyncWrite + Unpin + Send,
{
    let len = u32::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    io.write_all(&len.to_le_bytes()).await?;
    io.write_all(message).await
}

impl request_response::Codec for RawCodec {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io, self.request_len_max).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io, self.response_len_max).await
    }

    async fn write_request<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        request: Vec<u8>,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, &request).await
    }

    async fn write_response<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        response: Vec<u8>,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, &response).await
    }
}
