//! A walk over every structure of a checked heap.

#![forbid(unsafe_code)]

use super::CheckedHeap;
use crate::pymalloc::Corruption;

impl CheckedHeap {
    /// As [`Heap::verify`](crate::Heap::verify), and compares the ledger with the pools.
    ///
    /// # Errors
    /// The first structure that does not hold.
    pub fn verify(&self) -> Result<(), Corruption> {
        self.verify_with(|_, _| false)
    }

    /// As [`verify`](Self::verify), when guests have blocks of allocators that they called directly. `is_taken` says whether such a block begins
    /// within `size` bytes from an address.
    pub(crate) fn verify_with(&self, is_taken: impl Fn(usize, usize) -> bool) -> Result<(), Corruption> {
        let inner = self.inner();
        let pymalloc = inner.pymalloc();
        pymalloc.verify(self.interrupt())?;
        let (ledger, hooks, waiting) = (inner.ledger(), inner.hooks(), inner.quarantine());
        let alignment = self.geometry().alignment;
        let (mut found, patience) = (Ok(()), self.interrupt().patience());
        pymalloc.each_live_pool(|first, end, size, count| {
            if found.is_err() || patience.is_over_after((end - first) / alignment) {
                return;
            }
            let in_use = |&begin: &usize| {
                ledger.is_live(begin, size)
                    || waiting.has_within(begin, size, alignment)
                    || hooks.as_ref().is_some_and(|hooks| hooks.withholds(begin))
                    || is_taken(begin, size)
            };
            let live = (first..end).step_by(size).filter(in_use).count();
            if live != count {
                found = Err((first, count, live));
            }
        });
        found.map_err(|(address, count, live)| {
            let what = alloc::format!("a pool counts {count} blocks in use, but {live} are known");
            Corruption { what, address }
        })
    }
}
