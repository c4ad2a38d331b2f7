//! The golden traces, which real CPythons left. The replay of each must be exact, and every way of spoiling one must be noticed.

use std::path::PathBuf;

use obmalloc::profile::{self, Profile};
use obmalloc_trace::format::{BlockWriter, Domain, Event, Note, Reader, file_head};
use obmalloc_trace::replay::{Replay, Report};

fn golden(release: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../__test__/golden");
    std::fs::read(folder.join(format!("{release}.trace"))).expect("a golden trace")
}

fn replay(bytes: Vec<u8>, profile: &Profile) -> Report {
    let mut replay = Replay::new(vec![Reader::new(bytes).expect("a trace")], profile, Report::default()).expect("a heap");
    replay.run().expect("a readable trace").clone()
}

#[test]
fn every_golden_trace_comes_out_the_same() {
    for profile in profile::ALL {
        let report = replay(golden(profile.release()), profile);
        assert_eq!(report.mismatch, None, "{}", profile.release());
        assert!(report.is_exact(), "{}: {report:?}", profile.release());
        assert!(report.addresses > 30_000 && report.nested_raw_calls > 100, "{}: too little was compared", profile.release());
        assert!(report.arenas_taken > 3 && report.arenas_released > 0, "{}: no arena came and went", profile.release());
        assert!(
            report.stats.is_some() && report.blocks.is_some() && report.ended,
            "{}: something was not recorded",
            profile.release()
        );
        assert_eq!(report.strangers, 0, "{}", profile.release());
    }
}

#[test]
fn a_rule_of_another_release_is_noticed() {
    let other = |release: &str, profile: Profile| replay(golden(release), &profile);
    // 3.8 gives the last empty arena back, 3.9 keeps it: that is all in which they differ for pymalloc.
    let kept = other("3.8", profile::V3_9);
    let released = other("3.9", profile::V3_8);
    assert!(!kept.is_exact() || !released.is_exact());
    // 3.10 has larger arenas and pools.
    assert!(!other("3.9", profile::V3_10).is_exact());
    assert!(!other("3.10", profile::V3_9).is_exact());
    // The arena map of 3.11 asks raw for larger nodes.
    let map = other("3.10", profile::V3_11);
    assert!(map.mismatch.expect("a mismatch").what.contains("262144"));
}

/// Writes an event as it is.
fn write(block: &mut BlockWriter<'_>, event: Event) {
    match event {
        Event::Malloc { domain, nested, size, result } => block.malloc(domain, nested, size, result),
        Event::Calloc { domain, nested, count, size, result } => block.calloc(domain, nested, count, size, result),
        Event::Realloc { domain, nested, address, size, result } => block.realloc(domain, nested, address, size, result),
        Event::Free { domain, nested, address } => block.free(domain, nested, address),
        Event::ArenaAlloc { nested, size, result } => block.arena_alloc(nested, size, result),
        Event::ArenaFree { nested, size, address } => block.arena_free(nested, size, address),
        Event::Note(Note::Stats(text)) => block.stats(text.as_bytes()),
        Event::Note(Note::AllocatedBlocks(count)) => drop(block.allocated_blocks(count)),
        Event::Note(Note::HooksLost(domains)) => block.hooks_lost(domains),
        Event::Note(Note::End) => block.end(),
        Event::Note(Note::Interpreter(id)) => block.interpreter(id),
        Event::Note(Note::Text(text)) => block.text(&text),
        Event::Note(Note::Exec) => block.exec(),
        Event::Note(Note::Finalization) => block.finalization(),
        Event::Note(Note::Mark(name)) => block.mark(&name),
        Event::Note(Note::Trim(pools)) => assert_eq!(block.trim(14, &pools), pools.len()),
        Event::Note(Note::Fork) => block.fork(),
    }
}

/// The events of a trace, changed, as a trace again.
fn rewritten(bytes: Vec<u8>, mut change: impl FnMut(usize, &mut Event)) -> Vec<u8> {
    let mut out = file_head("{}");
    let mut memory = vec![0; 1 << 16];
    let mut block = BlockWriter::new(&mut memory);
    for (index, event) in Reader::new(bytes).expect("a trace").enumerate() {
        let mut event = event.expect("an event");
        change(index, &mut event);
        if !block.has_room(8192) {
            out.extend_from_slice(block.finish());
        }
        write(&mut block, event);
    }
    out.extend_from_slice(block.finish());
    out
}

#[test]
fn a_changed_address_is_noticed_at_its_operation() {
    let same = replay(rewritten(golden("3.12"), |_, _| {}), &profile::V3_12);
    assert!(same.is_exact(), "rewriting changes nothing by itself");
    let mut changed = None;
    let bytes = rewritten(golden("3.12"), |index, event| {
        if let Event::Malloc { domain: Domain::Obj, size: 1..=512, result, .. } = event
            && index > 40_000
            && changed.is_none()
        {
            *result += 16;
            changed = Some(index as u64);
        }
    });
    let report = replay(bytes, &profile::V3_12);
    let mismatch = report.mismatch.clone().expect("a mismatch");
    assert_eq!(Some(mismatch.operation), changed);
    assert_eq!(mismatch.expected.address, mismatch.got.address + 16);
    assert!(!report.is_exact());
}

#[test]
fn what_raw_and_arenas_are_asked_for_is_compared() {
    let spoiled = |spoil: fn(&mut Event) -> bool| {
        let mut done = false;
        let bytes = rewritten(golden("3.13"), |_, event| done = done || spoil(event));
        assert!(done, "the trace has no such event");
        replay(bytes, &profile::V3_13)
    };
    let size = spoiled(|event| match event {
        Event::Malloc { nested: true, size, .. } => {
            *size += 1;
            true
        }
        _ => false,
    });
    assert!(size.mismatch.expect("a mismatch").what.contains("PyMem_RawMalloc"));
    let released = spoiled(|event| match event {
        Event::ArenaFree { nested: true, address, .. } => {
            *address += 0x4000;
            true
        }
        _ => false,
    });
    assert!(released.mismatch.expect("a mismatch").what.contains("arena free"));
    let blocks = spoiled(|event| match event {
        Event::Note(Note::AllocatedBlocks(count)) => {
            *count += 1;
            true
        }
        _ => false,
    });
    assert!(blocks.mismatch.is_none() && !blocks.is_exact());
    let stats = spoiled(|event| match event {
        Event::Note(Note::Stats(text)) => {
            text.push('.');
            true
        }
        _ => false,
    });
    assert!(stats.mismatch.is_none() && !stats.is_exact());
}

#[test]
fn a_trace_without_small_calls_is_exact_if_all_calls_are_in_it() {
    let report = |last: fn(&mut BlockWriter<'_>)| {
        let mut memory = vec![0; 4096];
        let mut block = BlockWriter::new(&mut memory);
        block.malloc(Domain::Raw, false, 10, 0x1000);
        last(&mut block);
        let mut bytes = file_head("{}");
        bytes.extend_from_slice(block.finish());
        replay(bytes, &profile::V3_13)
    };
    assert!(report(|block| block.end()).is_exact(), "as of a program that only says its version");
    assert!(report(|block| block.exec()).is_exact());
    assert!(!report(|_| {}).is_exact(), "it was killed");
    let lost = |block: &mut BlockWriter<'_>| {
        block.hooks_lost(7);
        block.end();
    };
    assert!(!report(lost).is_exact());
}

#[test]
fn a_program_that_could_not_be_executed_goes_on() {
    let mut memory = vec![0; 4096];
    let mut block = BlockWriter::new(&mut memory);
    block.exec();
    block.text("said");
    block.malloc(Domain::Raw, false, 10, 0x1000);
    let mut bytes = file_head("{}");
    bytes.extend_from_slice(block.finish());
    let report = replay(bytes, &profile::V3_13);
    assert!(!report.ended);
    assert_eq!(report.remarks, ["said"]);
}

#[test]
fn a_replay_that_was_told_to_stop_is_judged_by_what_it_compared() {
    let readers = vec![Reader::new(golden("3.13")).expect("a trace")];
    let mut replay = Replay::new(readers, &profile::V3_13, Report::default()).expect("a heap");
    replay.stop_at(3);
    let report = replay.run().expect("undamaged");
    assert_eq!((report.events, report.addresses, report.stopped, report.is_exact()), (3, 0, true, true));
}

#[test]
fn a_hostile_trace_does_no_harm() {
    // Frees of unknown addresses, of pymalloc's blocks through raw, and second frees are reported or counted, and never carried out.
    let mut memory = vec![0; 4096];
    let mut block = BlockWriter::new(&mut memory);
    block.free(Domain::Obj, false, 0x7f00_1234_5670);
    block.realloc(Domain::Raw, false, 0x7f00_1234_5670, 10, 0x7f00_1234_5680);
    block.realloc(Domain::Raw, true, 0, 768, 0x5000);
    block.arena_alloc(true, 1 << 20, 0x7f00_0000_0000);
    block.calloc(Domain::Raw, true, 1, 262_144, 0x6000);
    block.calloc(Domain::Raw, true, 1, 131_072, 0x7000);
    block.malloc(Domain::Obj, false, 16, 0x7f00_0000_0030);
    block.free(Domain::Obj, false, 0x7f00_0000_0030);
    block.free(Domain::Obj, false, 0x7f00_0000_0030);
    block.malloc(Domain::Obj, false, 16, 0x7f00_0000_0030);
    block.free(Domain::Raw, false, 0x7f00_0000_0030);
    let mut bytes = file_head("{}");
    bytes.extend_from_slice(block.finish());
    let report = replay(bytes, &profile::V3_13);
    assert_eq!(report.strangers, 3);
    assert!(report.mismatch.expect("a mismatch").what.contains("raw domain"));
}

#[test]
fn calls_of_other_interpreters_are_counted_and_left_out() {
    let mut out = file_head("{}");
    let mut memory = vec![0; 1 << 16];
    let mut block = BlockWriter::new(&mut memory);
    let mut others = 0;
    for (index, event) in Reader::new(golden("3.13")).expect("a trace").map(Result::unwrap).enumerate() {
        if !block.has_room(8192) {
            out.extend_from_slice(block.finish());
        }
        if index % 1000 == 7 {
            // Another interpreter's allocator begins: it takes its first arena.
            let id = 1 + (index / 1000 % 3) as u64;
            let arena = 0x1000_0000_0000 + ((index as u64) << 20);
            block.interpreter(id);
            block.realloc(Domain::Raw, true, 0, 768, 0x5000);
            block.arena_alloc(true, 1 << 20, arena);
            block.malloc(Domain::Obj, false, 16, arena + 0x30);
            block.free(Domain::Obj, false, arena + 0x30);
            block.interpreter(0);
            others += 2;
        }
        write(&mut block, event);
    }
    out.extend_from_slice(block.finish());
    let report = replay(out, &profile::V3_13);
    assert!(report.is_exact(), "{report:?}");
    assert_eq!(report.other_interpreters, 3);
    assert_eq!(report.other_calls, others);
    assert_eq!(report.blocks, None, "CPython counts the blocks of all interpreters together");
    assert!(report.stats.is_some(), "but it tells the statistics of one");
}

#[test]
fn large_blocks_can_be_freed_by_another_interpreter() {
    let mut memory = vec![0; 4096];
    let mut block = BlockWriter::new(&mut memory);
    for (address, size) in [(0x5000, 600), (0x6000, 700)] {
        block.malloc(Domain::Raw, true, size, address);
        block.malloc(Domain::Obj, false, size, address);
    }
    block.interpreter(1);
    block.free(Domain::Raw, true, 0x5000);
    block.free(Domain::Obj, false, 0x5000);
    block.realloc(Domain::Raw, true, 0x6000, 800, 0x7000);
    block.realloc(Domain::Obj, false, 0x6000, 800, 0x7000);
    block.interpreter(0);
    // None of these addresses is a block of the main interpreter any more.
    for address in [0x5000, 0x6000, 0x7000] {
        block.free(Domain::Raw, false, address);
    }
    let mut bytes = file_head("{}");
    bytes.extend_from_slice(block.finish());
    let report = replay(bytes, &profile::V3_13);
    assert_eq!((report.other_calls, report.strangers), (2, 3));
    assert_eq!(report.mismatch, None);
}
