//! The kernel's word: the program that is attached runs the very frame that was traced.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, ensure};
use aya::{
    Pod, TestRunOptions,
    maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuHashMap},
    programs::{TestRun as _, Xdp},
};
use aya_obj::programs::XdpAttachType;
use lb_common::abi::{
    Backend, Conversation, Counter, Direct, Endpoint, EndpointKey, Flow, FlowKey, Fragment,
    FragmentKey, InterfaceCounters, Reason, Service,
};
use lb_tests::scene::Scene;
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use serde_json::Value;
use zerocopy::IntoBytes as _;

/// The CPU that packets are run on: the last that there is, where there are several not the default
/// of `--cpu`.
pub(crate) fn cpu() -> Result<usize> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let last = (0..CpuSet::count())
        .rev()
        .find(|&cpu| allowed.is_set(cpu) == Ok(true));
    last.context("this thread may use no CPU")
}

/// What other frames of the test's network (ARP, neighbour discovery) may be counted for meanwhile.
const AROUND: [Reason; 3] = [Reason::NotIp, Reason::Multicast, Reason::OtherProtocol];

/// All that a packet may change, and what it is decided by. Counters are left out: a frame of the
/// network itself may come in at any moment.
#[derive(Debug, PartialEq)]
pub(crate) struct Maps {
    flows: BTreeMap<FlowKey, Flow>,
    new_flows: BTreeMap<FlowKey, Flow>,
    direct: BTreeMap<Conversation, Direct>,
    fragments: BTreeMap<FragmentKey, Fragment>,
    endpoints: BTreeMap<EndpointKey, Endpoint>,
    services: Vec<Service>,
    backends: Vec<Backend>,
    rotations: Vec<Vec<u64>>,
}

impl Maps {
    /// The maps that are pinned now.
    pub(crate) fn read(pins: &Path) -> Result<Self> {
        let rotations: PerCpuArray<MapData, u64> =
            Map::PerCpuArray(pinned(pins, "rotations")?).try_into()?;
        Ok(Self {
            flows: entries(Map::LruHashMap(pinned(pins, "flows")?))?,
            new_flows: entries(Map::LruHashMap(pinned(pins, "new_flows")?))?,
            direct: entries(Map::LruHashMap(pinned(pins, "direct")?))?,
            fragments: entries(Map::LruHashMap(pinned(pins, "fragments")?))?,
            endpoints: entries(Map::HashMap(pinned(pins, "endpoints")?))?,
            services: values(pinned(pins, "services")?)?,
            backends: values(pinned(pins, "backends")?)?,
            rotations: rotations
                .iter()
                .map(|of_cpus| Ok(of_cpus?.to_vec()))
                .collect::<Result<_>>()?,
        })
    }
}

fn pinned(pins: &Path, name: &str) -> Result<MapData> {
    MapData::from_pin(pins.join(name)).with_context(|| format!("map {name}"))
}

fn entries<K: Pod + Ord, V: Pod>(map: Map) -> Result<BTreeMap<K, V>> {
    let map: HashMap<MapData, K, V> = map.try_into()?;
    map.iter().map(|entry| Ok(entry?)).collect()
}

fn values<V: Pod>(map: MapData) -> Result<Vec<V>> {
    let map: Array<MapData, V> = Map::Array(map).try_into()?;
    map.iter().map(|value| Ok(value?)).collect()
}

/// How often packets that came in on an interface have left for each reason.
fn counted(pins: &Path, ifindex: u32) -> Result<Vec<u64>> {
    let map: PerCpuHashMap<MapData, u32, InterfaceCounters> =
        Map::PerCpuHashMap(pinned(pins, "if_counters")?).try_into()?;
    let mut sums = vec![0; Reason::ROOM];
    for of_cpu in map.get(&ifindex, 0)?.iter() {
        for (sum, Counter { packets, .. }) in sums.iter_mut().zip(&of_cpu.reasons) {
            *sum += packets;
        }
    }
    Ok(sums)
}

/// Gives a frame to the program that is attached, on [`cpu`]: its action, and the frame afterwards.
fn run(scene: &Scene, ifindex: u32, frame: &[u8]) -> Result<(u32, Vec<u8>)> {
    let path = scene.agent.pins().join("program");
    let on = cpu()?;
    scene.network.balancer.netns.run(|| {
        let mut cpu = CpuSet::new();
        cpu.set(on)?;
        sched_setaffinity(Pid::from_raw(0), &cpu)?;
        let program = Xdp::from_pin(&path, XdpAttachType::Interface)?;
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
        let context = [0, u32::try_from(frame.len())?, 0, ifindex, 0, 0];
        let mut out = vec![0; 4096];
        let ran = program.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(context.as_bytes()),
            ..TestRunOptions::new()
        })?;
        out.truncate(ran.data_size_out as usize);
        Ok((ran.return_value, out))
    })
}

fn unhex(value: &Value) -> Result<Vec<u8>> {
    let digits = value.as_str().context("no digits")?;
    (0..digits.len())
        .step_by(2)
        .map(|at| Ok(u8::from_str_radix(&digits[at..at + 2], 16)?))
        .collect()
}

/// Bytes as a trace prints them.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A trace, which the kernel's own run of the packet, right after it, has to confirm.
pub(crate) fn confirmed(scene: &Scene, told: Value) -> Result<Value> {
    let pins = scene.agent.pins();
    let device = told["interface"].as_str().context("no interface")?;
    let ifindex = u32::try_from(scene.network.balancer.netns.link(device)?.ifindex())?;
    let before = counted(&pins, ifindex)?;
    let (action, frame) = run(scene, ifindex, &unhex(&told["frame"])?)?;
    let after = counted(&pins, ifindex)?;

    let verdict = match action {
        1 => "drop",
        2 => "pass",
        3 => "transmit",
        4 => "redirect",
        other => anyhow::bail!("action {other}"),
    };
    ensure!(
        told["verdict"] == verdict,
        "kernel: {verdict}, told: {told:#}"
    );
    ensure!(
        told["frame_after"] == hex(&frame).as_str(),
        "kernel: {}, told: {told:#}",
        hex(&frame)
    );
    for reason in Reason::ALL {
        let more = after[*reason as usize] - before[*reason as usize];
        let is_told = told["reason"] == reason.name();
        let fits = match (is_told, AROUND.contains(reason)) {
            (told, false) => more == u64::from(told),
            (told, true) => more >= u64::from(told),
        };
        ensure!(fits, "kernel: {more} × {}, told: {told:#}", reason.name());
    }
    Ok(told)
}

/// Traces what `options` ask about, sees to it that no map has changed, and has it confirmed.
pub(crate) fn trace(scene: &Scene, options: &str, reason: &str) -> Result<Value> {
    let pins = scene.agent.pins();
    let before = Maps::read(&pins)?;
    let told = scene
        .agent
        .json(&format!("trace --cpu {} {options}", cpu()?))?;
    assert_eq!(Maps::read(&pins)?, before, "trace {options}");
    assert_eq!(told["reason"], reason, "{options}: {told:#}");
    confirmed(scene, told).with_context(|| format!("trace {options}"))
}
