//! The time, and how much memory the process has. Nothing here takes memory, and there is no thread: the clock is read while events are
//! written.

use crate::file::{Kept, open};
use crate::python::{c_allocator, object_base, symbol};
use obmalloc_trace::clock::Memory;
use std::ffi::{c_int, c_void};

/// The variable with the shortest time between two samples of memory, in milliseconds; 0 for no samples.
pub const VARIABLE: &str = "OBMALLOC_EVERY";

/// Samples may take one in this many parts of the time: the C library takes long to look through a heap in many pieces. Only the thread's own
/// processor time counts, so that a busy machine does not delay the next sample.
const PART: u64 = 50;

/// The beginning of `struct mallinfo2`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MallInfo {
    /// Bytes that the heap has got from the system by growing.
    arena: usize,
    others: [usize; 3],
    /// Bytes of mappings, each for one large block.
    hblkhd: usize,
    more: [usize; 3],
    /// Bytes of `arena` that are free.
    pub fordblks: usize,
    keepcost: usize,
}

pub struct Clock {
    /// When the trace of the first process began, microseconds of the system's clock.
    began: u64,
    /// Microseconds between two samples; 0 for none.
    every: u64,
    /// When the next sample is due.
    next: u64,
    /// `/proc/self/statm`
    statm: Option<Kept>,
    page: u64,
    mallinfo: Option<unsafe extern "C" fn() -> MallInfo>,
}

impl Clock {
    /// A clock that begins now.
    pub fn new(every_ms: u64) -> Self {
        // SAFETY: takes no memory.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.max(1) as u64;
        Self { began: now(), every: every_ms.saturating_mul(1000), next: 0, statm: None, page, mallinfo: mallinfo() }
    }

    /// Microseconds since the clock began, plus one.
    pub fn micros(&self) -> u64 {
        now().saturating_sub(self.began) + 1
    }

    /// Whether a sample is due.
    pub fn is_due(&self, micros: u64) -> bool {
        self.every != 0 && micros >= self.next
    }

    /// Whether samples are wanted at all.
    pub fn takes_samples(&self) -> bool {
        self.every != 0
    }

    /// How much memory the process has, if the system tells. `is_safe` says that this thread is not inside C's `malloc`: only then is that asked.
    pub fn sample(&mut self, is_safe: bool) -> Option<Memory> {
        let (begin, begun) = (self.micros(), time_of(libc::CLOCK_THREAD_CPUTIME_ID));
        let [resident, shared] = self.pages()?;
        let (heap, heap_free) = match self.mallinfo {
            Some(mallinfo) if is_safe => {
                // SAFETY: the C library's function, which takes only locks that no caller of the recorder holds.
                let info = unsafe { mallinfo() };
                ((info.arena + info.hblkhd) as u64, info.fordblks as u64)
            }
            _ => (0, 0),
        };
        let took = time_of(libc::CLOCK_THREAD_CPUTIME_ID).saturating_sub(begun);
        self.next = begin + self.every.max(took * PART);
        Some(Memory { anonymous: resident.saturating_sub(shared) * self.page, file: shared * self.page, heap, heap_free })
    }

    /// The number of resident pages, and how many of them are of files or shared.
    fn pages(&mut self) -> Option<[u64; 2]> {
        let descriptor = match self.statm.as_ref().and_then(Kept::descriptor) {
            Some(descriptor) => descriptor,
            None => {
                let again = Kept::of(open(c"/proc/self/statm", libc::O_RDONLY).ok()?).ok()?;
                match &mut self.statm {
                    Some(kept) => kept.replace(again),
                    none => *none = Some(again),
                }
                self.statm.as_ref()?.descriptor()?
            }
        };
        pages_in(descriptor)
    }

    /// Adapts the clock to a forked child: the open file is the parent's, and a sample is due.
    pub fn forked(&mut self) {
        self.statm = None;
        self.next = 0;
    }
}

/// The number of resident pages, and how many of them are of files or shared, from an open `/proc/self/statm`.
fn pages_in(descriptor: c_int) -> Option<[u64; 2]> {
    let mut text = [0u8; 128];
    // SAFETY: writes no more than there is room for.
    let length = unsafe { libc::pread(descriptor, text.as_mut_ptr().cast(), text.len(), 0) };
    let text = text.get(..usize::try_from(length).ok()?)?;
    let mut numbers = text.split(|&byte| byte == b' ').skip(1).map(|word| std::str::from_utf8(word).ok()?.parse().ok());
    Some([numbers.next()??, numbers.next()??])
}

/// Pages of this process that are resident, if the system tells.
pub fn resident_pages() -> Option<u64> {
    let descriptor = open(c"/proc/self/statm", libc::O_RDONLY).ok()?;
    let pages = pages_in(descriptor);
    // SAFETY: opened above.
    unsafe { libc::close(descriptor) };
    Some(pages?[0])
}

/// Microseconds of a clock that only goes forward.
pub fn now() -> u64 {
    time_of(libc::CLOCK_MONOTONIC)
}

/// Microseconds of one of the system's clocks.
pub fn time_of(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills the structure.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}

/// `mallinfo2`, if the C library has it (glibc 2.33) and its `malloc` is the one that is used.
pub fn mallinfo() -> Option<unsafe extern "C" fn() -> MallInfo> {
    let found = symbol(c"mallinfo2")?;
    if object_base(found) != object_base(c_allocator()?) {
        return None;
    }
    // SAFETY: the function of that name has this signature.
    Some(unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> MallInfo>(found) })
}

/// The number that the system has for this thread.
pub fn thread_number() -> u64 {
    // SAFETY: takes no memory and always succeeds.
    let number = unsafe { libc::syscall(libc::SYS_gettid) } as c_int;
    number.unsigned_abs().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_is_what_the_system_says() {
        let mut clock = Clock::new(10);
        assert!(clock.is_due(clock.micros()));
        let before = clock.sample(true).expect("Linux tells");
        let touched = vec![1u8; 64 << 20];
        let after = clock.sample(true).expect("Linux tells");
        let grown = after.anonymous.saturating_sub(before.anonymous);
        assert!((60 << 20..80 << 20).contains(&grown), "{grown}");
        assert!(after.heap - before.heap >= 64 << 20 || clock.mallinfo.is_none());
        assert!(!clock.is_due(1));
        drop(touched);
    }

    const NOTHING: MallInfo = MallInfo { arena: 0, others: [0; 3], hblkhd: 0, more: [0; 3], fordblks: 0, keepcost: 0 };

    #[test]
    fn sample_that_had_to_wait_makes_the_next_no_later() {
        extern "C" fn waits() -> MallInfo {
            std::thread::sleep(std::time::Duration::from_millis(20));
            NOTHING
        }
        let mut clock = Clock::new(10);
        clock.mallinfo = Some(waits);
        let before = clock.micros();
        assert!(clock.sample(true).is_some());
        // 10 ms, or 50 times the time of the thread, which sleeps nearly all of the 20 ms; not 50 times those.
        assert!(clock.is_due(before + 900_000), "{}", clock.next);
        assert!(!clock.is_due(before + 9_999));
    }

    #[test]
    fn sample_that_is_dear_makes_the_next_later() {
        extern "C" fn works() -> MallInfo {
            let begin = time_of(libc::CLOCK_THREAD_CPUTIME_ID);
            while time_of(libc::CLOCK_THREAD_CPUTIME_ID) < begin + 4000 {}
            NOTHING
        }
        let mut clock = Clock::new(10);
        clock.mallinfo = Some(works);
        let before = clock.micros();
        assert!(clock.sample(true).is_some());
        assert!(!clock.is_due(before + 4000 * PART - 1), "{}", clock.next);
    }

    #[test]
    fn statm_is_opened_again_when_the_program_has_closed_it() {
        let mut clock = Clock::new(10);
        assert!(clock.sample(false).is_some());
        let descriptor = clock.statm.as_ref().and_then(Kept::descriptor).expect("open");
        // SAFETY: it is this test's.
        unsafe { libc::close(descriptor) };
        assert!(clock.sample(false).is_some());
        clock.forked();
        assert!(clock.sample(false).is_some());
    }
}
