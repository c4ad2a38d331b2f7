//! Whether this thread is inside a mem or obj call: the raw calls that it makes then are pymalloc's own.
//!
//! The flag is read or written at every call, so the way to it matters. A library's thread-local is reached through a function
//! call; one that is there when the process starts, as a preloaded library's is, can stand at a fixed distance from the thread
//! pointer (the "initial-exec" model). Stable Rust has no switch for that, so on x86-64 the variable is written in assembly.

/// Marks this thread as inside a mem or obj call. Gives the flag as it was, to be put back with [`leave`].
#[inline(always)]
pub fn enter() -> u8 {
    let before = flag::get();
    flag::set(1);
    before
}

/// Ends what [`enter`] began.
#[inline(always)]
pub fn leave(before: u8) {
    flag::set(before);
}

/// Whether this thread is inside a mem or obj call.
#[inline(always)]
pub fn is_inside() -> bool {
    flag::get() != 0
}

#[cfg(target_arch = "x86_64")]
mod flag {
    use std::arch::{asm, global_asm};

    global_asm!(
        ".pushsection .tbss.obmalloc_preload_inside,\"awT\",@nobits",
        ".globl obmalloc_preload_inside",
        ".hidden obmalloc_preload_inside",
        ".type obmalloc_preload_inside,@object",
        ".size obmalloc_preload_inside,1",
        "obmalloc_preload_inside:",
        ".zero 1",
        ".popsection",
    );

    #[inline(always)]
    pub fn get() -> u8 {
        let value: u32;
        // SAFETY: reads the one byte that the section above reserves in every thread; touches neither stack nor flags.
        unsafe {
            asm!(
                "mov {at}, qword ptr [rip + obmalloc_preload_inside@GOTTPOFF]",
                "movzx {value:e}, byte ptr fs:[{at}]",
                at = out(reg) _,
                value = out(reg) value,
                options(nostack, preserves_flags, readonly),
            );
        }
        value as u8
    }

    #[inline(always)]
    pub fn set(value: u8) {
        // SAFETY: writes the one byte that the section above reserves in every thread; touches neither stack nor flags.
        unsafe {
            asm!(
                "mov {at}, qword ptr [rip + obmalloc_preload_inside@GOTTPOFF]",
                "mov byte ptr fs:[{at}], {value}",
                at = out(reg) _,
                value = in(reg_byte) value,
                options(nostack, preserves_flags),
            );
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod flag {
    use std::cell::Cell;

    thread_local! {
        static INSIDE: Cell<u8> = const { Cell::new(0) };
    }

    #[inline(always)]
    pub fn get() -> u8 {
        INSIDE.get()
    }

    #[inline(always)]
    pub fn set(value: u8) {
        INSIDE.set(value);
    }
}
