//! The types that live objects have, in real interpreters.
#![cfg(target_os = "linux")]

mod common;

use common::{Run, pythons};
use obmalloc_trace::format::{Domain, Event, Note, Reader};
use obmalloc_trace::types::Types;
use std::collections::HashMap;

const TYPES: (&str, &str) = ("OBMALLOC_TYPES", "1");

/// The blocks of the obj domain that are alive at a mark, with their sizes, and what types are known there.
fn at_mark(run: &Run, name: &str) -> (HashMap<u64, u64>, Option<Types>) {
    let mut reader = Reader::new(std::fs::read(run.directory.join("trace")).expect("a trace")).expect("a trace");
    let mut alive = HashMap::new();
    while let Some(event) = reader.next() {
        let (gone, come, size) = match event.expect("undamaged") {
            Event::Malloc { domain: Domain::Obj, size, result, .. } => (0, result, size),
            Event::Calloc { domain: Domain::Obj, count, size, result, .. } => (0, result, count * size),
            Event::Realloc { domain: Domain::Obj, result: 0, .. } => continue,
            Event::Realloc { domain: Domain::Obj, address, size, result, .. } => (address, result, size),
            Event::Free { domain: Domain::Obj, address, .. } => (address, 0, 0),
            Event::Note(Note::Mark(mark)) if mark == name => return (alive, reader.types_here().expect("undamaged")),
            _ => continue,
        };
        alive.remove(&gone);
        if come != 0 {
            alive.insert(come, size);
        }
    }
    panic!("no mark {name}");
}

fn judge() -> String {
    format!("{}/tests/types.py", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn types_are_those_that_python_says() {
    for python in pythons() {
        let said = std::env::temp_dir().join(format!("obmalloc-types-{}-{}", std::process::id(), python.minor));
        let run = Run::with(python, &[&judge(), said.to_str().expect("text")], &[TYPES]).succeeded();
        let expected = std::fs::read_to_string(&said).expect("what Python says");
        let _ = std::fs::remove_file(&said);
        let (alive, types) = at_mark(&run, "objects");
        let types = types.expect("types at a mark");
        let name = |address| types.of(address).map(|number| types.name(number));
        let (mut known, mut others, mut unnamed) = (0, 0, HashMap::<&str, u32>::new());
        for line in expected.lines() {
            let (address, expected) = line.split_once(' ').expect("an address and a name");
            let address = u64::from_str_radix(address, 16).expect("a number");
            // Those of no block are static.
            if !alive.contains_key(&address) {
                others += 1;
                continue;
            }
            match name(address) {
                Some(name) => {
                    assert_eq!(name, expected, "3.{}: {address:#x}", python.minor);
                    known += 1;
                }
                None => *unnamed.entry(expected).or_default() += 1,
            }
        }
        let named = alive.keys().filter(|&&address| name(address).is_some()).count();
        let small = alive.iter().filter(|&(_, &size)| size <= 512);
        println!(
            "3.{}: {named} of {} live blocks of the obj domain have a type ({} of {} up to 512 bytes); Python knows {known} of them, and {others} \
             objects elsewhere",
            python.minor,
            alive.len(),
            small.clone().filter(|&(&address, _)| name(address).is_some()).count(),
            small.count(),
        );
        assert!(known > 10_000, "3.{}: {known}", python.minor);
        assert!(unnamed.is_empty(), "3.{}: Python knows what the recorder does not: {unnamed:?}", python.minor);
    }
}
