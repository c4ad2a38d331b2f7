//! Traces that no process can have left. A replay of one does no harm, whatever it says.

use std::ops::ControlFlow;

use obmalloc::profile;
use obmalloc_trace::analysis::{Asked, Inquiry};
use obmalloc_trace::format::{BlockWriter, Domain, FormatError, Reader, file_head};
use obmalloc_trace::listing::{Listing, Wanted};
use obmalloc_trace::replay::{Replay, Report};
use obmalloc_trace::watch::{Seen, Watcher};

/// Goes on, however answers differ.
struct Blind;

impl Watcher for Blind {
    fn see(&mut self, seen: &Seen<'_>) -> ControlFlow<()> {
        let _ = (seen.difference_below(), seen.place(seen.answer().got, 16));
        ControlFlow::Continue(())
    }
}

/// A block of random events on a few addresses, so that events meet. The addresses lie in arenas that overlap or lie at either end of the address
/// space, and beside them.
fn random_trace(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut below = move |end: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % end
    };
    let mut memory = vec![0; 1 << 16];
    let mut block = BlockWriter::new(&mut memory);
    let bases =
        [0x7f00_0000_0000, 0x7f00_0008_0000, 0x7f00_0010_1000, u64::MAX - 0xf_ffff, u64::MAX - 0x7_ffff, 16, 0x7f00_0000_0003];
    for _ in 0..600 {
        let base = bases[below(bases.len() as u64) as usize];
        let offset = [0x30, 0x40, 0x50, 0x4030, 0x3, 0xf_fff0, below(1 << 20)][below(7) as usize];
        let address = base.wrapping_add(offset);
        let size = [0, 1, 16, 512, 513, 768, 1 << 20, 1 << 50][below(8) as usize];
        let (domain, nested) = (Domain::ALL[below(3) as usize], below(4) == 0);
        match below(13) {
            0 => block.arena_alloc(true, 1 << 20, base),
            1 => block.arena_free(true, 1 << 20, base),
            2 => {
                // As a first request has it.
                block.realloc(Domain::Raw, true, 0, 768, 0x5000);
                block.arena_alloc(true, 1 << 20, base);
                block.calloc(Domain::Raw, true, 1, 262_144, 0x6000);
                block.calloc(Domain::Raw, true, 1, 131_072, 0x7000);
                block.malloc(Domain::Obj, false, 16, base.wrapping_add(0x30));
            }
            3 => block.interpreter(below(2)),
            4 | 5 => block.realloc(domain, nested, address, size, base.wrapping_add(0x40)),
            6 => block.calloc(domain, nested, below(3), size, address),
            7 | 8 => block.free(domain, nested, address),
            9 => block.malloc(domain, nested, size, 0),
            10 => drop(block.trim(14, &[address, base, address.wrapping_sub(0x4000)])),
            _ => block.malloc(domain, nested, size.min(768), address),
        }
    }
    [&file_head("{}")[..], block.finish()].concat()
}

#[test]
fn random_traces_are_replayed_without_harm() {
    let mut mismatches = 0;
    for seed in 1..400 {
        for profile in [&profile::V3_8, &profile::V3_13] {
            let reader = || vec![Reader::new(random_trace(seed)).expect("a trace")];
            let mut replay = Replay::new(reader(), profile, Report::default()).expect("a heap");
            mismatches += u64::from(replay.run().expect("readable").mismatch.is_some());
            let mut replay = Replay::new(reader(), profile, Blind).expect("a heap");
            replay.run().expect("readable");
        }
    }
    assert!(mismatches > 0);
}

#[test]
fn random_traces_are_looked_at_without_harm() {
    let mut answers = 0;
    for seed in 1..100 {
        let trace = random_trace(seed);
        let mut listing = Listing::new(vec![Reader::new(trace.clone()).expect("a trace")], Wanted::default(), 64);
        while listing.step(1000).expect("readable").1 {}
        for at in ["end", "event:20"] {
            let trace = trace.clone();
            let open = Box::new(move || Ok(vec![Reader::new(trace.clone())?]));
            let asked = Asked { at: at.into(), report: true, ..Asked::default() };
            let mut inquiry = Inquiry::new(asked, &profile::V3_13, open).expect("a trace");
            while inquiry.step(1000).expect("readable") {}
            answers += usize::from(inquiry.answer().is_some());
        }
    }
    assert_eq!(answers, 198);
}

#[test]
fn more_bytes_than_a_process_can_get_are_damage() {
    let read = |write: fn(&mut BlockWriter<'_>)| {
        let mut memory = vec![0; 1 << 10];
        let mut block = BlockWriter::new(&mut memory);
        block.malloc(Domain::Raw, false, u64::MAX, 0);
        block.malloc(Domain::Raw, false, 1 << 61, 0x1000);
        write(&mut block);
        let trace = [&file_head("{}")[..], block.finish()].concat();
        Reader::new(trace).expect("a trace").collect::<Result<Vec<_>, _>>().map(|events| events.len())
    };
    assert_eq!(read(|block| block.malloc(Domain::Obj, false, 1 << 61, 0x2000)), Ok(3));
    let refused = Err(FormatError::Event(18, 2));
    assert_eq!(read(|block| block.malloc(Domain::Obj, false, 1 + (1 << 61), 0x2000)), refused);
    assert_eq!(read(|block| block.calloc(Domain::Mem, false, 1 << 32, 1 << 32, 0x2000)), refused);
    assert_eq!(read(|block| block.realloc(Domain::Mem, false, 0x1000, 1 << 62, 0x2000)), refused);
    assert_eq!(read(|block| block.arena_alloc(true, u64::MAX, 0x2000)), refused);
}
