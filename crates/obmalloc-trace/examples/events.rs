//! Prints a trace's events: `cargo run --release --example events -- FILE`.

use obmalloc_trace::format::Reader;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("expected a trace")?;
    let mut reader = Reader::new(std::fs::read(path)?)?;
    while let Some(event) = reader.next() {
        let frames: Vec<String> = reader
            .stacks()
            .frames(reader.stack())
            .map(|frame| format!("{}:{} {}", frame.file, frame.line, frame.function))
            .collect();
        println!("{:?} [{}]", event?, frames.join(", "));
    }
    Ok(())
}
