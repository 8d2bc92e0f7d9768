//! Round-robin: each new flow takes the next cell of a wheel on which every backend stands as
//! often as its weight says, spread evenly.

#[cfg(any(test, feature = "host"))]
use crate::abi::BackendId;

/// The cell of the flow that drew `ticket`, in a wheel of `size` cells. Later attempts look at the
/// cells that follow.
#[inline(always)]
pub fn pick(ticket: u32, attempt: u32, size: u32) -> u32 {
    // The caller offers no empty wheel; the check keeps the division defined.
    ticket.wrapping_add(attempt).checked_rem(size).unwrap_or(0)
}

/// One turn of the wheel: the weights divided by their greatest common divisor, at most `size`
/// cells (weights are then rounded to fit, each keeping at least one). `candidates` are in order
/// of identity and all have weight.
#[cfg(any(test, feature = "host"))]
pub(super) fn build(size: u32, candidates: &[super::Candidate]) -> Vec<BackendId> {
    let counts = counts(size, candidates);
    // Smooth weighted order: in every cell each backend earns its count, the richest takes the
    // cell and pays for a whole turn.
    let turn: i64 = counts.iter().sum();
    let mut credit = vec![0i64; counts.len()];
    (0..turn)
        .map(|_| {
            for (credit, count) in credit.iter_mut().zip(&counts) {
                *credit += count;
            }
            let richest = (0..counts.len())
                .max_by_key(|&i| (credit[i], std::cmp::Reverse(i)))
                .expect("there are candidates");
            credit[richest] -= turn;
            candidates[richest].id
        })
        .collect()
}

/// How often each candidate stands on the wheel.
#[cfg(any(test, feature = "host"))]
fn counts(size: u32, candidates: &[super::Candidate]) -> Vec<i64> {
    fn gcd(a: u32, b: u32) -> u32 {
        if b == 0 { a } else { gcd(b, a % b) }
    }
    let divisor = candidates.iter().fold(0, |d, c| gcd(d, c.weight)).max(1);
    let total: u64 = candidates
        .iter()
        .map(|c| u64::from(c.weight / divisor))
        .sum();
    let room = u64::from(size);
    candidates
        .iter()
        .map(|c| {
            let count = u64::from(c.weight / divisor);
            let fitted = if total <= room {
                count
            } else {
                (count * room / total).max(1)
            };
            i64::try_from(fitted).unwrap_or(i64::MAX)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::select::Candidate;

    fn wheel(size: u32, weights: &[u32]) -> Vec<u32> {
        let candidates: Vec<Candidate> = (1..)
            .zip(weights)
            .map(|(n, &weight)| Candidate {
                id: BackendId(n),
                identity: u64::from(n),
                weight,
            })
            .collect();
        build(size, &candidates).into_iter().map(|b| b.0).collect()
    }

    #[test]
    fn equal_weights_take_turns() {
        assert_eq!(wheel(100, &[7, 7, 7]), [1, 2, 3]);
    }

    #[test]
    fn weights_are_spread_and_not_bunched() {
        assert_eq!(wheel(100, &[10, 2, 2]), [1, 1, 2, 1, 3, 1, 1]);
    }

    #[test]
    fn a_wheel_too_long_is_scaled_and_keeps_everyone() {
        let cells = wheel(100, &[1_000_001, 1_000_000, 1]);
        assert!(cells.len() <= 102, "{}", cells.len());
        assert!((1..=3).all(|n| cells.contains(&n)));
    }

    #[test]
    fn attempts_follow_the_wheel() {
        assert_eq!(pick(5, 0, 3), 2);
        assert_eq!(pick(5, 1, 3), 0);
        assert_eq!(pick(u32::MAX, 1, 7), 0);
    }
}
