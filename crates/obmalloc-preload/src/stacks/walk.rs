//! Reads the frames of a thread: updates its last stack to the present one. Only the part that has changed is walked, and no deeper than
//! frames are wanted.
//!
//! Invariants:
//! 1. An address is followed only if this walk has read it from the thread's state, or from a frame that it has reached so. Addresses of the
//!    last walk are only compared.
//! 2. `levels[..len]` is a stack, outermost frame first; the nodes of `levels[..known]` are those of their frames.
//! 3. `at_depth[n]` is the level of the n-th shown frame, counted from 1; each level's `depth` is the number of shown frames up to it.
//! 4. The nodes in `recent` are of frames at instructions at which a Python frame is always shown.

use super::layout::{Frames, Layout};
use crate::pages::{Pages, Plain};
use crate::table::{Table, key};

/// The most levels of one stack that are kept.
pub const LEVELS: usize = 4096;
/// Entries of the index of frames.
const INDEX: usize = 1024;

/// The owner of a frame (`_frameowner`): frames with this owner or a higher one stand for C, and have no code object that may be read.
const OWNED_BY_C: u8 = 3;
const OWNED_BY_GENERATOR: u8 = 1;

/// A frame, and the instruction that it is at: its address, or [`packed`] where frames have its number.
#[derive(Clone, Copy)]
struct Spot {
    frame: usize,
    instruction: usize,
}

// SAFETY: numbers.
unsafe impl Plain for Spot {}

/// Bits of an instruction's index in a [`packed`] one. A larger code object is not looked into.
const NUMBER_BITS: u32 = 21;

/// Packs a code object's address, which is a multiple of 16 and has 47 bits, and an instruction's index plus one.
#[inline(always)]
fn packed(code: usize, number: i32) -> usize {
    (code >> 4) << NUMBER_BITS | (number + 1) as usize & ((1 << NUMBER_BITS) - 1)
}

/// The address of a frame.
#[derive(Clone, Copy)]
pub struct Place {
    spot: Spot,
    pub code: usize,
    /// Whether it is shown: it is a Python frame, and its function has begun.
    pub shown: bool,
}

// SAFETY: numbers, and a flag that zero is a value of.
unsafe impl Plain for Place {}

#[derive(Clone, Copy)]
struct Level {
    code: usize,
    node: u32,
    depth: u16,
    shown: bool,
}

/// A node that was found lately, by its caller's node and the instruction.
#[derive(Clone, Copy, Default)]
pub struct Recent {
    instruction: usize,
    caller: u32,
    node: u32,
}

// SAFETY: numbers.
unsafe impl Plain for Recent {}

impl Recent {
    /// The index at which the node of an instruction, under its caller's node, is kept.
    #[inline(always)]
    fn place(instruction: usize, caller: u32) -> usize {
        ((instruction ^ caller as usize).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) % RECENT
    }

    /// The node, if it was found lately.
    #[inline(always)]
    fn find(recent: &[Self], instruction: usize, caller: u32) -> Option<u32> {
        let lately = &recent[Self::place(instruction, caller)];
        (lately.instruction == instruction && lately.caller == caller).then_some(lately.node)
    }
}

/// How many such nodes are kept.
pub const RECENT: usize = 4096;

// SAFETY: numbers, and plain types.
unsafe impl Plain for Level {}

/// The stack of a thread, as it was last seen.
pub struct Stack {
    pub thread: usize,
    spots: Pages<Spot>,
    levels: Pages<Level>,
    len: usize,
    known: usize,
    at_depth: Pages<u16>,
    /// The level that a frame may be at, by the frame's address.
    index: Pages<u16>,
}

/// Reads a word.
///
/// # Safety
/// The word can be read.
#[inline(always)]
pub unsafe fn word(address: usize) -> usize {
    // SAFETY: the caller's promise. No other thread writes to the word meanwhile.
    unsafe { *(address as *const usize) }
}

impl Layout {
    /// The innermost frame of a thread, 0 when it has none.
    ///
    /// # Safety
    /// `thread` is the present thread's state.
    #[inline(always)]
    pub unsafe fn innermost(&self, thread: usize) -> usize {
        // SAFETY: the state has these fields, and the structure that points to the frame is null or exists.
        unsafe {
            let at = word(thread + self.thread_frame);
            match self.current_frame {
                Some(current) if at != 0 => word(at + current),
                _ => at,
            }
        }
    }

    /// The instruction of a frame, as a [`Spot`] has it.
    ///
    /// # Safety
    /// `frame` is one of the present thread's.
    #[inline(always)]
    unsafe fn instruction_of<const OBJECTS: bool>(&self, frame: usize) -> usize {
        // SAFETY: a frame has these fields.
        unsafe {
            if OBJECTS {
                packed(word(frame + self.code), *((frame + self.instruction) as *const i32))
            } else {
                word(frame + self.instruction)
            }
        }
    }

    /// # Safety
    /// `frame` is one of the present thread's.
    #[inline(always)]
    unsafe fn place<const OBJECTS: bool>(&self, frame: usize) -> Place {
        // SAFETY: a frame has these fields; one that is Python's has a code object.
        unsafe {
            if OBJECTS {
                let (code, number) = (word(frame + self.code), *((frame + self.instruction) as *const i32));
                let spot = Spot { frame, instruction: packed(code, number) };
                return Place { spot, code, shown: number < (1 << NUMBER_BITS) - 1 };
            }
            let (code, instruction) = (self.code_of(frame), word(frame + self.instruction));
            let owner = *((frame + self.owner) as *const u8);
            let begun = || self.has_begun(code, instruction);
            let spot = Spot { frame, instruction };
            Place { spot, code, shown: owner == OWNED_BY_GENERATOR || (owner < OWNED_BY_C && begun()) }
        }
    }

    /// The code object of a frame that is Python's.
    ///
    /// # Safety
    /// `frame` is one of the present thread's.
    #[inline(always)]
    unsafe fn code_of(&self, frame: usize) -> usize {
        // SAFETY: a frame has this field. References in frames have marks in their lowest bits from 3.14 on.
        unsafe { word(frame + self.code) & !7 }
    }

    /// Whether an instruction belongs to the function's own lines: a frame at an earlier one is still being made.
    ///
    /// # Safety
    /// There is a code object of this layout at `code`.
    #[inline(always)]
    unsafe fn has_begun(&self, code: usize, instruction: usize) -> bool {
        // SAFETY: a code object has this field.
        let first = unsafe { *((code + self.first_traceable) as *const i32) };
        instruction >= code + self.instructions + 2 * first as usize
    }

    /// The number that the trace uses for a frame's instruction: the instruction's index plus one, or 0 if the frame has not run one yet.
    #[inline(always)]
    pub fn number(&self, place: &Place) -> u32 {
        let instruction = place.spot.instruction;
        match self.frames {
            Frames::Objects => instruction as u32 & ((1 << NUMBER_BITS) - 1),
            Frames::Structures => ((instruction.wrapping_sub(place.code + self.instructions) as isize >> 1) + 1).max(0) as u32,
        }
    }
}

impl Stack {
    /// `None` when there is no memory.
    pub fn new() -> Option<Self> {
        let (spots, levels) = (Pages::new(LEVELS)?, Pages::new(LEVELS)?);
        let (at_depth, index) = (Pages::new(LEVELS + 1)?, Pages::new(INDEX)?);
        Some(Self { thread: 0, spots, levels, len: 0, known: 0, at_depth, index })
    }

    /// Forgets everything.
    pub fn forget(&mut self) {
        (self.len, self.known) = (0, 0);
    }

    /// The node of the present stack in the usual case: the stack is the last one, or the last one without its innermost frames, and only the
    /// innermost frame is at another instruction. `None`, with nothing changed, if something else has changed, or the node was not found
    /// lately.
    ///
    /// # Safety
    /// As of [`follow`](Self::follow).
    #[inline(never)]
    pub unsafe fn again<const OBJECTS: bool>(
        &mut self,
        layout: &Layout,
        top: usize,
        limit: usize,
        recent: &[Recent],
    ) -> Option<u32> {
        let level = usize::from(self.index[Self::place_in_index(top)]);
        let spot = *self.spots[..self.len].get(level)?;
        if spot.frame != top || level > self.known {
            return None;
        }
        let Level { node, depth, shown, .. } = self.levels[level];
        let depth = usize::from(depth);
        let floor = if depth > limit { usize::from(self.at_depth[depth - limit + 1]) } else { 0 };
        // SAFETY: (1) `top` is the innermost frame, which is that of `level`. If all frames below are unchanged, this walk has read them all.
        // (2) `level` is below `len`, and (3) `floor` is not above `level`.
        unsafe {
            if !self.is_as_it_was_below::<OBJECTS>(layout, level, floor)
                || (depth < limit && word(self.spots[0].frame + layout.previous) != 0)
            {
                return None;
            }
            let instruction = layout.instruction_of::<OBJECTS>(top);
            if instruction == spot.instruction {
                if level == self.known {
                    return None;
                }
                (self.len, self.known) = (level + 1, level + 1);
                return Some(node);
            }
            let caller = if level == 0 { 0 } else { self.levels[level - 1].node };
            // (4) A node that is found is of a shown frame, so nothing else of the frame need be checked.
            let node = if shown { Recent::find(recent, instruction, caller)? } else { return None };
            self.spots[level].instruction = instruction;
            (self.levels[level].code, self.levels[level].node) = (layout.code_of(top), node);
            (self.len, self.known) = (level + 1, level + 1);
            Some(node)
        }
    }

    /// The node of a stack if only its innermost frame is wanted and the node was found lately.
    ///
    /// # Safety
    /// As of [`follow`](Self::follow).
    #[inline(always)]
    pub unsafe fn innermost<const OBJECTS: bool>(layout: &Layout, mut frame: usize, recent: &[Recent]) -> Option<u32> {
        while frame != 0 {
            // SAFETY: (1) `frame` is the innermost frame, or the previous one of a frame that this walk has read.
            unsafe {
                // (4) A node that is found is of a shown frame.
                if let Some(node) = Recent::find(recent, layout.instruction_of::<OBJECTS>(frame), 0) {
                    return Some(node);
                }
                if layout.place::<OBJECTS>(frame).shown {
                    return None;
                }
                frame = word(frame + layout.previous);
            }
        }
        Some(0)
    }

    /// Whether the frames below `level`, down to `floor`, have not moved and are at the same instructions.
    ///
    /// # Safety
    /// The frame of `level` is one of the present thread's. `floor` is not above it, and it is below `len`.
    #[inline(always)]
    unsafe fn is_as_it_was_below<const OBJECTS: bool>(&self, layout: &Layout, level: usize, floor: usize) -> bool {
        debug_assert!(floor <= level && level < self.len);
        // SAFETY: (2) levels are in the slice; (1) a frame is read once the one above is known to link to it. The link is compared and not
        // followed, so that no load waits for another.
        let is_as_it_was = |at: *const Spot| unsafe {
            let below = *at.sub(1);
            word((*at).frame + layout.previous) == below.frame
                && layout.instruction_of::<OBJECTS>(below.frame) == below.instruction
        };
        // SAFETY: as above.
        unsafe {
            let mut at = self.spots.as_ptr().add(level);
            let mut count = level - floor;
            while count >= 4 {
                if !(is_as_it_was(at) && is_as_it_was(at.sub(1)) && is_as_it_was(at.sub(2)) && is_as_it_was(at.sub(3))) {
                    return false;
                }
                (at, count) = (at.sub(4), count - 4);
            }
            (0..count).all(|below| is_as_it_was(at.sub(below)))
        }
    }

    /// Makes this the stack whose innermost frame is `top`; the innermost `limit` frames are right afterwards. `fresh` has [`LEVELS`] entries,
    /// for frames that are not known, innermost first.
    ///
    /// # Safety
    /// `top` is the innermost frame of the present thread, which has the GIL.
    #[inline(always)]
    pub unsafe fn follow<const OBJECTS: bool>(&mut self, layout: &Layout, top: usize, limit: usize, fresh: &mut [Place]) {
        let previous = layout.previous;
        let (mut frame, mut bound, mut count, mut shown) = (top, self.len, 0, 0);
        // SAFETY: (1) `frame` is `top`, or the previous one of a frame that this walk has read; so is the frame of `met`, and those below it
        // as far as they have not moved. (2) `met` is below `len`, and (3) `floor` is not above `met`: fewer than `limit` frames above `met`
        // are shown.
        unsafe {
            'unknown: loop {
                let met = loop {
                    if frame == 0 || (shown == 1 && limit == 1) {
                        return self.replace(0, 0, &fresh[..count]);
                    }
                    let level = usize::from(self.index[Self::place_in_index(frame)]);
                    if level < bound && self.spots[level].frame == frame {
                        break level;
                    }
                    if shown >= limit || count == fresh.len() {
                        return self.walk_anew::<OBJECTS>(layout, top, limit, fresh);
                    }
                    let place = layout.place::<OBJECTS>(frame);
                    fresh[count] = place;
                    count += 1;
                    shown += usize::from(place.shown);
                    frame = word(frame + previous);
                };
                if shown >= limit {
                    // Frames further out are not looked at.
                    return self.replace(met + 1, met + 1, &fresh[..count]);
                }
                // From here on frames have not moved. Their links are compared and not followed, so that no load waits for another.
                let depth = usize::from(self.levels[met].depth) + shown;
                let floor = if depth > limit { usize::from(self.at_depth[depth - limit + 1]) } else { 0 };
                let mut changed = met + 1;
                let mut level = met;
                loop {
                    level = self.first_other::<OBJECTS>(layout, level, floor);
                    let here = self.spots[level].frame;
                    let place = layout.place::<OBJECTS>(here);
                    let mut link = None;
                    if place.spot.instruction != self.spots[level].instruction {
                        self.spots[level] = place.spot;
                        changed = level;
                        if place.shown != self.levels[level].shown {
                            // The frame is shown now and was not, or the other way round: depths above it change by one.
                            link = Some(word(here + previous));
                        }
                        (self.levels[level].code, self.levels[level].shown) = (place.code, place.shown);
                    }
                    if level > floor && link.is_none() {
                        link = Some(word(here + previous)).filter(|&link| link != self.spots[level - 1].frame);
                    }
                    if let Some(link) = link {
                        let Some(more) = self.lift(level, met, &mut fresh[count..]) else {
                            return self.walk_anew::<OBJECTS>(layout, top, limit, fresh);
                        };
                        (count, shown) = (count + met + 1 - level, shown + more);
                        (bound, frame) = (level, link);
                        continue 'unknown;
                    }
                    if level == floor {
                        break;
                    }
                    level -= 1;
                }
                if floor == 0 && depth < limit && word(self.spots[0].frame + previous) != 0 {
                    return self.walk_anew::<OBJECTS>(layout, top, limit, fresh);
                }
                return self.replace(changed, met + 1, &fresh[..count]);
            }
        }
    }

    /// As [`follow`](Self::follow), but without use of the last stack. Goes on beyond the limit, so that this is not needed again as soon as a
    /// function returns.
    #[cold]
    #[inline(never)]
    unsafe fn walk_anew<const OBJECTS: bool>(&mut self, layout: &Layout, top: usize, limit: usize, fresh: &mut [Place]) {
        let (mut frame, mut count, mut shown) = (top, 0, 0);
        while frame != 0 && shown < 2 * limit && count < fresh.len() {
            // SAFETY: (1) as in `follow`.
            let place = unsafe { layout.place::<OBJECTS>(frame) };
            fresh[count] = place;
            count += 1;
            shown += usize::from(place.shown);
            // SAFETY: as above.
            frame = unsafe { word(frame + layout.previous) };
        }
        self.replace(0, 0, &fresh[..count]);
    }

    /// The first level, from `level` down to `floor`, whose frame is at another instruction, or has another caller, than before; `floor` if there
    /// is none.
    ///
    /// # Safety
    /// The frame of `level` is one of the present thread's. `floor` is not above it, and it is below `len`.
    #[inline(always)]
    unsafe fn first_other<const OBJECTS: bool>(&self, layout: &Layout, level: usize, floor: usize) -> usize {
        debug_assert!(floor <= level && level < self.len);
        let (instruction, code, previous) = (layout.instruction, layout.code, layout.previous);
        // SAFETY: (1) a frame is read once the one above is known to link to it; (2) levels are in the slice.
        unsafe {
            let spots = self.spots.as_ptr();
            let (mut at, last) = (spots.add(level), spots.add(floor));
            while at > last {
                let Spot { frame, instruction: was } = *at;
                let is = if OBJECTS {
                    packed(word(frame + code), *((frame + instruction) as *const i32))
                } else {
                    word(frame + instruction)
                };
                if is != was || word(frame + previous) != (*at.sub(1)).frame {
                    break;
                }
                at = at.sub(1);
            }
            at.offset_from_unsigned(spots)
        }
    }

    /// Copies `levels[level..=met]` to `fresh`. Returns how many of them are shown; `None` when there is no room.
    fn lift(&self, level: usize, met: usize, fresh: &mut [Place]) -> Option<usize> {
        let mut count = 0;
        for (to, from) in fresh.get_mut(..met + 1 - level)?.iter_mut().zip((level..=met).rev()) {
            *to = self.place(from);
            count += usize::from(to.shown);
        }
        Some(count)
    }

    fn place(&self, level: usize) -> Place {
        let Level { code, shown, .. } = self.levels[level];
        Place { spot: self.spots[level], code, shown }
    }

    /// Puts `fresh` on top of the first `kept` levels. Of these, the levels from `changed` on are at other instructions than before.
    #[inline(always)]
    fn replace(&mut self, changed: usize, kept: usize, fresh: &[Place]) {
        // A stack that does not fit is forgotten: nothing is known of it then.
        let len = kept + fresh.len();
        if len > LEVELS {
            return self.forget();
        }
        (self.len, self.known) = (len, self.known.min(changed));
        let mut depth = if kept == 0 { 0 } else { self.levels[kept - 1].depth };
        for (level, &Place { spot, code, shown }) in (kept..len).zip(fresh.iter().rev()) {
            depth += u16::from(shown);
            self.spots[level] = spot;
            self.levels[level] = Level { code, node: 0, depth, shown };
            if shown {
                self.at_depth[usize::from(depth)] = level as u16;
            }
            self.index[Self::place_in_index(spot.frame)] = level as u16;
        }
    }

    #[inline(always)]
    fn place_in_index(frame: usize) -> usize {
        (frame >> 4 ^ frame >> 13) % INDEX
    }

    /// The node of the whole stack; `None` if a code object or a node is not described yet (see [`missing`](Self::missing)).
    #[inline(always)]
    pub fn node(&mut self, layout: &Layout, codes: &Table, nodes: &Table, recent: &mut [Recent]) -> Option<u32> {
        let mut caller = if self.known == 0 { 0 } else { self.levels[self.known - 1].node };
        while self.known < self.len {
            if self.levels[self.known].shown {
                let instruction = self.spots[self.known].instruction;
                let found = match Recent::find(recent, instruction, caller) {
                    Some(node) => node,
                    None => {
                        let place = self.place(self.known);
                        let code = codes.get(key(place.code as u64))?;
                        let node = nodes.get([caller, code, layout.number(&place)])?;
                        // SAFETY: a known code object is alive.
                        if layout.frames == Frames::Objects || unsafe { layout.has_begun(place.code, instruction) } {
                            recent[Recent::place(instruction, caller)] = Recent { instruction, caller, node };
                        }
                        node
                    }
                };
                caller = found;
            }
            self.found(caller);
        }
        Some(caller)
    }

    /// The outermost frame whose node is not known, and the node of its caller.
    #[inline(always)]
    pub fn missing(&self) -> Option<(Place, u32)> {
        let caller = if self.known == 0 { 0 } else { self.levels[self.known - 1].node };
        (self.known < self.len).then(|| (self.place(self.known), caller))
    }

    /// The node of the frame that was [missing](Self::missing).
    #[inline(always)]
    pub fn found(&mut self, node: u32) {
        self.levels[self.known].node = node;
        self.known += 1;
    }
}
