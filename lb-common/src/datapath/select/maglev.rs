//! Maglev hashing (Eisenbud et al., NSDI 2016, section 3.4) with exact weights.
//!
//! Every backend walks the cells in an order of its own, made from its identity. Turns are dealt
//! by weight: the k-th turn of a backend of weight w comes at time (k + ½) / w, which does not
//! depend on the other backends, so a change of one weight leaves the order of the others' turns
//! as it was and moves few cells beyond the ones it must. Each backend stops at its quota, the
//! share its weight gives it of all cells, to the cell (largest remainders).

use super::hash;
#[cfg(any(test, feature = "host"))]
use crate::abi::BackendId;
use crate::abi::{Address, Port};

/// The cell of a client's flow in a table of `size` cells. Later attempts choose anew.
#[inline(always)]
pub fn pick(seed: u32, client: &Address, port: Port, protocol: u8, attempt: u32, size: u32) -> u32 {
    hash::scale(hash::client(seed, client, port, protocol, attempt), size)
}

/// Fills `size` (prime) cells. `candidates` are in order of identity and all have weight.
#[cfg(any(test, feature = "host"))]
pub(super) fn build(size: u32, candidates: &[super::Candidate]) -> Vec<BackendId> {
    use std::{cmp::Ordering, collections::BinaryHeap};

    /// A backend's next turn; the greatest in the heap is the earliest.
    struct Turn {
        backend: usize,
        taken: u64,
        weight: u64,
    }
    impl Ord for Turn {
        fn cmp(&self, other: &Self) -> Ordering {
            // (2k + 1) / 2w, compared without division; ties go to the lower identity.
            let this = u128::from(2 * self.taken + 1) * u128::from(other.weight);
            let that = u128::from(2 * other.taken + 1) * u128::from(self.weight);
            that.cmp(&this).then(other.backend.cmp(&self.backend))
        }
    }
    impl PartialOrd for Turn {
        fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
            Some(self.cmp(other))
        }
    }
    impl PartialEq for Turn {
        fn eq(&self, other: &Self) -> bool {
            self.cmp(other) == Ordering::Equal
        }
    }
    impl Eq for Turn {}

    let quotas = quotas(size, candidates);
    let mut walks: Vec<Walk> = candidates
        .iter()
        .map(|c| Walk::new(c.identity, size))
        .collect();
    let mut turns: BinaryHeap<Turn> = candidates
        .iter()
        .enumerate()
        .filter(|(backend, _)| quotas[*backend] > 0)
        .map(|(backend, c)| Turn {
            backend,
            taken: 0,
            weight: u64::from(c.weight),
        })
        .collect();
    let mut cells = vec![BackendId::default(); size as usize];
    while let Some(mut turn) = turns.pop() {
        let cell = walks[turn.backend].next_free(&cells);
        cells[cell] = candidates[turn.backend].id;
        turn.taken += 1;
        if turn.taken < u64::from(quotas[turn.backend]) {
            turns.push(turn);
        }
    }
    cells
}

/// How many of `size` cells each candidate gets: its exact share rounded down, and what is left to
/// the largest remainders (ties to the lower identity). They add up to `size`.
#[cfg(any(test, feature = "host"))]
fn quotas(size: u32, candidates: &[super::Candidate]) -> Vec<u32> {
    let total: u64 = candidates.iter().map(|c| u64::from(c.weight)).sum();
    let share = |c: &super::Candidate| u128::from(c.weight) * u128::from(size);
    let mut quotas: Vec<u32> = candidates
        .iter()
        .map(|c| (share(c) / u128::from(total)) as u32)
        .collect();
    let left = size - quotas.iter().sum::<u32>();
    let mut by_remainder: Vec<usize> = (0..candidates.len()).collect();
    by_remainder.sort_by_key(|&i| std::cmp::Reverse(share(&candidates[i]) % u128::from(total)));
    for &i in by_remainder.iter().take(left as usize) {
        quotas[i] += 1;
    }
    quotas
}

/// A backend's permutation of the cells: `offset + k · skip` modulo a prime.
#[cfg(any(test, feature = "host"))]
struct Walk {
    next: u64,
    skip: u64,
    size: u64,
}

#[cfg(any(test, feature = "host"))]
impl Walk {
    fn new(identity: u64, size: u32) -> Self {
        let size = u64::from(size);
        Self {
            next: hash::mix(identity) % size,
            skip: hash::mix(!identity) % (size - 1).max(1) + 1,
            size,
        }
    }

    /// The next cell of the walk that nobody has taken. There must be one.
    fn next_free(&mut self, cells: &[BackendId]) -> usize {
        loop {
            let cell = self.next as usize;
            self.next = (self.next + self.skip) % self.size;
            if cells[cell] == BackendId::default() {
                return cell;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::datapath::select::{Candidate, identity};

    fn candidate(n: u32, weight: u32) -> Candidate {
        let address = Address::v4([10, 0, (n >> 8) as u8, n as u8]);
        Candidate {
            id: BackendId(n),
            identity: identity(address, Port::from(80)),
            weight,
        }
    }

    fn table(size: u32, weights: &[u32]) -> Vec<BackendId> {
        let mut candidates: Vec<Candidate> = (1..)
            .zip(weights)
            .map(|(n, &w)| candidate(n, w))
            .filter(|c| c.weight > 0)
            .collect();
        candidates.sort_by_key(|c| c.identity);
        build(size, &candidates)
    }

    fn moved(before: &[BackendId], after: &[BackendId]) -> usize {
        before.iter().zip(after).filter(|(a, b)| a != b).count()
    }

    #[test]
    fn one_backend_gets_every_cell() {
        assert_eq!(table(7, &[3]), vec![BackendId(1); 7]);
    }

    #[test]
    fn removing_one_of_a_hundred_moves_little_beyond_its_own_cells() {
        let before = table(65_537, &[1; 100]);
        let mut weights = [1; 100];
        weights[41] = 0;
        let after = table(65_537, &weights);
        let own = before.iter().filter(|&&b| b == BackendId(42)).count();
        let others = moved(&before, &after) - own;
        // The paper's figure 12: with 65,537 cells under 1 % of the others change.
        assert!(
            others * 100 < 65_537,
            "{others} cells of others moved, {own} had to"
        );
    }

    #[test]
    fn a_weight_change_moves_little_beyond_what_it_must() {
        let before = table(65_537, &[10; 10]);
        let after = table(65_537, &[10, 10, 10, 20, 10, 10, 10, 10, 10, 10]);
        let gained = after.iter().filter(|&&b| b == BackendId(4)).count()
            - before.iter().filter(|&&b| b == BackendId(4)).count();
        let others = moved(&before, &after) - gained;
        println!("a weight of ten doubled: {gained} cells had to move, {others} more did");
        assert!(
            others * 50 < 65_537,
            "{others} cells moved besides {gained}"
        );
    }

    proptest! {
        #[test]
        fn shares_are_exact_to_the_cell(
            weights in proptest::collection::vec(0u32..1000, 1..40)
                .prop_filter("some weight", |w| w.iter().any(|&w| w > 0)),
            size in proptest::sample::select(vec![251u32, 1021, 65_537]),
        ) {
            let cells = table(size, &weights);
            let total: u64 = weights.iter().map(|&w| u64::from(w)).sum();
            prop_assert_eq!(cells.len(), size as usize);
            for (n, &weight) in (1..).zip(&weights) {
                let got = cells.iter().filter(|&&b| b == BackendId(n)).count() as f64;
                let exact = f64::from(weight) * f64::from(size) / total as f64;
                prop_assert!((got - exact).abs() < 1.0, "{got} cells, {exact} are due");
            }
        }

        #[test]
        fn order_of_configuration_does_not_matter(weights in proptest::collection::vec(1u32..9, 2..9)) {
            let candidates: Vec<Candidate> =
                (1..).zip(&weights).map(|(n, &w)| candidate(n, w)).collect();
            let reversed: Vec<Candidate> = candidates.iter().rev().copied().collect();
            let build = |c: &[Candidate]| super::super::build(super::super::Algorithm::Maglev, 251, c);
            prop_assert_eq!(build(&candidates), build(&reversed));
        }
    }
}
