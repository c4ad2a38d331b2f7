//! Freed blocks in quarantine.

use core::ptr::{self, NonNull};

use super::CheckedHeap;
use crate::allocator::PY_SSIZE_T_MAX;
use crate::domain::{Domain, Fault};
use crate::heap::quarantine::{Quarantine, Waiting};
use crate::interrupt::STRIDE;

impl CheckedHeap {
    /// Whether freed blocks go into quarantine now.
    pub fn is_quarantining(&self) -> bool {
        self.inner().quarantine().is_kept() && self.inner().is_all_own.get()
    }

    /// Puts a live block that is being freed into quarantine; false if it must be freed at once.
    #[cold]
    pub(super) fn detain(&self, domain: Domain, address: usize) -> Result<bool, Fault> {
        let inner = self.inner();
        self.check_free(domain, address)?;
        let size = self.usable_size(domain, address)?;
        let is_counted = inner.own(domain) != inner.own(Domain::Raw);
        if !inner.quarantine().enter(address, Waiting { domain, size, is_counted }) {
            return Ok(false);
        }
        inner.ledger().lay_up(address);
        let interrupt = self.interrupt();
        if let Some(hooks) = inner.hooks() {
            hooks.bury(address, interrupt);
        }
        // If this is interrupted, the quarantine holds more for a while.
        self.release_while(Quarantine::leave_if_over);
        Ok(true)
    }

    /// Frees a block that leaves the quarantine.
    fn release(&self, address: usize, block: Waiting) {
        let inner = self.inner();
        inner.ledger().remember(address);
        // SAFETY: a block of this domain that has no owner.
        let ((), found) = self.watching(|| unsafe { inner.free(block.domain, address) });
        if let Some(fault) = found {
            // Something wrote to the block in quarantine. The hooks keep it from being used again.
            let first = inner.late_fault.take().unwrap_or(Fault { address, used: block.domain, ..fault });
            inner.late_fault.set(Some(first));
        }
    }

    /// A fault in a block that the program freed long ago, found by a later, correct call. Each fault is returned once. If there are several,
    /// only the first is kept.
    pub fn take_late_fault(&self) -> Option<Fault> {
        self.inner().late_fault.take()
    }

    /// Frees all blocks in quarantine; false if it was interrupted, so that some are still there.
    pub fn empty_quarantine(&self) -> bool {
        self.release_while(Quarantine::leave)
    }

    /// Frees each block that `next` returns; false if it was interrupted.
    fn release_while(&self, next: impl Fn(&mut Quarantine) -> Option<(usize, Waiting)>) -> bool {
        let patience = self.interrupt().patience();
        while let Some((address, block)) = next(self.inner().quarantine()) {
            self.release(address, block);
            // A free takes longer for a larger block: each page that was written to costs time.
            if patience.is_over_after(1 + (block.size / 256).min(STRIDE)) {
                return false;
            }
        }
        true
    }

    /// Empties the quarantine after a request has failed. Returns whether to repeat the request.
    #[cold]
    pub(super) fn may_ask_again(&self, size: usize) -> bool {
        let inner = self.inner();
        if size > PY_SSIZE_T_MAX || size > inner.account.limit() {
            // The request is larger than the limit.
            return false;
        }
        // SAFETY: the domains are initialised.
        let is_on_purpose = unsafe { (*inner.domains()).has_refused() };
        let has_reason = is_on_purpose || inner.account.is_refusing() || self.is_corrupted();
        let may_help = !has_reason && self.is_quarantining() && inner.hooks().is_none_or(|hooks| !hooks.has_fault());
        may_help && self.empty_quarantine()
    }

    /// As [`realloc`](Self::realloc), for when the old block goes into quarantine.
    #[cold]
    pub(super) fn realloc_to_another(&self, domain: Domain, address: usize, size: usize) -> Result<Option<NonNull<u8>>, Fault> {
        self.check_realloc(domain, address)?;
        let kept = self.usable_size(domain, address)?.min(size);
        let Some(block) = self.malloc(domain, size) else {
            // Without a new block, the old one may still be large enough, or can be resized where it is.
            return self.take_fault().map_or_else(|| self.realloc_at_once(domain, address, size), Err);
        };
        // SAFETY: two live blocks that are large enough.
        let is_copied = unsafe { self.interrupt().copy(ptr::with_exposed_provenance(address), block.as_ptr(), kept) };
        self.free(domain, if is_copied { address } else { block.as_ptr().addr() })?;
        Ok(is_copied.then_some(block))
    }
}
