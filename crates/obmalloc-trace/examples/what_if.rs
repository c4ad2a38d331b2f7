//! Times configurations on a recording: `cargo run --release --example what_if -- run.trace 3.13`.

use obmalloc::profile::Profile;
use obmalloc_trace::format::Reader;
use obmalloc_trace::replay::Replay;
use obmalloc_trace::what_if::{CallsCollector, Configuration, Trial};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), Some(release)) = (arguments.next(), arguments.next()) else { panic!("expected a trace and its release") };
    let profile = Profile::named(&release).expect("a release");
    let reader = Reader::new(std::fs::read(path).expect("a file")).expect("a trace");
    let mut replay = Replay::new(vec![reader], profile, CallsCollector::new(false)).expect("a heap");
    replay.run().expect("undamaged");
    let calls = replay.into_watcher().calls(|_| false);
    for arena in [64 << 10, 256 << 10, 1 << 20, 4 << 20] {
        let wish = Configuration { arena: Some(arena), ..Configuration::default() };
        let mut trial = Trial::new(&wish, profile, &calls).expect("a heap");
        while trial.step(&calls, 1 << 20).expect("memory") {}
        let row = trial.row(&calls);
        println!("{arena}: {:.1} million calls a second, {row:?}", 1e3 / row.nanoseconds);
    }
}
