//! Which of an uploader's pieces to ask for.

use rand::{Rng, RngExt as _};

use crate::{bitfield::Bitfield, geometry::PieceIndex};

/// What a picker chooses from.
#[derive(Debug)]
pub struct PieceChoice<'a> {
    /// Pieces the uploader owns.
    pub theirs: &'a Bitfield,
    /// Pieces that are owned, on their way, or without a known hash, as masks.
    pub unwanted: &'a [&'a Bitfield],
    /// How many neighbours own each piece.
    pub availability: &'a [u16],
    /// First piece that a reader waits for.
    pub position: PieceIndex,
    /// Pieces from there on that are preferred.
    pub window: u32,
}

/// Policy that picks one piece of one uploader.
pub trait PiecePicker: std::fmt::Debug + Send {
    /// A piece that the uploader owns and that is wanted; `None` when there is none.
    fn pick(&self, choice: &PieceChoice<'_>, rng: &mut dyn Rng) -> Option<PieceIndex>;
}

/// The rarest piece within the reader's window, else the rarest of all; ties at random.
#[derive(Debug, Clone, Copy, Default)]
pub struct RarestFirst;

impl PiecePicker for RarestFirst {
    fn pick(&self, choice: &PieceChoice<'_>, rng: &mut dyn Rng) -> Option<PieceIndex> {
        let end = choice.position.0.saturating_add(choice.window);
        let in_window = |piece: &PieceIndex| (choice.position.0..end).contains(&piece.0);
        let wanted = || choice.theirs.iter_without(choice.unwanted);
        rarest(wanted().filter(in_window), choice.availability, rng)
            .or_else(|| rarest(wanted(), choice.availability, rng))
    }
}

fn rarest(pieces: impl Iterator<Item = PieceIndex>, availability: &[u16], rng: &mut dyn Rng) -> Option<PieceIndex> {
    let mut best: Option<(u16, PieceIndex)> = None;
    let mut ties = 0u32;
    for piece in pieces {
        let count = availability.get(piece.0 as usize).copied().unwrap_or(0);
        match best {
            Some((least, _)) if count > least => {}
            Some((least, _)) if count == least => {
                // Reservoir sampling: each of the ties is kept with the same probability.
                ties += 1;
                if rng.random_range(0..ties) == 0 {
                    best = Some((count, piece));
                }
            }
            _ => {
                best = Some((count, piece));
                ties = 1;
            }
        }
    }
    best.map(|(_, piece)| piece)
}
