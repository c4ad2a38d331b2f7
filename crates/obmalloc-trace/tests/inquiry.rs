//! What the rules of `why` say of marks, samples, stacks and C's `malloc`, in traces that the tests make up.

use obmalloc::profile;
use obmalloc_trace::analysis::{Answered, Asked, Inquiry, InquiryError, Site, TypeCount, Why};
use obmalloc_trace::clock::Memory;
use obmalloc_trace::format::{BlockWriter, Domain, Reader, file_head};
use obmalloc_trace::moments::NotThere;

const MIB: u64 = 1 << 20;

/// A trace of one block. Its stacks 1 and 2 are two instructions of `f (a.py:7)`, 3 is `main (a.py:9)`, and 4 is `f` called from there.
fn trace(write: impl FnOnce(&mut BlockWriter<'_>)) -> Vec<u8> {
    named("/app/a.py", write)
}

/// The same in a file of another name.
fn named(file: &str, write: impl FnOnce(&mut BlockWriter<'_>)) -> Vec<u8> {
    let mut memory = vec![0; 1 << 20];
    let mut block = BlockWriter::new(&mut memory);
    for text in [file, "f", "main"] {
        block.stack_text(text.as_bytes());
    }
    block.code(0, 1, 7, 0, b"");
    block.code(0, 2, 9, 0, b"");
    block.node(1, 0, 0);
    block.node(2, 0, 3);
    block.node(3, 1, 0);
    block.node(1, 0, 0);
    write(&mut block);
    [&file_head("{}")[..], block.finish()].concat()
}

fn ask(trace: Vec<u8>, asked: Asked) -> Result<(Why, Vec<String>), InquiryError> {
    let open = move || Ok(vec![Reader::new(trace.clone())?]);
    let mut inquiry = Inquiry::new(asked, &profile::V3_13, Box::new(open))?;
    while inquiry.step(3)? {}
    match inquiry.answer() {
        Some(Answered::Why { why, summary, .. }) => Ok((*why, summary)),
        _ => panic!("expected an answer"),
    }
}

fn why(trace: Vec<u8>) -> Why {
    ask(trace, Asked { path: "a.trace".into(), frames: 64, ..Asked::default() }).expect("an answer").0
}

fn rules(why: &Why) -> Vec<&str> {
    why.findings.iter().map(|finding| finding.rule).collect()
}

/// One raw block a mark, each of `size` bytes, of the stack `node`; every `every`th is freed again.
fn growing(marks: u64, size: u64, node: u64, every: u64) -> Vec<u8> {
    trace(|block| grow(block, marks, size, node, every))
}

fn grow(block: &mut BlockWriter<'_>, marks: u64, size: u64, node: u64, every: u64) {
    for number in 0..marks {
        let address = 0x10_0000 + number * 0x1000;
        block.stack(node);
        block.malloc(Domain::Raw, false, size, address);
        if number % every == every - 1 {
            block.free(Domain::Raw, false, address);
            block.free(Domain::Raw, false, address - 0x1000);
        }
        block.mark("job");
    }
    block.end();
}

#[test]
fn site_that_only_grows_from_mark_to_mark_is_found_at_64_bytes_a_mark_and_five_marks() {
    let grown = why(growing(20, 64, 1, 100));
    assert_eq!(rules(&grown), ["grows"]);
    let finding = &grown.findings[0];
    assert_eq!((finding.saves, finding.command.as_str()), (19 * 64, "obmalloc why a.trace --site a.py:7"));
    assert!(finding.text.contains("f (a.py:7)") && finding.text.contains("(64 bytes a mark)"), "{}", finding.text);
    assert_eq!(grown.sites[finding.site.expect("a site") as usize].stack[0].function, "f");
    assert_eq!(rules(&why(growing(20, 63, 1, 100))), ["live"], "below the threshold");
    assert_eq!(rules(&why(growing(4, 640, 1, 100))), ["live"], "too few marks");
    assert_eq!(rules(&why(growing(20, 640, 1, 5))), ["live"], "it shrinks too");
}

#[test]
fn next_command_is_one_for_a_shell_and_of_the_same_moment() {
    let asked = |path: &str, at: &str| Asked { path: path.into(), at: at.into(), frames: 64, ..Asked::default() };
    let command = |file: &str, asked| {
        let grown = named(file, |block| grow(block, 20, 64, 1, 100));
        ask(grown, asked).expect("an answer").0.findings[0].command.clone()
    };
    assert_eq!(command("<string>", asked("it's a.trace", "")), r"obmalloc why 'it'\''s a.trace' --site '<string>:7'");
    assert_eq!(
        command("/app/my app.py", asked("-a.trace", "mark:job")),
        "obmalloc why ./-a.trace --at mark:job --site 'my app.py:7'"
    );
    assert_eq!(command("/app/ä.py", asked("a.trace", "mark:job#19")), "obmalloc why a.trace --at 'mark:job#19' --site ä.py:7");
    let nothing = trace(|block| block.end());
    let found = ask(nothing, asked("a b", "event:0")).expect("an answer").0;
    assert_eq!(found.findings[0].command, "obmalloc top 'a b' --at event:0");
}

#[test]
fn next_command_runs_the_same_program_where_it_is_to_run_again() {
    let command = |words: &[&str]| {
        let asked =
            Asked { path: "-a.trace".into(), command: words.iter().map(|&word| word.into()).collect(), ..Asked::default() };
        let found = ask(growing(20, 64, 1, 100), asked).expect("an answer").0.findings;
        found.into_iter().find(|finding| finding.rule == "cannot-tell").expect("no stacks").command
    };
    assert_eq!(
        command(&["/opt/my python/bin/python3", "-m", "app", "a b", ""]),
        "obmalloc record --stacks 64 -o ./-a.trace --python '/opt/my python/bin/python3' -- -m app 'a b' ''"
    );
    assert_eq!(command(&[]), "obmalloc record --stacks 64 -o ./-a.trace -- …");
}

#[test]
fn names_stay_in_their_line_whatever_they_are() {
    let grown = named("/app/a\n\u{1b}[31m.py", |block| {
        for number in 0..5 {
            block.stack(1);
            block.malloc(Domain::Raw, false, 640, 0x10_0000 + number * 0x1000);
            block.mark("a\nb");
        }
        block.end();
    });
    let text = &why(grown).findings[0].text;
    assert!(text.starts_with("What comes from f (a??[31m.py:7) only grows:") && text.contains(r#"5 marks "a?b""#), "{text}");
}

/// The place that an answer names for a block whose stack has frames of these files, innermost first. The lines of the frames are 1, 2, 3 and so
/// on.
fn place(files: &[&str]) -> String {
    let mut memory = vec![0; 1 << 20];
    let mut block = BlockWriter::new(&mut memory);
    block.stack_text(b"f");
    for file in files {
        block.stack_text(file.as_bytes());
    }
    for line in (1..=files.len() as u64).rev() {
        block.code(line, 0, line, 0, b"");
        block.node(1, files.len() as u64 - line, 0);
    }
    grow(&mut block, 20, 64, files.len() as u64, 100);
    let why = why([&file_head("{}")[..], block.finish()].concat());
    why.findings[0].command.split("--site ").nth(1).expect("a site").into()
}

#[test]
fn place_that_is_named_is_in_a_file_of_the_program_where_there_is_one() {
    assert_eq!(place(&["/usr/lib/python3.13/json/decoder.py", "/app/a.py"]), "a.py:2");
    assert_eq!(place(&["/usr/lib64/python3.13/json/decoder.py", "/app/a.py"]), "a.py:2", "of other systems");
    assert_eq!(place(&["/opt/lib/python/a.py", "/app/b.py"]), "a.py:1", "not Python's");
    assert_eq!(place(&["<string>", "/usr/lib/python3.13/dataclasses.py", "/app/a.py"]), "a.py:3", "of no file");
    assert_eq!(place(&["<frozen runpy>", "/usr/lib/python3.13/json/decoder.py", "<string>"]), "'<string>:3'");
    assert_eq!(place(&["<frozen runpy>", "/usr/lib/python3.13/runpy.py"]), "'<frozen runpy>:1'");
    assert_eq!(place(&["<frozen importlib._bootstrap>", "/usr/lib/python3.13/json/__init__.py"]), "__init__.py:2");
    assert_eq!(place(&["<frozen importlib._bootstrap_external>"]), "'<frozen importlib._bootstrap_external>:1'");
}

#[test]
fn recording_that_is_cut_off_or_has_lost_calls_says_so() {
    let summary = |write: &dyn Fn(&mut BlockWriter<'_>), at: &str| {
        ask(trace(write), Asked { at: at.into(), ..Asked::default() }).expect("an answer")
    };
    let calls = |block: &mut BlockWriter<'_>| {
        block.malloc(Domain::Raw, false, 100, 0x1000);
        block.malloc(Domain::Raw, false, 100, 0x2000);
    };
    let last = |(_, summary): (Why, Vec<String>)| summary.last().expect("a line").clone();
    assert!(last(summary(&calls, "")).starts_with("The recording has no end: the process was killed"));
    assert!(last(summary(&calls, "event:0")).starts_with("Nothing is wrong"), "what came before is known");
    let whole = |block: &mut BlockWriter<'_>| {
        calls(block);
        block.end();
    };
    assert!(last(summary(&whole, "")).starts_with("Nothing is wrong"));
    let lost = |domains: u8| {
        let (why, _) = summary(
            &|block| {
                calls(block);
                block.text("PYTHONMALLOC=malloc replaced it");
                block.hooks_lost(domains);
                block.end();
            },
            "",
        );
        why.findings.iter().find(|finding| finding.rule == "unverified").map(|finding| finding.text.clone())
    };
    assert_eq!(lost(7).as_deref(), Some("Not verified: PYTHONMALLOC=malloc replaced it."));
    assert_eq!(lost(1), None, "every address of pymalloc is compared");
}

#[test]
fn nodes_with_the_same_lines_are_one_site_and_the_header_cuts_stacks() {
    let trace = || {
        trace(|block| {
            for (node, address) in [(1, 0x1000), (2, 0x2000), (4, 0x3000), (0, 0x4000)] {
                block.stack(node);
                block.malloc(Domain::Raw, false, 100, address);
            }
        })
    };
    let of = |frames| {
        let (why, _) = ask(trace(), Asked { frames, ..Asked::default() }).expect("an answer");
        let mut raw: Vec<(usize, u64)> = why.sites.iter().map(|site| (site.stack.len(), site.raw)).collect();
        raw.sort_unstable();
        raw
    };
    assert_eq!(of(1), [(0, 100), (1, 300)]);
    assert_eq!(of(64), [(0, 100), (1, 200), (2, 100)]);
    assert_eq!(of(0), [(0, 400)]);
}

/// Blocks above 512 bytes, 20 MiB of them. A fifth stays live, and a sample of memory follows.
fn shrunk(heap_free: Option<u64>) -> Vec<u8> {
    sampled(heap_free.map(|heap_free| Memory { anonymous: 30 * MIB, file: MIB, heap: 25 * MIB, heap_free }))
}

fn sampled(memory: Option<Memory>) -> Vec<u8> {
    trace(|block| {
        block.stack(1);
        for number in 1..=20 {
            block.malloc(Domain::Raw, true, MIB, number << 24);
            block.malloc(Domain::Mem, false, MIB, number << 24);
        }
        for number in 5..=20 {
            block.free(Domain::Raw, true, number << 24);
            block.free(Domain::Mem, false, number << 24);
        }
        if let Some(memory) = memory {
            block.time(5_000_000);
            block.memory(&memory);
        }
        block.finalization();
        block.end();
    })
}

#[test]
fn what_c_keeps_is_told_of_a_sample_or_of_what_it_once_had() {
    let told = why(shrunk(Some(21 * MIB)));
    assert_eq!(rules(&told), ["large"]);
    assert_eq!(told.findings[0].saves, 21 * MIB);
    assert!(
        told.findings[0].text.starts_with("C's malloc keeps 21 MiB of free memory. It has 4 blocks (4.0 MiB)"),
        "{}",
        told.findings[0].text
    );
    // A replay cannot try that.
    assert!(told.findings[0].text.contains("\nNot tried: ctypes.CDLL(None).malloc_trim(0), "), "{}", told.findings[0].text);
    assert_eq!((told.totals.resident, told.totals.unexplained), (Some(31 * MIB), Some(26 * MIB)));
    assert_eq!(told.totals.heap_free, Some(21 * MIB));
    let (_, summary) = ask(shrunk(Some(21 * MIB)), Asked::default()).expect("an answer");
    let last = summary.last().expect("words");
    assert!(last.ends_with(" in arenas, C's blocks and files, 21 MiB free in C's malloc, 5.0 MiB in none of these."), "{last}");
    let unsampled = why(shrunk(None));
    assert_eq!(rules(&unsampled), ["large"]);
    assert_eq!((unsampled.findings[0].saves, unsampled.totals.resident, unsampled.totals.unexplained), (0, None, None));
    assert!(unsampled.findings[0].text.contains("once had 20 MiB"), "{}", unsampled.findings[0].text);
    // C's free memory is not resident, because its pages have been given back. The answer still says how much C's `malloc` had at its peak.
    let trimmed = Memory { anonymous: 6 * MIB, file: MIB, heap: 25 * MIB, heap_free: 21 * MIB };
    assert_eq!(rules(&why(sampled(Some(trimmed)))), ["peak", "large"]);
    // This C library does not say how much memory its heap has.
    let silent = why(sampled(Some(Memory { anonymous: 30 * MIB, ..Memory::default() })));
    assert_eq!((rules(&silent), silent.findings[0].saves), (vec!["large"], 16 * MIB), "{}", silent.findings[0].text);
    // C's `malloc` has given back what it had at its peak. What is left is live, and the answer says so.
    assert_eq!(rules(&why(shrunk(Some(MIB)))), ["peak", "not-pythons", "large"]);
}

#[test]
fn nothing_is_told_of_lines_where_stacks_are_off() {
    let (why, summary) = ask(shrunk(None), Asked::default()).expect("an answer");
    assert_eq!(rules(&why), ["large", "cannot-tell"]);
    let said = summary.join("\n");
    assert!(said.contains("cannot tell") && !said.contains("a.py"), "{said}");
    assert!(why.findings[1].command.contains("--stacks"));
}

#[test]
fn moment_is_found_or_said_not_to_be_there() {
    let nothing = ask(trace(|_| ()), Asked::default());
    assert!(matches!(nothing, Err(InquiryError::NotThere(NotThere::NoEvent))));
    let trace = || growing(6, 100, 1, 100);
    let at = |at: &str| ask(trace(), Asked { at: at.into(), ..Asked::default() }).map(|(why, _)| (why.at.event, why.totals.raw));
    assert_eq!(at("mark:job#2").expect("a moment"), (3, 200));
    assert_eq!(at("event:4").expect("a moment"), (4, 300));
    assert_eq!(at("end").expect("a moment"), (12, 600));
    assert!(matches!(at("ende"), Err(InquiryError::NoMoment(_))));
    let error = at("mark:no").expect_err("no such mark").to_string();
    assert_eq!(error, "expected a moment of the trace, but it has no mark:no: it has 13 events and the marks job");
    assert!(matches!(at("peak"), Err(InquiryError::NotThere(NotThere::NoSuch(_)))), "no arena was taken");
}

#[test]
fn other_interpreters_are_said_to_be_left_out() {
    let why = why(trace(|block| {
        block.malloc(Domain::Raw, false, 100, 0x1000);
        block.interpreter(2);
        block.malloc(Domain::Raw, true, 640, 0x2000);
        block.malloc(Domain::Obj, false, 640, 0x2000);
    }));
    assert_eq!(rules(&why), ["live", "interpreters"]);
    assert_eq!(why.totals.large, 0);
}

#[test]
fn replay_that_differs_is_said_not_to_be_verified() {
    // A block that should lie in an arena, but no arena was taken.
    let why = why(trace(|block| block.malloc(Domain::Obj, false, 64, 0x1000)));
    assert!(rules(&why).contains(&"unverified"), "{:?}", why.findings);
}

/// One arena with three blocks of stack 1 and one of stack 3, each of 64 bytes. Then come a mark, the types of two of the three, and another
/// block.
fn typed() -> Vec<u8> {
    const BASE: u64 = 0x7f00_0000_0000;
    trace(|block| {
        block.stack(1);
        block.realloc(Domain::Raw, true, 0, 768, 0x5000);
        block.arena_alloc(true, 1 << 20, BASE);
        block.calloc(Domain::Raw, true, 1, 262_144, 0x6000);
        block.calloc(Domain::Raw, true, 1, 131_072, 0x7000);
        for number in 0..4 {
            block.stack(if number < 3 { 1 } else { 3 });
            block.malloc(Domain::Obj, false, 64, BASE + 48 + 64 * number);
        }
        block.mark("here");
        block.types();
        block.type_name(b"__main__.Row");
        block.type_name(b"int");
        block.objects(BASE + 48, 0, 2, 64);
        // In the middle of a block, where a block could begin, and beside all arenas.
        block.objects(BASE + 48 + 2 * 64 + 32, 1, 1, 0);
        block.objects(BASE + 48 + 9 * 64, 1, 1, 0);
        block.objects(0x5000, 1, 1, 0);
        block.malloc(Domain::Obj, false, 64, BASE + 48 + 64 * 4);
        block.end();
    })
}

#[test]
fn sites_have_types_at_a_moment_where_the_recorder_looked() {
    let of = |at: &str| {
        let (why, _) = ask(typed(), Asked { at: at.into(), frames: 64, ..Asked::default() }).expect("an answer");
        assert_eq!(why.verified.addresses, why.verified.matched);
        let site = |function: &str| {
            let of = |site: &&Site| site.stack.first().is_some_and(|frame| frame.function == function);
            why.sites.iter().find(of).expect("a site").types.clone()
        };
        (site("f"), site("main"))
    };
    let row = TypeCount { name: "__main__.Row".into(), blocks: 2, bytes: 128 };
    assert_eq!(of("mark:here"), (Some(vec![row]), Some(vec![])));
    assert_eq!(of("event:8"), of("mark:here"), "the mark's number");
    assert_eq!(of("event:7"), (None, None));
    assert_eq!(of("end"), (None, None));
}
