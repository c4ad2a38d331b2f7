//! The lists in which CPython's collector keeps the objects that it tracks: `struct gc_generation generations[3]` and
//! `permanent_generation`. Their place in the interpreter's state changes from release to release, but how they look does not, so they are
//! looked for.

use super::{GC_HEAD, word};
use crate::peek;
use crate::python::symbol;
use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering};

/// `PyInterpreterState_Get`
type GetInterpreter = unsafe extern "C" fn() -> *mut c_void;

/// Where the search for the lists begins.
pub enum Root {
    /// What the function gives: the present interpreter's state, from 3.9 on.
    Interpreter(GetInterpreter),
    /// `_PyRuntime`: 3.8.
    Runtime(usize),
}

/// Bytes from one list's head to the next: two links and two ints.
const STRIDE: usize = 24;
/// Lists that lie one behind the other.
const GENERATIONS: usize = 3;
/// Where the list of frozen objects can be, after the first of the others: behind the address of that one, or at once.
const PERMANENT: [usize; 2] = [GENERATIONS * STRIDE + 8, GENERATIONS * STRIDE];
/// Bytes that are searched at most, and read at once.
const MOST: usize = 1 << 20;
const PIECE: usize = 4096;
/// Objects of each list that are looked at with care when the lists are found.
const TRIALS: usize = 64;
/// Types of types that are followed until there is `type`.
const METATYPES: usize = 4;

/// How far behind the root the lists were found; 0 while they are not.
static OFFSET: AtomicUsize = AtomicUsize::new(0);

/// A link without the collector's flags.
fn link(word: usize) -> usize {
    word & !3
}

/// Whether this can be a node's address.
fn is_node(node: usize) -> bool {
    node > PIECE && node.is_multiple_of(8)
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
    /// `None` when this CPython does not show it.
    pub fn find(minor: u32) -> Option<Self> {
        if minor == 8 {
            return symbol(c"_PyRuntime").map(|at| Self::Runtime(at as usize));
        }
        // SAFETY: the function of that name has this type.
        symbol(c"PyInterpreterState_Get")
            .map(|at| Self::Interpreter(unsafe { std::mem::transmute::<*mut c_void, GetInterpreter>(at) }))
    }

    /// The heads of the lists, 0 where there is one less. `None` where no lists are found.
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
        heads[GENERATIONS] = PERMANENT.iter().map(|beyond| first + beyond).find(|&at| is_head(at)).unwrap_or(0);
        Some(heads)
    }
}

/// How far behind `root` there are lists' heads.
fn search(root: usize) -> Option<usize> {
    let mut at = 0;
    while at < MOST {
        let piece: [u8; PIECE] = peek::peek(root + at)?;
        let words = piece.as_chunks::<8>().0;
        // Most words are no addresses, which is seen without the system's help.
        let may_be = |index: usize| [0, 1].into_iter().all(|further| is_node(link(usize::from_ne_bytes(words[index + further]))));
        let found = (0..words.len() - 1).find(|&index| may_be(index) && are_heads(root + at + 8 * index));
        if let Some(index) = found {
            return Some(at + 8 * index);
        }
        // The last word of a piece can be the first of a head.
        at += PIECE - 8;
    }
    None
}

/// Calls `call` with the address of each object of a list.
///
/// # Safety
/// It is a list's head, the GIL is held, and `call` changes no list.
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

    /// Three lists of so many nodes each, behind `before` words. Gives the words, of which the heads are some, and the nodes.
    fn planted(before: usize, counts: [usize; 3]) -> (Vec<usize>, Vec<Node>) {
        let mut words = vec![7usize; before + 9 + 1024];
        let mut nodes: Vec<Node> = vec![[0; 4]; counts.iter().sum()];
        let mut rest = &mut nodes[..];
        for (number, count) in counts.into_iter().enumerate() {
            let (of_list, others) = rest.split_at_mut(count);
            rest = others;
            let at = before + 3 * number;
            let head = words[at..].as_ptr() as usize;
            let addresses: Vec<usize> =
                [head].into_iter().chain(of_list.iter().map(|node| node.as_ptr() as usize)).chain([head]).collect();
            for (node, around) in of_list.iter_mut().zip(addresses.windows(3)) {
                *node = [around[2], around[0], 1, 2];
            }
            (words[at], words[at + 1]) = (addresses[1], addresses[count]);
        }
        (words, nodes)
    }

    #[test]
    fn lists_are_found_by_how_they_look() {
        for before in [1, 5, 509, 510, 511, 512, 1100] {
            for counts in [[0, 0, 1], [3, 1, 0], [0, 0, 0]] {
                let mut planted = planted(before, counts);
                let root = planted.0.as_ptr() as usize;
                assert_eq!(search(root), Some(8 * before), "{before} {counts:?}");
                let mut seen = 0;
                // SAFETY: it was planted as a list.
                (0..3).for_each(|number| unsafe { each(root + 8 * before + number * STRIDE, |_| seen += 1) });
                assert_eq!(seen, counts.iter().sum::<usize>());
                planted.0[before + 4] ^= 16;
                assert!(!are_heads(root + 8 * before));
            }
        }
    }
}
