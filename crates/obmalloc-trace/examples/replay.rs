//! Replays a trace: `cargo run --release --example replay -- 3.13 FILE [PARENT…]`.

use std::fs::File;

use obmalloc::profile::Profile;
use obmalloc_trace::{
    format::Reader,
    replay::{Replay, Report},
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let profile = args.next().and_then(|name| Profile::named(&name)).ok_or("expected a release")?;
    let segments =
        args.map(|path| Ok(Reader::of(File::open(path)?, 0)?)).collect::<Result<Vec<_>, Box<dyn std::error::Error>>>()?;
    let start = std::time::Instant::now();
    let mut replay = Replay::new(segments, profile, Report::default())?;
    let report = replay.run()?;
    println!("{report:#?}\nexact: {}, {:.2?}", report.is_exact(), start.elapsed());
    Ok(())
}
