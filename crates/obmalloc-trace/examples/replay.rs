//! Makes the calls of a trace again and compares every answer: `cargo run --release --example replay -- 3.13 FILE`.

use std::error::Error;
use std::fs::File;

use obmalloc::profile::Profile;
use obmalloc_trace::{
    format::Reader,
    replay::{Replay, Report},
};

/// Replays the trace of a process that was not forked, by the rules of `release`.
fn replay(release: &str, path: &str) -> Result<Report, Box<dyn Error>> {
    let profile = Profile::named(release).ok_or("expected a release, such as 3.13")?;
    // A forked process's trace would come after its parent's.
    let segments = vec![Reader::of(File::open(path)?, 0)?];
    Ok(Replay::new(segments, profile, Report::default())?.run()?.clone())
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [release, path] = &args[..] else { return Err("expected a release and a trace".into()) };
    let start = std::time::Instant::now();
    let report = replay(release, path)?;
    println!("{report:#?}\nexact: {}, {:.2?}", report.is_exact(), start.elapsed());
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_golden_trace_is_exact_by_the_rules_of_its_release_only() {
        let replay = |release| {
            let path = format!("{}/../../__test__/golden/3.15.trace", env!("CARGO_MANIFEST_DIR"));
            super::replay(release, &path).expect("a trace")
        };
        let report = replay("3.15");
        assert!(report.is_exact() && report.matched > 1000, "{report:?}");
        assert!(!replay("3.8").is_exact());
    }
}
