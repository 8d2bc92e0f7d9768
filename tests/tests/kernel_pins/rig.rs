//! What the tests stand on: a bpffs and namespaces of their own, and something to put into the maps.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{HashMap, Map, MapData};
use lb_common::abi::{
    Address, Backend, BackendId, BackendState, Endpoint, EndpointKey, Flow, FlowKey, FlowState,
    Mode, Port, Role, Service, ServiceId,
};
use lb_tests::{netns::Netns, wait};
use lb_user::{
    kernel::{Attached, Kernel, Options, Sizes, Table, Taken, XdpMode, clock},
    network::{Link, Network},
    plan::{Change, Tables},
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

/// A bpffs, unmounted when dropped.
pub(crate) struct Bpffs(TempDir);

impl Bpffs {
    pub(crate) fn mount() -> Result<Self> {
        let folder = TempDir::with_prefix("lbt-bpffs")?;
        mount(
            Some("bpf"),
            folder.path(),
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .context("cannot mount a bpffs")?;
        Ok(Self(folder))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.path(), MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {error}", self.path().display());
        }
    }
}

/// A bpffs, a namespace `lb` with a veth `e1`, and the other end in `peer`.
pub(crate) struct Rig {
    bpffs: Bpffs,
    pub(crate) lb: Netns,
    pub(crate) peer: Netns,
}

impl Rig {
    pub(crate) fn create() -> Result<Self> {
        let rig = Self {
            bpffs: Bpffs::mount()?,
            lb: Netns::create("pins-lb")?,
            peer: Netns::create("pins-peer")?,
        };
        rig.add_veth("e1", "10.8.0")?;
        Ok(rig)
    }

    pub(crate) fn add_veth(&self, name: &str, network: &str) -> Result<()> {
        let peer = self.peer.name();
        self.lb.ip(&format!(
            "link add {name} type veth peer name {name} netns {peer}\n\
             addr add {network}.1/24 dev {name}\nlink set {name} up"
        ))?;
        self.peer.ip(&format!(
            "addr add {network}.2/24 dev {name}\nlink set {name} up"
        ))
    }

    /// A folder of pins on the same bpffs.
    pub(crate) fn other_pins(&self) -> PathBuf {
        self.bpffs.path().join("lb-user/other")
    }

    pub(crate) fn pins(&self) -> PathBuf {
        self.bpffs.path().join("lb-user/one")
    }

    pub(crate) fn options(&self) -> Options {
        Options {
            pins: self.pins(),
            sizes: Sizes {
                flows: 1 << 15,
                new_flows: 1 << 10,
                services: 16,
                backends: 32,
                endpoints: 64,
                ..Sizes::default()
            },
            discard: false,
            log_packets: false,
        }
    }

    pub(crate) fn open(&self) -> Result<(Kernel, Taken)> {
        Kernel::open(&self.options())
    }

    /// The interface as the kernel shows it now.
    pub(crate) fn link(&self, name: &str) -> Result<Link> {
        self.lb.run(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?
                .block_on(async { Network::open().await?.link(name).await })
        })
    }

    pub(crate) fn attach(
        &self,
        kernel: &mut Kernel,
        name: &str,
        mode: XdpMode,
    ) -> Result<Attached> {
        let link = self.link(name)?;
        self.lb.run(|| kernel.attach(&link, mode))
    }

    /// The map pinned under `name`, past the agent.
    pub(crate) fn flows(&self, name: &str) -> Result<HashMap<MapData, FlowKey, Flow>> {
        let map = MapData::from_pin(self.pins().join(name))?;
        Ok(Map::LruHashMap(map).try_into()?)
    }

    /// What `ping` from the other end comes to.
    pub(crate) fn ping(&self, address: &str) -> Result<()> {
        self.peer
            .finish(
                Command::new("ping").args(["-c1", "-W5", address]),
                wait::LONG,
            )?
            .text()
            .map(drop)
    }
}

pub(crate) fn flow_key(number: u32) -> FlowKey {
    FlowKey {
        client: Address::from(IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 | number))),
        service: ServiceId(1),
        client_port: Port::from(40_000),
        service_port: Port::from(80),
    }
}

pub(crate) fn flow(backend: u32) -> Flow {
    Flow {
        backend: BackendId(backend),
        made: clock(),
        seen: clock(),
        state: FlowState::ESTABLISHED,
        ..Flow::default()
    }
}

pub(crate) fn add_flows(map: &mut HashMap<MapData, FlowKey, Flow>, count: u32) -> Result<()> {
    for number in 0..count {
        map.insert(flow_key(number), flow(number % 7 + 1), 0)?;
    }
    Ok(())
}

/// Checks that exactly the flows of [`add_flows`] are listed, each once.
pub(crate) fn expect_flows(kernel: &Kernel, table: Table, count: u32) -> Result<()> {
    let mut seen = BTreeMap::new();
    kernel.flow_tables()?.each(|entry| {
        if entry.table == table {
            seen.insert(entry.key, entry.flow.backend.0);
        }
        ControlFlow::Continue(())
    })?;
    ensure!(
        seen.len() == count as usize,
        "{} of {count} flows",
        seen.len()
    );
    for number in 0..count {
        let backend = seen.get(&flow_key(number));
        ensure!(
            backend == Some(&(number % 7 + 1)),
            "flow {number}: {backend:?}"
        );
    }
    Ok(())
}

/// One service with two backends, as a plan would write it.
pub(crate) fn changes() -> Vec<Change> {
    let address = Address::v4([203, 0, 113, 10]);
    let service = Service {
        address,
        seed: 7,
        slots: 65_537,
        fallback: BackendId(1),
        port: Port::from(80),
        mode: Mode::NAT,
        protocol: 6,
        ..Service::default()
    };
    let backend = |n: u8| Backend {
        address: Address::v4([10, 8, 0, n]),
        port: Port::from(8080),
        state: BackendState::ENABLED,
        service: ServiceId(3),
        generation: 1,
        ..Backend::default()
    };
    let cells: Vec<BackendId> = (0..65_537).map(|cell| BackendId(1 + cell % 2)).collect();
    let endpoint = Endpoint {
        service: ServiceId(3),
        port: Port::from(80),
        role: Role::SERVICE,
        ..Endpoint::default()
    };
    let key = EndpointKey {
        address,
        port: Port::from(80),
        protocol: 6,
        nth: 0,
    };
    vec![
        Change::PutBackend(BackendId(1), backend(11)),
        Change::PutBackend(BackendId(2), backend(12)),
        Change::PutSlots(ServiceId(3), Arc::from(cells)),
        Change::PutService(ServiceId(3), service),
        Change::PutEndpoint(key, endpoint),
    ]
}

/// Carries out [`changes`] on the kernel and on tables, and checks that both then hold the same.
pub(crate) fn fill(kernel: &mut Kernel) -> Result<Tables> {
    let mut expected = Tables::default();
    for change in changes() {
        kernel.apply(&change)?;
        expected.apply(&change);
    }
    ensure!(
        kernel.read()? == expected,
        "the maps do not hold what was written"
    );
    Ok(expected)
}

pub(crate) fn refusal(result: Result<(Kernel, Taken)>) -> Result<String> {
    let Err(error) = result else {
        bail!("it was not refused");
    };
    let line = format!("{error:#}");
    ensure!(!line.contains('\n'), "more than one line: {line}");
    Ok(line)
}
