//! Inquiries into a trace, for the command line. An inquiry is a number, and its answer is JSON.

#![forbid(unsafe_code)]

use obmalloc_trace::analysis::{Asked, Inquiry, InquiryError};
use obmalloc_trace::format::{FormatError, Reader};
use obmalloc_trace::moments::Moment;
use serde::Deserialize;

use super::moments::not_there;
use super::numbered::Numbered;
use super::replay::{Segment, UNREADABLE_TRACE, reader};
use crate::calls::json;
use crate::face::Realm;
use crate::failure::{Failure, code};
use crate::js::{Env, Outcome, Value};
use crate::shell::{Table, export};

thread_local! {
    static INQUIRIES: Numbered<Inquiry> = Numbered::new("an open inquiry");
}

#[derive(Deserialize)]
struct Options {
    release: String,
    segments: Vec<Segment>,
    #[serde(flatten)]
    asked: Asked,
}

pub(crate) fn exports(to: Table<'_>) -> Result<(), Failure> {
    export(to, c"openInquiry", open)?;
    export(to, c"stepInquiry", step)?;
    export(to, c"progressInquiry", progress)?;
    export(to, c"answerInquiry", answer)?;
    export(to, c"closeInquiry", close)
}

fn failure(error: &InquiryError) -> Failure {
    let code = match error {
        InquiryError::NoMoment(_) => code::OUT_OF_RANGE,
        InquiryError::NotThere(error) => return not_there(error),
        InquiryError::Replay(_) => UNREADABLE_TRACE,
    };
    Failure::new(code, error.to_string())
}

/// `(options)`: opens the traces and gives the inquiry's number.
fn open(_: &Realm, env: Env, [options]: [Value; 1]) -> Outcome {
    let Options { release, segments, asked } = json::parse(env, options, "options")?;
    let profile = json::profile(&release)?;
    // An empty text is the end in Rust, but no moment here.
    asked.at.parse::<Moment>().map_err(|error| failure(&InquiryError::NoMoment(error)))?;
    let open = move || -> Result<Vec<Reader<'static>>, FormatError> {
        segments.iter().map(|segment| reader(segment).map_err(FormatError::Unreadable)).collect()
    };
    let inquiry = Inquiry::new(asked, profile, Box::new(open)).map_err(|error| failure(&error))?;
    Numbered::open(&INQUIRIES, env, inquiry)
}

/// `(number, count)`: looks at no more than `count` events; 0 when there is nothing left.
fn step(_: &Realm, env: Env, [number, count]: [Value; 2]) -> Outcome {
    let count = env.double(count).unwrap_or(0.0) as usize;
    let more = Numbered::with(&INQUIRIES, env, number, |inquiry| inquiry.step(count).map_err(|error| failure(&error)))?;
    env.integer(usize::from(more))
}

/// `(number)`: bytes of all traces that have been read, and bytes in all.
fn progress(_: &Realm, env: Env, [number]: [Value; 1]) -> Outcome {
    env.pair(Numbered::with(&INQUIRIES, env, number, |inquiry| Ok(inquiry.progress()))?)
}

/// `(number)`: the answer as JSON. This closes the inquiry.
fn answer(_: &Realm, env: Env, [number]: [Value; 1]) -> Outcome {
    let inquiry = Numbered::take(&INQUIRIES, env, number)?;
    let answered =
        inquiry.answer().ok_or_else(|| Failure::new(code::OUT_OF_RANGE, "expected an inquiry that has come to its end"))?;
    json::give(env, &answered)
}

/// `(number)`: gives the inquiry's memory back.
fn close(_: &Realm, env: Env, [number]: [Value; 1]) -> Outcome {
    Numbered::close(&INQUIRIES, env, number)
}
