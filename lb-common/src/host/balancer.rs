//! One load balancer: what it was told and what it remembers.

use std::net::SocketAddr;

use crate::{
    abi::{BackendId, Flow, FlowKey, ServiceId},
    datapath::Stage,
    host::{
        HostFlows, Outcome,
        frame::Frame,
        process,
        world::{BACKENDS, CLIENTS, World},
    },
};

/// A load balancer that frames are given to.
#[derive(Clone, Debug, Default)]
pub struct Balancer {
    /// Its services, backends and addresses.
    pub world: World,
    /// Its flows, counters and clock.
    pub flows: HostFlows,
}

impl Balancer {
    /// One that has not seen a packet.
    pub fn new(world: World) -> Self {
        Self {
            world,
            flows: HostFlows::new(),
        }
    }

    /// A frame comes in on the clients' interface.
    pub fn from_client(&mut self, frame: &Frame) -> Outcome {
        self.receive(CLIENTS, &frame.bytes())
    }

    /// A frame comes in on the backends' interface.
    pub fn from_backend(&mut self, frame: &Frame) -> Outcome {
        self.receive(BACKENDS, &frame.bytes())
    }

    /// Any bytes come in.
    pub fn receive(&mut self, ifindex: u32, frame: &[u8]) -> Outcome {
        process(frame, ifindex, &self.world.tables, &mut self.flows)
    }

    /// The entry of a client's flow with a service.
    pub fn flow(&self, service: ServiceId, client: SocketAddr) -> Option<(Stage, Flow)> {
        let key = FlowKey {
            client: client.ip().into(),
            service,
            client_port: client.port().into(),
            service_port: self.world.tables.services.get(&service)?.port,
        };
        self.flows.peek(&key).map(|(stage, flow)| (stage, *flow))
    }

    /// The backend of a client's flow with a service.
    pub fn backend(&self, service: ServiceId, client: SocketAddr) -> Option<BackendId> {
        self.flow(service, client).map(|(_, flow)| flow.backend)
    }
}
