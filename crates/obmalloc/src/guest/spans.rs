//! Spans of memory, by address: the grants that guests got, and the pieces and arenas that lie in them.
//!
//! Invariants:
//! 1. Two spans are disjoint, or one lies in the other. Of two with the same bytes, the newer one lies in the older one.
//! 2. A span's `around` is the innermost span that it lies in, and stays on record as long as it does.
//! 3. The spans are a search tree by key, and a heap by priority (a treap), so that its depth is logarithmic.

#![forbid(unsafe_code)]

use alloc::vec::Vec;

/// The index of a span in the record. It is valid until the span is removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SpanId(u32);

/// No span.
const NONE: u32 = u32::MAX;

/// A range of at least one byte, and what it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span<K> {
    pub address: usize,
    /// Bytes that were asked for. A span of 0 bytes still takes one.
    pub size: usize,
    pub kind: K,
    /// The innermost span that it lies in.
    around: u32,
}

impl<K> Span<K> {
    /// The first address behind the span.
    fn end(&self) -> usize {
        self.address.saturating_add(self.size.max(1))
    }

    /// Whether a byte lies in it.
    fn holds(&self, address: usize) -> bool {
        self.address <= address && address < self.end()
    }
}

struct Node<K> {
    span: Span<K>,
    /// A number that grows with each span. Spans at one address are ordered by it: the outer span is older and comes first.
    serial: u64,
    left: u32,
    right: u32,
}

/// All spans of a heap.
pub(super) struct Spans<K> {
    nodes: Vec<Node<K>>,
    /// Unused indices of `nodes`.
    free: Vec<u32>,
    root: u32,
    serial: u64,
}

impl<K: Copy> Spans<K> {
    pub const fn new() -> Self {
        Self { nodes: Vec::new(), free: Vec::new(), root: NONE, serial: 0 }
    }

    /// Makes room for `more` spans; false when there is no memory for that.
    pub fn reserve(&mut self, more: usize) -> bool {
        // `free` has room for every node, so that removing a span never needs memory.
        let nodes = self.nodes.len() + more;
        nodes < NONE as usize
            && self.nodes.try_reserve(more).is_ok()
            && self.free.try_reserve(self.nodes.capacity() - self.free.len()).is_ok()
    }

    /// The span with an id.
    pub fn get(&self, id: SpanId) -> &Span<K> {
        &self.nodes[id.0 as usize].span
    }

    /// The innermost span that a span lies in.
    pub fn around(&self, id: SpanId) -> Option<SpanId> {
        some(self.get(id).around)
    }

    /// All spans, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (SpanId, &Span<K>)> {
        let mut stack = Vec::new();
        stack.extend(some(self.root));
        core::iter::from_fn(move || {
            let id = stack.pop()?;
            let node = &self.nodes[id.0 as usize];
            stack.extend(some(node.left));
            stack.extend(some(node.right));
            Some((id, &node.span))
        })
    }

    /// The last span that begins at an address or before, which is the innermost of those that begin where it does.
    fn last_until(&self, address: usize) -> Option<SpanId> {
        let (mut next, mut found) = (self.root, NONE);
        while next != NONE {
            let node = &self.nodes[next as usize];
            (next, found) = if node.span.address <= address { (node.right, next) } else { (node.left, found) };
        }
        some(found)
    }

    /// The address of the first span that begins behind an address.
    fn first_behind(&self, address: usize) -> Option<usize> {
        let (mut next, mut found) = (self.root, None);
        while next != NONE {
            let node = &self.nodes[next as usize];
            if node.span.address > address {
                found = Some(node.span.address);
                next = node.left;
            } else {
                next = node.right;
            }
        }
        found
    }

    /// The innermost span that begins at an address.
    pub fn at(&self, address: usize) -> Option<SpanId> {
        self.last_until(address).filter(|&id| self.get(id).address == address)
    }

    /// The outermost span that begins at an address.
    pub fn outermost_at(&self, address: usize) -> Option<SpanId> {
        let mut id = self.at(address)?;
        while let Some(around) = self.around(id).filter(|&around| self.get(around).address == address) {
            id = around;
        }
        Some(id)
    }

    /// The innermost span that a byte lies in.
    pub fn innermost(&self, address: usize) -> Option<SpanId> {
        // Every span that holds the byte is `found` or lies around it (invariant 1).
        let mut found = self.last_until(address);
        while let Some(id) = found
            && !self.get(id).holds(address)
        {
            found = self.around(id);
        }
        found
    }

    /// Whether nothing lies in a span.
    pub fn is_empty(&self, id: SpanId) -> bool {
        let span = self.get(id);
        // The next span in order lies in this one or behind it.
        self.at(span.address) == Some(id) && self.first_behind(span.address).is_none_or(|next| next >= span.end())
    }

    /// Whether `inner` is the only span inside `outer`.
    pub fn is_only_one_in(&self, inner: SpanId, outer: SpanId) -> bool {
        let (one, around) = (self.get(inner), self.get(outer));
        let first = if one.address == around.address {
            self.at(one.address) == Some(inner)
        } else {
            self.at(around.address) == Some(outer) && self.first_behind(around.address) == Some(one.address)
        };
        first && self.is_empty(inner) && self.first_behind(one.address).is_none_or(|next| next >= around.end())
    }

    /// Whether any span begins within `size` bytes from an address.
    pub fn begins_within(&self, address: usize, size: usize) -> bool {
        self.at(address).is_some() || self.first_behind(address).is_some_and(|next| next < address + size)
    }

    /// The innermost span around `size` bytes at an address, if no other span overlaps them.
    pub fn clear_around(&self, address: usize, size: usize) -> Result<SpanId, Taken> {
        let around = self.innermost(address).ok_or(Taken::Nothing)?;
        let end = address.checked_add(size.max(1)).ok_or(Taken::Nothing)?;
        // A span of 0 bytes takes one, and has none for another.
        let holds_all = |id| end <= self.get(id).end() && (size == 0 || self.get(id).size != 0);
        if !holds_all(around) {
            // If a span further out holds all the bytes, this one overlaps some of them.
            let mut outer = self.around(around);
            while let Some(id) = outer.filter(|&id| !holds_all(id)) {
                outer = self.around(id);
            }
            return Err(outer.map_or(Taken::Nothing, |_| Taken::Occupied));
        }
        if self.first_behind(address).is_some_and(|next| next < end) { Err(Taken::Occupied) } else { Ok(around) }
    }

    /// Enters a span, inside the one that lies around it. [`reserve`](Self::reserve) has made room.
    pub fn insert(&mut self, address: usize, size: usize, kind: K) -> SpanId {
        let node = Node { span: Span { address, size, kind, around: NONE }, serial: 0, left: NONE, right: NONE };
        let id = match self.free.pop() {
            Some(id) => {
                self.nodes[id as usize] = node;
                id
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() as u32 - 1
            }
        };
        self.attach(SpanId(id), address, size);
        SpanId(id)
    }

    /// Removes a span in which nothing lies.
    pub fn remove(&mut self, id: SpanId) {
        self.detach(id);
        self.forget(id);
    }

    /// Takes out a span in which nothing lies, until it is [attached](Self::attach) again or [forgotten](Self::forget).
    pub fn detach(&mut self, id: SpanId) {
        debug_assert!(self.is_empty(id), "what lies in a span goes before it");
        let key = (self.get(id).address, self.nodes[id.0 as usize].serial);
        let (mut parent, mut at) = (NONE, self.root);
        while at != id.0 {
            let node = &self.nodes[at as usize];
            (parent, at) = (at, if key < (node.span.address, node.serial) { node.left } else { node.right });
        }
        let (left, right) = (self.nodes[at as usize].left, self.nodes[at as usize].right);
        let joined = self.merge(left, right);
        if parent == NONE {
            self.root = joined;
        } else if self.nodes[parent as usize].left == at {
            self.nodes[parent as usize].left = joined;
        } else {
            self.nodes[parent as usize].right = joined;
        }
    }

    /// Enters a span that was taken out, perhaps at another address and with another size.
    pub fn attach(&mut self, id: SpanId, address: usize, size: usize) {
        let around = self.innermost(address).map_or(NONE, |id| id.0);
        self.serial += 1;
        let serial = self.serial;
        let node = &mut self.nodes[id.0 as usize];
        *node = Node { span: Span { address, size, around, ..node.span }, serial, left: NONE, right: NONE };
        let (before, behind) = self.split(self.root, address);
        let left = self.merge(before, id.0);
        self.root = self.merge(left, behind);
    }

    /// Gives up a span that was taken out.
    pub fn forget(&mut self, id: SpanId) {
        self.free.push(id.0);
    }

    /// Whether a node is to be above another.
    fn is_above(&self, one: u32, other: u32) -> bool {
        let priority = |id: u32| self.nodes[id as usize].serial.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        priority(one) > priority(other)
    }

    /// Splits a tree in two: the spans that begin at an address or before, and those that begin behind it.
    fn split(&mut self, tree: u32, address: usize) -> (u32, u32) {
        let (mut left, mut right) = (NONE, NONE);
        // The node at which each tree grows next; none at first.
        let (mut left_end, mut right_end) = (NONE, NONE);
        let mut next = tree;
        while next != NONE {
            let node = &self.nodes[next as usize];
            if node.span.address <= address {
                if left_end == NONE {
                    left = next;
                } else {
                    self.nodes[left_end as usize].right = next;
                }
                left_end = next;
                next = self.nodes[next as usize].right;
            } else {
                if right_end == NONE {
                    right = next;
                } else {
                    self.nodes[right_end as usize].left = next;
                }
                right_end = next;
                next = self.nodes[next as usize].left;
            }
        }
        if left_end != NONE {
            self.nodes[left_end as usize].right = NONE;
        }
        if right_end != NONE {
            self.nodes[right_end as usize].left = NONE;
        }
        (left, right)
    }

    /// Joins two trees; every key of the first is lower.
    fn merge(&mut self, left: u32, right: u32) -> u32 {
        match (left, right) {
            (NONE, other) | (other, NONE) => other,
            _ if self.is_above(left, right) => {
                let inner = self.merge(self.nodes[left as usize].right, right);
                self.nodes[left as usize].right = inner;
                left
            }
            _ => {
                let inner = self.merge(left, self.nodes[right as usize].left);
                self.nodes[right as usize].left = inner;
                right
            }
        }
    }
}

/// Why a range of bytes is not inside one span and clear of others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Taken {
    /// No span holds all the bytes.
    Nothing,
    /// Another span overlaps them.
    Occupied,
}

fn some(id: u32) -> Option<SpanId> {
    (id != NONE).then_some(SpanId(id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// A model: all spans in the order in which they were entered.
    #[derive(Default)]
    struct Model(Vec<(usize, usize, u32)>);

    impl Model {
        fn innermost(&self, address: usize) -> Option<u32> {
            self.0.iter().rev().find(|&&(at, size, _)| at <= address && address < at + size.max(1)).map(|found| found.2)
        }
    }

    #[test]
    fn random_spans_are_found_as_a_list_of_them_says() {
        const MEMORY: usize = 300;
        let (seeds, steps) = if cfg!(miri) { (4, 30) } else { (200, 400) };
        for seed in 1..seeds {
            let mut state: u64 = seed;
            let mut random = move |below: usize| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as usize % below
            };
            let (mut spans, mut model) = (Spans::new(), Model::default());
            for step in 0..steps {
                if !model.0.is_empty() && random(3) == 0 {
                    let index = random(model.0.len());
                    let (at, _, kind) = model.0[index];
                    let id = spans.iter().find(|(_, span)| span.kind == kind).expect("entered").0;
                    let holds =
                        |&&(other, size, _): &&(usize, usize, u32)| at <= other && other + size.max(1) <= spans.get(id).end();
                    let empty = model.0[index + 1..].iter().filter(holds).count() == 0;
                    assert_eq!(spans.is_empty(id), empty, "seed {seed}, step {step}");
                    if empty {
                        spans.remove(id);
                        model.0.remove(index);
                    }
                    continue;
                }
                let (at, most) = (random(MEMORY), [3, 40][random(2)]);
                let size = random(most);
                // A new one is clear of others, or lies in one that nothing lies in there.
                let fits = if spans.innermost(at).is_some() {
                    spans.clear_around(at, size).is_ok()
                } else {
                    !spans.begins_within(at, size.max(1))
                };
                let overlaps = |&(other, length, _): &(usize, usize, u32)| {
                    let (end, other_end) = (at + size.max(1), other + length.max(1));
                    // A span of 0 bytes has no byte for another.
                    let is_around = other <= at && end <= other_end && (size == 0 || length != 0);
                    other < end && at < other_end && !is_around
                };
                let inside = |&(other, length, _): &(usize, usize, u32)| at < other && other + length.max(1) <= at + size.max(1);
                assert_eq!(fits, !model.0.iter().any(|span| overlaps(span) || inside(span)), "seed {seed}, step {step}");
                if fits && spans.reserve(1) {
                    spans.insert(at, size, step);
                    model.0.push((at, size, step));
                }
                for address in 0..MEMORY + 40 {
                    let found = spans.innermost(address).map(|id| spans.get(id).kind);
                    assert_eq!(found, model.innermost(address), "seed {seed}, step {step}, address {address}");
                }
            }
        }
    }
}
