//! The command line's work on traces, and the judge that compares the collector with recorded answers of real CPythons.

mod events;
mod golden;
mod inquiry;
mod moments;
mod numbered;
mod replay;
mod what_if;

use crate::failure::Failure;
use crate::shell::Table;

pub(crate) fn exports(to: Table<'_>) -> Result<(), Failure> {
    replay::exports(to)?;
    events::exports(to)?;
    moments::exports(to)?;
    what_if::exports(to)?;
    inquiry::exports(to)?;
    golden::exports(to)
}
