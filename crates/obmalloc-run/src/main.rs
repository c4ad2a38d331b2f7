//! Runs a program for the command line, in between the two: `obmalloc-run PRELOADED PROGRAM ARGUMENT…`. `PRELOADED` is the
//! program's `LD_PRELOAD`; if it is empty, that is as it is here.
//!
//! Node.js cannot see two things. A signal that is sent to a process group reaches the program by itself; one that is sent to the command
//! alone has to be passed on. This process is in the same group: if it has got the signal as well, so has the program. And a program can be
//! ended by a signal that Node.js has no name for.
//!
//! Descriptor 3 is the way to the command. From there comes a byte for each signal that the command has got: its number, and [`ALONE`] if
//! the program is to get it whether this process has or not. Back go lines: `runs PID` or `fails REASON`, and at the end `exited CODE` or
//! `killed SIGNAL`.
#![cfg(target_os = "linux")]

use std::ffi::{OsString, c_int};
use std::fs::File;
use std::io::{Error, Read, Write};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

/// The bit beside a signal's number that says that the command alone sends it.
const ALONE: u8 = 0x80;

/// How long a signal that this process has got is remembered: as long as the command may take to tell of it.
const MEMORY: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(preloaded), Some(program)) = (arguments.next(), arguments.next()) else {
        eprintln!("obmalloc-run: expected what is preloaded, and a program: `obmalloc record` and others start this");
        return ExitCode::from(2);
    };
    // SAFETY: the command has opened the descriptor for this process, and nothing else here has it.
    let mut command = unsafe { File::from_raw_fd(3) };
    match run(&mut command, &preloaded, &program, arguments) {
        Ok(line) => {
            // If the command is gone, there is nothing to tell.
            let _ = writeln!(command, "{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(command, "fails {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the program to its end. Returns the line that says how it ended.
fn run(
    command: &mut File,
    preloaded: &OsString,
    program: &OsString,
    arguments: impl Iterator<Item = OsString>,
) -> Result<String, Error> {
    // SAFETY: calls of the system that take numbers.
    unsafe {
        // The program does not get it.
        checked(libc::fcntl(command.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC))?;
        checked(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
    }
    let mut signals = Signals::take()?;
    let mut starting = Command::new(program);
    starting.args(arguments);
    if !preloaded.is_empty() {
        starting.env("LD_PRELOAD", preloaded);
    }
    let mask = signals.mask_before;
    let in_child = move || {
        // SAFETY: calls of the system that take numbers, and a set that has been filled.
        unsafe {
            checked(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            checked(libc::sigprocmask(libc::SIG_SETMASK, &raw const mask, std::ptr::null_mut())).map(drop)
        }
    };
    // SAFETY: the closure only makes calls of the system.
    let mut child = unsafe { starting.pre_exec(in_child) }.spawn()?;
    writeln!(command, "runs {}", child.id())?;
    let mut is_connected = true;
    loop {
        wait(signals.descriptor(), is_connected.then_some(command.as_raw_fd()))?;
        // Signals first: what the command tells of may have come here too.
        signals.read()?;
        if let Some(status) = child.try_wait()? {
            return Ok(told(status));
        }
        if is_connected && is_readable(command.as_raw_fd()) {
            let mut bytes = [0; 64];
            let count = command.read(&mut bytes).unwrap_or(0);
            if count == 0 {
                // The command is gone: nothing would be told of the program any more.
                is_connected = false;
                send(&child, libc::SIGKILL);
            }
            signals.read()?;
            for &byte in &bytes[..count] {
                let signal = c_int::from(byte & !ALONE);
                if byte & ALONE != 0 || !signals.has_come(signal) {
                    send(&child, signal);
                }
            }
        }
    }
}

/// The signals that this process gets, all of which wait until they are read.
struct Signals {
    descriptor: File,
    /// Those that were blocked before: the program has them so.
    mask_before: libc::sigset_t,
    /// By number: when one came that the command has not told of.
    come: [Option<Instant>; 65],
}

impl Signals {
    fn take() -> Result<Self, Error> {
        let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: the sets are filled before they are used; the descriptor is new.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            checked(libc::sigprocmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()))?;
            let descriptor = checked(libc::signalfd(-1, all.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
            Ok(Self { descriptor: File::from_raw_fd(descriptor), mask_before: before.assume_init(), come: [None; 65] })
        }
    }

    fn descriptor(&self) -> c_int {
        self.descriptor.as_raw_fd()
    }

    /// Reads all that have come.
    fn read(&mut self) -> Result<(), Error> {
        let mut bytes = [0; size_of::<libc::signalfd_siginfo>()];
        loop {
            match self.descriptor.read(&mut bytes) {
                Ok(_) => {
                    // The number stands first.
                    let number = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                    if let Some(come) = self.come.get_mut(number as usize) {
                        *come = Some(Instant::now());
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether this one has come here too, and with that to the program. It is asked once for each that has come.
    fn has_come(&mut self, signal: c_int) -> bool {
        let come = self.come.get_mut(signal as usize).and_then(Option::take);
        come.is_some_and(|time| time.elapsed() < MEMORY)
    }
}

/// Sends a signal to the program. It has not been waited for, so its number is still its own.
fn send(child: &Child, signal: c_int) {
    // SAFETY: a call of the system that takes numbers.
    unsafe { libc::kill(child.id() as libc::pid_t, signal) };
}

/// Waits until one of these can be read.
fn wait(signals: c_int, command: Option<c_int>) -> Result<(), Error> {
    let of = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // The system leaves out descriptor -1.
    let mut polled = [of(signals), of(command.unwrap_or(-1))];
    // SAFETY: as many as there are.
    match checked(unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, -1) }) {
        Err(error) if error.kind() != std::io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

fn is_readable(fd: c_int) -> bool {
    let mut polled = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one.
    unsafe { libc::poll(&raw mut polled, 1, 0) > 0 }
}

fn told(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited {code}"),
        (None, signal) => format!("killed {}", signal.unwrap_or(0)),
    }
}

fn checked(result: c_int) -> Result<c_int, Error> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}
