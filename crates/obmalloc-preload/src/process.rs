//! What happens to the process: fork, exec and the ways to leave that run no destructor.

use crate::{check, sink, snapshot};

/// Has forked children recorded as processes of their own.
pub fn watch_forks() {
    extern "C" fn before() {
        sink::before_fork();
    }
    extern "C" fn in_parent() {
        sink::fork_in_parent();
    }
    extern "C" fn in_child() {
        sink::fork_in_child();
    }
    sink::adopt_process();
    // SAFETY: the handlers are there for as long as the process; this library is never unloaded.
    unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
}

/// The end of the recorded process: everything that is still in memory goes into the file.
pub extern "C" fn leave() {
    if sink::is_recorded() {
        snapshot::look_for_lost_hooks_at_the_end();
        sink::end();
    }
    check::leave();
}

/// Functions of the C library that the program calls and the recorder answers. Not in unit tests, which are programs themselves.
#[cfg(not(test))]
mod interposed {
    use super::{check, leave, sink};
    use std::ffi::{c_char, c_int};

    /// `_exit`, which is what `os._exit` calls: no destructor runs, so the trace is brought to its end here.
    #[unsafe(no_mangle)]
    extern "C" fn _exit(status: c_int) -> ! {
        leave();
        loop {
            // SAFETY: takes no memory, and does not come back.
            unsafe { libc::syscall(libc::SYS_exit_group, status) };
        }
    }

    /// `_Exit`, C's name for [`_exit`].
    #[unsafe(no_mangle)]
    extern "C" fn _Exit(status: c_int) -> ! {
        _exit(status)
    }

    /// `execve`: the process goes on as another program, and what is in memory goes with it unless it is written now. Nothing says
    /// that the trace ends here, because the call may fail and the program go on.
    ///
    /// The system call is made here and not by the C library's function, which need not be looked up then: the caller may be a child
    /// of `vfork`, where little is allowed.
    ///
    /// # Safety
    /// As the C library's function.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn execve(path: *const c_char, argv: *const *const c_char, envp: *const *const c_char) -> c_int {
        if sink::is_recorded() {
            sink::flush();
        }
        check::leave();
        // SAFETY: passes the caller's arguments on; sets errno as the C library's function does.
        unsafe { libc::syscall(libc::SYS_execve, path, argv, envp) as c_int }
    }

    /// `execv`: [`execve`] with the environment as it is.
    ///
    /// # Safety
    /// As the C library's function.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn execv(path: *const c_char, argv: *const *const c_char) -> c_int {
        unsafe extern "C" {
            static environ: *const *const c_char;
        }
        // SAFETY: passes the caller's arguments on, and the C library's environment.
        unsafe { execve(path, argv, environ) }
    }
}
