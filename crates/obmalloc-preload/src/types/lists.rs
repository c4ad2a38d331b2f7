//! The lists in which CPython's collector keeps the objects that it tracks: `struct gc_generation generations[3]` and
//! `permanent_generation`. Their offset in the interpreter's state changes from release to release, but their form does not, so they are
//! searched for.

use super::{GC_HEAD, word};
use crate::peek;
use crate::python::symbol;
use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering};

/// `PyInterpreterState_Get`
type GetInterpreter = unsafe extern "C" fn() -> *mut c_void;

/// Where the search for the lists begins.
pub enum Root {
    /// The present interpreter's state, from this function: 3.9 and later.
    Interpreter(GetInterpreter),
    /// `_PyRuntime`: 3.8.
    Runtime(usize),
}

/// Bytes of a head's two links, and the distance of two lists' heads: two ints more.
const HEAD: usize = 16;
const STRIDE: usize = 24;
/// How many lists lie one behind the other.
const GENERATIONS: usize = 3;
/// The most bytes that are searched, and how many are read at once.
const MOST: usize = 1 << 20;
const PIECE: usize = 4096;
/// How many objects of each list are checked when the lists are searched for.
const TRIALS: usize = 64;
/// How many types of types are followed to find `type`.
const METATYPES: usize = 4;

/// The offset of the lists from the root; 0 before they are found.
static OFFSET: AtomicUsize = AtomicUsize::new(0);

/// A link without the collector's flags.
fn link(word: usize) -> usize {
    word & !3
}

/// The alignment of a head. GCC 16 puts those of 3.13.18 at odd multiples of 4: CPython needs only two free bits for flags.
const ALIGNMENT: usize = 4;

/// Whether this can be a node's address.
fn is_node(node: usize) -> bool {
    node > PIECE && node.is_multiple_of(ALIGNMENT)
}

/// Whether there is a list's head here.
fn is_head(at: usize) -> bool {
    let links = || {
        let (next, previous) = (link(peek::word(at)?), link(peek::word(at + 8)?));
        if !is_node(next) || !is_node(previous) {
            return None;
        }
        Some(link(peek::word(next + 8)?) == at && link(peek::word(previous)?) == at)
    };
    links() == Some(true)
}

fn are_heads(first: usize) -> bool {
    (0..GENERATIONS).all(|number| is_head(first + number * STRIDE))
}

/// Whether the first objects of a list are linked as they should be, and have types.
fn looks_right(head: usize, kind: usize) -> Option<()> {
    let mut node = link(peek::word(head)?);
    for _ in 0..TRIALS {
        if node == head {
            break;
        }
        let mut metatype = peek::word(node + GC_HEAD + 8)?;
        let mut steps = 0;
        while metatype != kind {
            metatype = peek::word(metatype.checked_add(8)?)?;
            steps += 1;
            (steps <= METATYPES).then_some(())?;
        }
        let next = link(peek::word(node)?);
        (link(peek::word(next + 8)?) == node).then_some(())?;
        node = next;
    }
    Some(())
}

impl Root {
    /// `None` if this CPython does not export it.
    pub fn find(minor: u32) -> Option<Self> {
        if minor == 8 {
            return symbol(c"_PyRuntime").map(|at| Self::Runtime(at as usize));
        }
        // SAFETY: the function of that name has this type.
        symbol(c"PyInterpreterState_Get")
            .map(|at| Self::Interpreter(unsafe { std::mem::transmute::<*mut c_void, GetInterpreter>(at) }))
    }

    /// The heads of the lists; 0 in place of one that this release does not have. `None` if no lists are found.
    ///
    /// # Safety
    /// The GIL is held. `kind` is the address of `PyType_Type`.
    pub unsafe fn heads(&self, kind: usize) -> Option<[usize; GENERATIONS + 1]> {
        let root = match self {
            // SAFETY: the GIL is held.
            Self::Interpreter(get) => unsafe { get() as usize },
            Self::Runtime(at) => *at,
        };
        let mut offset = OFFSET.load(Ordering::Relaxed);
        if offset == 0 || !are_heads(root + offset) {
            offset = search(root)?;
            for number in 0..GENERATIONS {
                looks_right(root + offset + number * STRIDE, kind)?;
            }
            OFFSET.store(offset, Ordering::Relaxed);
        }
        let first = root + offset;
        let mut heads = [first, first + STRIDE, first + 2 * STRIDE, 0];
        // The list of frozen objects is behind an address (`generation0`), or follows directly.
        let end = first + GENERATIONS * STRIDE;
        heads[GENERATIONS] = [end.next_multiple_of(8) + 8, end].into_iter().find(|&at| is_head(at)).unwrap_or(0);
        Some(heads)
    }
}

/// The offset of the lists' heads from `root`.
fn search(root: usize) -> Option<usize> {
    let mut at = 0;
    while at < MOST {
        let piece: [u8; PIECE] = peek::peek(root + at)?;
        // Most words are no addresses, which can be seen without a system call.
        let may_be = |place: &usize| {
            let words = piece[*place..].as_chunks::<8>().0;
            [words[0], words[1]].into_iter().all(|bytes| is_node(link(usize::from_ne_bytes(bytes))))
        };
        let found = (0..=PIECE - HEAD).step_by(ALIGNMENT).filter(may_be).find(|&place| are_heads(root + at + place));
        if let Some(place) = found {
            return Some(at + place);
        }
        // A head can lie in two pieces.
        at += PIECE - HEAD + ALIGNMENT;
    }
    None
}

/// Calls `call` with the address of each object of a list.
///
/// # Safety
/// `head` is a list's head, the GIL is held, and `call` changes no list.
pub unsafe fn each(head: usize, mut call: impl FnMut(usize)) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut node = link(word(head));
        while node != head {
            call(node + GC_HEAD);
            node = link(word(node));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node's links: two words, and room for an object's first two.
    type Node = [usize; 4];

    /// Three lists of so many nodes each, behind `before` halves of words. Returns the halves, with the heads among them, and the nodes.
    fn planted(before: usize, counts: [usize; 3]) -> (Vec<u32>, Vec<Node>) {
        let mut halves = vec![7u32; before + 18 + 2048];
        let mut nodes: Vec<Node> = vec![[0; 4]; counts.iter().sum()];
        let mut rest = &mut nodes[..];
        for (number, count) in counts.into_iter().enumerate() {
            let (of_list, others) = rest.split_at_mut(count);
            rest = others;
            let at = before + number * STRIDE / 4;
            let head = halves[at..].as_ptr() as usize;
            let addresses: Vec<usize> =
                [head].into_iter().chain(of_list.iter().map(|node| node.as_ptr() as usize)).chain([head]).collect();
            for (node, around) in of_list.iter_mut().zip(addresses.windows(3)) {
                *node = [around[2], around[0], 1, 2];
            }
            for (at, link) in [(at, addresses[1]), (at + 2, addresses[count])] {
                (halves[at], halves[at + 1]) = (link as u32, (link >> 32) as u32);
            }
        }
        (halves, nodes)
    }

    #[test]
    fn lists_are_found_by_how_they_look() {
        for before in [2, 10, 11, 1018, 1019, 1020, 1021, 1022, 1023, 1024, 2200] {
            for counts in [[0, 0, 1], [3, 1, 0], [0, 0, 0]] {
                let mut planted = planted(before, counts);
                let root = planted.0.as_ptr() as usize;
                assert_eq!(search(root), Some(4 * before), "{before} {counts:?}");
                let mut seen = 0;
                // SAFETY: it was planted as a list.
                (0..3).for_each(|number| unsafe { each(root + 4 * before + number * STRIDE, |_| seen += 1) });
                assert_eq!(seen, counts.iter().sum::<usize>());
                planted.0[before + 8] ^= 16;
                assert!(!are_heads(root + 4 * before));
            }
        }
    }
}
