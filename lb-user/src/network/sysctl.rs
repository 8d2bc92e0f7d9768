//! Kernel settings that the data path needs: which they are, setting them, putting them back.
//!
//! * `bpf_fib_lookup` answers only on interfaces that forward.
//! * IPv6 forwarding makes a host ignore router advertisements where `accept_ra` is 1, so it becomes
//!   2 there *before* forwarding is turned on.
//! * The kernel's ICMP redirects would teach backends to go past the load balancer.
//!
//! Settings are those of the calling thread's network namespace. Turning forwarding on or off has
//! side effects on other settings (of every interface), so the whole group is read before and after;
//! what differs is remembered, and what turning forwarding off again would drag along.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::checked_name;

/// Where the kernel shows its network settings.
const ROOT: &str = "/proc/sys/net";

const V4_FORWARDING: &str = "ipv4/ip_forward";
const V6_FORWARDING: &str = "ipv6/conf/all/forwarding";

/// What the data path is to be used for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Names of the attached interfaces.
    pub interfaces: Vec<String>,
    /// IPv4 packets are forwarded.
    pub ipv4: bool,
    /// IPv6 packets are forwarded.
    pub ipv6: bool,
}

/// One setting that differs from what is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Its path below `/proc/sys/net`.
    pub key: String,
    /// Its value now.
    pub is: String,
    /// The value that is needed.
    pub needed: &'static str,
}

impl Missing {
    /// The line that sets it, to be typed by an administrator.
    pub fn command(&self) -> String {
        format!("sysctl -w {}={}", dotted(&self.key), self.needed)
    }
}

/// What settings were before they were changed, by path below `/proc/sys/net`. Kept by the agent
/// in its state, so that `detach` puts it back even after a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before(BTreeMap<String, Value>);

/// A setting that was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Value {
    was: String,
    became: String,
}

impl Before {
    /// Whether nothing was changed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What was changed, for people: `net.ipv4.ip_forward 0 -> 1`.
    pub fn lines(&self) -> impl Iterator<Item = String> + '_ {
        self.0
            .iter()
            .filter(|(_, value)| value.was != value.became)
            .map(|(key, value)| format!("{} {} -> {}", dotted(key), value.was, value.became))
    }

    /// Takes in what a later [`Settings::set`] has changed: what was there first is kept.
    pub fn merge(&mut self, later: Self) {
        for (key, value) in later.0 {
            match self.0.get_mut(&key) {
                Some(first) => first.became = value.became,
                None => {
                    self.0.insert(key, value);
                }
            }
        }
    }
}

/// The kernel's network settings.
#[derive(Clone, Debug)]
pub struct Settings {
    root: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            root: PathBuf::from(ROOT),
        }
    }
}

impl Settings {
    /// The settings that are not as `needs` asks, in the order in which they are to be set.
    ///
    /// # Errors
    ///
    /// When one cannot be read (an interface that is not there).
    pub fn missing(&self, needs: &Needs) -> Result<Vec<Missing>> {
        let mut missing = Vec::new();
        let mut want = |key: String, needed: &'static str| -> Result<()> {
            let is = self.read(&key)?;
            if is != needed {
                missing.push(Missing { key, is, needed });
            }
            Ok(())
        };
        if needs.ipv6 && self.has_ipv6() {
            for interface in self.interfaces_that_take_advertisements()? {
                want(format!("ipv6/conf/{interface}/accept_ra"), "2")?;
            }
            want(V6_FORWARDING.into(), "1")?;
            for interface in &needs.interfaces {
                let interface = checked_name(interface)?;
                want(format!("ipv6/conf/{interface}/forwarding"), "1")?;
            }
        }
        if needs.ipv4 {
            want(V4_FORWARDING.into(), "1")?;
        }
        if !needs.interfaces.is_empty() {
            want("ipv4/conf/all/send_redirects".into(), "0")?;
        }
        for interface in &needs.interfaces {
            let interface = checked_name(interface)?;
            if needs.ipv4 {
                want(format!("ipv4/conf/{interface}/forwarding"), "1")?;
            }
            want(format!("ipv4/conf/{interface}/send_redirects"), "0")?;
        }
        Ok(missing)
    }

    /// Sets what [`Settings::missing`] names and tells what was there before, the side effects
    /// included.
    ///
    /// # Errors
    ///
    /// When one cannot be set; those set before it are put back.
    pub fn set(&self, needs: &Needs) -> Result<Before> {
        let first = self.snapshot()?;
        let mut done = Ok(());
        for setting in self.missing(needs)? {
            // One that an earlier one has set on the way is not written again.
            if self.read(&setting.key)? == setting.needed {
                continue;
            }
            done = self.write(&setting.key, setting.needed);
            if done.is_err() {
                break;
            }
        }
        let before = difference(&first, &self.snapshot()?);
        if let Err(error) = done {
            self.restore(&before)?;
            return Err(error);
        }
        Ok(before)
    }

    /// Puts back what was there. A setting that somebody has changed since, or whose interface is
    /// gone, is left alone.
    ///
    /// # Errors
    ///
    /// When one cannot be written; the others are put back all the same.
    pub fn restore(&self, before: &Before) -> Result<()> {
        let mut failed = None;
        // Forwarding of everything first, since it drags the other settings along; then what
        // interfaces had of their own, and accept_ra last of all.
        let rank = |key: &str| match key {
            V4_FORWARDING | V6_FORWARDING => 0,
            _ if key.ends_with("/accept_ra") => 2,
            _ => 1,
        };
        let mut ours: Vec<(&String, &Value)> = before
            .0
            .iter()
            .filter(|(key, value)| self.read(key).is_ok_and(|is| is == value.became))
            .collect();
        ours.sort_by_key(|(key, _)| rank(key));
        for (key, value) in ours {
            if self.read(key).is_ok_and(|is| is == value.was) {
                continue;
            }
            if let Err(error) = self.write(key, &value.was) {
                failed.get_or_insert(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Every setting that is set here or follows one that is.
    fn snapshot(&self) -> Result<BTreeMap<String, String>> {
        let mut values = BTreeMap::new();
        let mut keep = |key: String| {
            if let Ok(value) = self.read(&key) {
                values.insert(key, value);
            }
        };
        keep(V4_FORWARDING.into());
        for interface in self.conf("ipv4")? {
            for name in ["forwarding", "accept_redirects", "send_redirects"] {
                keep(format!("ipv4/conf/{interface}/{name}"));
            }
        }
        if self.has_ipv6() {
            for interface in self.conf("ipv6")? {
                for name in ["forwarding", "accept_ra"] {
                    keep(format!("ipv6/conf/{interface}/{name}"));
                }
            }
        }
        Ok(values)
    }

    /// The interfaces (and `default`) that listen to router advertisements and would stop when
    /// forwarding is turned on.
    fn interfaces_that_take_advertisements(&self) -> Result<Vec<String>> {
        let mut interfaces = self.conf("ipv6")?;
        interfaces.retain(|interface| {
            let is = |name: &str, value: &str| {
                self.read(&format!("ipv6/conf/{interface}/{name}"))
                    .is_ok_and(|is| is == value)
            };
            interface != "all" && is("accept_ra", "1") && is("forwarding", "0")
        });
        Ok(interfaces)
    }

    fn has_ipv6(&self) -> bool {
        self.root.join(V6_FORWARDING).exists()
    }

    /// The folders of `FAMILY/conf`: interfaces, `all` and `default`, sorted.
    fn conf(&self, family: &str) -> Result<Vec<String>> {
        let folder = self.root.join(family).join("conf");
        let mut names: Vec<String> = fs::read_dir(&folder)
            .with_context(|| format!("cannot read {}", folder.display()))?
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    /// The value of a setting, by its path below `/proc/sys/net`.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn read(&self, key: &str) -> Result<String> {
        let path = self.root.join(key);
        let value = fs::read_to_string(&path)
            .with_context(|| format!("cannot read the kernel setting {}", dotted(key)))?;
        Ok(value.trim().to_owned())
    }

    fn write(&self, key: &str, value: &str) -> Result<()> {
        fs::write(self.root.join(key), value)
            .with_context(|| format!("cannot set {}={value}", dotted(key)))
    }
}

/// What `after` has other than `before`; of a family whose forwarding is one of them, everything.
fn difference(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Before {
    let dragged: Vec<&str> = [(V4_FORWARDING, "ipv4/"), (V6_FORWARDING, "ipv6/")]
        .into_iter()
        .filter(|(key, _)| before.get(*key) != after.get(*key))
        .map(|(_, family)| family)
        .collect();
    let changed = before.iter().filter_map(|(key, was)| {
        let became = after.get(key)?;
        let is_dragged = dragged.iter().any(|family| key.starts_with(family));
        (was != became || is_dragged).then(|| {
            let value = Value {
                was: was.clone(),
                became: became.clone(),
            };
            (key.clone(), value)
        })
    });
    Before(changed.collect())
}

/// The name that sysctl(8) takes. With slashes where a part has a dot (`eth0.100`).
fn dotted(key: &str) -> String {
    if Path::new(key)
        .iter()
        .any(|part| part.to_string_lossy().contains('.'))
    {
        format!("net/{key}")
    } else {
        format!("net.{}", key.replace('/', "."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_dot_is_written_with_slashes() {
        assert_eq!(dotted("ipv4/ip_forward"), "net.ipv4.ip_forward");
        assert_eq!(
            dotted("ipv4/conf/eth0.100/send_redirects"),
            "net/ipv4/conf/eth0.100/send_redirects"
        );
    }

    #[test]
    fn what_was_there_first_is_what_is_put_back() {
        let one = |was: &str, became: &str| {
            let value = Value {
                was: was.into(),
                became: became.into(),
            };
            Before([("ipv4/ip_forward".to_owned(), value)].into())
        };
        let mut before = one("0", "1");
        before.merge(one("1", "2"));
        assert_eq!(before, one("0", "2"));
        assert_eq!(
            before.lines().collect::<Vec<_>>(),
            ["net.ipv4.ip_forward 0 -> 2"]
        );
    }
}
