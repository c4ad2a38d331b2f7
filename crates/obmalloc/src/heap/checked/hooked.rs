//! Debug hooks of a checked heap, and what is found late.

use core::ptr::NonNull;

use super::CheckedHeap;
use crate::domain::{Domain, Domains, Fault, FaultKind, Function, Purpose, write_after_free};
use crate::heap::HeapError;

impl CheckedHeap {
    /// `PyMem_SetupDebugHooks`: puts debug hooks around the allocators that are in; a domain that has one already keeps it.
    ///
    /// From then on blocks have guard bytes, fresh memory is filled with `CD` and freed memory with `DD`, and what CPython would abort for
    /// is a fault of [`free`](Self::free) and [`realloc`](Self::realloc) with CPython's [report](Fault::report). Blocks that are older are
    /// freed and resized without being looked at.
    ///
    /// Besides, a write to a small block after it was freed is found when the block is to be used again: that request fails, gives
    /// [`WriteAfterFree`](crate::FaultKind::WriteAfterFree) to [`take_fault`](Self::take_fault), and the block is not used any more. It is
    /// found for pymalloc's own blocks, as long as nothing but the hooks is around pymalloc. Blocks in quarantine are watched, too, large
    /// ones included.
    ///
    /// # Errors
    /// When there is no memory for them: the present allocators stay.
    #[doc(alias = "PyMem_SetupDebugHooks")]
    pub fn setup_debug_hooks(&self) -> Result<(), HeapError> {
        let (inner, text) = (self.inner(), self.profile().debug_text);
        if !inner.know_roots() {
            return Err(HeapError::NoMemory);
        }
        // SAFETY: the domains are initialised; a call that is running has read its allocator already.
        let done = unsafe { Domains::setup_debug_hooks(inner.domains(), text) };
        inner.hooked.set(inner.hooks().is_some());
        inner.note_allocators();
        if done { Ok(()) } else { Err(HeapError::NoMemory) }
    }

    /// Whether debug hooks have been set up.
    #[inline]
    pub fn has_debug_hooks(&self) -> bool {
        self.inner().hooked.get()
    }

    /// What was found during a call that could not say so: by the debug hooks why a request failed, or which guard bytes of an object were
    /// damaged when it was destroyed, each fault once, and of several the first; and from when a block's broken link has made a request
    /// fail, always that ([`HeapCorrupted`](crate::FaultKind::HeapCorrupted)).
    pub fn take_fault(&self) -> Option<Fault> {
        self.take_fault_of_hooks().or_else(|| self.corruption())
    }

    pub(crate) fn take_fault_of_hooks(&self) -> Option<Fault> {
        self.inner().hooks()?.take_fault()
    }

    /// Whether a request has failed because a free block's link leads to where no block of its pool is: something wrote to the block. The
    /// heap is good for nothing but being dropped then.
    pub fn is_corrupted(&self) -> bool {
        self.inner().pymalloc().broken_link.is_some()
    }

    #[cold]
    pub(super) fn corruption(&self) -> Option<Fault> {
        let block = self.inner().pymalloc().broken_link?;
        Some(Fault::new(FaultKind::HeapCorrupted, block, Domain::Obj))
    }

    /// Looks at the guard bytes of every block and at all free memory that the debug hooks have filled. What it finds is found once: the
    /// block is not used again as long as it is damaged.
    ///
    /// # Errors
    /// The first block that something wrote to where it had no business.
    pub fn verify_guards(&self) -> Result<(), Fault> {
        let inner = self.inner();
        let Some(hooks) = inner.hooks() else { return Ok(()) };
        if let Some(fault) = hooks.find_damaged(self.interrupt()) {
            return Err(fault);
        }
        if let Some((begin, size, byte)) = inner.pymalloc().damaged_block(self.interrupt()) {
            // Without memory to remember it, it is found again.
            // SAFETY: nothing else uses pymalloc now.
            unsafe { (*inner.domains()).pymalloc.tell_dead(begin, size) };
            return Err(write_after_free(begin, byte, Domain::Obj));
        }
        Ok(())
    }

    /// A fault with what CPython prints for it, where `function` of its hooks finds it.
    #[cold]
    fn with_report(&self, fault: Fault, function: Function) -> Fault {
        let verifies = Domains::is_hook(&self.inner().allocator(fault.used));
        match self.inner().hooks() {
            Some(hooks) if fault.kind == FaultKind::WrongDomain && verifies => {
                Fault { report: hooks.wrong_domain(function, fault.used, fault.address), ..fault }
            }
            _ => fault,
        }
    }

    /// What [`free`](Self::free) would find, without freeing anything.
    ///
    /// # Errors
    /// As for `free`.
    pub fn check_free(&self, domain: Domain, address: usize) -> Result<(), Fault> {
        self.check_guards(domain, address, Purpose::Free, Function::Free)
    }

    /// What [`realloc`](Self::realloc) would find, without resizing anything.
    ///
    /// # Errors
    /// As for `realloc`.
    pub fn check_realloc(&self, domain: Domain, address: usize) -> Result<(), Fault> {
        self.check_guards(domain, address, Purpose::Use, Function::Realloc)
    }

    fn check_guards(&self, domain: Domain, address: usize, purpose: Purpose, function: Function) -> Result<(), Fault> {
        self.inner().check(domain, address, purpose).map_err(|fault| self.with_report(fault, function))?;
        let damaged = self.inner().hooks().and_then(|hooks| hooks.examine(function, domain, address));
        damaged.map_or(Ok(()), Err)
    }

    /// Keeps a fault for [`take_fault`](Self::take_fault), for a caller that cannot say it. Without debug hooks it is lost.
    pub(crate) fn keep_fault(&self, fault: Fault) {
        if let Some(hooks) = self.inner().hooks() {
            hooks.keep_fault(fault);
        }
    }

    /// Runs a call and gives what the hooks found during it.
    pub(super) fn watching<T>(&self, call: impl FnOnce() -> T) -> (T, Option<Fault>) {
        let before = self.take_fault_of_hooks();
        let result = call();
        let found = self.take_fault_of_hooks();
        if let Some(before) = before {
            self.keep_fault(before);
        }
        (result, found)
    }

    #[cold]
    pub(super) fn free_hooked(&self, domain: Domain, address: usize) -> Result<(), Fault> {
        let inner = self.inner();
        inner.check(domain, address, Purpose::Free).map_err(|fault| self.with_report(fault, Function::Free))?;
        let part = inner.ledger().size_of_part(address);
        inner.ledger().remove(address);
        // SAFETY: a live block of this domain.
        let ((), found) = self.watching(|| unsafe { inner.free(domain, address) });
        let Some(fault) = found else { return Ok(()) };
        let size = inner.size_hooked(domain, address);
        if let (Some(size), None) = (size, inner.ledger().domain_of(address)) {
            inner.ledger().reenter(address, size, domain, part.is_some());
        }
        Err(Fault { address, used: domain, ..fault })
    }

    #[cold]
    pub(super) fn realloc_hooked(&self, domain: Domain, address: usize, size: usize) -> Result<Option<NonNull<u8>>, Fault> {
        self.inner().check(domain, address, Purpose::Use).map_err(|fault| self.with_report(fault, Function::Realloc))?;
        let (moved, found) = self.watching(|| self.realloc_checked(domain, address, size));
        match found.or_else(|| self.corruption()) {
            // Of the block that there was no other for, or of the one that it was to be.
            Some(fault) if matches!(fault.kind, FaultKind::WriteAfterFree | FaultKind::HeapCorrupted) => {
                Err(Fault { used: domain, ..fault })
            }
            Some(fault) => Err(Fault { address, used: domain, ..fault }),
            None => Ok(moved),
        }
    }
}
