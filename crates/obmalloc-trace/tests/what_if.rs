//! Configurations, against what real CPythons did.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use obmalloc::Stats;
use obmalloc::profile::{self, Profile};
use obmalloc_trace::format::{BlockWriter, Domain, Reader, file_head};
use obmalloc_trace::replay::Replay;
use obmalloc_trace::what_if::{CallsWriter, Configuration, Recorded, Row, Trials, TrialsError};

fn golden(release: &str) -> Reader<'static> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../__test__/golden").join(format!("{release}.trace"));
    Reader::new(std::fs::read(path).expect("a golden trace")).expect("a trace")
}

/// What came of configurations on a golden recording up to event `stop_at`, and the statistics there, which are CPython's.
fn tried(release: &str, stop_at: u64, wishes: &[Configuration]) -> (Result<Vec<Row>, TrialsError>, Stats) {
    static FILES: AtomicU32 = AtomicU32::new(0);
    let number = FILES.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("obmalloc-calls-{}-{number}", std::process::id()));
    let profile = Profile::named(release).expect("a release");
    let writer = CallsWriter::create(&path, None).expect("a file");
    std::fs::remove_file(&path).expect("it is there");
    let mut replay = Replay::new(vec![golden(release)], profile, writer).expect("a heap");
    replay.stop_at(stop_at);
    replay.run().expect("undamaged");
    let (recorded, stats) = (Recorded::of(&replay), replay.stats());
    let calls = replay.into_watcher().calls().expect("they were written");
    let mut trials = Trials::new(wishes.to_vec(), profile, calls, recorded);
    let rows = loop {
        match trials.step(1000) {
            Ok(true) => {}
            Ok(false) => break Ok(trials.tried().rows),
            Err(error) => break Err(error),
        }
    };
    (rows, stats)
}

#[test]
fn recorded_setting_gives_what_the_recorded_process_had() {
    for profile in profile::ALL {
        let geometry = profile.geometry();
        for stop_at in [3_000, 60_000, u64::MAX] {
            let size = geometry.arena_size as u64;
            let spelled_out = Configuration {
                release: Some(profile.release().into()),
                arena: Some(geometry.arena_size),
                pool: Some(geometry.pool_size),
                threshold: Some(geometry.small_request_threshold),
                apart: false,
            };
            let (rows, stats) = tried(profile.release(), stop_at, &[Configuration::default(), spelled_out]);
            for row in rows.expect("heaps") {
                let of = format!("{} up to {stop_at}: {row:?}", profile.release());
                assert_eq!(row.held, stats.arenas as u64 * size, "{of}");
                assert_eq!(row.peak_held, stats.arenas_highwater as u64 * size, "{of}");
                assert_eq!(row.maps, stats.arenas_allocated_total as u64, "{of}");
                assert_eq!(row.unmaps, (stats.arenas_allocated_total - stats.arenas) as u64, "{of}");
                let in_use: usize =
                    stats.classes.iter().zip(1..).map(|(class, number)| class.blocks_in_use * number * geometry.alignment).sum();
                let live = row.held - row.lost;
                assert!(live <= in_use as u64 && live * 10 > in_use as u64 * 8, "{of}: {live} of {in_use}");
            }
        }
    }
}

#[test]
fn rules_of_3_9_on_a_recording_of_3_8_are_those_of_a_replay_on_3_9() {
    // Everything but addresses: 3.9 keeps the last empty arena.
    let as_3_9 = Configuration { release: Some("3.9".into()), ..Configuration::default() };
    let small = Configuration { release: Some("3.13".into()), arena: Some(256 << 10), pool: Some(4 << 10), ..as_3_9.clone() };
    let (rows, _) = tried("3.8", u64::MAX, &[Configuration::default(), as_3_9, small]);
    let [own, other, newest] = rows.expect("heaps")[..] else { panic!("expected a row for each") };
    assert!(other.unmaps <= own.unmaps);
    assert_eq!((newest.held, newest.maps), (other.held, other.maps), "3.13's rules for arenas are those of 3.9");
}

#[test]
fn larger_arenas_are_fewer_and_what_is_not_small_is_in_none() {
    let of = |arena: usize, threshold: usize| Configuration {
        arena: Some(arena),
        threshold: Some(threshold),
        ..Configuration::default()
    };
    let (rows, _) = tried("3.13", 60_000, &[of(256 << 10, 512), of(4 << 20, 512), of(256 << 10, 64)]);
    let [small, large, few] = rows.expect("heaps")[..] else { panic!("expected a row for each") };
    assert!(small.maps > large.maps && large.held.is_multiple_of(4 << 20));
    assert!(few.held < small.held);
}

#[test]
fn sizes_that_no_heap_has_are_refused() {
    for (arena, pool) in [(3 << 20, 16 << 10), (1 << 20, 1 << 20), (1 << 30, 16 << 10)] {
        let wish = Configuration { arena: Some(arena), pool: Some(pool), ..Configuration::default() };
        let (rows, _) = tried("3.13", 100, &[wish]);
        assert!(matches!(rows, Err(TrialsError::Heap(_))), "{rows:?}");
    }
}

/// Tries the configurations on the calls that `write` makes, after `damage` has changed the file of calls. Returns how many calls were made.
fn tampered(
    write: impl FnOnce(&mut BlockWriter<'_>),
    damage: impl FnOnce(&mut Vec<u8>),
    wishes: &[Configuration],
) -> Result<u64, TrialsError> {
    static FILES: AtomicU32 = AtomicU32::new(0);
    let number = FILES.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("obmalloc-tampered-{}-{number}", std::process::id()));
    let mut memory = vec![0; 1 << 16];
    let mut block = BlockWriter::new(&mut memory);
    write(&mut block);
    let trace = [&file_head("{}")[..], block.finish()].concat();
    let writer = CallsWriter::create(&path, None).expect("a file");
    let mut replay = Replay::new(vec![Reader::new(trace).expect("a trace")], &profile::V3_13, writer).expect("a heap");
    replay.run().expect("undamaged");
    let recorded = Recorded::of(&replay);
    let calls = replay.into_watcher().calls().expect("they were written");
    let mut bytes = std::fs::read(&path).expect("it is there");
    damage(&mut bytes);
    std::fs::write(&path, bytes).expect("a file");
    std::fs::remove_file(&path).expect("it is there");
    let mut trials = Trials::new(wishes.to_vec(), &profile::V3_13, calls, recorded);
    while trials.step(1000)? {}
    Ok(trials.tried().calls)
}

#[test]
fn calls_that_were_written_to_meanwhile_do_no_harm() {
    let write = |block: &mut BlockWriter<'_>| {
        for number in 0..60 {
            let address = 0x7f00_0000_0030 + number * 0x1000;
            block.malloc(Domain::Obj, false, 64 + number % 3 * 400, address);
            if number % 2 == 1 {
                block.realloc(Domain::Obj, false, address, 100 + number % 4 * 300, address + 16);
                block.free(Domain::Obj, false, address + 16);
            }
        }
    };
    let wishes = [Configuration::default(), Configuration { apart: true, ..Configuration::default() }];
    let damaged = |damage: &dyn Fn(&mut Vec<u8>)| tampered(write, damage, &wishes);
    assert!(matches!(damaged(&|_| {}), Ok(120)));
    let mut refused = 0;
    for call in (0..120).step_by(9) {
        // The lower half of a call: its verb and its slot. The upper half is a size, and any size is valid.
        for bit in 0..32 {
            let result = damaged(&|bytes| bytes[24 + 8 * call + bit / 8] ^= 1 << (bit % 8));
            assert!(matches!(result, Ok(120) | Err(TrialsError::File(_))), "bit {bit} of call {call}: {result:?}");
            refused += usize::from(result.is_err());
        }
    }
    assert!(refused > 350, "{refused}");
    assert!(matches!(damaged(&|bytes| bytes.truncate(100)), Err(TrialsError::File(_))));
}

#[test]
fn block_of_obj_that_goes_by_way_of_raw_is_gone() {
    let write = |block: &mut BlockWriter<'_>| {
        for number in 0..10 {
            let address = 0x5000_0000 + number * 0x1000;
            block.malloc(Domain::Obj, false, 1000, address);
            match number % 3 {
                0 => block.free(Domain::Raw, false, address),
                1 => block.realloc(Domain::Raw, false, address, 2000, address + 16),
                _ => {}
            }
        }
    };
    // Ten requests, four frees through raw, and three reallocations through raw.
    assert!(matches!(tampered(write, |_| {}, &[Configuration::default()]), Ok(17)));
}
