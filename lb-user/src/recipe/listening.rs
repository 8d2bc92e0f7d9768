//! Whether a server listens, as `/proc/net` shows.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use crate::config::Protocol;

/// Where somebody listens for packets to `at`: there, or at every address. Nothing if nobody does.
pub(super) fn at(at: SocketAddr, protocol: Protocol) -> Option<SocketAddr> {
    let name = protocol.name();
    let tables: &[String] = match at.ip() {
        // A socket of IPv6 at every address takes IPv4 too, unless it says otherwise.
        IpAddr::V4(_) => &[name.to_owned(), format!("{name}6")],
        IpAddr::V6(_) => &[format!("{name}6")],
    };
    let listening = tables.iter().flat_map(|table| {
        let text = fs::read_to_string(format!("/proc/thread-self/net/{table}"));
        sockets(&text.unwrap_or_default(), protocol)
    });
    listening
        .filter(|socket| socket.port() == at.port())
        .find(|socket| {
            socket.ip().is_unspecified() || socket.ip().to_canonical() == at.ip().to_canonical()
        })
}

/// The sockets of a table that take what comes from anywhere.
fn sockets(table: &str, protocol: Protocol) -> Vec<SocketAddr> {
    // TCP_LISTEN, and TCP_CLOSE for UDP that is not connected (include/net/tcp_states.h).
    let state = match protocol {
        Protocol::Tcp => "0A",
        Protocol::Udp => "07",
    };
    table
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            let (local, _remote) = (words.next()?, words.next()?);
            (words.next()? == state).then(|| socket(local)).flatten()
        })
        .collect()
}

/// `0100007F:1F90`: 32-bit words in the machine's order, and the port.
fn socket(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let words: Vec<[u8; 4]> = (0..address.len() / 8)
        .map(|index| u32::from_str_radix(address.get(index * 8..index * 8 + 8)?, 16).ok())
        .map(|word| word.map(u32::to_ne_bytes))
        .collect::<Option<_>>()?;
    let ip: IpAddr = match *words {
        [word] => Ipv4Addr::from(word).into(),
        [_, _, _, _] => Ipv6Addr::from(<[u8; 16]>::try_from(words.concat()).ok()?).into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_sockets_are_told_from_others() {
        let first = |ip: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(ip));
        let table = format!(
            "  sl  local_address rem_address   st tx_queue\n\
             \x20  0: {}:1F90 00000000:0000 0A 00000000:00000000\n\
             \x20  1: {}:1F91 00000000:0000 01 00000000:00000000\n",
            first([127, 0, 0, 1]),
            first([127, 0, 0, 1])
        );
        let found = sockets(&table, Protocol::Tcp);
        assert_eq!(found, ["127.0.0.1:8080".parse().unwrap()]);
        let all = "00000000000000000000000000000000:0050";
        assert_eq!(socket(all), Some("[::]:80".parse().unwrap()));
    }

    #[test]
    fn a_socket_at_every_address_listens_at_each() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let here = listener.local_addr().unwrap();
        assert_eq!(at(here, Protocol::Tcp), Some(here));
        let other = SocketAddr::new([127, 0, 0, 2].into(), here.port());
        assert_eq!(at(other, Protocol::Tcp), None);
        let everywhere = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let port = everywhere.local_addr().unwrap().port();
        let asked = SocketAddr::new([203, 0, 113, 10].into(), port);
        assert!(at(asked, Protocol::Udp).is_some());
    }
}
