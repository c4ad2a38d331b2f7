//! What watchers are told.

use std::collections::HashMap;
use std::ops::ControlFlow;

use obmalloc::profile::{self, Profile};
use obmalloc_trace::format::{BlockWriter, Domain, Event, Note, Reader, file_head};
use obmalloc_trace::program::Collector;
use obmalloc_trace::replay::{Replay, Report};
use obmalloc_trace::watch::{Fate, Seen, Watcher};

fn golden(release: &str) -> Reader<'static> {
    let path = format!("{}/../../__test__/golden/{release}.trace", env!("CARGO_MANIFEST_DIR"));
    Reader::of(std::fs::File::open(path).expect("a golden trace"), 0).expect("a trace")
}

fn watched<W: Watcher>(reader: Reader<'static>, profile: &Profile, watcher: W) -> W {
    let mut replay = Replay::new(vec![reader], profile, watcher).expect("a heap");
    replay.run().expect("readable");
    replay.into_watcher()
}

/// Keeps the books of what it is told.
#[derive(Default)]
struct Books {
    moments: u64,
    /// Recorded address → slot.
    live: HashMap<u64, u32>,
    /// Slot → recorded address.
    slots: HashMap<u32, u64>,
    in_arenas: u64,
}

impl Watcher for Books {
    fn see(&mut self, seen: &Seen<'_>) -> ControlFlow<()> {
        assert_eq!(seen.operation, self.moments);
        self.moments += 1;
        if seen.fate != Fate::Made {
            return ControlFlow::Continue(());
        }
        let (gone, result, size) = match *seen.event {
            Event::Malloc { size, result, .. } => (0, result, size),
            Event::Calloc { count, size, result, .. } => (0, result, count * size),
            Event::Realloc { address, size, result, .. } => (address, result, size),
            Event::Free { address, .. } => (address, 0, 0),
            ref event => panic!("{event:?} is no call"),
        };
        let slot = seen.answer().slot.expect("nothing fails in this trace");
        if gone != 0 {
            assert_eq!(self.live.remove(&gone), Some(slot));
            assert_eq!(self.slots.remove(&slot), Some(gone));
        }
        if result != 0 {
            assert_eq!(self.live.insert(result, slot), None);
            assert_eq!(self.slots.insert(slot, result), None, "two live blocks have slot {slot}");
        }
        if seen.answer().inside {
            let place = seen.place(result, size as usize).arena.expect("a place in an arena");
            assert_eq!(seen.answer().got, result);
            assert!(place.pool < 64 && place.block < 1024, "{place:?}");
            self.in_arenas += 1;
        }
        ControlFlow::Continue(())
    }
}

#[test]
fn watcher_is_told_of_every_event_with_its_place_and_a_slot_that_no_other_live_block_has() {
    let (report, books) = watched(golden("3.12"), &profile::V3_12, (Report::default(), Books::default()));
    assert!(report.is_exact());
    assert_eq!(books.moments, report.events);
    assert_eq!(books.in_arenas, report.addresses);
    assert!(books.live.len() > 100);
}

#[test]
fn program_is_collected_while_answers_are_compared() {
    let (report, collector) = watched(golden("3.13"), &profile::V3_13, (Report::default(), Collector::default()));
    let (ops, slots) = collector.program();
    assert!(report.is_exact());
    assert!(ops.len() as u64 <= report.calls && ops.len() as u64 > report.addresses, "{} of {}", ops.len(), report.calls);
    assert!(slots > 100 && slots < ops.len() / 2, "{slots}");
}

/// Ends the replay at a note.
struct UntilNote;

impl Watcher for UntilNote {
    fn see(&mut self, seen: &Seen<'_>) -> ControlFlow<()> {
        if matches!(seen.event, Event::Note(Note::Text(_))) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

#[test]
fn watcher_can_end_a_replay_that_others_watch_too() {
    let trace = || {
        let mut memory = vec![0; 4096];
        let mut block = BlockWriter::new(&mut memory);
        block.malloc(Domain::Raw, false, 10, 0x1000);
        block.text("here");
        block.malloc(Domain::Raw, false, 10, 0x2000);
        Reader::new([&file_head("{}")[..], block.finish()].concat()).expect("a trace")
    };
    assert_eq!(watched(trace(), &profile::V3_13, (Report::default(), UntilNote)).0.events, 2);
    assert_eq!(watched(trace(), &profile::V3_13, (UntilNote, Report::default())).1.events, 2);
    assert_eq!(watched(trace(), &profile::V3_13, Report::default()).events, 3);
}

/// Keeps the stacks that it is told of.
#[derive(Default)]
struct Stacks(Vec<u64>);

impl Watcher for Stacks {
    fn see(&mut self, seen: &Seen<'_>) -> ControlFlow<()> {
        self.0.push(seen.stack);
        ControlFlow::Continue(())
    }
}

#[test]
fn requests_have_stacks_that_are_numbered_across_traces() {
    let trace = |write: fn(&mut BlockWriter<'_>)| {
        let mut memory = [0; 1024];
        let mut block = BlockWriter::new(&mut memory);
        write(&mut block);
        Reader::new([&file_head("{}")[..], block.finish()].concat()).expect("a trace")
    };
    let parent = trace(|block| {
        block.stack_text(b"f");
        block.code(0, 0, 1, 0, b"");
        block.node(1, 0, 0);
        block.stack(1);
        block.malloc(Domain::Raw, false, 40, 0x5000);
        block.free(Domain::Raw, false, 0x5000);
    });
    let child = trace(|block| {
        block.malloc(Domain::Raw, false, 40, 0x5000);
        block.node(1, 0, 1);
        block.stack(2);
        block.realloc(Domain::Raw, false, 0x5000, 80, 0x6000);
        block.stack(1);
        block.calloc(Domain::Raw, false, 1, 40, 0x7000);
    });
    let mut replay = Replay::new(vec![parent, child], &profile::V3_13, Stacks::default()).expect("a heap");
    assert_eq!(replay.run().expect("readable").0, [1, 0, 0, 2, 1], "a free has none, and a block begins without");
}
