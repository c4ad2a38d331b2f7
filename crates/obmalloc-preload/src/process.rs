//! Follows the process through fork, exec, and the ways to end that run no destructor.

use crate::python::symbol;
use crate::{check, sink, snapshot, trim};
use std::ffi::{c_int, c_void};

/// Makes forked children be recorded as processes of their own.
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

/// Makes `quick_exit`, which runs no destructors, call [`leave`]. The function registered first is called last.
pub fn watch_quick_exit() {
    type Register = unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void) -> c_int;
    extern "C" fn at_quick_exit(_: *mut c_void) {
        leave();
    }
    if let Some(register) = symbol(c"__cxa_at_quick_exit") {
        // SAFETY: the C library's function of that name has this type; this library is never unloaded.
        unsafe { std::mem::transmute::<*mut c_void, Register>(register)(at_quick_exit, std::ptr::null_mut()) };
    }
}

/// Ends the recording of this process: writes everything that is still in memory to the file.
pub extern "C" fn leave() {
    if sink::is_recorded() {
        snapshot::look_for_lost_hooks_at_the_end();
        sink::end();
    }
    check::leave();
    trim::leave();
}

/// Before the process goes on as another program: writes everything that is still in memory to the file. The call may fail, and then this
/// program goes on.
#[cfg(not(test))]
fn before_exec() {
    if sink::is_recorded() {
        sink::exec();
    }
    check::leave();
    trim::before_exec();
}

/// Functions of the C library that the program calls and the recorder answers. Not in unit tests, which are programs themselves.
///
/// If possible the system call is made here, so that the C library's function need not be looked up: the caller may be a child of `vfork`,
/// where little is allowed.
#[cfg(not(test))]
mod interposed {
    use super::{before_exec, leave};
    use crate::environment::with_needed;
    use crate::python::next;
    use crate::{check, python, sink, trim};
    use std::ffi::{c_char, c_int, c_void};

    type Strings = *const *const c_char;

    unsafe extern "C" {
        static environ: Strings;
    }

    /// `_exit`, which `os._exit` calls: no destructor runs, so the recording ends here.
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

    /// `kill`. After a KeyboardInterrupt, a finalized CPython sends itself the signal, and then no destructor runs either.
    #[unsafe(no_mangle)]
    extern "C" fn kill(pid: libc::pid_t, signal: c_int) -> c_int {
        // SAFETY: these take no memory. CPython is only asked whether it is initialised, and only once it has been found.
        unsafe {
            let is_seen = || sink::is_recorded() || check::is_checked() || trim::is_trimmed();
            if signal == libc::SIGINT && pid == libc::getpid() && is_seen() && (python::api().is_initialized)() == 0 {
                leave();
            }
            libc::syscall(libc::SYS_kill, pid, signal) as c_int
        }
    }

    /// `execve`
    ///
    /// # Safety
    /// As the C library's function.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn execve(path: *const c_char, argv: Strings, envp: Strings) -> c_int {
        before_exec();
        // SAFETY: passes the caller's arguments on; sets errno as the C library's function does.
        unsafe { with_needed(envp, |envp| libc::syscall(libc::SYS_execve, path, argv, envp) as c_int) }
    }

    /// `execv`: [`execve`] with the environment as it is.
    ///
    /// # Safety
    /// As the C library's function.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn execv(path: *const c_char, argv: Strings) -> c_int {
        // SAFETY: passes the caller's arguments on, and the C library's environment.
        unsafe { execve(path, argv, environ) }
    }

    /// `fexecve`, which is what `os.execve` calls for a descriptor.
    ///
    /// # Safety
    /// As the C library's function.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn fexecve(file: c_int, argv: Strings, envp: Strings) -> c_int {
        before_exec();
        let (path, flags) = (c"".as_ptr(), libc::AT_EMPTY_PATH);
        // SAFETY: as in `execve`.
        unsafe { with_needed(envp, |envp| libc::syscall(libc::SYS_execveat, file, path, argv, envp, flags) as c_int) }
    }

    /// `execvpe`
    ///
    /// # Safety
    /// As the C library's function.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn execvpe(file: *const c_char, argv: Strings, envp: Strings) -> c_int {
        before_exec();
        // SAFETY: the C library's function of that name, called with the caller's arguments.
        unsafe {
            let next: unsafe extern "C" fn(*const c_char, Strings, Strings) -> c_int = next(c"execvpe");
            with_needed(envp, |envp| next(file, argv, envp))
        }
    }

    /// `execvp`, which is what `env` calls: [`execvpe`] with the environment as it is.
    ///
    /// # Safety
    /// As the C library's function.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn execvp(file: *const c_char, argv: Strings) -> c_int {
        // SAFETY: as in `execv`.
        unsafe { execvpe(file, argv, environ) }
    }

    macro_rules! spawns {
        ($($(#[$doc:meta])* $function:ident $name:literal)+) => {$(
            $(#[$doc])*
            ///
            /// # Safety
            /// As the C library's function.
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $function(
                pid: *mut libc::pid_t,
                program: *const c_char,
                actions: *const c_void,
                attributes: *const c_void,
                argv: Strings,
                envp: Strings,
            ) -> c_int {
                type Spawn =
                    unsafe extern "C" fn(*mut libc::pid_t, *const c_char, *const c_void, *const c_void, Strings, Strings) -> c_int;
                // SAFETY: the C library's function of that name, called with the caller's arguments.
                unsafe {
                    let next: Spawn = next($name);
                    with_needed(envp, |envp| next(pid, program, actions, attributes, argv, envp))
                }
            }
        )+};
    }

    spawns! {
        /// `posix_spawn`
        posix_spawn c"posix_spawn"
        /// `posix_spawnp`
        posix_spawnp c"posix_spawnp"
    }
}
