//! Why a call throws, and the error that JavaScript sees.

#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::ptr;

use napi_sys as sys;
use obmalloc::{Corruption, Domain, Fault, FaultKind};

/// A JavaScript value, valid until the call from JavaScript that made it returns.
pub(crate) type Value = sys::napi_value;

/// The value that a function returns to JavaScript, or the reason why it throws.
pub(crate) type Outcome = Result<Value, Failure>;

/// The result `undefined`.
pub(crate) const UNDEFINED: Value = ptr::null_mut();

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

/// Why a call throws. Without details if an exception is pending already.
pub(crate) struct Failure(pub Option<Box<Details>>);

#[derive(Default)]
pub(crate) struct Details {
    pub code: &'static str,
    pub message: Cow<'static, str>,
    /// The name of a bad argument, and its value.
    pub name: Option<&'static str>,
    pub received: Option<Value>,
    /// The exception of a callback.
    pub cause: Option<Value>,
    pub address: Option<usize>,
    pub domain: Option<Domain>,
    pub allocated: Option<Domain>,
    pub base: Option<usize>,
    /// The object that visited `referent` too often.
    pub object: Option<usize>,
    pub referent: Option<usize>,
    /// The offset in a block of the byte that was overwritten.
    pub offset: Option<isize>,
    /// The text that CPython prints.
    pub report: Option<String>,
    /// The number of the operation in a batch.
    pub index: Option<usize>,
    /// A finished error, which is thrown as it is.
    pub made: Option<Value>,
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

    /// A failure with an error that JavaScript has made already.
    #[cold]
    pub fn made(error: Value) -> Self {
        let mut failure = Self::new(code::INTERNAL, "");
        if let Some(details) = &mut failure.0 {
            details.made = Some(error);
        }
        failure
    }

    /// Node-API refused a call, most often because an exception is pending.
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

    /// A script's function returned a promise.
    #[cold]
    pub fn awaited(what: &str) -> Self {
        let message = format!("expected the {what} to be done when it returns, but it gave something to wait for");
        Self::new(code::CALLBACK_RESULT, message)
    }

    #[cold]
    pub fn corrupted(corruption: &Corruption) -> Self {
        Self::new(code::HEAP_CORRUPTED, corruption.to_string()).at(corruption.address)
    }

    /// How many values of JavaScript a failure may have.
    pub const VALUES: usize = 3;

    /// Takes the values out.
    #[cold]
    pub fn take_values(&mut self) -> [Option<Value>; Self::VALUES] {
        let take = |details: &mut Box<Details>| [details.received.take(), details.cause.take(), details.made.take()];
        self.0.as_mut().map_or([None; Self::VALUES], take)
    }

    /// Puts back what [`take_values`](Self::take_values) took.
    #[cold]
    pub fn set_values(&mut self, values: [Option<Value>; Self::VALUES]) {
        if let Some(details) = &mut self.0 {
            [details.received, details.cause, details.made] = values;
        }
    }

    /// The same failure about an argument of another name.
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
