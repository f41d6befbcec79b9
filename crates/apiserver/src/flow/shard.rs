//! Shuffle sharding: which few of a level's queues a flow may use. Two flows rarely share all of theirs, so one that
//! floods its queues leaves most others a way around.

/// As large as validation lets a hand be: 60 bits of hash are dealt from, and a hand of 16 has 64 bits at least.
const MAX_HAND: usize = 15;

/// Deals `hand` distinct queues out of `deck`, by a flow's hash, and calls `pick` with each.
pub fn deal(mut hash: u64, deck: usize, hand: usize, mut pick: impl FnMut(usize)) {
    let hand = hand.min(deck).min(MAX_HAND);
    let mut cards = [0usize; MAX_HAND];
    for i in 0..hand {
        let left = (deck - i) as u64;
        // the card's place among those that are left …
        let mut card = (hash % left) as usize;
        hash /= left;
        cards[i] = card;
        // … and so its number: those that were dealt before it count too
        for j in (0..i).rev() {
            if card >= cards[j] {
                card += 1;
            }
        }
        pick(card);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hand(hash: u64, deck: usize, size: usize) -> Vec<usize> {
        let mut hand = Vec::new();
        deal(hash, deck, size, |card| hand.push(card));
        hand
    }

    #[test]
    fn hands_are_distinct_and_all_alike() {
        let mut dealt = [0; 6];
        for hash in 0..6 * 5 * 4 {
            let mut hand = hand(hash, 6, 3);
            hand.iter().for_each(|c| dealt[*c] += 1);
            hand.sort();
            hand.dedup();
            assert_eq!(hand.len(), 3, "{hash}");
        }
        assert_eq!(dealt, [60; 6], "every queue is dealt as often as any other");
        let mut all = hand(u64::MAX, 8, 8);
        all.sort();
        assert_eq!(all, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(hand(7, 1, 1), [0]);
    }
}
