//! Connections that have not proved membership, of which there are only so many.
//!
//! Who comes when it is full takes the place of whoever has been there longest. A member proves itself within milliseconds
//! and is not in here any more when its turn would come, however many strangers keep coming and say nothing.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

/// Places: of the 8,192 connections that a seeder has at a time, members can always have most.
const PLACES: usize = 1024;

/// The places; clones share them.
#[derive(Debug, Clone, Default)]
pub struct WaitingRoom(Arc<Mutex<Places>>);

#[derive(Debug, Default)]
struct Places {
    next: u64,
    taken: BTreeMap<u64, CancellationToken>,
}

/// A place, given back when dropped.
#[derive(Debug)]
pub struct Place {
    room: WaitingRoom,
    number: u64,
    given_away: CancellationToken,
}

impl WaitingRoom {
    /// How many places there are.
    pub const PLACES: usize = PLACES;

    /// Takes a place, that of the longest there if need be.
    pub fn enter(&self) -> Place {
        let mut places = self.lock();
        if places.taken.len() >= PLACES
            && let Some((_, oldest)) = places.taken.pop_first()
        {
            oldest.cancel();
        }
        let (number, given_away) = (places.next, CancellationToken::new());
        places.next += 1;
        places.taken.insert(number, given_away.clone());
        Place { room: self.clone(), number, given_away }
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        // The map is whole between any two operations, so a panic elsewhere leaves it usable.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Cancelled when somebody else has the place.
    pub fn given_away(&self) -> CancellationToken {
        self.given_away.clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.lock().taken.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_there_give_way() {
        let room = WaitingRoom::default();
        let mut places: Vec<Place> = (0..PLACES).map(|_| room.enter()).collect();
        // Whoever has left does not have to.
        drop(places.remove(0));
        places.push(room.enter());
        assert!(places.iter().all(|place| !place.given_away().is_cancelled()));
        places.push(room.enter());
        let given_away: Vec<bool> = places.iter().map(|place| place.given_away().is_cancelled()).collect();
        assert_eq!(given_away.iter().filter(|given_away| **given_away).count(), 1);
        assert!(given_away[0]);
        drop(places);
        assert!(room.lock().taken.is_empty());
    }
}
