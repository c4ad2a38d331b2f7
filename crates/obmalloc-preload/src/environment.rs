//! The environment. Programs that are started with an environment of their own get the variables that the recorder needs; and one variable
//! is hidden from CPython.

use crate::python::symbol;
use std::ffi::{CStr, CString, c_char, c_void};
use std::os::unix::ffi::OsStringExt;
use std::ptr::null;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// The most variables, and the most bytes of `LD_PRELOAD`, that an environment can have to be completed.
const MOST: usize = 2000;

struct Needed {
    /// The paths of our libraries, separated by a blank.
    library: CString,
    /// `LD_PRELOAD=<library>`
    preload: CString,
    /// `OBMALLOC_CHECK=<path>` and its like, as this process has them; the first one names the task.
    task: Vec<CString>,
}

static NEEDED: OnceLock<Needed> = OnceLock::new();

/// Makes the programs that this process starts get this library and these variables.
pub fn keep(variables: &[&str]) {
    let ours = [Some(keep as *const c_void), symbol(c"obmalloc_libc_watch").map(<*mut c_void>::cast_const)];
    let Some(paths) = ours.into_iter().flatten().map(path_of).collect::<Option<Vec<_>>>() else { return };
    let Ok(library) = CString::new(paths.join(&b' ')) else { return };
    let assigned = |name: &str, value: Vec<u8>| CString::new([name.as_bytes(), b"=", &value].concat()).ok();
    let Some(preload) = assigned("LD_PRELOAD", library.to_bytes().to_vec()) else { return };
    let present = |name: &&str| assigned(name, std::env::var_os(name)?.into_vec());
    let _ = NEEDED.set(Needed { library, preload, task: variables.iter().filter_map(present).collect() });
}

/// The path of the library that `address` lies in.
fn path_of(address: *const c_void) -> Option<&'static [u8]> {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: dladdr takes any address; names that it gives stay as long as the library, which is never unloaded.
    unsafe { (libc::dladdr(address, info.as_mut_ptr()) != 0).then(|| CStr::from_ptr(info.assume_init().dli_fname).to_bytes()) }
}

/// Calls `start` with the environment `given`, completed. An environment that names another task is left as it is. Takes no memory but the
/// stack's: the caller may be a child of `vfork`.
///
/// # Safety
/// `given` is null, or an array of strings that ends with null.
pub unsafe fn with_needed<T>(given: *const *const c_char, start: impl FnOnce(*const *const c_char) -> T) -> T {
    let Some(needed) = NEEDED.get() else { return start(given) };
    let mut variables = [null::<c_char>(); MOST];
    let mut preload = [0u8; MOST];
    // SAFETY: the caller's promise.
    if unsafe { complete(needed, given, &mut variables, &mut preload) } { start(variables.as_ptr()) } else { start(given) }
}

/// Fills `variables` with those of `given` and the missing ones. False if none is missing, or `given` is another task's or too large.
///
/// # Safety
/// As of [`with_needed`].
unsafe fn complete(
    needed: &Needed,
    given: *const *const c_char,
    variables: &mut [*const c_char; MOST],
    preload: &mut [u8; MOST],
) -> bool {
    let mut count = 0;
    // SAFETY: the caller's promise: null or an array, up to its null.
    while !given.is_null() && unsafe { !(*given.add(count)).is_null() } {
        if count == MOST {
            return false;
        }
        // SAFETY: as above.
        variables[count] = unsafe { *given.add(count) };
        count += 1;
    }
    // Room for all that can be missing, and the null.
    if count + needed.task.len() + 2 > MOST {
        return false;
    }
    // SAFETY: strings, as the caller promises.
    let text = |variable: *const c_char| unsafe { CStr::from_ptr(variable) }.to_bytes();
    let find = |variables: &[*const c_char], name: &[u8]| {
        variables[..count]
            .iter()
            .position(|&variable| text(variable).strip_prefix(name).is_some_and(|rest| rest.first() == Some(&b'=')))
    };
    let name_of = |variable: &CString| variable.to_bytes().split(|&byte| byte == b'=').next().unwrap_or_default().len();
    let is_ours = |task: &str| needed.task.first().is_some_and(|ours| &ours.to_bytes()[..name_of(ours)] == task.as_bytes());
    let tasks = [crate::VARIABLE, crate::check::VARIABLE];
    if tasks.into_iter().any(|task| !is_ours(task) && find(variables, task.as_bytes()).is_some()) {
        return false;
    }
    let mut lacking = 0;
    for (number, variable) in needed.task.iter().enumerate() {
        match find(variables, &variable.to_bytes()[..name_of(variable)]) {
            // The first one names the task.
            Some(at) if number == 0 && text(variables[at]) != variable.to_bytes() => return false,
            Some(_) => {}
            None => {
                variables[count + lacking] = variable.as_ptr();
                lacking += 1;
            }
        }
    }
    match find(variables, b"LD_PRELOAD") {
        Some(at) => {
            let old = text(variables[at]);
            let library = needed.library.to_bytes();
            if !old.windows(library.len()).any(|part| part == library) {
                // Ours first, then a blank, then those that were there.
                let (ours, theirs) = (needed.preload.to_bytes(), old.split_at(b"LD_PRELOAD=".len()).1);
                let Some(room) = preload.get_mut(..ours.len() + 1 + theirs.len() + 1) else { return false };
                room[..ours.len()].copy_from_slice(ours);
                room[ours.len()] = b' ';
                room[ours.len() + 1..][..theirs.len()].copy_from_slice(theirs);
                variables[at] = preload.as_ptr().cast();
                return true;
            }
        }
        None => {
            variables[count + lacking] = needed.preload.as_ptr();
            lacking += 1;
        }
    }
    lacking != 0
}

/// The function that puts the hooks back after CPython has replaced them with its own allocators.
static PUT_BACK: OnceLock<fn()> = OnceLock::new();

/// Sets the function to call when CPython, before it is initialised, may have put its own allocators in the hooks' place.
pub fn put_back_with(put_back: fn()) {
    let _ = PUT_BACK.set(put_back);
}

/// Whether `PYTHONMALLOC` is hidden from CPython.
static HIDDEN: AtomicBool = AtomicBool::new(false);

/// Hides `PYTHONMALLOC` from CPython if it names the allocators that are there anyway: CPython would put them in our hooks' place. In
/// development mode the variable stays, because it keeps CPython from its debug hooks.
pub fn hide_default_allocator() {
    let is_there_anyway = std::env::var("PYTHONMALLOC").is_ok_and(|value| value == "pymalloc" || value == "default");
    HIDDEN.store(is_there_anyway && !crate::python::is_in_development_mode(), Ordering::Relaxed);
}

/// The C library's function that the recorder answers, not in unit tests, which are programs themselves.
#[cfg(not(test))]
mod interposed {
    use super::{HIDDEN, PUT_BACK};
    use crate::python::next;
    use std::ffi::{CStr, c_char, c_int};
    use std::ptr::null_mut;
    use std::sync::atomic::Ordering;

    unsafe extern "C" {
        static environ: *const *const c_char;
    }

    /// `getenv`, from which a variable can be hidden. Code that reads the environment itself, such as `os.environ`, still sees it.
    ///
    /// # Safety
    /// As the C library's function.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn getenv(name: *const c_char) -> *mut c_char {
        // SAFETY: the caller's promise: a string.
        let name = unsafe { CStr::from_ptr(name) }.to_bytes();
        if HIDDEN.load(Ordering::Relaxed) && name == b"PYTHONMALLOC" {
            return null_mut();
        }
        // SAFETY: the caller's promise: an environment, which nothing changes meanwhile.
        let mut variables = unsafe { strings(environ) };
        let value = variables.find_map(|variable| variable.to_bytes_with_nul().strip_prefix(name)?.strip_prefix(b"="));
        value.map_or(null_mut(), |value| value.as_ptr().cast_mut().cast())
    }

    /// The strings of an array that ends with null; none if there is no array.
    ///
    /// # Safety
    /// `array` is null or such an array, and nothing changes it while the result is used.
    unsafe fn strings<'a>(array: *const *const c_char) -> impl Iterator<Item = &'a CStr> {
        let count = if array.is_null() { 0 } else { usize::MAX };
        (0..count).map_while(move |at| {
            // SAFETY: the caller's promise: no string before this one was the array's null.
            let string = unsafe { *array.add(at) };
            // SAFETY: the caller's promise.
            (!string.is_null()).then(|| unsafe { CStr::from_ptr(string) })
        })
    }

    /// `setlocale`, which is what CPython calls next when it has chosen its allocators, before it asks for any memory.
    ///
    /// # Safety
    /// As the C library's function.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn setlocale(category: c_int, locale: *const c_char) -> *mut c_char {
        if let Some(put_back) = PUT_BACK.get() {
            put_back();
        }
        // SAFETY: the C library's function of that name, called with the caller's arguments.
        unsafe { next::<unsafe extern "C" fn(c_int, *const c_char) -> *mut c_char>(c"setlocale")(category, locale) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(given: &[&str]) -> Option<Vec<String>> {
        let string = |text: &str| CString::new(text).expect("no zeros");
        let needed = Needed {
            library: string("/lib/ours.so"),
            preload: string("LD_PRELOAD=/lib/ours.so"),
            task: vec![string("TASK=report"), string("TASK_PID=7")],
        };
        let given: Vec<CString> = given.iter().map(|text| string(text)).collect();
        let mut pointers: Vec<*const c_char> = given.iter().map(|text| text.as_ptr()).collect();
        pointers.push(null());
        let (mut variables, mut preload) = ([null(); MOST], [0; MOST]);
        // SAFETY: an array of strings that ends with null.
        let is = unsafe { complete(&needed, pointers.as_ptr(), &mut variables, &mut preload) };
        // SAFETY: the array holds strings, and they still exist.
        let text = |&variable: &*const c_char| unsafe { CStr::from_ptr(variable) }.to_str().expect("ASCII").to_owned();
        is.then(|| variables.iter().take_while(|variable| !variable.is_null()).map(text).collect())
    }

    #[test]
    fn what_an_environment_lacks_is_put_back_and_the_rest_is_left() {
        let all = ["TASK=report", "TASK_PID=7", "LD_PRELOAD=/lib/ours.so"];
        assert_eq!(completed(&[]).unwrap(), all);
        assert_eq!(completed(&["A=1", "TASKS=2"]).unwrap(), ["A=1", "TASKS=2", all[0], all[1], all[2]]);
        assert_eq!(completed(&[all[2], all[1], "A=1"]).unwrap(), [all[2], all[1], "A=1", all[0]]);
        assert_eq!(
            completed(&["LD_PRELOAD=/lib/a.so", all[0], all[1]]).unwrap(),
            ["LD_PRELOAD=/lib/ours.so /lib/a.so", all[0], all[1]]
        );
        assert_eq!(completed(&all), None, "nothing is lacking");
        assert_eq!(completed(&["LD_PRELOAD=/lib/a.so:/lib/ours.so", all[0], all[1]]), None);
        assert_eq!(completed(&["TASK=other"]), None, "another task");
        assert_eq!(completed(&["OBMALLOC_TRACE=trace"]), None, "another task");
        assert_eq!(completed(&["OBMALLOC_CHECK=report"]), None, "another task");
    }

    #[test]
    fn an_environment_that_is_too_large_is_left_as_it_is() {
        let most: Vec<String> = (0..MOST).map(|number| format!("V{number}=")).collect();
        let most: Vec<&str> = most.iter().map(String::as_str).collect();
        for count in MOST - 8..=MOST {
            if let Some(completed) = completed(&most[..count]) {
                assert_eq!(completed.len(), count + 3);
            } else {
                assert!(count > MOST - 8);
            }
        }
        let long = format!("LD_PRELOAD={}", "x".repeat(MOST));
        assert_eq!(completed(&[&long]), None);
    }

    #[test]
    fn no_environment_is_an_empty_one() {
        assert!(completed(&[]).is_some());
        // SAFETY: null.
        assert!(unsafe { with_needed(null(), |given| given.is_null()) }, "nothing is kept in this process");
    }
}
