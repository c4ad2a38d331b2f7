//! Debug hooks of a checked heap, and faults that are found after the call that caused them.

use core::ptr::NonNull;

use super::CheckedHeap;
use crate::domain::{Domain, Domains, Fault, FaultKind, Function, Purpose, write_after_free};
use crate::heap::HeapError;

impl CheckedHeap {
    /// `PyMem_SetupDebugHooks`: puts debug hooks around the allocators that are in; a domain that has one already keeps it.
    ///
    /// From then on blocks have guard bytes, fresh memory is filled with `CD` and freed memory with `DD`. Where CPython would abort,
    /// [`free`](Self::free) and [`realloc`](Self::realloc) return a fault with CPython's [report](Fault::report). Older blocks are freed and
    /// resized without a look at their guard bytes.
    ///
    /// A write to a small block after it was freed is found too, when the block is to be used again: that request fails with
    /// [`WriteAfterFree`](crate::FaultKind::WriteAfterFree), which [`take_fault`](Self::take_fault) returns, and the block is not used any more.
    /// This holds for pymalloc's own blocks, as long as nothing but the hooks is around pymalloc. Blocks in quarantine are watched too, also
    /// large ones.
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

    /// A fault that was found during a call that could not return it: why the debug hooks refused a request, or which guard bytes of an object
    /// were damaged when it was destroyed. Returned once; of several, the first. Once a block's broken link has made a request fail, this
    /// always returns that fault ([`HeapCorrupted`](crate::FaultKind::HeapCorrupted)).
    pub fn take_fault(&self) -> Option<Fault> {
        self.take_fault_of_hooks().or_else(|| self.corruption())
    }

    pub(crate) fn take_fault_of_hooks(&self) -> Option<Fault> {
        self.inner().hooks()?.take_fault()
    }

    /// Whether a request has failed because something wrote to a free block, so that its link leads to no block of its pool. Such a heap can
    /// only be dropped.
    pub fn is_corrupted(&self) -> bool {
        self.inner().pymalloc().broken_link.is_some()
    }

    #[cold]
    pub(super) fn corruption(&self) -> Option<Fault> {
        let block = self.inner().pymalloc().broken_link?;
        Some(Fault::new(FaultKind::HeapCorrupted, block, Domain::Obj))
    }

    /// Looks at the guard bytes of every block and at all free memory that the debug hooks have filled. It reports each damaged free block once;
    /// such a block is not used again while it is damaged.
    ///
    /// # Errors
    /// The first damaged block.
    pub fn verify_guards(&self) -> Result<(), Fault> {
        let inner = self.inner();
        let Some(hooks) = inner.hooks() else { return Ok(()) };
        if let Some(fault) = hooks.find_damaged(self.interrupt()) {
            return Err(fault);
        }
        if let Some((begin, size, byte)) = inner.pymalloc().damaged_block(self.interrupt()) {
            // Without memory to remember the fault, a later look finds it again.
            // SAFETY: nothing else uses pymalloc now.
            unsafe { (*inner.domains()).pymalloc.tell_dead(begin, size) };
            return Err(write_after_free(begin, byte, Domain::Obj));
        }
        Ok(())
    }

    /// A fault with what CPython prints when `function` of its hooks finds it.
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

    /// Keeps a fault for [`take_fault`](Self::take_fault), for a caller that cannot return it. Without debug hooks the fault is lost.
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
            // The fault is of the new block that the request could not get, not of the block being resized.
            Some(fault) if matches!(fault.kind, FaultKind::WriteAfterFree | FaultKind::HeapCorrupted) => {
                Err(Fault { used: domain, ..fault })
            }
            Some(fault) => Err(Fault { address, used: domain, ..fault }),
            None => Ok(moved),
        }
    }
}
