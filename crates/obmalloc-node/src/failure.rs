//! Why a call throws, and the error that JavaScript sees.

use std::borrow::Cow;
use std::ffi::CString;

use napi_sys as sys;
use obmalloc::{Corruption, Domain, Fault, FaultKind};

use crate::js::{Env, UNDEFINED, Value};

/// Codes that are not a [`FaultKind`](obmalloc::FaultKind)'s.
pub(crate) mod code {
    pub const INVALID_ARG_TYPE: &str = "ERR_INVALID_ARG_TYPE";
    pub const OUT_OF_RANGE: &str = "ERR_OUT_OF_RANGE";
    pub const HEAP_CLOSED: &str = "ERR_HEAP_CLOSED";
    pub const HEAP_CORRUPTED: &str = "ERR_HEAP_CORRUPTED";
    pub const GC_IN_PROGRESS: &str = "ERR_GC_IN_PROGRESS";
    pub const WRONG_TYPE: &str = "ERR_WRONG_TYPE";
    pub const REENTRANT: &str = "ERR_REENTRANT";
    pub const CALLBACK_THREW: &str = "ERR_CALLBACK_THREW";
    pub const CALLBACK_RESULT: &str = "ERR_CALLBACK_RESULT";
    pub const NO_MEMORY: &str = "ERR_NO_MEMORY";
    pub const EXTERNAL_BUFFERS_UNSUPPORTED: &str = "ERR_EXTERNAL_BUFFERS_UNSUPPORTED";
    pub const INTERNAL: &str = "ERR_INTERNAL";
}

/// Why a call throws; without details, because something is being thrown already.
pub(crate) struct Failure(Option<Box<Details>>);

#[derive(Default)]
struct Details {
    code: &'static str,
    message: Cow<'static, str>,
    /// What a bad argument is called, and what it is.
    name: Option<&'static str>,
    received: Option<Value>,
    /// What a callback threw.
    cause: Option<Value>,
    address: Option<usize>,
    domain: Option<Domain>,
    allocated: Option<Domain>,
    base: Option<usize>,
    /// The object that visited `referent` too often.
    object: Option<usize>,
    referent: Option<usize>,
    /// Where in a block somebody wrote.
    offset: Option<isize>,
    /// What CPython prints.
    report: Option<String>,
    /// Number of the operation in a batch.
    index: Option<usize>,
    /// What is thrown as it is.
    made: Option<Value>,
}

impl Failure {
    #[cold]
    pub fn new(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Some(Box::new(Details { code, message: message.into(), ..Details::default() })))
    }

    /// The argument `name` is not what is `expected`.
    #[cold]
    pub fn argument(code: &'static str, name: &'static str, expected: impl Into<Cow<'static, str>>, received: Value) -> Self {
        let mut failure = Self::new(code, expected);
        if let Some(details) = &mut failure.0 {
            (details.name, details.received) = (Some(name), Some(received));
        }
        failure
    }

    /// What JavaScript has made already.
    #[cold]
    pub fn made(error: Value) -> Self {
        let mut failure = Self::new(code::INTERNAL, "");
        if let Some(details) = &mut failure.0 {
            details.made = Some(error);
        }
        failure
    }

    /// Node-API refused something: most often because an exception is pending.
    #[cold]
    pub fn of_status(status: sys::napi_status) -> Self {
        if status == sys::Status::napi_pending_exception || status == sys::Status::napi_cannot_run_js {
            return Self(None);
        }
        Self::new(code::INTERNAL, format!("Node-API answered with status {status}"))
    }

    #[cold]
    pub fn no_memory(what: &'static str) -> Self {
        Self::new(code::NO_MEMORY, what)
    }

    /// A script's function gave something to wait for.
    #[cold]
    pub fn awaited(what: &str) -> Self {
        let message = format!("expected the {what} to be done when it returns, but it gave something to wait for");
        Self::new(code::CALLBACK_RESULT, message)
    }

    #[cold]
    pub fn corrupted(corruption: &Corruption) -> Self {
        Self::new(code::HEAP_CORRUPTED, corruption.to_string()).at(corruption.address)
    }

    /// The same about an argument of another name.
    #[cold]
    pub fn named(mut self, name: &'static str) -> Self {
        if let Some(details) = &mut self.0 {
            details.name = Some(name);
        }
        self
    }

    #[cold]
    pub fn at(mut self, address: usize) -> Self {
        if let Some(details) = &mut self.0 {
            details.address = Some(address);
        }
        self
    }

    #[cold]
    pub fn caused_by(mut self, cause: Option<Value>) -> Self {
        if let Some(details) = &mut self.0 {
            details.cause = cause;
        }
        self
    }

    #[cold]
    pub fn in_domain(mut self, domain: Domain) -> Self {
        if let Some(details) = &mut self.0 {
            details.domain = Some(domain);
        }
        self
    }

    #[cold]
    pub fn in_operation(mut self, index: usize) -> Self {
        if let Some(details) = &mut self.0 {
            details.index = Some(index);
        }
        self
    }

    /// The error that `make`, a function of the face's, makes of it, or, when that fails, an exception instead, if there is one.
    #[cold]
    pub fn error(self, env: Env, make: impl FnOnce(&[Value]) -> Result<Value, Option<Value>>) -> Result<Value, Option<Value>> {
        self.0.ok_or(None)?.error(env, make)
    }

    /// Throws it, as the error that `make`, a function of the face's, makes of it.
    #[cold]
    pub fn throw(self, env: Env, make: impl FnOnce(&[Value]) -> Result<Value, Option<Value>>) {
        let Some(details) = self.0 else {
            env.throw_plainly(c"ERR_INTERNAL", c"JavaScript cannot run");
            return;
        };
        match details.error(env, make) {
            Ok(error) | Err(Some(error)) => env.throw(error),
            // What needs no help from the face.
            Err(None) => {
                let code = CString::new(details.code).unwrap_or_default();
                let message = CString::new(details.message.as_ref()).unwrap_or_default();
                env.throw_plainly(&code, &message);
            }
        }
    }
}

impl Details {
    fn error(&self, env: Env, make: impl FnOnce(&[Value]) -> Result<Value, Option<Value>>) -> Result<Value, Option<Value>> {
        if let Some(error) = self.made {
            return Ok(error);
        }
        let undefined = || env.undefined();
        let value = |value: Option<Value>| value.filter(|&value| value != UNDEFINED).map_or_else(undefined, Ok);
        let number = |value: Option<usize>| value.map_or_else(undefined, |value| env.integer(value));
        let text = |value: Option<&str>| value.map_or_else(undefined, |value| env.string(value));
        let domain = |value: Option<Domain>| text(value.map(Domain::name));
        let arguments = || {
            Ok([
                env.string(self.code)?,
                env.string(&self.message)?,
                text(self.name)?,
                value(self.received)?,
                value(self.cause)?,
                number(self.address)?,
                domain(self.domain)?,
                domain(self.allocated.and(self.domain))?,
                domain(self.allocated)?,
                number(self.base)?,
                number(self.object)?,
                number(self.referent)?,
                self.offset.map_or_else(undefined, |offset| env.number(offset as f64))?,
                text(self.report.as_deref())?,
                number(self.index)?,
            ])
        };
        make(&arguments().map_err(|_: Failure| None)?)
    }
}

impl From<Fault> for Failure {
    #[cold]
    fn from(fault: Fault) -> Self {
        let over_visit = fault.kind == FaultKind::GcOverVisit;
        Self(Some(Box::new(Details {
            code: fault.kind.code(),
            message: fault.to_string().into(),
            address: Some(fault.address),
            domain: Some(fault.used),
            allocated: fault.allocated,
            base: fault.base.filter(|_| !over_visit),
            object: fault.base.filter(|_| over_visit),
            referent: over_visit.then_some(fault.address),
            offset: fault.offset,
            report: fault.report.map(|report| report.to_string()),
            ..Details::default()
        })))
    }
}
