use lb_common::abi::BackendState;

use super::*;
use crate::{
    config::{RawConfig, Sizes},
    plan::{Change, plan},
};

/// An agent's memory, without the kernel.
#[derive(Default)]
struct Memory {
    tables: Tables,
    ids: Ids,
    built: Built,
}

impl Memory {
    /// Plans and carries out what `text` asks for.
    fn run(&mut self, text: &str) -> Vec<Change> {
        let raw = RawConfig::from_toml(text, "test").unwrap();
        let config = Config::check(&raw).unwrap();
        self.ids = self.ids.assigned(&config, &Sizes::default());
        let desired = desired(&config, &self.ids, &self.tables, &mut self.built);
        let changes = plan(&self.tables, &desired);
        for change in &changes {
            self.tables.apply(change);
        }
        assert_eq!(self.tables, desired);
        changes
    }

    fn backend(&self, service: &str, address: &str) -> Backend {
        let id = self.ids.backend(service, address.parse().unwrap()).unwrap();
        self.tables.backends[&id]
    }
}

fn service(name: &str, address: &str, rest: &str, backends: &[&str]) -> String {
    let backends: String = backends
        .iter()
        .map(|b| format!("[[service.backend]]\naddress = \"{b}\"\n"))
        .collect();
    format!(
        "[[service]]\nname = \"{name}\"\naddress = \"{address}\"\nport = 80\nslots = 251\n{rest}\n{backends}"
    )
}

#[test]
fn a_service_has_all_its_parts() {
    let mut memory = Memory::default();
    memory.run(&service(
        "web",
        "10.9.0.1",
        "",
        &["10.0.0.1:8080", "10.0.0.2:8080"],
    ));
    let id = memory.ids.service("web").unwrap();
    let record = memory.tables.services[&id];
    assert_eq!(record.slots, 251);
    assert_eq!(record.seed, select::seed("web"));
    assert_eq!(memory.tables.slots[&id].len(), 251);
    assert!(memory.tables.has_backend(record.fallback));
    assert_eq!(memory.tables.endpoints.len(), 3);
    assert_eq!(
        memory.backend("web", "10.0.0.1:8080").port,
        Port::from(8080)
    );
}

#[test]
fn dsr_has_no_way_back_and_keeps_the_port() {
    let mut memory = Memory::default();
    memory.run(&service(
        "web",
        "10.9.0.1",
        "mode = \"dsr-l2\"",
        &["10.0.0.1"],
    ));
    assert_eq!(memory.tables.endpoints.len(), 1);
    assert_eq!(memory.backend("web", "10.0.0.1:80").port, Port::default());
}

#[test]
fn services_that_share_a_backend_stand_in_a_row() {
    let mut memory = Memory::default();
    let a = service("a", "10.9.0.1", "", &["10.0.0.1:80"]);
    let b = service("b", "10.9.0.2", "", &["10.0.0.1:80"]);
    memory.run(&format!("{a}{b}"));
    let row: Vec<(u8, u8, u32)> = memory
        .tables
        .endpoints
        .iter()
        .filter(|(_, e)| e.role == Role::BACKEND)
        .map(|(key, e)| (key.nth, e.more, e.service.0))
        .collect();
    assert_eq!(row, [(0, 1, 1), (1, 0, 2)]);
    memory.run(&b);
    let left: Vec<(u8, u8)> = memory
        .tables
        .endpoints
        .iter()
        .filter(|(_, e)| e.role == Role::BACKEND)
        .map(|(key, e)| (key.nth, e.more))
        .collect();
    assert_eq!(left, [(0, 0)]);
}

#[test]
fn tables_are_built_only_for_what_changed() {
    let mut memory = Memory::default();
    let a = service("a", "10.9.0.1", "", &["10.0.0.1", "10.0.0.2"]);
    let b = |rest: &str| service("b", "10.9.0.2", rest, &["10.0.0.3", "10.0.0.4"]);
    memory.run(&format!("{a}{}", b("")));
    let before = memory.tables.slots.clone();
    let changes = memory.run(&format!("{a}{}weight = 3\n", b("")));
    assert!(
        matches!(&*changes, [Change::PutSlots(ServiceId(2), _)]),
        "{changes:?}"
    );
    assert!(std::sync::Arc::ptr_eq(
        &before[&ServiceId(1)],
        &memory.tables.slots[&ServiceId(1)]
    ));
    let changes = memory.run(&format!(
        "{a}{}weight = 3\n",
        b("timeouts = { udp = \"9s\" }")
    ));
    assert!(
        matches!(&*changes, [Change::PutService(ServiceId(2), _)]),
        "{changes:?}"
    );
}

#[test]
fn a_disabled_backend_has_no_slot_and_a_backend_with_weight_0_neither() {
    let mut memory = Memory::default();
    memory.run(&format!(
        "{}state = \"disabled\"\n[[service.backend]]\naddress = \"10.0.0.9\"\nweight = 0\n",
        service("a", "10.9.0.1", "", &["10.0.0.1", "10.0.0.2"]),
    ));
    let only = memory
        .ids
        .backend("a", "10.0.0.1:80".parse().unwrap())
        .unwrap();
    assert!(
        memory.tables.slots[&ServiceId(1)]
            .iter()
            .all(|&id| id == only)
    );
    assert_eq!(
        memory.backend("a", "10.0.0.2:80").state,
        BackendState::DISABLED
    );
}

#[test]
fn an_id_that_comes_back_has_another_generation() {
    let mut memory = Memory::default();
    memory.run(&service("a", "10.9.0.1", "", &["10.0.0.1"]));
    let first = memory.backend("a", "10.0.0.1:80");
    memory.run(&service("a", "10.9.0.1", "", &["10.0.0.2"]));
    // As if all other ids had been given in between.
    memory.ids = Ids::default();
    memory.run(&service("a", "10.9.0.1", "", &["10.0.0.3"]));
    let again = memory.backend("a", "10.0.0.3:80");
    assert_eq!(again.generation, first.generation + 1);
    // The same backend in another mode is reached otherwise: its flows choose anew.
    memory.run(&service(
        "a",
        "10.9.0.1",
        "mode = \"dsr-l2\"",
        &["10.0.0.3"],
    ));
    let other = memory.backend("a", "10.0.0.3:80");
    assert_eq!(other.generation, again.generation + 1);
}

#[test]
fn an_address_goes_where_it_is_asked_for() {
    let config = |address: &str, rest: &str| {
        let raw = RawConfig::from_toml(&service("a", address, rest, &[]), "test").unwrap();
        Config::check(&raw).unwrap()
    };
    let networks = BTreeMap::from([
        (
            "eth1".to_owned(),
            vec![
                ("10.0.0.1".parse().unwrap(), 24),
                ("2001:db8::1".parse().unwrap(), 64),
            ],
        ),
        (
            "eth2".to_owned(),
            vec![
                ("10.0.1.1".parse().unwrap(), 24),
                ("10.9.0.9".parse().unwrap(), 32),
            ],
        ),
    ]);
    let on = |address: &str, rest: &str| -> Vec<String> {
        addresses(&config(address, rest), &networks)
            .into_iter()
            .map(|a| a.interface)
            .collect()
    };
    assert_eq!(on("10.0.1.77", ""), ["eth2"]);
    assert_eq!(on("2001:db8::77", ""), ["eth1"]);
    assert_eq!(on("10.9.0.9", ""), ["eth1", "eth2"]);
    assert_eq!(on("10.0.1.77", "no_address = true"), Vec::<String>::new());
}
