//! A TCP connection that can be cut from elsewhere: when its server is found to be dead, whoever waits on it is told at
//! once, and not when the kernel gives up.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// Chooses a server and connects to it.
pub trait Dial: Send + Sync + 'static {
    /// A connection, and the name or address that the server's certificate has to be for.
    fn dial(&self) -> Pin<Box<dyn Future<Output = io::Result<(Link, String)>> + Send + '_>>;
}

type Cut = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// The connection.
pub struct Link {
    stream: TcpStream,
    cut: Option<Cut>,
}

impl Link {
    /// Of a stream; it is cut when `cut` becomes true.
    pub fn new(stream: TcpStream, cut: Option<watch::Receiver<bool>>) -> io::Result<Link> {
        stream.set_nodelay(true)?;
        let cut = cut.map(|mut cut| -> Cut {
            Box::pin(async move {
                if cut.wait_for(|cut| *cut).await.is_err() {
                    // Nobody is left who could cut it.
                    std::future::pending().await
                }
            })
        });
        Ok(Link { stream, cut })
    }
}

impl AsyncRead for Link {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.cut.as_mut().is_some_and(|cut| cut.as_mut().poll(context).is_ready()) {
            self.cut = Some(Box::pin(std::future::ready(())));
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the server does not answer")));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Link {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
