//! Carrying out a plan, on the maps and on the host's addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use lb_common::abi::{Address, BackendId};

use super::Agent;
use crate::{
    network::Placed,
    plan::{self, Change, HostAddress, Tables},
    state::PlacedAddress,
};

impl Agent {
    /// Makes maps and addresses as the configuration says.
    pub(super) async fn fill(&mut self, notes: &mut Vec<String>) -> Result<()> {
        let desired = self.desired();
        self.expect_addresses(&desired)?;
        for change in plan::plan(&self.tables, &desired) {
            self.carry(&change).await?;
            match &change {
                Change::AddAddress(a) => {
                    notes.push(format!("put {} on {}", lone(a.address.ip()), a.interface));
                }
                Change::RemoveAddress(a) => {
                    let address = lone(a.address.ip());
                    notes.push(format!("removed {address} from {}", a.interface));
                }
                _ => {}
            }
        }
        self.state.addresses = placed(&self.tables);
        Ok(())
    }

    /// What maps and addresses should be.
    fn desired(&mut self) -> Tables {
        let mut desired =
            plan::desired(&self.config, &self.state.ids, &self.tables, &mut self.built);
        if self.state.no_address {
            return desired;
        }
        let is_ours = |name: &str, address: IpAddr| {
            self.state
                .addresses
                .iter()
                .any(|a| a.interface == name && a.address == address)
        };
        let mut networks: BTreeMap<String, Vec<(IpAddr, u8)>> = BTreeMap::new();
        let mut others: BTreeSet<IpAddr> = BTreeSet::new();
        for link in &self.links {
            let on_link = self
                .host_addresses
                .iter()
                .filter(|a| a.ifindex == link.index && !is_ours(&link.name, a.address));
            let on_link: Vec<(IpAddr, u8)> = on_link.map(|a| (a.address, a.prefix)).collect();
            others.extend(on_link.iter().map(|&(address, _)| address));
            let is_wanted = self.config.interfaces.iter().any(|i| i.name == link.name);
            if is_wanted && self.is_attached(&link.name) {
                networks.insert(link.name.clone(), on_link);
            }
        }
        // An address that is on this host already is somebody else's to add and remove.
        desired.addresses = plan::addresses(&self.config, &networks);
        desired
            .addresses
            .retain(|a| !others.contains(&a.address.ip()));
        desired
    }

    /// Notes down addresses before they are added: should the agent be killed in between, they
    /// are known to be ours.
    fn expect_addresses(&mut self, desired: &Tables) -> Result<()> {
        let mut all = placed(&self.tables);
        all.extend(placed(desired));
        all.sort_unstable();
        all.dedup();
        if all == self.state.addresses {
            return Ok(());
        }
        let mut kept = self.folder.load()?.unwrap_or_else(|| self.state.clone());
        kept.addresses = all;
        self.folder.save(&kept)
    }

    /// Carries out one step.
    pub(super) async fn carry(&mut self, change: &Change) -> Result<()> {
        match change {
            Change::AddAddress(HostAddress { interface, address }) => {
                let ifindex = self.ifindex(interface)?;
                let placed = self
                    .network
                    .add_address(ifindex, address.ip())
                    .await
                    .with_context(|| refused(interface, address.ip()))?;
                if placed == Placed::WasThere {
                    return Ok(());
                }
            }
            Change::RemoveAddress(HostAddress { interface, address }) => {
                // With its interface the address went too.
                if let Ok(ifindex) = self.ifindex(interface) {
                    self.network.remove_address(ifindex, address.ip()).await?;
                }
            }
            Change::PutBackend(id, backend) => {
                let backend = self.way_of(backend.address.ip()).on(*backend);
                self.kernel.apply(&Change::PutBackend(*id, backend))?;
                self.ways.remove(id);
            }
            change => self.kernel.apply(change)?,
        }
        self.tables.apply(change);
        match change {
            Change::PutSlots(..) | Change::RemoveSlots(_) => self.count_shares(),
            Change::RemoveBackend(id) => drop(self.ways.remove(id)),
            _ => {}
        }
        Ok(())
    }

    /// Counts the cells of each backend.
    pub(super) fn count_shares(&mut self) {
        self.shares = self
            .tables
            .slots
            .iter()
            .map(|(&service, slots)| {
                let mut cells: BTreeMap<BackendId, u32> = BTreeMap::new();
                for &id in slots.iter() {
                    *cells.entry(id).or_default() += 1;
                }
                (service, cells)
            })
            .collect();
    }

    /// Looks at links and addresses again. Addresses of ours that are gone are missed from now on.
    pub(super) async fn look(&mut self) -> Result<()> {
        self.links = self.network.links().await?;
        self.host_addresses = self.network.addresses().await?;
        let is_there = |placed: &PlacedAddress| {
            let link = self.links.iter().find(|link| link.name == placed.interface);
            link.is_some_and(|link| {
                self.host_addresses
                    .iter()
                    .any(|a| a.ifindex == link.index && a.address == placed.address)
            })
        };
        self.tables.addresses = self
            .state
            .addresses
            .iter()
            .filter(|placed| is_there(placed))
            .map(|placed| HostAddress {
                interface: placed.interface.clone(),
                address: Address::from(placed.address),
            })
            .collect();
        Ok(())
    }

    /// Tells the program which addresses are this host's: those it has and those of the services.
    pub(super) fn write_locals(&mut self) -> Result<()> {
        let services = self.config.services.iter().flat_map(|s| &s.addresses);
        let locals: BTreeSet<Address> = self
            .host_addresses
            .iter()
            .map(|a| &a.address)
            .chain(services)
            .map(|&address| Address::from(address))
            .collect();
        self.kernel
            .set_locals(&locals)
            .context("cannot tell the program this host's addresses")
    }
}

/// The addresses in `tables` as they are kept.
fn placed(tables: &Tables) -> Vec<PlacedAddress> {
    tables
        .addresses
        .iter()
        .map(|a| PlacedAddress {
            interface: a.interface.clone(),
            address: a.address.ip(),
        })
        .collect()
}

/// Why an address could not be put on an interface, where that is to be seen.
fn refused(interface: &str, address: IpAddr) -> String {
    let setting = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
    let is_off = std::fs::read_to_string(setting).is_ok_and(|value| value.trim() == "1");
    if address.is_ipv6() && is_off {
        format!(
            "IPv6 is turned off on {interface}: sudo sysctl -w \
             net.ipv6.conf.{interface}.disable_ipv6=0"
        )
    } else {
        format!("{interface} does not take {address}")
    }
}

/// The address with the prefix of a lone host.
pub(super) fn lone(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}
