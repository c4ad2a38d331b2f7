//! Whether this thread is inside a mem or obj call, and which block the call was given. Raw calls that the thread makes meanwhile are
//! pymalloc's own, with one exception: an allocator between pymalloc and raw, such as tracemalloc, also frees its own memory when a block is
//! freed. pymalloc itself passes only the block that it was given to raw's `free`.
//!
//! The mark is read or written at every call, so access must be fast. A library's thread-local is reached through a function call. But a
//! library that is loaded at the start, such as a preloaded one, can have it at a fixed distance from the thread pointer (the "initial-exec"
//! model). Stable Rust has no switch for that, so on x86-64 the variable is defined in assembly.

/// Marks this thread as inside a mem or obj call that was given the block at `address` (0 for none). Returns the mark as it was, to be put
/// back with [`leave`].
#[inline(always)]
pub fn enter(address: usize) -> usize {
    // Blocks are at even addresses.
    mark::replace(address | 1)
}

/// Puts the mark back that [`enter`] returned.
#[inline(always)]
pub fn leave(before: usize) {
    mark::set(before);
}

/// Whether this thread is inside a mem or obj call.
#[inline(always)]
pub fn is_inside() -> bool {
    mark::get() != 0
}

/// Whether this thread is inside a mem or obj call that was given the block at `address`.
#[inline(always)]
pub fn is_inside_of(address: usize) -> bool {
    mark::get() == address | 1
}

/// A number that no other live thread has: the address of the thread's own data.
#[inline(always)]
pub fn thread() -> usize {
    mark::thread()
}

#[cfg(target_arch = "x86_64")]
mod mark {
    use std::arch::{asm, global_asm};

    global_asm!(
        ".pushsection .tbss.obmalloc_preload_inside,\"awT\",@nobits",
        ".globl obmalloc_preload_inside",
        ".hidden obmalloc_preload_inside",
        ".type obmalloc_preload_inside,@object",
        ".size obmalloc_preload_inside,8",
        ".balign 8",
        "obmalloc_preload_inside:",
        ".zero 8",
        ".popsection",
    );

    #[inline(always)]
    pub fn get() -> usize {
        let value: usize;
        // SAFETY: reads the word that the section above reserves in every thread; touches neither stack nor flags.
        unsafe {
            asm!(
                "mov {at}, qword ptr [rip + obmalloc_preload_inside@GOTTPOFF]",
                "mov {value}, qword ptr fs:[{at}]",
                at = out(reg) _,
                value = out(reg) value,
                options(nostack, preserves_flags, readonly),
            );
        }
        value
    }

    #[inline(always)]
    pub fn replace(value: usize) -> usize {
        let before: usize;
        // SAFETY: as in `get` and `set`.
        unsafe {
            asm!(
                "mov {at}, qword ptr [rip + obmalloc_preload_inside@GOTTPOFF]",
                "mov {before}, qword ptr fs:[{at}]",
                "mov qword ptr fs:[{at}], {value}",
                at = out(reg) _,
                before = out(reg) before,
                value = in(reg) value,
                options(nostack, preserves_flags),
            );
        }
        before
    }

    #[inline(always)]
    pub fn thread() -> usize {
        let value: usize;
        // SAFETY: reads the word at the thread pointer, which is the thread pointer itself and never changes; touches neither stack nor flags.
        unsafe { asm!("mov {value}, qword ptr fs:[0]", value = out(reg) value, options(nostack, preserves_flags, pure, nomem)) };
        value
    }

    #[inline(always)]
    pub fn set(value: usize) {
        // SAFETY: writes the word that the section above reserves in every thread; touches neither stack nor flags.
        unsafe {
            asm!(
                "mov {at}, qword ptr [rip + obmalloc_preload_inside@GOTTPOFF]",
                "mov qword ptr fs:[{at}], {value}",
                at = out(reg) _,
                value = in(reg) value,
                options(nostack, preserves_flags),
            );
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod mark {
    use std::cell::Cell;

    thread_local! {
        static INSIDE: Cell<usize> = const { Cell::new(0) };
    }

    #[inline(always)]
    pub fn get() -> usize {
        INSIDE.get()
    }

    #[inline(always)]
    pub fn set(value: usize) {
        INSIDE.set(value);
    }

    #[inline(always)]
    pub fn replace(value: usize) -> usize {
        INSIDE.replace(value)
    }

    #[inline(always)]
    pub fn thread() -> usize {
        INSIDE.with(|inside| std::ptr::from_ref(inside).addr())
    }
}
