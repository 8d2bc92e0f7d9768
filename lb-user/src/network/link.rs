//! Interfaces: which there are, and what is attached to them.

use anyhow::{Context, Result, anyhow};
use futures_util::TryStreamExt as _;
use lb_common::abi::Mac;
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp as Attribute,
    XdpAttached,
};

use super::{Network, checked_name, errno, refusal};

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its index: another one when it is re-created.
    pub index: u32,
    /// Its MAC address; none if it is not an Ethernet interface (loopback, TUN).
    pub mac: Option<Mac>,
    /// Largest packet it carries, in bytes of the IP packet.
    pub mtu: u32,
    /// Whether it is set up.
    pub up: bool,
    /// Whether it is one end of a veth pair.
    pub is_veth: bool,
    /// The XDP program that is attached to it, if one is.
    pub xdp: Option<LinkXdp>,
}

/// An attached XDP program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkXdp {
    /// The program's id.
    pub program: u32,
    /// Where it runs.
    pub place: XdpPlace,
}

/// Where an XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpPlace {
    /// In the driver ("native").
    Driver,
    /// In the kernel's stack, after the driver ("generic").
    Skb,
    /// In the network card.
    Hardware,
}

impl XdpPlace {
    /// Its name, as printed and as `--xdp-mode` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Driver => "driver",
            Self::Skb => "skb",
            Self::Hardware => "hardware",
        }
    }
}

impl Network {
    /// Every interface of the namespace, by ascending index.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn links(&self) -> Result<Vec<Link>> {
        let mut links: Vec<Link> = self
            .handle
            .link()
            .get()
            .execute()
            .try_filter_map(|message| async move { Ok(link(message)) })
            .try_collect()
            .await
            .map_err(refusal)
            .context("cannot list the interfaces")?;
        links.sort_by_key(|link| link.index);
        Ok(links)
    }

    /// The interface called `name`.
    ///
    /// # Errors
    ///
    /// When there is none, naming those that there are.
    pub async fn link(&self, name: &str) -> Result<Link> {
        checked_name(name)?;
        let answer = self
            .handle
            .link()
            .get()
            .match_name(name)
            .execute()
            .try_next()
            .await;
        match answer {
            Ok(Some(message)) => {
                link(message).with_context(|| format!("interface {name} has no name"))
            }
            Ok(None) => Err(anyhow!("the kernel does not answer about interface {name}")),
            Err(error) if errno(&error) == Some(libc::ENODEV) => {
                let there: Vec<String> = self
                    .links()
                    .await?
                    .into_iter()
                    .map(|link| link.name)
                    .collect();
                Err(anyhow!(
                    "there is no interface {name} here; there are {}",
                    there.join(", ")
                ))
            }
            Err(error) => Err(refusal(error).context(format!("cannot look at interface {name}"))),
        }
    }
}

/// The kernel's message as a [`Link`]; none if it has no name.
fn link(message: LinkMessage) -> Option<Link> {
    let is_ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    let mut link = Link {
        name: String::new(),
        index: message.header.index,
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        is_veth: false,
        xdp: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(bytes) if is_ethernet => {
                link.mac = bytes.try_into().ok().map(Mac);
            }
            LinkAttribute::Xdp(attributes) => link.xdp = xdp(&attributes),
            LinkAttribute::LinkInfo(infos) => {
                link.is_veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
            }
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

/// What is attached. Of several at once the one nearest to the wire, which sees packets first.
fn xdp(attributes: &[Attribute]) -> Option<LinkXdp> {
    let id_in = |place: XdpPlace| {
        attributes
            .iter()
            .find_map(|attribute| match (place, attribute) {
                (XdpPlace::Driver, &Attribute::DrvProgId(id))
                | (XdpPlace::Skb, &Attribute::SkbProgId(id))
                | (XdpPlace::Hardware, &Attribute::HwProgId(id)) => Some(id),
                _ => None,
            })
    };
    let attached = attributes.iter().find_map(|attribute| match attribute {
        Attribute::Attached(attached) => Some(*attached),
        _ => None,
    })?;
    if attached == XdpAttached::None {
        return None;
    }
    [XdpPlace::Hardware, XdpPlace::Driver, XdpPlace::Skb]
        .into_iter()
        .find_map(|place| {
            id_in(place)
                .filter(|&id| id != 0)
                .map(|program| LinkXdp { program, place })
        })
}
