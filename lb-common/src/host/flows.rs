//! What the data path writes, in std maps, with a clock that is set by hand.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    abi::{
        Address, Answered, BackendId, Conversation, Direct, Event, EventKind, Flow, FlowKey,
        Fragment, FragmentKey, InterfaceCounters, Reason, ServiceId, Settings, Ticks, Traffic,
    },
    datapath::{Began, Flows, Report, Stage},
};

/// Shortest time between two requests for a neighbour, as in the XDP program.
const NEIGHBOUR_SPACING: Ticks = Ticks(16);

/// A map that forgets the least recently used entry when it is full, as a BPF LRU hash does (only
/// exactly where that does so nearly). Without a bound it forgets nothing.
#[derive(Clone, Debug)]
pub struct Lru<K, V> {
    entries: BTreeMap<K, (u64, V)>,
    /// By when an entry was last used; kept only if there is a bound.
    order: BTreeMap<u64, K>,
    bound: Option<usize>,
    turn: u64,
}

impl<K: Ord + Copy, V> Lru<K, V> {
    /// An empty map of at most `bound` entries.
    pub const fn new(bound: Option<usize>) -> Self {
        Self {
            entries: BTreeMap::new(),
            order: BTreeMap::new(),
            bound,
            turn: 0,
        }
    }

    /// An entry, which counts as used.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.turn += 1;
        let (used, value) = self.entries.get_mut(key)?;
        if self.bound.is_some() {
            self.order.remove(used);
            self.order.insert(self.turn, *key);
            *used = self.turn;
        }
        Some(value)
    }

    /// An entry, which does not count as used.
    pub fn peek(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(_, value)| value)
    }

    /// Puts an entry in, in place of an older one of its key or, if the map is full, of the one
    /// that was not used for longest.
    pub fn insert(&mut self, key: K, value: V) {
        self.remove(&key);
        if let Some(bound) = self.bound {
            if self.entries.len() >= bound
                && let Some((_, oldest)) = self.order.pop_first()
            {
                self.entries.remove(&oldest);
            }
            self.order.insert(self.turn + 1, key);
        }
        self.turn += 1;
        self.entries.insert(key, (self.turn, value));
    }

    /// Takes an entry out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let (used, value) = self.entries.remove(key)?;
        self.order.remove(&used);
        Some(value)
    }

    /// All entries in order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|(key, (_, value))| (key, value))
    }

    /// All entries, to change them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.entries
            .iter_mut()
            .map(|(key, (_, value))| (key, value))
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// The maps that the program writes, as one CPU sees them.
#[derive(Clone, Debug)]
pub struct HostFlows {
    /// Nanoseconds of the coarse monotonic clock.
    pub time: u64,
    /// The CPU: tickets start at its number.
    pub cpu: u32,
    /// How often events are sent.
    pub settings: Settings,
    /// Confirmed flows.
    pub confirmed: Lru<FlowKey, Flow>,
    /// New flows.
    pub new: Lru<FlowKey, Flow>,
    /// Conversations opened with backends themselves.
    pub direct: Lru<Conversation, Direct>,
    /// Datagrams of which the first fragment was sent on.
    pub fragments: Lru<FragmentKey, Fragment>,
    /// ICMP messages, by prefix of clients.
    pub answered: Lru<Address, Answered>,
    /// Tickets drawn, by service.
    pub rotations: BTreeMap<ServiceId, u64>,
    /// What came in, by interface.
    pub interfaces: BTreeMap<u32, InterfaceCounters>,
    /// What services have carried.
    pub services: BTreeMap<ServiceId, Traffic>,
    /// What backends have carried.
    pub backends: BTreeMap<BackendId, Traffic>,
    /// What was told; whoever reads it empties it.
    pub events: Vec<Event>,
    sent: [Ticks; 3],
}

impl HostFlows {
    /// Empty maps, of any size, at one hour after the clock began.
    pub fn new() -> Self {
        Self::bounded(None, None)
    }

    /// Empty maps that hold so many flows of each kind.
    pub fn bounded(confirmed: Option<usize>, new: Option<usize>) -> Self {
        Self {
            time: 3_600_000_000_000,
            cpu: 0,
            settings: Settings::default(),
            confirmed: Lru::new(confirmed),
            new: Lru::new(new),
            direct: Lru::new(new),
            fragments: Lru::new(new),
            answered: Lru::new(new),
            rotations: BTreeMap::new(),
            interfaces: BTreeMap::new(),
            services: BTreeMap::new(),
            backends: BTreeMap::new(),
            events: Vec::new(),
            sent: [Ticks::default(); 3],
        }
    }

    /// Lets time pass.
    pub fn pass(&mut self, time: Duration) {
        self.time += u64::try_from(time.as_nanos()).expect("no test takes centuries");
    }

    /// How many packets have left for a reason, on all interfaces.
    pub fn packets(&self, reason: Reason) -> u64 {
        self.interfaces
            .values()
            .map(|counters| counters.reasons[reason as usize].packets)
            .sum()
    }

    /// A flow's entry, wherever it lies, without counting as used.
    pub fn peek(&self, key: &FlowKey) -> Option<(Stage, &Flow)> {
        match self.confirmed.peek(key) {
            Some(flow) => Some((Stage::Confirmed, flow)),
            None => self.new.peek(key).map(|flow| (Stage::New, flow)),
        }
    }
}

impl Default for HostFlows {
    fn default() -> Self {
        Self::new()
    }
}

impl Flows for HostFlows {
    fn now(&self) -> Ticks {
        Ticks::from_nanos(self.time)
    }

    fn find(&mut self, key: &FlowKey) -> Option<(Stage, &mut Flow)> {
        match self.confirmed.get_mut(key) {
            Some(flow) => Some((Stage::Confirmed, flow)),
            None => self.new.get_mut(key).map(|flow| (Stage::New, flow)),
        }
    }

    fn insert(&mut self, key: &FlowKey, flow: Flow) {
        self.new.insert(*key, flow);
    }

    fn confirm(&mut self, key: &FlowKey) {
        if let Some(flow) = self.new.remove(key) {
            self.confirmed.insert(*key, flow);
        }
    }

    fn remove(&mut self, key: &FlowKey) {
        self.confirmed.remove(key);
        self.new.remove(key);
    }

    fn direct(&mut self, conversation: &Conversation) -> Option<&mut Direct> {
        self.direct.get_mut(conversation)
    }

    fn insert_direct(&mut self, conversation: &Conversation, direct: Direct) {
        self.direct.insert(*conversation, direct);
    }

    fn remove_direct(&mut self, conversation: &Conversation) {
        self.direct.remove(conversation);
    }

    fn fragment(&mut self, key: &FragmentKey) -> Option<&mut Fragment> {
        self.fragments.get_mut(key)
    }

    fn insert_fragment(&mut self, key: &FragmentKey, fragment: Fragment) {
        self.fragments.insert(*key, fragment);
    }

    fn remove_fragment(&mut self, key: &FragmentKey) {
        self.fragments.remove(key);
    }

    fn answered(&mut self, prefix: &Address) -> Option<&mut Answered> {
        self.answered.get_mut(prefix)
    }

    fn insert_answered(&mut self, prefix: &Address, answered: Answered) {
        self.answered.insert(*prefix, answered);
    }

    fn ticket(&mut self, service: ServiceId) -> u32 {
        let ticket = self.rotations.entry(service).or_default();
        let drawn = *ticket as u32;
        *ticket += 1;
        drawn.wrapping_add(self.cpu)
    }

    fn count(&mut self, ifindex: u32, reason: Reason, bytes: u32) {
        let counters = self.interfaces.entry(ifindex).or_default();
        counters.reasons[reason as usize].add(u64::from(bytes));
    }

    fn count_forward(&mut self, service: ServiceId, backend: BackendId, bytes: u32, began: Began) {
        for traffic in [
            self.services.entry(service).or_default(),
            self.backends.entry(backend).or_default(),
        ] {
            traffic.forward.add(u64::from(bytes));
            if began == Began::New {
                traffic.new_flows += 1;
            }
        }
    }

    fn count_back(&mut self, service: ServiceId, backend: BackendId, bytes: u32) {
        for traffic in [
            self.services.entry(service).or_default(),
            self.backends.entry(backend).or_default(),
        ] {
            traffic.back.add(u64::from(bytes));
        }
    }

    fn report(&mut self, report: &Report<'_>) {
        let (place, spacing) = match report.kind {
            EventKind::NEW_FLOW => (0, self.settings.new_flow_spacing),
            EventKind::DROP => (1, self.settings.drop_spacing),
            _ => (2, NEIGHBOUR_SPACING),
        };
        let now = self.now();
        if spacing.0 == u32::MAX || self.sent[place].age(now) < spacing {
            return;
        }
        self.sent[place] = now;
        self.events.push(report.event(self.time));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_map_forgets_what_was_not_used_for_longest() {
        let mut map = Lru::new(Some(2));
        map.insert(1, 'a');
        map.insert(2, 'b');
        assert_eq!(map.get_mut(&1), Some(&mut 'a'));
        map.insert(3, 'c');
        assert_eq!(map.iter().map(|(k, _)| *k).collect::<Vec<_>>(), [1, 3]);
        map.insert(1, 'd');
        map.insert(4, 'e');
        assert_eq!(map.iter().map(|(k, _)| *k).collect::<Vec<_>>(), [1, 4]);
        assert_eq!(map.remove(&1), Some('d'));
        assert_eq!(map.len(), 1);
    }
}
