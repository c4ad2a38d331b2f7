//! Times configurations on a recording: `cargo run --release --example what_if -- run.trace 3.13`.

use obmalloc::profile::Profile;
use obmalloc_trace::format::Reader;
use obmalloc_trace::replay::Replay;
use obmalloc_trace::what_if::{CallsWriter, Configuration, Recorded, Trials};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), Some(release)) = (arguments.next(), arguments.next()) else { panic!("expected a trace and its release") };
    let profile = Profile::named(&release).expect("a release");
    let reader = Reader::new(std::fs::read(path).expect("a file")).expect("a trace");
    let arenas = [64 << 10, 256 << 10, 1 << 20, 4 << 20];
    let wishes = arenas.map(|arena| Configuration { arena: Some(arena), ..Configuration::default() });
    let file = std::env::temp_dir().join(format!("obmalloc-calls-{}", std::process::id()));
    let writer = CallsWriter::create(&file, None).expect("a file");
    std::fs::remove_file(&file).expect("it is there");
    let mut replay = Replay::new(vec![reader], profile, writer).expect("a heap");
    replay.run().expect("undamaged");
    let recorded = Recorded::of(&replay);
    let mut trials = Trials::new(wishes.to_vec(), profile, replay.into_watcher().calls().expect("written"), recorded);
    while trials.step(1 << 20).expect("memory") {}
    for (arena, row) in arenas.iter().zip(trials.tried().rows) {
        println!("{arena}: {:.1} million calls a second, {row:?}", 1e3 / row.nanoseconds);
    }
}
