//! The types of the objects that are live at some moments.
//!
//! | record | upper bits of the tag | fields |
//! |---|---|---|
//! | types | 8 | none: a table begins, of the moment after the event before it |
//! | type | 9 | length, UTF-8: the name of the next type of this table; its types are numbered from 0 |
//! | objects | 10 | the first object's address; `2 * type`, plus 1 for several objects; if so, how many, and how far one lies from the next. Addresses are zigzag differences in units of 16 bytes from the last object told, 0 in a new block of the trace |
//!
//! A table stands behind a mark, and before the note that finalization begins. It names the blocks that CPython's own collector takes for
//! objects or comes to from them; a block that it does not name may be an object or not. The recorder's `types` says how they are found.
//!
//! A name is `module.qualname` as the type object has it, without `builtins.`.
//!
//! These records stand between the events, as those of stacks do, and are not counted as events.

#![forbid(unsafe_code)]

use crate::format::Cursor;

pub(crate) const TYPES: u8 = 8 << 4;
pub(crate) const TYPE: u8 = 9 << 4;
pub(crate) const OBJECTS: u8 = 10 << 4;

/// Binary logarithm of the unit that addresses are counted in.
pub(crate) const UNIT: u32 = 4;

/// Bytes of a table that are kept at most; a recorder's take less.
const MOST_KEPT: usize = 1 << 30;

/// Blocks of one type at equal distances.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Run {
    first: u64,
    /// Bytes from one to the next; 0 where there is one.
    apart: u64,
    count: u64,
    number: u32,
}

/// The types of a moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Types {
    names: Vec<String>,
    /// By address, once they have been sorted.
    runs: Vec<Run>,
    /// Bytes of both, about.
    kept: usize,
}

impl Types {
    /// The number of the type of the object in the block at this address. `None` when that is not known.
    pub fn of(&self, address: u64) -> Option<u32> {
        let after = self.runs.partition_point(|run| run.first <= address);
        let run = &self.runs[after.checked_sub(1)?];
        let beyond = address - run.first;
        let index = if beyond == 0 { 0 } else { beyond.checked_div(run.apart).filter(|_| beyond.is_multiple_of(run.apart))? };
        (index < run.count).then_some(run.number)
    }

    /// The name of a type, by its number.
    pub fn name(&self, number: u32) -> &str {
        &self.names[number as usize]
    }

    fn keep(&mut self, bytes: usize) -> Option<()> {
        self.kept += bytes;
        (self.kept <= MOST_KEPT).then_some(())
    }
}

/// Reads tables: checks all of them, and keeps one if it is wanted.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    /// Types that the present table has named.
    count: u64,
    /// The last block of the record before.
    last: u64,
    /// Whether the next table is to be kept, and what has been read of it.
    is_wanted: bool,
    kept: Option<Types>,
}

impl Tables {
    /// A block of the trace begins.
    pub(crate) fn begin_block(&mut self) {
        self.last = 0;
    }

    /// Keeps what is read from here on, until it is [taken](Self::take).
    pub(crate) fn want(&mut self) {
        (self.is_wanted, self.kept) = (true, None);
    }

    /// The table that was read since one was wanted; the last one, where there were several. `None` where there was none.
    pub(crate) fn take(&mut self) -> Option<Types> {
        self.is_wanted = false;
        let mut types = self.kept.take()?;
        types.runs.sort_unstable_by_key(|run| run.first);
        Some(types)
    }
}

/// Reads one record. `None` when it does not decode.
pub(crate) fn read(from: &mut Cursor<'_>, tables: &mut Tables) -> Option<()> {
    match from.byte()? & 0xf0 {
        TYPES => {
            tables.count = 0;
            tables.kept = tables.is_wanted.then(Types::default);
        }
        TYPE => {
            let name = from.long()?;
            tables.count += 1;
            if let Some(types) = &mut tables.kept {
                types.keep(name.len() + size_of::<String>())?;
                types.names.push(String::from_utf8_lossy(name).into_owned());
            }
        }
        OBJECTS => {
            let first = tables.last.wrapping_add((from.difference()? as u64) << UNIT);
            let code = from.varint()?;
            let number = u32::try_from(code >> 1).ok().filter(|&number| u64::from(number) < tables.count)?;
            let (mut count, mut apart) = (1, 0);
            if code & 1 != 0 {
                count = from.varint()?;
                apart = from.varint()?.checked_mul(1 << UNIT)?;
                (count >= 2 && apart > 0).then_some(())?;
            }
            tables.last = apart.checked_mul(count - 1)?.checked_add(first)?;
            if let Some(types) = &mut tables.kept {
                types.keep(size_of::<Run>())?;
                types.runs.push(Run { first, apart, count, number });
            }
        }
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{BlockWriter, Domain, Event, FormatError, Reader, file_head};

    const BASE: u64 = 0x7f00_0000_0000;

    /// A mark, a table, an event, another table that goes over two blocks, a note.
    fn sample() -> Vec<u8> {
        let mut memory = [0; 4096];
        let mut block = BlockWriter::new(&mut memory);
        block.malloc(Domain::Obj, false, 64, BASE);
        block.mark("here");
        block.types();
        block.type_name(b"int");
        block.objects(BASE, 0, 1, 0);
        block.malloc(Domain::Obj, false, 64, BASE + 64);
        block.types();
        block.type_name(b"a.Row");
        block.type_name(b"str");
        block.objects(BASE + 64, 0, 3, 32);
        let first = block.finish().to_vec();
        block.objects(BASE - 4096, 1, 1, 0);
        block.objects(BASE, 1, 1, 0);
        block.finalization();
        [&file_head("{}"), &first, block.finish()].concat()
    }

    fn events(trace: &[u8]) -> Vec<Event> {
        Reader::new(trace).unwrap().map(Result::unwrap).collect()
    }

    #[test]
    fn tables_are_no_events_and_are_read_where_they_are_wanted() {
        let trace = sample();
        assert_eq!(events(&trace).len(), 4);
        let mut reader = Reader::new(&trace).unwrap();
        let mut tables = Vec::new();
        for _ in 0..4 {
            reader.next();
            tables.push(reader.types_here().unwrap());
        }
        let names = |types: &Types, blocks: &[u64]| -> Vec<Option<String>> {
            blocks.iter().map(|&block| types.of(block).map(|number| types.name(number).to_owned())).collect()
        };
        assert_eq!((&tables[0], &tables[3]), (&None, &None));
        let int = tables[1].as_ref().expect("a table after the mark");
        assert_eq!(names(int, &[BASE, BASE + 64, BASE - 16]), [Some("int".to_owned()), None, None]);
        let both = tables[2].as_ref().expect("a table before the note");
        let row = Some("a.Row".to_owned());
        let blocks = [64, 96, 128, 160, 80, 65].map(|beyond| BASE + beyond);
        assert_eq!(names(both, &blocks), [row.clone(), row.clone(), row, None, None, None]);
        assert_eq!(names(both, &[BASE - 4096, BASE]), [Some("str".to_owned()), Some("str".to_owned())]);
    }

    #[test]
    fn looking_for_a_table_changes_no_event() {
        let trace = sample();
        let mut reader = Reader::new(&trace).unwrap();
        let mut found = Vec::new();
        while let Some(event) = reader.next() {
            found.push(event.unwrap());
            reader.types_here().unwrap();
        }
        assert_eq!(found, events(&trace));
    }

    #[test]
    fn records_that_make_no_sense_are_refused() {
        let wrong: [fn(&mut BlockWriter<'_>); 6] = [
            |block| block.objects(BASE, 0, 1, 0),
            |block| {
                block.types();
                block.type_name(b"int");
                block.types();
                block.objects(BASE, 0, 1, 0);
            },
            |block| {
                block.type_name(b"int");
                block.objects(BASE, 1, 1, 0);
            },
            |block| {
                block.type_name(b"int");
                block.objects(BASE, 0, u64::MAX, 16);
            },
            |block| {
                block.type_name(b"int");
                block.objects(BASE, 0, 2, !15);
            },
            |block| {
                block.type_name(b"int");
                block.objects(BASE, 0, 2, 0);
            },
        ];
        for (number, write) in wrong.into_iter().enumerate() {
            let mut memory = [0; 256];
            let mut block = BlockWriter::new(&mut memory);
            write(&mut block);
            block.end();
            let trace = [&file_head("{}")[..], block.finish()].concat();
            let refused = Some(Err(FormatError::Event(18, 0)));
            assert_eq!(Reader::new(&trace).unwrap().next(), refused, "{number}");
            let mut reader = Reader::new(&trace).unwrap();
            assert_eq!(reader.types_here().err(), Some(FormatError::Event(18, 0)), "{number}");
        }
    }

    #[test]
    fn count_that_was_made_up_takes_no_memory() {
        let mut memory = [0; 256];
        let mut block = BlockWriter::new(&mut memory);
        block.types();
        block.type_name(b"int");
        block.objects(16, 0, 1 << 58, 16);
        block.end();
        let trace = [&file_head("{}")[..], block.finish()].concat();
        let types = Reader::new(&trace).unwrap().types_here().unwrap().expect("a table");
        assert!(types.kept < 256 && types.of(1 << 60) == Some(0));
    }

    #[test]
    fn no_more_is_kept_than_a_recorder_tells() {
        let mut types = Types { kept: MOST_KEPT - 1, ..Types::default() };
        assert_eq!([types.keep(1), types.keep(1)], [Some(()), None]);
    }

    #[test]
    fn traces_of_format_4_have_no_such_records() {
        let mut bytes = [0; 4096];
        let mut block = BlockWriter::new(&mut bytes);
        block.types();
        block.malloc(Domain::Obj, false, 64, 0x1000);
        let mut trace = [&file_head("{}")[..], block.finish()].concat();
        assert!(Reader::new(&trace).expect("a trace").next().expect("an event").is_ok());
        trace[8] = 4;
        assert_eq!(Reader::new(&trace).expect("a trace").next(), Some(Err(FormatError::Event(18, 0))));
    }
}
