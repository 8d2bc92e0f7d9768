//! What can be wrong with a configuration: each one line that names the object and says what to
//! do.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use lb_common::abi::limits;

use super::{Mode, Protocol};

/// What is wrong with a configuration, or with a change of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not TOML, an unknown key, or a value of the wrong type.
    #[error("{place}: {message}")]
    Syntax {
        /// File and line.
        place: String,
        /// What the parser says.
        message: String,
    },
    /// A name with other characters than it may have.
    #[error("{what} name {name:?}: use 1 to 63 of a-z, 0-9 and -")]
    Name {
        /// What is named.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// Two services of one name.
    #[error("there are two services {name:?}: give one another name")]
    DuplicateService {
        /// The name.
        name: String,
    },
    /// A service with a name that is taken.
    #[error(
        "there is a service {name:?} already: change it with 'lb-user service set {name}', or give \
         the new one another --name"
    )]
    ServiceExists {
        /// The name.
        name: String,
    },
    /// Two services at one place.
    #[error(
        "services {first:?} and {second:?} both have {address} port {port}/{protocol}: change one"
    )]
    DuplicateEndpoint {
        /// The one.
        first: String,
        /// The other.
        second: String,
        /// The address of both.
        address: IpAddr,
        /// The port of both.
        port: u16,
        /// The protocol of both.
        protocol: Protocol,
    },
    /// A backend that is in its service twice.
    #[error(
        "service {service:?} has the backend {address} twice: remove one, or give it more weight"
    )]
    DuplicateBackend {
        /// The service.
        service: String,
        /// The backend.
        address: SocketAddr,
    },
    /// A backend that is in its service already.
    #[error(
        "service {service:?} has the backend {address} already: change it with 'lb-user backend set \
         {service} {address}'"
    )]
    BackendExists {
        /// The service.
        service: String,
        /// The backend.
        address: SocketAddr,
    },
    /// An interface that is there twice.
    #[error("the interface {name:?} is named twice: remove one")]
    DuplicateInterface {
        /// The interface.
        name: String,
    },
    /// Not the name of an interface.
    #[error(
        "{name:?} cannot be the name of an interface: use 1 to 15 characters without space or /"
    )]
    InterfaceName {
        /// The name.
        name: String,
    },
    /// A name that is nobody's.
    #[error("there is no service {name:?}{}", instead(.known, "there is", "there are"))]
    NoService {
        /// The name.
        name: String,
        /// The services there are.
        known: Vec<String>,
    },
    /// A backend that the service does not have.
    #[error("service {service:?} has no backend {address}{}", instead(.known, "it has", "it has"))]
    NoBackend {
        /// The service.
        service: String,
        /// The address asked for.
        address: String,
        /// The backends it has.
        known: Vec<String>,
    },
    /// An interface that is not attached.
    #[error("the interface {name:?} is not attached{}", instead(.known, "attached is", "attached are"))]
    NoInterface {
        /// The interface.
        name: String,
        /// Those that are.
        known: Vec<String>,
    },
    /// Text that is no address.
    #[error("{of}: {text:?} is no IP address: write 203.0.113.10 or 2001:db8::10")]
    Address {
        /// Whose address.
        of: String,
        /// The text.
        text: String,
    },
    /// Text that is no address with a port.
    #[error("{of}: {text:?} is no address with a port: write 10.0.1.5:8080 or [2001:db8::5]:8080")]
    Socket {
        /// Whose address.
        of: String,
        /// The text.
        text: String,
    },
    /// Text that does not say where a service is.
    #[error("{text:?} is no service: write 203.0.113.10:80/tcp or [2001:db8::10]:80/udp")]
    Endpoint {
        /// The text.
        text: String,
    },
    /// An address that nobody can be reached at.
    #[error("{of}: {address} is {why}: give an address that packets can be sent to")]
    Unusable {
        /// Whose address.
        of: String,
        /// The address.
        address: IpAddr,
        /// What it is instead.
        why: &'static str,
    },
    /// An IPv6 address that holds an IPv4 address.
    #[error("{of}: {address} is an IPv4 address: write {v4}")]
    Mapped {
        /// Whose address.
        of: String,
        /// As written.
        address: IpAddr,
        /// As it should be.
        v4: IpAddr,
    },
    /// A service without an address.
    #[error("service {service:?} has no address: give address = \"203.0.113.10\"")]
    AddressMissing {
        /// The service.
        service: String,
    },
    /// A service with `address` and `addresses`.
    #[error("service {service:?} has both address and addresses: give one of them")]
    AddressTwice {
        /// The service.
        service: String,
    },
    /// Addresses per node, and nobody said which node this is.
    #[error(
        "service {service:?} has an address per node: say which this is, with node = \"…\" at the top"
    )]
    NodeMissing {
        /// The service.
        service: String,
    },
    /// No address for this node.
    #[error(
        "service {service:?} has no address on this node, {node:?}: add one, or remove the service here"
    )]
    NodeWithoutAddress {
        /// The service.
        service: String,
        /// This node.
        node: String,
    },
    /// IPv4 and IPv6 in one service.
    #[error(
        "service {service:?} mixes IPv4 and IPv6 ({first} and {other}): make one service for each"
    )]
    FamilyMix {
        /// The service.
        service: String,
        /// Its first address.
        first: IpAddr,
        /// An address of the other family.
        other: IpAddr,
    },
    /// A backend of the other family where nothing could carry the packets.
    #[error(
        "backend {address} of service {service:?} is not of the family of the service's address \
         {first}: give one that is, or make the service's mode dsr-ipip or dsr-gue"
    )]
    BackendFamily {
        /// The service.
        service: String,
        /// The backend.
        address: SocketAddr,
        /// The service's first address.
        first: IpAddr,
    },
    /// An outer source and a prefix for it.
    #[error("[tunnel] has both {address} and {prefix}: give {address} or {prefix}")]
    TunnelSourceTwice {
        /// The one key.
        address: &'static str,
        /// The other.
        prefix: &'static str,
    },
    /// An outer source of the other family.
    #[error("[tunnel] {key}: {address} is no {family} address: give one")]
    TunnelFamily {
        /// The key.
        key: &'static str,
        /// As written.
        address: IpAddr,
        /// The family that it should have.
        family: &'static str,
    },
    /// Text that is no prefix for outer sources.
    #[error(
        "[tunnel] {key}: {text:?} is no network: write {example}, from /{shortest} to /{longest}, all \
         bits behind the prefix 0"
    )]
    TunnelPrefix {
        /// The key.
        key: &'static str,
        /// As written.
        text: String,
        /// How it is written.
        example: &'static str,
        /// The shortest prefix.
        shortest: u8,
        /// The longest.
        longest: u8,
    },
    /// An address that the service does not have.
    #[error("service {service:?} has no address {address}{}", instead(.known, "it has", "it has"))]
    NoAddress {
        /// The service.
        service: String,
        /// The address.
        address: IpAddr,
        /// Those it has.
        known: Vec<String>,
    },
    /// The last address of a service.
    #[error(
        "{address} is the only address of service {service:?}: remove the service, or add another first"
    )]
    LastAddress {
        /// The service.
        service: String,
        /// The address.
        address: String,
    },
    /// Port 0.
    #[error("{of}: port 0 (any port) is not supported yet: give a port from 1 to 65535")]
    PortZero {
        /// Whose port.
        of: String,
    },
    /// A backend of a direct-return service with a port of its own.
    #[error(
        "backend {address} of service {service:?}: {mode} cannot change the port: write port \
         {port} or none"
    )]
    DsrPort {
        /// The service's mode.
        mode: Mode,
        /// The service.
        service: String,
        /// The backend.
        address: SocketAddr,
        /// The service's port.
        port: u16,
    },
    /// A backend that is a service.
    #[error(
        "backend {address} of service {service:?} is the address of service {other:?} itself: give \
         the backend's own address"
    )]
    BackendIsService {
        /// The service.
        service: String,
        /// The backend.
        address: SocketAddr,
        /// The service at that address.
        other: String,
    },
    /// More services with one backend than the way back can tell apart.
    #[error(
        "backend {address}/{protocol} is shared by {count} nat services, at most {} can: give some \
         of them another port or use dsr-l2",
        limits::SHARED_RETURNS
    )]
    SharedTooOften {
        /// The backend.
        address: SocketAddr,
        /// Its protocol.
        protocol: Protocol,
        /// By how many.
        count: usize,
    },
    /// Backends, but none with weight.
    #[error("all backends of service {service:?} have weight 0: give one of them a weight")]
    NoWeight {
        /// The service.
        service: String,
    },
    /// Slots that do not make a table.
    #[error("service {service:?}: {slots} slots are not a prime: use {lower} or {upper}")]
    SlotsNotPrime {
        /// The service.
        service: String,
        /// As written.
        slots: u32,
        /// The next prime below.
        lower: u32,
        /// The next prime above.
        upper: u32,
    },
    /// Fewer slots than backends, or too many.
    #[error("service {service:?}: {slots} slots, needs from {least} to {most}")]
    SlotsRange {
        /// The service.
        service: String,
        /// As written.
        slots: u32,
        /// The least that will do.
        least: u32,
        /// The most.
        most: u32,
    },
    /// A timeout that is too short or too long.
    #[error("{of}: the timeout {name} is {value}: use 1s to 30days")]
    Timeout {
        /// Whose timeout.
        of: String,
        /// Which.
        name: &'static str,
        /// As written.
        value: String,
    },
    /// A size of 0, or one that the kernel refuses.
    #[error("[sizes] {name} = {value}: {must}")]
    Size {
        /// The key.
        name: &'static str,
        /// As written.
        value: u32,
        /// What it must be.
        must: &'static str,
    },
    /// More than fits.
    #[error(
        "{count} {what}, but [sizes] {name} = {size} has room for {room}: raise it and start the agent again"
    )]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How much there is.
        count: usize,
        /// The size's key.
        name: &'static str,
        /// Its value.
        size: u32,
        /// How many fit.
        room: usize,
    },
    /// Not a prefix.
    #[error("{text:?} is no prefix: write 10.0.1.0/24 or 2001:db8:1::/64")]
    Prefix {
        /// As written.
        text: String,
    },
    /// An address and a prefix in one.
    #[error("{written} is an address within a prefix: write {network} for all of it, or {alone}")]
    HostBits {
        /// As written.
        written: IpNet,
        /// The prefix it is in.
        network: IpNet,
        /// The address alone.
        alone: IpNet,
    },
    /// A prefix that no backend's own connection comes from.
    #[error("egress {prefix} is {why}: give the backends' networks")]
    EgressUnusable {
        /// The prefix.
        prefix: IpNet,
        /// What it is.
        why: &'static str,
    },
    /// An interface that nftables cannot be told of.
    #[error(
        "egress out of {name:?}: nftables rules name interfaces with letters, digits and _.-@+ only"
    )]
    EgressInterface {
        /// The name.
        name: String,
    },
    /// A prefix twice.
    #[error("egress {prefix} is there twice: remove one")]
    EgressTwice {
        /// The prefix.
        prefix: IpNet,
    },
    /// A prefix that is not there.
    #[error("there is no egress for {prefix}{}", instead(.known, "there is", "there are"))]
    NoEgress {
        /// The prefix.
        prefix: IpNet,
        /// Those there are.
        known: Vec<String>,
    },
    /// An edit that says nothing.
    #[error("nothing to change: give {options}")]
    NothingToSet {
        /// What may be given.
        options: &'static str,
    },
}

/// The end of a line that says what there is instead.
fn instead(names: &[String], one: &str, many: &str) -> String {
    match names {
        [] => ": there is none".to_owned(),
        [name] => format!(": {one} {name}"),
        names if names.len() <= 8 => format!(": {many} {}", names.join(", ")),
        names => format!(
            ": {many} {} and {} more",
            names[..8].join(", "),
            names.len() - 8
        ),
    }
}
