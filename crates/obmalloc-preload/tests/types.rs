//! The types that live objects have, in real interpreters.
#![cfg(target_os = "linux")]

mod common;

use common::{Run, fixed, pythons};
use obmalloc_trace::format::{Domain, Event, Note, Reader};
use obmalloc_trace::types::Types;
use std::collections::HashMap;

const TYPES: (&str, &str) = ("OBMALLOC_TYPES", "1");

/// A block that is alive: its size, and the number of the event that made it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Block {
    size: u64,
    born: u64,
}

/// The blocks of the obj domain that are alive at a mark, by address, and what types are known there.
fn at_mark(run: &Run, name: &str) -> (HashMap<u64, Block>, Option<Types>) {
    let mut reader = Reader::new(std::fs::read(run.directory.join("trace")).expect("a trace")).expect("a trace");
    let (mut alive, mut born) = (HashMap::new(), 0);
    while let Some(event) = reader.next() {
        born += 1;
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
            alive.insert(come, Block { size, born });
        }
    }
    panic!("no mark {name}");
}

fn judge() -> String {
    format!("{}/tests/known_types.py", env!("CARGO_MANIFEST_DIR"))
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
        // At the mark "objects" a list of the program's holds all objects. At the mark "before" it does not exist yet, so the recorder has to find
        // them.
        let (alive_before, types_before) = at_mark(&run, "before");
        let types_before = types_before.expect("types at a mark");
        let (mut known, mut others, mut unnamed) = (0, 0, HashMap::<&str, u32>::new());
        let (mut known_before, mut unnamed_before) = (0, HashMap::<&str, u32>::new());
        for line in expected.lines() {
            let (address, expected) = line.split_once(' ').expect("an address and a name");
            let address = u64::from_str_radix(address, 16).expect("a number");
            // Objects that lie in no block are static.
            if !alive.contains_key(&address) {
                others += 1;
                continue;
            }
            if alive_before.get(&address) == alive.get(&address) {
                known_before += 1;
                if types_before.of(address).is_none() {
                    *unnamed_before.entry(expected).or_default() += 1;
                }
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
        let small = alive.iter().filter(|(_, block)| block.size <= 512);
        println!(
            "3.{}: {named} of {} live blocks of the obj domain have a type ({} of {} up to 512 bytes); Python knows {known} of them, and {others} \
             objects elsewhere",
            python.minor,
            alive.len(),
            small.clone().filter(|&(&address, _)| name(address).is_some()).count(),
            small.count(),
        );
        assert!(known > 10_000, "3.{}: {known}", python.minor);
        // CPython may use a dead object's memory for a new object, and requests nothing then. So the block looks older than its object.
        let missed = unnamed_before.values().sum::<u32>();
        println!("3.{}: {missed} of {known_before} were not reached without the list", python.minor);
        assert!(known_before > 10_000 && missed * 200 < known_before, "3.{}: {missed}: {unnamed_before:?}", python.minor);
        assert!(unnamed.is_empty(), "3.{}: Python knows what the recorder does not: {unnamed:?}", python.minor);
    }
}

/// Checks that the blocks whose addresses a program prints, in hexadecimal, are live at its mark, and that the recorder names no type for them.
fn have_no_name(script: &str) {
    for python in pythons() {
        let run = Run::of(python, script, &[TYPES]).succeeded();
        let (alive, types) = at_mark(&run, "here");
        let types = types.expect("types at a mark");
        let blocks: Vec<u64> = run.stdout().lines().map(|line| u64::from_str_radix(line, 16).expect("a number")).collect();
        assert!(blocks.len() >= 20, "3.{}: {}", python.minor, blocks.len());
        for block in blocks {
            assert!(alive.contains_key(&block), "3.{}: {block:#x}", python.minor);
            let name = types.of(block).map(|number| types.name(number));
            assert_eq!(name, None, "3.{}: {block:#x}", python.minor);
        }
    }
}

#[test]
fn bytes_left_over_from_an_object_have_no_name() {
    // When a tuple is moved, its old block keeps the reference count and the type. The next owner of that block finds them there.
    have_no_name(
        "\
import ctypes, sys
api = ctypes.pythonapi
api.PyObject_Malloc.restype = api.PyTuple_New.restype = ctypes.c_void_p
kept, stale = [], []
for _ in range(200):
    place = ctypes.c_void_p(api.PyTuple_New(ctypes.c_ssize_t(40)))
    old = place.value - 16
    api._PyTuple_Resize(ctypes.byref(place), ctypes.c_ssize_t(400))
    block = api.PyObject_Malloc(ctypes.c_size_t(16 + 24 + 40 * 8))
    kept.append(place)
    if block == old:
        stale.append(block)
words = [ctypes.cast(block, ctypes.POINTER(ctypes.c_size_t)) for block in stale]
left = [block for block, word in zip(stale, words) if word[2] == 1 and word[3] == id(tuple) and word[4] == 40]
# As one that the collector does not track.
for block in left[::2]:
    ctypes.memset(block, 0, 16)
sys.audit('obmalloc.mark', 'here')
for block in left:
    print('%x' % block)
",
    );
}

#[test]
fn bytes_that_look_like_an_object_have_no_name() {
    have_no_name(
        "\
import ctypes, struct, sys
api = ctypes.pythonapi
api.PyObject_Malloc.restype = ctypes.c_void_p
class Slots: __slots__ = ('a', 'b')
class Plain: pass
def made(*words):
    block = api.PyObject_Malloc(ctypes.c_size_t(96))
    ctypes.memmove(block, struct.pack('12Q', *(words + (0,) * (12 - len(words)))), 96)
    return block
plain = Plain()
blocks = []
for kind in (int, float, str, bytes, list, dict, tuple, Slots, Plain):
    tracked = id(plain) - 16
    blocks += [made(1, id(kind), 1), made(0, 0, 1, id(kind), 1), made(0, 0, 0, 0, 1, id(kind), 1), made(tracked, tracked, 1, id(kind))]
    # Two that have links to each other.
    one = made()
    other = made(one, one, 1, id(kind))
    ctypes.memmove(one, struct.pack('4Q', other, other, 1, id(kind)), 32)
    blocks += [one, other]
sys.audit('obmalloc.mark', 'here')
for block in blocks:
    print('%x' % block)
",
    );
}

#[test]
fn dead_objects_whose_memory_is_kept_have_no_name() {
    have_no_name(
        "\
import sys
floats = [n + 0.5 for n in range(80)]
addresses = [id(one) for one in floats]
del floats
sys.audit('obmalloc.mark', 'here')
for address in addresses[:40]:
    print('%x' % address)
",
    );
}

/// The tables of a trace, with how many events stood before each, and the event before.
fn tables(run: &Run) -> Vec<(usize, Event, Types)> {
    let path = run.directory.join("trace");
    let mut reader = Reader::new(std::fs::read(path).expect("a trace")).expect("a trace");
    let (mut found, mut count) = (Vec::new(), 0);
    while let Some(event) = reader.next() {
        count += 1;
        if let Some(types) = reader.types_here().expect("undamaged") {
            found.push((count, event.expect("undamaged"), types));
        }
    }
    found
}

#[test]
fn table_stands_at_each_mark_of_the_program_and_before_finalization() {
    let script = "\
import os, signal, sys
sys.audit('obmalloc.mark', 'one')
sys.audit('obmalloc.mark', 'two')
os.kill(os.getpid(), signal.SIGUSR2)
";
    for python in pythons() {
        let run = Run::of(python, script, &[TYPES]).succeeded();
        let found = tables(&run);
        let events = run.trace().events;
        let mark = |name: &str| Event::Note(Note::Mark(name.into()));
        assert_eq!(found.len(), 3, "3.{}", python.minor);
        assert!(found[0].1 == mark("one") && found[1].1 == mark("two") && events.contains(&mark("SIGUSR2")));
        assert_eq!(events[found[2].0], Event::Note(Note::Finalization), "3.{}", python.minor);
        let run = Run::of(python, script, &[("OBMALLOC_TYPES", "0")]).succeeded();
        assert!(tables(&run).is_empty(), "3.{}: none unless wanted", python.minor);
    }
}

#[test]
fn types_change_no_event() {
    let script = "\
import gc, sys, weakref
class Node:
    def __init__(self, next): self.next = next
    def __del__(self): sys.audit('obmalloc.mark', 'dying')
rows = [(str(n) * 30, {n: [n]}) for n in range(20000)]
kept = rows[::100]
del rows
gc.callbacks.append(lambda phase, info: sys.audit('obmalloc.mark', phase))
for _ in range(3):
    one = Node(None)
    one.next = Node(one)
    reference = weakref.ref(one, lambda _: sys.audit('obmalloc.mark', 'dead'))
    del one
    gc.collect()
def inside():
    for n in range(10):
        yield n
        sys.audit('obmalloc.mark', 'yielded')
[bytes(n) for n in inside()]
gc.freeze()
sys.audit('obmalloc.mark', 'frozen')
[bytes(n) for n in range(3000)]
";
    for python in pythons() {
        let [without, with] = ["0", "1"].map(|types| fixed(python, script, &[("OBMALLOC_TYPES", types)]));
        assert!(tables(&with).len() > 15, "3.{}: {}", python.minor, tables(&with).len());
        assert!(tables(&without).is_empty());
        let [without, with] = [without.trace(), with.trace()];
        let first = without.events.iter().zip(&with.events).position(|(without, with)| without != with);
        assert_eq!(first, None, "3.{}: the first event that differs", python.minor);
        assert_eq!(with.events.len(), without.events.len(), "3.{}", python.minor);
    }
}

#[test]
fn marks_in_threads_and_interpreters_do_no_harm() {
    let script = "\
import sys, threading
def work():
    for _ in range(5):
        rows = [(n, str(n), {n: n}) for n in range(200)]
        sys.audit('obmalloc.mark', 'thread')
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
for name in ('_interpreters', '_xxsubinterpreters'):
    try: interpreters = __import__(name)
    except ImportError: continue
    code = \"import sys; rows = [str(n) for n in range(100)]; sys.audit('obmalloc.mark', 'interpreter')\"
    for _ in range(2):
        number = interpreters.create()
        interpreters.run_string(number, code)
        interpreters.destroy(number)
    break
sys.audit('obmalloc.mark', 'last')
";
    for python in pythons() {
        let run = Run::of(python, script, &[TYPES, ("OBMALLOC_STACKS", "64"), ("OBMALLOC_EVERY", "1")]).succeeded();
        let found = tables(&run);
        let of = |name: &str| found.iter().filter(|(_, event, _)| *event == Event::Note(Note::Mark(name.into()))).count();
        assert_eq!((of("thread"), of("last")), (20, 1), "3.{}", python.minor);
        // From 3.12 on these have allocators of their own.
        assert_eq!(of("interpreter"), if python.minor >= 12 { 0 } else { 2 }, "3.{}", python.minor);
        assert!(run.trace().ends_orderly(), "3.{}", python.minor);
    }
}

#[test]
fn forked_process_has_types_of_its_own() {
    let script = "\
import os, sys
pid = os.fork()
if pid == 0:
    sys.audit('obmalloc.mark', 'child')
    os._exit(0)
os.waitpid(pid, 0)
";
    for python in pythons() {
        let run = Run::of(python, script, &[TYPES]).succeeded();
        let children = run.children();
        let mut reader = Reader::new(std::fs::read(&children[0]).expect("a trace")).expect("a trace");
        let mut found = 0;
        while reader.next().is_some() {
            found += usize::from(reader.types_here().expect("undamaged").is_some());
        }
        assert_eq!((children.len(), found), (1, 1), "3.{}", python.minor);
    }
}
