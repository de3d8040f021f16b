//! Peers that ask and then do not take what they asked for.

use super::*;

/// A piece that does not fit between the two ends.
const LARGE: u32 = 16 << 20;

#[tokio::test]
async fn who_takes_nothing_loses_its_slot_and_not_its_piece() {
    for (encryption, in_file) in [(Encryption::Tls, false), (Encryption::None, true)] {
        let setup = Setup { encryption, in_file, size: 2 * LARGE as usize, piece_length: LARGE, ..SETUP };
        let mut fixture = Fixture::start(setup).await;
        fixture.ask(0, Some(PieceIndex(0))).unwrap();
        let first = fixture.whole().await;
        // There is memory for one piece, so the next ones wait for the first to be gone: in the kernel, and then at the other end.
        let handler = Arc::clone(&fixture.handler);
        let (finished, free) = (|| handler.finished.load(Ordering::SeqCst), || handler.slots.available_permits() == 64);
        let mut asked = 1;
        loop {
            fixture.ask(asked, Some(PieceIndex(asked % 2))).unwrap();
            asked += 1;
            until("it is asked", || handler.asked.load(Ordering::SeqCst) == asked as usize).await;
            until("another may use the slot", || finished() == asked as usize || free()).await;
            // Which of the two, is clear when what holds the slot is wholly gone.
            tokio::time::sleep(Duration::from_millis(50)).await;
            if finished() < asked as usize {
                break;
            }
        }
        assert_eq!(finished(), asked as usize - 1, "the upload goes on");
        drop(first);
        for id in 1..asked {
            let start = (id % 2 * LARGE) as usize;
            assert_eq!(fixture.whole().await, fixture.data.slice(start..start + LARGE as usize));
        }
        until("it is finished", || finished() == asked as usize).await;
    }
}

impl Fixture {
    /// The next piece that comes in full.
    async fn whole(&mut self) -> Bytes {
        loop {
            match self.event().await {
                ChannelEvent::Piece { bytes, .. } => return bytes,
                ChannelEvent::Started { .. } => {}
                other => panic!("instead of a piece: {other:?}"),
            }
        }
    }
}
