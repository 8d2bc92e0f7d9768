//! What the agent tells about itself: the JSON of `lb-user`, read here and nowhere else.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use super::Agent;
use crate::wait;

/// A flow, as `lb-user flows` shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// Name of the service.
    pub service: String,
    /// The client's address and port.
    pub client: SocketAddr,
    /// The backend's address and port.
    pub backend: SocketAddr,
}

/// A flow in the JSON of `lb-user flows`.
#[derive(Deserialize)]
struct Listed {
    service: String,
    client: IpAddr,
    client_port: u16,
    backend: String,
    confirmed: bool,
}

/// What a service has carried, as `lb-user stats` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// Packets from clients.
    pub forward: u64,
    /// Packets back to clients (mode `nat` only).
    pub back: u64,
    /// Flows given to a backend.
    pub new_flows: u64,
}

impl Agent {
    /// The JSON of a command that reads.
    ///
    /// # Errors
    ///
    /// When the command fails or prints something else.
    pub fn json(&self, line: &str) -> Result<Value> {
        let text = self.ok(&format!("{line} -o json"))?;
        serde_json::from_str(&text).with_context(|| format!("`{line} -o json` printed {text}"))
    }

    /// Waits until every backend's next hop is known, as `status` tells.
    ///
    /// # Errors
    ///
    /// When that does not happen.
    pub fn resolved(&self) -> Result<()> {
        wait::until_true("the backends' next hops", wait::LONG, || {
            let status = self.json("status")?;
            let services = list(&status, "services")?;
            for service in services {
                for backend in list(service, "backends")? {
                    if backend["resolved"] != true {
                        return Ok(false);
                    }
                }
            }
            Ok(true)
        })
    }

    /// Packets by reason, summed over the attached interfaces. Reasons that never were are left out.
    ///
    /// # Errors
    ///
    /// When `stats` fails.
    pub fn reasons(&self) -> Result<BTreeMap<String, u64>> {
        let stats = self.json("stats")?;
        let mut sums = BTreeMap::new();
        for interface in list(&stats, "interfaces")? {
            let reasons = interface["reasons"].as_object();
            for (name, count) in reasons.with_context(|| format!("no reasons in {interface}"))? {
                *sums.entry(name.clone()).or_default() += number(count, "packets")?;
            }
        }
        sums.retain(|_, &mut packets| packets > 0);
        Ok(sums)
    }

    /// What service `name` has carried.
    ///
    /// # Errors
    ///
    /// When `stats` fails or there is no such service.
    pub fn carried(&self, name: &str) -> Result<Carried> {
        let stats = self.json("stats")?;
        for service in list(&stats, "services")? {
            if text(service, "name")? == name {
                return Ok(Carried {
                    forward: number(&service["forward"], "packets")?,
                    back: number(&service["back"], "packets")?,
                    new_flows: number(service, "new_flows")?,
                });
            }
        }
        bail!("no service {name} in {stats}")
    }

    /// The flows, in order.
    ///
    /// # Errors
    ///
    /// When `flows` fails.
    pub fn flows(&self) -> Result<Vec<Flow>> {
        flows(self.listed()?)
    }

    /// The flows that have left the table of new ones, in order.
    ///
    /// # Errors
    ///
    /// When `flows` fails.
    pub fn confirmed_flows(&self) -> Result<Vec<Flow>> {
        let mut listed = self.listed()?;
        listed.retain(|flow| flow.confirmed);
        flows(listed)
    }

    fn listed(&self) -> Result<Vec<Listed>> {
        Ok(serde_json::from_value(self.json("flows --limit 1000000")?)?)
    }
}

fn flows(listed: Vec<Listed>) -> Result<Vec<Flow>> {
    let mut flows = listed
        .into_iter()
        .map(|flow| {
            Ok(Flow {
                service: flow.service,
                client: SocketAddr::new(flow.client, flow.client_port),
                backend: flow.backend.parse()?,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    flows.sort();
    Ok(flows)
}

fn list<'v>(value: &'v Value, member: &str) -> Result<&'v Vec<Value>> {
    value[member]
        .as_array()
        .with_context(|| format!("no list {member:?} in {value}"))
}

fn text<'v>(value: &'v Value, member: &str) -> Result<&'v str> {
    value[member]
        .as_str()
        .with_context(|| format!("no text {member:?} in {value}"))
}

fn number(value: &Value, member: &str) -> Result<u64> {
    value[member]
        .as_u64()
        .with_context(|| format!("no number {member:?} in {value}"))
}
