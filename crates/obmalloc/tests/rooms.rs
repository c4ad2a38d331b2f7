//! ARCHITECTURE.md says which room may lean on which, and no file of the crates says otherwise.

#[path = "common/sources.rs"]
mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use sources::{sources, words};

/// What ARCHITECTURE.md says of a crate.
struct Map {
    /// How high a room lies. Those on one level may lean on each other.
    levels: BTreeMap<String, usize>,
    /// Files, and the rooms above them that they lean on all the same.
    exceptions: BTreeSet<(String, String)>,
}

/// The line of the first block that begins with the crate's name, and the exceptions, one a line.
fn map(text: &str, name: &str) -> Map {
    let block = text.split("```").nth(1).expect("a block");
    let line = block.lines().find_map(|line| line.strip_prefix(&format!("{name}: "))).expect("a line of the crate");
    let mut levels = BTreeMap::new();
    for (level, rooms) in line.split('←').enumerate() {
        levels.extend(words(rooms).map(|room| (room.to_owned(), level)));
    }
    let is_path = |file: &str| Path::new(file).extension().is_some_and(|extension| extension == "rs");
    let exceptions = text.lines().filter_map(|line| line.strip_prefix("- `")?.split_once('`')?.0.split_once(" → "));
    let exceptions = exceptions.filter(|(file, room)| is_path(file) && levels.contains_key(*room));
    let exceptions = exceptions.map(|(file, room)| (file.to_owned(), room.to_owned())).collect();
    Map { levels, exceptions }
}

/// The names right behind the crate's own that a file uses, wherever it does: as `crate::name`, in a list of those, or by way of `super`.
fn uses<'text>(file: &str, code: &'text str) -> Vec<&'text str> {
    let depth = file.split('/').filter(|part| !matches!(*part, "mod.rs" | "lib.rs")).count();
    let from_root = format!("{}{}", "super::".repeat(depth), if depth == 0 { "self::" } else { "" });
    let mut found = Vec::new();
    for prefix in ["crate::", &from_root] {
        for (at, _) in code.match_indices(prefix) {
            // Another `super::` before it, or a longer name.
            if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let rest = &code[at + prefix.len()..];
            match rest.strip_prefix('{') {
                None => found.extend(words(rest).next()),
                Some(list) => found.extend(heads(list)),
            }
        }
    }
    found
}

/// The first name of each entry of a list that ends with its brace.
fn heads(list: &str) -> Vec<&str> {
    let (mut depth, mut begin, mut found) = (0, 0, Vec::new());
    for (at, character) in list.char_indices() {
        match character {
            '{' => depth += 1,
            '}' | ',' if depth == 0 => {
                found.extend(words(&list[begin..at]).next());
                begin = at + 1;
                if character == '}' {
                    break;
                }
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    found
}

/// The room that each name is from which a crate gives under its own.
fn given(lib: &str) -> BTreeMap<&str, &str> {
    let mut rooms = BTreeMap::new();
    for given in lib.split("\npub use ").skip(1).filter_map(|rest| rest.split(';').next()) {
        let mut names = words(given);
        if let Some(room) = names.next() {
            rooms.extend(names.map(|name| (name, room)));
        }
    }
    rooms
}

/// The arrows of some files that climb: files, and the rooms above them.
fn climbing(map: &Map, files: &[(String, String)]) -> BTreeSet<(String, String)> {
    let lib = files.iter().find(|(file, _)| file == "lib.rs").map_or("", |(_, text)| text);
    let given = given(lib);
    let mut climbing = BTreeSet::new();
    for (file, text) in files {
        let room = file.split('/').next().unwrap_or_default().trim_end_matches(".rs");
        let Some(level) = map.levels.get(room) else { continue };
        let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        let code = code.join("\n");
        for name in uses(file, &code) {
            let other = given.get(name).copied().unwrap_or(name);
            if other != room && map.levels.get(other).is_some_and(|other| other > level) {
                climbing.insert((file.clone(), other.to_owned()));
            }
        }
    }
    climbing
}

fn check(name: &str, folder: &str) -> (Map, Vec<(String, String)>) {
    let root = sources::root();
    let map = map(&fs::read_to_string(root.join("ARCHITECTURE.md")).expect("a text"), name);
    let files = sources(&root.join(folder));
    let climbing = climbing(&map, &files);
    let forbidden: Vec<_> = climbing.difference(&map.exceptions).collect();
    assert!(forbidden.is_empty(), "{name}: files lean on rooms above them: {forbidden:#?}");
    let idle: Vec<_> = map.exceptions.difference(&climbing).collect();
    assert!(idle.is_empty(), "{name}: exceptions that nothing needs: {idle:#?}");
    (map, files)
}

#[test]
#[cfg_attr(miri, ignore = "reads the sources, and runs nothing of them")]
fn no_room_of_the_library_leans_on_one_above_it() {
    let (map, files) = check("obmalloc", "crates/obmalloc/src");
    for (file, _) in files.iter().filter(|(file, _)| file != "lib.rs") {
        let room = file.split('/').next().unwrap_or_default().trim_end_matches(".rs");
        assert!(map.levels.contains_key(room), "ARCHITECTURE.md says where {file} belongs");
    }
}

#[test]
#[cfg_attr(miri, ignore = "reads the sources, and runs nothing of them")]
fn no_room_of_the_binding_leans_on_one_above_it() {
    check("node", "crates/obmalloc-node/src");
}

/// Whether a file that has no unsafe code says so, where that is not said for the files below it, too.
fn forbids_what_it_does_not_have(text: &str) -> bool {
    let code = || text.lines().map(str::trim_start).filter(|line| !line.starts_with("//"));
    let has_unsafe = code().any(|line| words(line).any(|word| word == "unsafe"));
    let has_modules = code().any(|line| line.ends_with(';') && words(line).any(|word| word == "mod"));
    has_unsafe || has_modules || text.contains("\n#![forbid(unsafe_code)]\n")
}

#[test]
#[cfg_attr(miri, ignore = "reads the sources, and runs nothing of them")]
fn files_without_unsafe_code_forbid_it() {
    for entry in fs::read_dir(sources::root().join("crates")).expect("a folder") {
        let folder = entry.expect("an entry").path().join("src");
        for (file, _) in sources(&folder) {
            let text = fs::read_to_string(folder.join(&file)).expect("a text");
            assert!(forbids_what_it_does_not_have(&text), "{}: expected #![forbid(unsafe_code)]", folder.join(file).display());
        }
    }
    for (text, forbids) in [
        ("//! Text.\n\nfn f() {}\n", false),
        ("//! Text.\n\n#![forbid(unsafe_code)]\n\nfn f() {}\n", true),
        ("//! Has nothing unsafe.\nfn f() {}\n", false),
        ("mod below;\n", true),
        ("fn f() { unsafe { g() } }\n", true),
    ] {
        assert_eq!(forbids_what_it_does_not_have(text), forbids, "{text}");
    }
}

#[test]
fn arrows_that_climb_are_found_in_every_form() {
    let text = "```\nx: ground ← low ← high\n```\n- `low/known.rs → high`: it has to.\n";
    let map = map(text, "x");
    let climbs = |file: &str, code: &str| {
        let files = [("lib.rs", "\npub use high::{Given, Other};"), (file, code)];
        let files = files.map(|(file, text)| (file.to_owned(), text.to_owned()));
        !climbing(&map, &files).is_empty()
    };
    for code in [
        "use crate::high::Thing;",
        "use crate::{low::a, high};",
        "use crate::{ground::{a, b}, high::c};",
        "use crate::{\n    ground,\n    high::{\n        Thing,\n    },\n};",
        "pub(crate) use crate::high;",
        "fn f() { crate::high::f(); }",
        "use crate::Given;",
    ] {
        assert!(climbs("low/mod.rs", code) && climbs("ground.rs", code), "{code}");
        assert!(!climbs("high.rs", code) && !climbs("elsewhere.rs", code), "{code}");
    }
    assert!(climbs("low/mod.rs", "use super::high::a;") && climbs("low/a.rs", "use super::super::high::a;"));
    assert!(!climbs("low/a.rs", "use super::high::a;") && !climbs("low/mod.rs", "use crate::ground::high; // crate::x"));
    assert!(!climbs("low/mod.rs", "    /// [`crate::high`]"));
    assert_eq!(map.exceptions.len(), 1);
}
