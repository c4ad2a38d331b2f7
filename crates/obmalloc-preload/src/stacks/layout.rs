//! The offsets in memory that reading a stack needs: a release is a row. From 3.13 on CPython publishes them at the beginning of `_PyRuntime`
//! (`_Py_DebugOffsets`). That structure grows from release to release, so a row says where in it the fields are.

use crate::python::symbol;
use obmalloc_trace::stacks::Lines;
use std::ffi::CStr;

/// For tests, which plant a wrong layout: how many bytes too far a frame's code object is looked for, and an offset of the innermost frame in
/// a thread's state.
const CODE_VARIABLE: &str = "OBMALLOC_STACKS_CODE_OFFSET";
const FRAME_VARIABLE: &str = "OBMALLOC_STACKS_THREAD_FRAME";

/// How a release keeps its frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Frames {
    /// Objects, each with the index of its instruction: up to 3.10.
    Objects,
    /// Structures, each with the address of its instruction and a byte for its owner: from 3.11 on.
    Structures,
}

/// Offsets, bytes.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub frames: Frames,
    /// In the thread's state: the innermost frame, or the structure that points to it.
    pub thread_frame: usize,
    /// In the structure that points to it (`_PyCFrame` of 3.11 and 3.12): the innermost frame.
    pub current_frame: Option<usize>,
    /// In a frame.
    pub previous: usize,
    pub code: usize,
    pub instruction: usize,
    pub owner: usize,
    /// In a code object: where the instructions begin, and the index of the first one that belongs to the function's own lines.
    pub instructions: usize,
    pub first_traceable: usize,
    pub file: usize,
    pub function: usize,
    pub first_line: usize,
    pub table: usize,
    pub lines: Lines,
    /// In a str: the characters of one that is all ASCII, and of another one.
    pub ascii: usize,
    pub characters: usize,
    /// The name of the function that returns a thread's state, and whether that is always the present thread's. Before 3.12 it is the state of
    /// the thread that has the GIL.
    pub thread_state: &'static CStr,
    pub is_threads_own: bool,
}

/// 3.8 and 3.9.
const OBJECTS: Layout = Layout {
    frames: Frames::Objects,
    thread_frame: 24,
    current_frame: None,
    previous: 24,
    code: 32,
    instruction: 104,
    owner: 0,
    instructions: 0,
    first_traceable: 0,
    file: 104,
    function: 112,
    first_line: 40,
    table: 120,
    lines: Lines::Lnotab,
    ascii: 48,
    characters: 72,
    thread_state: c"_PyThreadState_UncheckedGet",
    is_threads_own: false,
};

const V3_10: Layout = Layout { instruction: 96, lines: Lines::Ranges, ..OBJECTS };

const V3_11: Layout = Layout {
    frames: Frames::Structures,
    thread_frame: 56,
    current_frame: Some(8),
    previous: 48,
    instruction: 56,
    owner: 69,
    instructions: 184,
    first_traceable: 168,
    file: 112,
    function: 128,
    first_line: 72,
    table: 136,
    lines: Lines::Locations,
    ..OBJECTS
};

const V3_12: Layout = Layout {
    current_frame: Some(0),
    previous: 8,
    code: 0,
    owner: 70,
    instructions: 192,
    first_traceable: 176,
    first_line: 68,
    ascii: 40,
    characters: 56,
    is_threads_own: true,
    ..V3_11
};

/// Where in `_Py_DebugOffsets` a release has the offsets of the current frame, of a frame's `previous`, of a code object's file name, and
/// of a str's state. The other offsets follow those.
struct Published {
    current_frame: usize,
    previous: usize,
    file: usize,
    state: usize,
}

const PUBLISHED: [Published; 3] = [
    Published { current_frame: 184, previous: 232, file: 280, state: 544 },
    Published { current_frame: 208, previous: 256, file: 320, state: 624 },
    Published { current_frame: 208, previous: 320, file: 384, state: 720 },
];

impl Layout {
    /// The layout of a release, as in "3.11.7". `None` when it is not known.
    pub fn of(version: &str) -> Option<Self> {
        let mut parts = version.split('.').map(|part| part.parse::<usize>().ok());
        match (parts.next()??, parts.next()??) {
            (3, 8 | 9) => Some(OBJECTS),
            (3, 10) => Some(V3_10),
            (3, 11) => Some(V3_11),
            (3, 12) => Some(V3_12),
            (3, minor) => Self::published(minor, PUBLISHED.get(minor.checked_sub(13)?)?),
            _ => None,
        }
    }

    /// The layout, or a wrong one if a test wants that.
    pub fn or_planted(self) -> Self {
        let planted = |variable| std::env::var(variable).ok().and_then(|bytes| bytes.parse::<usize>().ok());
        Self {
            code: self.code.wrapping_add(planted(CODE_VARIABLE).unwrap_or(0)),
            thread_frame: planted(FRAME_VARIABLE).unwrap_or(self.thread_frame),
            ..self
        }
    }

    fn published(minor: usize, row: &Published) -> Option<Self> {
        let at = symbol(c"_PyRuntime")?;
        // SAFETY: the structure is larger than this in every release that has a row.
        let words = unsafe { std::slice::from_raw_parts(at.cast::<u64>().cast_const(), 100) };
        let word = |offset: usize| words[offset / 8] as usize;
        // Check its cookie, the release's number, and that this is no free-threaded build.
        if words[0] != u64::from_ne_bytes(*b"xdebugpy") || words[1] >> 16 != (3 << 8 | minor as u64) || words[2] != 0 {
            return None;
        }
        let instructions = word(row.file + 64);
        let layout = Self {
            thread_frame: word(row.current_frame),
            current_frame: None,
            previous: word(row.previous),
            code: word(row.previous + 8),
            instruction: word(row.previous + 16),
            owner: word(row.previous + 32),
            file: word(row.file),
            function: word(row.file + 16),
            table: word(row.file + 24),
            first_line: word(row.file + 32),
            instructions,
            // This offset is not published. The field is the int before `co_extra`, and the instructions come after that.
            first_traceable: instructions.checked_sub(16)?,
            ascii: word(row.state + 16),
            // Two more fields: the UTF-8 form and its length.
            characters: word(row.state + 16) + 16,
            thread_state: c"PyThreadState_GetUnchecked",
            ..V3_12
        };
        let words =
            [layout.thread_frame, layout.previous, layout.code, layout.instruction, layout.file, layout.function, layout.table];
        let is_plausible = |offset: &usize| *offset < 1024 && offset.is_multiple_of(8);
        (words.iter().all(is_plausible) && layout.owner < 1024 && layout.first_line < 1024 && layout.ascii < 128)
            .then_some(layout)
    }
}
