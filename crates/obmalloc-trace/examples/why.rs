//! Asks what holds the memory: `cargo run --release --example why -- 3.13 FILE MOMENT FRAMES`.

use std::fs::File;

use obmalloc::profile::Profile;
use obmalloc_trace::analysis::{Answered, Asked, Inquiry};
use obmalloc_trace::format::{FormatError, Reader};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [release, path, at, frames] = &args[..] else { return Err("expected RELEASE FILE MOMENT FRAMES".into()) };
    let profile = Profile::named(release).ok_or("expected a release")?;
    let file = path.clone();
    let open = move || {
        let file = File::open(&file).map_err(|error| FormatError::Unreadable(error.to_string()))?;
        Ok(vec![Reader::of(file, 0)?])
    };
    let asked = Asked { path: path.clone(), at: at.clone(), frames: frames.parse()?, ..Asked::default() };
    let start = std::time::Instant::now();
    let mut inquiry = Inquiry::new(asked, profile, Box::new(open))?;
    while inquiry.step(1 << 20)? {}
    if let Some(Answered::Why { summary, .. }) = inquiry.answer() {
        println!("{}\n{:.2?}", summary.join("\n"), start.elapsed());
    }
    Ok(())
}
