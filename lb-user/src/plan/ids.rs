//! Which id a service or backend has: numbers that the maps use for names.
//!
//! Ids are given next-fit, so that one that was freed is not given again soon, and are kept in the
//! state folder, so that a restarted agent means the same by them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use lb_common::abi::{BackendId, ServiceId};
use serde::{Deserialize, Serialize};

use crate::config::{Config, Sizes};

/// The ids that are given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ids {
    /// By the service's name.
    services: BTreeMap<String, ServiceIds>,
    /// The last service id given.
    last_service: u32,
    /// The last backend id given.
    last_backend: u32,
}

/// A service's id and its backends'.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceIds {
    id: u32,
    backends: BTreeMap<SocketAddr, u32>,
}

impl Ids {
    /// The id of the service of this name.
    pub fn service(&self, name: &str) -> Option<ServiceId> {
        self.services.get(name).map(|ids| ServiceId(ids.id))
    }

    /// Every service's name and id.
    pub fn services(&self) -> impl Iterator<Item = (&str, ServiceId)> {
        self.services
            .iter()
            .map(|(name, ids)| (name.as_str(), ServiceId(ids.id)))
    }

    /// The id of a service's backend.
    pub fn backend(&self, service: &str, address: SocketAddr) -> Option<BackendId> {
        let ids = self.services.get(service)?;
        ids.backends.get(&address).copied().map(BackendId)
    }

    /// The ids for `config`: kept where the service or backend was there before, new for new ones,
    /// free where one is gone. `sizes` are those of the maps, and hold everything in `config`.
    #[must_use]
    pub fn assigned(&self, config: &Config, sizes: &Sizes) -> Self {
        let mut next = Self {
            services: BTreeMap::new(),
            ..*self
        };
        for service in &config.services {
            let known = self.services.get(&service.name);
            let backends = service.backends.iter().filter_map(|backend| {
                let id = *known?.backends.get(&backend.address)?;
                (id < sizes.backends).then_some((backend.address, id))
            });
            let ids = ServiceIds {
                id: known
                    .map(|k| k.id)
                    .filter(|&id| id < sizes.services)
                    .unwrap_or_default(),
                backends: backends.collect(),
            };
            next.services.insert(service.name.clone(), ids);
        }
        next.fill(config, sizes);
        next
    }

    /// Gives an id to everything that has none.
    fn fill(&mut self, config: &Config, sizes: &Sizes) {
        let mut services: BTreeSet<u32> = self.services.values().map(|ids| ids.id).collect();
        let mut backends: BTreeSet<u32> = self
            .services
            .values()
            .flat_map(|ids| ids.backends.values().copied())
            .collect();
        for service in &config.services {
            let ids = self.services.entry(service.name.clone()).or_default();
            if ids.id == 0 {
                ids.id = next_free(&mut self.last_service, &mut services, sizes.services);
            }
            for backend in &service.backends {
                ids.backends.entry(backend.address).or_insert_with(|| {
                    next_free(&mut self.last_backend, &mut backends, sizes.backends)
                });
            }
        }
    }
}

/// The first free id after `last`, from 1 to below `size`.
fn next_free(last: &mut u32, taken: &mut BTreeSet<u32>, size: u32) -> u32 {
    loop {
        *last = if *last + 1 < size { *last + 1 } else { 1 };
        if taken.insert(*last) {
            return *last;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RawConfig;

    fn config(services: &[(&str, u8, &[u8])]) -> Config {
        let text: String = services
            .iter()
            .map(|(name, address, backends)| {
                let backends: String = backends
                    .iter()
                    .map(|b| format!("[[service.backend]]\naddress = \"10.0.0.{b}:80\"\n"))
                    .collect();
                format!(
                    "[[service]]\nname = \"{name}\"\naddress = \"10.9.0.{address}\"\nport = 80\n\
                     {backends}"
                )
            })
            .collect();
        Config::check(&RawConfig::from_toml(&text, "test").unwrap()).unwrap()
    }

    fn backend(ids: &Ids, service: &str, last: u8) -> u32 {
        let address = SocketAddr::from(([10, 0, 0, last], 80));
        ids.backend(service, address).unwrap().0
    }

    #[test]
    fn ids_stay_and_a_freed_one_waits_its_turn() {
        let sizes = Sizes {
            backends: 5,
            ..Sizes::default()
        };
        let ids = Ids::default().assigned(&config(&[("web", 1, &[1, 2])]), &sizes);
        assert_eq!(ids.service("web"), Some(ServiceId(1)));
        assert_eq!((backend(&ids, "web", 1), backend(&ids, "web", 2)), (1, 2));

        let ids = ids.assigned(&config(&[("web", 1, &[2])]), &sizes);
        let ids = ids.assigned(&config(&[("web", 1, &[2, 1])]), &sizes);
        assert_eq!((backend(&ids, "web", 1), backend(&ids, "web", 2)), (3, 2));

        let ids = ids.assigned(&config(&[("web", 1, &[2, 1, 4, 5])]), &sizes);
        assert_eq!((backend(&ids, "web", 4), backend(&ids, "web", 5)), (4, 1));
    }

    #[test]
    fn a_backend_of_two_services_has_two_ids() {
        let config = config(&[("a", 1, &[1]), ("b", 2, &[1])]);
        let ids = Ids::default().assigned(&config, &Sizes::default());
        assert_ne!(backend(&ids, "a", 1), backend(&ids, "b", 1));
        assert_ne!(ids.service("a"), ids.service("b"));
    }

    #[test]
    fn ids_beyond_smaller_maps_are_given_anew() {
        let config = config(&[("a", 1, &[1, 2, 3])]);
        let ids = Ids {
            last_backend: 100,
            last_service: 100,
            ..Ids::default()
        };
        let ids = ids.assigned(&config, &Sizes::default());
        assert_eq!(backend(&ids, "a", 1), 101);
        let small = Sizes {
            backends: 4,
            services: 4,
            ..Sizes::default()
        };
        let ids = ids.assigned(&config, &small);
        assert_eq!(backend(&ids, "a", 1), 1);
        assert_eq!(ids.service("a"), Some(ServiceId(1)));
    }
}
