//! The listeners, and the addresses that they are bound to.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, lookup_host};

use super::Tls;

/// The kernel buffers at most this for a connection that it cannot send yet, so that the outbox bounds the cost of a
/// slow reader. Without it, 3.8 MB.
const UNSENT_BYTES: u32 = 128 * 1024;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// The listeners of a server.
#[derive(Debug, Default)]
pub struct Listeners {
    /// Without TLS.
    pub plain: Option<TcpListener>,
    /// With TLS, and its certificate.
    pub tls: Option<(TcpListener, Tls)>,
}

impl From<TcpListener> for Listeners {
    fn from(plain: TcpListener) -> Self {
        Self { plain: Some(plain), tls: None }
    }
}

impl Listeners {
    /// The addresses of the listeners.
    ///
    /// # Errors
    /// The error of the system.
    pub fn addresses(&self) -> io::Result<Listening> {
        Ok(Listening {
            plain: self.plain.as_ref().map(TcpListener::local_addr).transpose()?,
            tls: self.tls.as_ref().map(|(listener, _)| listener.local_addr()).transpose()?,
        })
    }
}

/// The addresses that a server listens on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Listening {
    /// Without TLS.
    pub plain: Option<SocketAddr>,
    /// With TLS.
    pub tls: Option<SocketAddr>,
}

/// Listens on `address` (port 0: any free one). Accepted connections inherit the socket options that delivery relies on.
///
/// # Errors
/// The error of the system, for instance an address in use.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        // `::` serves both families.
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(UNSENT_BYTES)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Listens on the first of `addresses` that this machine has. A name often has one of each family, and a machine may
/// have only one family.
///
/// # Errors
/// The address that this machine has but cannot listen on, or else the first one, with the error of the system.
pub fn bind_first(addresses: &[SocketAddr]) -> Result<TcpListener, (Option<SocketAddr>, io::Error)> {
    first_bound(addresses, bind)
}

/// As [`bind_first`], with another way to listen on an address.
fn first_bound<L>(
    addresses: &[SocketAddr],
    bind: impl Fn(SocketAddr) -> io::Result<L>,
) -> Result<L, (Option<SocketAddr>, io::Error)> {
    let mut failed = None;
    for address in addresses {
        match bind(*address) {
            Ok(listener) => return Ok(listener),
            Err(error) if is_absent(&error) => {
                failed.get_or_insert((Some(*address), error));
            }
            Err(error) => return Err((Some(*address), error)),
        }
    }
    Err(failed.unwrap_or_else(|| (None, io::ErrorKind::AddrNotAvailable.into())))
}

/// Whether this machine lacks the address or its family.
fn is_absent(error: &io::Error) -> bool {
    let no_family = rustix::io::Errno::AFNOSUPPORT.raw_os_error();
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(no_family)
}

/// The addresses of `host`, IPv4 first, because older clients support only that. `localhost` is this machine, whatever a
/// resolver says. Source: RFC 6761 §6.3.
///
/// # Errors
/// The error of the resolver.
pub async fn addresses_of(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()]);
    }
    let mut addresses: Vec<SocketAddr> = lookup_host((host, port)).await?.collect();
    addresses.sort_by_key(SocketAddr::is_ipv6);
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use rustix::io::Errno;

    use super::*;

    /// An address of documentation (RFC 5737), which no machine has.
    const ABSENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 0);
    const LOCAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    #[tokio::test]
    async fn the_first_address_of_this_machine_is_bound() {
        assert_eq!(bind_first(&[ABSENT, LOCAL]).unwrap().local_addr().unwrap().ip(), LOCAL.ip());
        let (address, error) = bind_first(&[ABSENT, ABSENT]).unwrap_err();
        assert_eq!((address, error.kind()), (Some(ABSENT), io::ErrorKind::AddrNotAvailable));
        let (address, error) = bind_first(&[]).unwrap_err();
        assert_eq!((address, error.kind()), (None, io::ErrorKind::AddrNotAvailable));
    }

    #[test]
    fn where_127_0_0_1_cannot_be_bound_the_loopback_address_of_ipv6_is() {
        let both = [LOCAL, (Ipv6Addr::LOCALHOST, 0).into()];
        let on_host_with = |ipv4: Errno| {
            first_bound(&both, |address| if address.is_ipv4() { Err(ipv4.into()) } else { Ok(address) })
        };
        for absent in [Errno::ADDRNOTAVAIL, Errno::AFNOSUPPORT] {
            assert_eq!(on_host_with(absent).unwrap(), both[1], "{absent}");
        }
        // An address that is there is not passed over.
        let (failed, error) = on_host_with(Errno::ADDRINUSE).unwrap_err();
        assert_eq!((failed, error.kind()), (Some(LOCAL), io::ErrorKind::AddrInUse));
    }

    #[tokio::test]
    async fn an_address_in_use_is_an_error() {
        let listener = bind(LOCAL).unwrap();
        let address = listener.local_addr().unwrap();
        let (failed, error) = bind_first(&[ABSENT, address, LOCAL]).unwrap_err();
        assert_eq!((failed, error.kind()), (Some(address), io::ErrorKind::AddrInUse));
    }

    #[tokio::test]
    async fn localhost_resolves_to_both_loopback_addresses() {
        for host in ["localhost", "LOCALHOST"] {
            let addresses = addresses_of(host, 7).await.unwrap();
            assert_eq!(addresses, [(Ipv4Addr::LOCALHOST, 7).into(), (Ipv6Addr::LOCALHOST, 7).into()]);
        }
        assert_eq!(addresses_of("::1", 7).await.unwrap(), [(Ipv6Addr::LOCALHOST, 7).into()]);
    }
}
