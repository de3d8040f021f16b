use proptest::prelude::*;

use super::*;

const LIMIT: u64 = 100;

fn digest(name: u8) -> Digest {
    Digest::of(&[name])
}

#[derive(Debug, Clone)]
enum Step {
    /// Make room for a newcomer, see the removal of each victim succeed or fail, reserve.
    Add {
        name: u8,
        size: u64,
        failing: usize,
    },
    Pin(u8),
    Unpin(u8),
    Remove(u8),
    Shrink(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u8..12, 0u64..=LIMIT + 5, 0usize..20).prop_map(|(name, size, failing)| Step::Add { name, size, failing }),
        3 => (0u8..12).prop_map(Step::Pin),
        5 => (0u8..12).prop_map(Step::Unpin),
        1 => (0u8..12).prop_map(Step::Remove),
        1 => (0u64..40).prop_map(Step::Shrink),
    ];
    proptest::collection::vec(step, 0..80)
}

/// The same, the slow and obvious way: entries from the least to the most recently used.
#[derive(Debug, Default)]
struct Model {
    order: Vec<Entry>,
    ghosts: Vec<Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    name: u8,
    id: EntryId,
    size: u64,
    pins: u32,
}

impl Model {
    fn used(&self) -> u64 {
        self.order.iter().chain(&self.ghosts).map(|entry| entry.size).sum()
    }

    fn place(&self, name: u8) -> Option<usize> {
        self.order.iter().position(|entry| entry.name == name)
    }

    fn promote(&mut self, place: usize) -> &mut Entry {
        let entry = self.order.remove(place);
        self.order.push(entry);
        self.order.last_mut().unwrap()
    }

    fn oldest(&self, bytes: u64) -> Vec<u8> {
        let mut freed = 0;
        let unpinned = self.order.iter().filter(|entry| entry.pins == 0 && entry.size > 0);
        let needed = unpinned.take_while(|entry| {
            let wanted = freed < bytes;
            freed += entry.size;
            wanted
        });
        needed.map(|entry| entry.name).collect()
    }

    fn sizes(&self, names: &[u8]) -> u64 {
        names.iter().filter_map(|name| self.place(*name)).map(|place| self.order[place].size).sum()
    }
}

fn check_victims(model: &Model, expected: &[u8], victims: &[Victim]) -> Result<(), TestCaseError> {
    prop_assert_eq!(
        victims.iter().map(|v| v.digest).collect::<Vec<_>>(),
        expected.iter().map(|n| digest(*n)).collect::<Vec<_>>()
    );
    for victim in victims {
        let entry = model.order.iter().find(|entry| entry.id == victim.id);
        prop_assert!(entry.is_some_and(|entry| entry.pins == 0 && entry.size == victim.size), "{victim:?}");
    }
    Ok(())
}

proptest! {
    #[test]
    fn does_as_the_model_does(steps in steps()) {
        let mut policy = LruPolicy::new(LIMIT);
        let mut model = Model::default();
        let mut pins: Vec<(u8, EntryId)> = Vec::new();
        for step in steps {
            match step {
                Step::Add { name, size, failing } => {
                    let excess = (model.used() + size).saturating_sub(LIMIT);
                    let expected = model.oldest(excess);
                    match policy.make_room(size) {
                        Err(NoRoom::TooLarge) => prop_assert!(size > LIMIT),
                        Err(NoRoom::Full) => prop_assert!(model.sizes(&expected) < excess),
                        Ok(victims) => {
                            check_victims(&model, &expected, &victims)?;
                            for (turn, victim) in victims.into_iter().enumerate() {
                                prop_assert_eq!(policy.pin(victim.digest), None, "what leaves cannot be pinned");
                                let place = model.order.iter().position(|entry| entry.id == victim.id).unwrap();
                                if turn == failing {
                                    policy.restore(victim);
                                    model.promote(place);
                                } else {
                                    policy.forget(victim);
                                    model.order.remove(place);
                                }
                            }
                            let fits = model.used() + size <= LIMIT && model.place(name).is_none();
                            let id = policy.reserve(digest(name), size, ());
                            prop_assert_eq!(id.is_some(), fits);
                            if let Some(id) = id {
                                model.order.push(Entry { name, id, size, pins: 1 });
                                pins.push((name, id));
                            }
                        }
                    }
                }
                Step::Pin(name) => {
                    let id = policy.pin(digest(name));
                    let place = model.place(name);
                    prop_assert_eq!(id.is_some(), place.is_some());
                    if let (Some(id), Some(place)) = (id, place) {
                        model.promote(place).pins += 1;
                        pins.push((name, id));
                    }
                }
                Step::Unpin(name) => {
                    let Some(found) = pins.iter().position(|pin| pin.0 == name) else { continue };
                    let (_, id) = pins.swap_remove(found);
                    policy.unpin(digest(name), id);
                    if let Some(place) = model.order.iter().position(|entry| entry.id == id) {
                        model.order[place].pins -= 1;
                        if model.order[place].pins == 0 {
                            model.promote(place);
                        }
                    }
                    for ghost in model.ghosts.iter_mut().filter(|ghost| ghost.id == id) {
                        ghost.pins -= 1;
                    }
                    model.ghosts.retain(|ghost| ghost.pins > 0);
                }
                Step::Remove(name) => {
                    let Some(place) = model.place(name) else { continue };
                    let entry = model.order.remove(place);
                    let victim = policy.leave(digest(name), entry.id).unwrap();
                    prop_assert_eq!(policy.leave(digest(name), entry.id), None);
                    policy.forget(victim);
                    policy.forget(victim);
                    if entry.pins > 0 {
                        model.ghosts.push(entry);
                    }
                }
                Step::Shrink(bytes) => {
                    let victims = policy.shrink(bytes, usize::MAX);
                    let expected = model.oldest(bytes);
                    check_victims(&model, &expected, &victims)?;
                    for victim in victims {
                        policy.forget(victim);
                        model.order.retain(|entry| entry.id != victim.id);
                    }
                }
            }
            prop_assert!(policy.used() <= LIMIT);
            prop_assert_eq!(policy.used(), model.used());
            let order: Vec<_> = policy.iter().map(|(digest, slot)| (*digest, slot.size, slot.is_pinned())).collect();
            let expected: Vec<_> = model.order.iter().map(|e| (digest(e.name), e.size, e.pins > 0)).collect();
            prop_assert_eq!(order, expected);
        }
    }
}

#[test]
fn one_newcomer_may_cost_several_and_no_more_than_needed() {
    let mut policy = LruPolicy::new(LIMIT);
    for name in 0..10 {
        policy.adopt(digest(name), 10, ());
    }
    let victims = policy.make_room(25).unwrap();
    assert_eq!(victims.iter().map(|v| v.digest).collect::<Vec<_>>(), [0, 1, 2].map(digest));
    assert_eq!(policy.used(), 100, "they count until they are gone");
    assert_eq!(policy.reserve(digest(99), 25, ()), None, "so there is no room yet");
    for victim in victims {
        policy.forget(victim);
    }
    assert!(policy.reserve(digest(99), 25, ()).is_some());
    assert_eq!(policy.used(), 95);
}

#[test]
fn nothing_goes_when_it_would_not_be_enough() {
    let mut policy = LruPolicy::new(LIMIT);
    policy.adopt(digest(0), 60, ());
    policy.adopt(digest(1), 40, ());
    policy.pin(digest(0));
    assert_eq!(policy.make_room(41), Err(NoRoom::Full));
    assert!(!policy.get(digest(1)).unwrap().is_leaving());
    assert_eq!(policy.make_room(101), Err(NoRoom::TooLarge));
}

#[test]
fn a_lower_limit_than_what_is_there_is_met_first() {
    let mut policy = LruPolicy::new(LIMIT);
    for name in 0..4 {
        policy.adopt(digest(name), 60, ());
    }
    let victims = policy.make_room(0).unwrap();
    assert_eq!(victims.len(), 3);
}
