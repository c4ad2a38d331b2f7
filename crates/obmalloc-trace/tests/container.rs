//! Files of traces: whole, cut off, damaged, and those that only look like traces.

use std::fs::File;
use std::io::Write;

use obmalloc_trace::format::{BlockWriter, Domain, Event, FormatError, Packer, Reader, file_head};

/// Random numbers from a seed (xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// A trace of `blocks` blocks of up to `most` events, and where its blocks end, with the number of events until there.
fn sample(blocks: usize, most: usize, packed: bool) -> (Vec<u8>, Vec<(usize, usize)>) {
    let mut random = Random(0x5eed);
    let mut packing = vec![0u64; Packer::memory_for(1 << 16).div_ceil(8)];
    let mut packer = Packer::new(&mut packing).expect("enough memory");
    let mut memory = vec![0; 1 << 16];
    let mut block = BlockWriter::new(&mut memory);
    let mut trace = file_head("{\"python\": \"3.13.0\"}");
    let mut ends = vec![(trace.len(), 0)];
    for number in 0..blocks {
        let count = if number % 3 == 2 { 1 } else { most - number % most / 2 };
        for _ in 0..count {
            let address = 0x7f00_0000_0000 + 16 * random.below(1000) as u64;
            match random.below(4) {
                0 => block.free(Domain::Obj, false, address),
                _ => block.malloc(Domain::ALL[random.below(3)], false, 16 * random.below(10) as u64, address),
            }
        }
        let finished = block.finish();
        trace.extend_from_slice(if packed { packer.pack(finished) } else { finished });
        ends.push((trace.len(), ends[number].1 + count));
    }
    (trace, ends)
}

fn events(trace: &[u8]) -> Vec<Event> {
    Reader::new(trace).expect("a trace").map(|event| event.expect("undamaged")).collect()
}

#[test]
fn compressed_blocks_hold_what_the_same_ones_hold_uncompressed() {
    let (plain, _) = sample(10, 5000, false);
    let (packed, _) = sample(10, 5000, true);
    assert!(packed.len() < plain.len() * 4 / 5, "{} of {}", packed.len(), plain.len());
    assert_eq!(events(&packed), events(&plain));
}

#[test]
fn blocks_of_one_event_and_blocks_too_small_to_shrink_are_left_as_they_are() {
    let mut packing = vec![0u64; Packer::memory_for(1 << 16).div_ceil(8)];
    let mut packer = Packer::new(&mut packing).expect("enough memory");
    let mut memory = vec![0; 1 << 16];
    let mut block = BlockWriter::new(&mut memory);
    block.text(&"the same again ".repeat(1000));
    let note = block.finish().to_vec();
    assert_eq!(packer.pack(&note), note);
    block.end();
    block.end();
    let small = block.finish().to_vec();
    assert_eq!(packer.pack(&small), small);
    assert_eq!(packer.pack(&[]), []);
}

#[test]
fn too_little_memory_makes_no_packer() {
    let mut memory = vec![0; Packer::memory_for(0) / 8 - 1];
    assert!(Packer::new(&mut memory).is_none());
    // This memory is enough for the compressor, and for a result half as large as the block. A block whose result is larger is not compressed.
    let mut memory = vec![0; Packer::memory_for(100) / 8];
    let mut packer = Packer::new(&mut memory).expect("enough memory");
    let mut block = vec![0; 1 << 16];
    let mut block = BlockWriter::new(&mut block);
    for number in 0..1000u64 {
        block.malloc(Domain::Raw, false, number.wrapping_mul(0x9e37_79b9_7f4a_7c15), 16);
    }
    let block = block.finish().to_vec();
    assert_eq!(packer.pack(&block), block);
}

#[test]
fn trace_that_is_cut_off_anywhere_is_read_up_to_its_last_whole_block() {
    for packed in [false, true] {
        let (trace, ends) = sample(7, 200, packed);
        let all = events(&trace);
        for length in ends[0].0..=trace.len() {
            let mut reader = Reader::new(&trace[..length]).expect("a trace");
            let read: Vec<Event> = reader.by_ref().map(|event| event.expect("undamaged")).collect();
            let &(end, count) = ends.iter().rfind(|(end, _)| *end <= length).expect("at least the header is whole");
            assert_eq!(read, all[..count], "cut at byte {length}");
            assert_eq!(reader.truncated(), end != length, "cut at byte {length}");
            assert!(reader.next().is_none());
            assert_eq!(reader.truncated(), end != length, "cut at byte {length}, asked again");
        }
        for length in 0..ends[0].0 {
            let error = Reader::new(&trace[..length]).err();
            assert!(matches!(error, Some(FormatError::NotATrace | FormatError::Header)), "cut at byte {length}: {error:?}");
        }
    }
}

#[test]
fn random_damage_is_refused_and_does_no_harm() {
    let (trace, ends) = sample(7, 200, true);
    let all = events(&trace);
    let mut random = Random(7);
    let mut refused = 0;
    for round in 0..20_000 {
        let mut bad = trace.clone();
        for _ in 0..=random.below(3) {
            let at = ends[0].0 + random.below(trace.len() - ends[0].0);
            bad[at] ^= 1 << random.below(8);
        }
        let mut reader = Reader::new(&bad).expect("its header is whole");
        let mut read = Vec::new();
        for event in reader.by_ref() {
            match event {
                Ok(event) => read.push(event),
                Err(FormatError::Checksum(at)) => {
                    refused += 1;
                    assert!(ends.iter().any(|(end, _)| *end as u64 == at), "round {round}: no block begins at byte {at}");
                }
                Err(error) => panic!("round {round}: {error}"),
            }
        }
        // All events before the damage are read as they were written.
        assert!(all.starts_with(&read), "round {round}");
        assert!(read.len() < all.len() || bad == trace, "round {round}: nothing was noticed");
        assert!(reader.next().is_none(), "round {round}: a reader that refused a block goes on");
    }
    assert!(refused > 15_000, "{refused}: most damage is not the end of a file");
}

/// Bytes that this process has read so far, as Linux counts them.
fn bytes_read() -> u64 {
    let counts = std::fs::read_to_string("/proc/self/io").expect("Linux counts");
    counts.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse().ok()).expect("a count of bytes read")
}

#[test]
fn good_header_with_gigabytes_of_zeros_behind_it_is_refused_at_once() {
    let path = std::env::temp_dir().join(format!("obmalloc-zeros-{}", std::process::id()));
    for version in [1, 2, 3, 4] {
        let mut head = file_head("{}");
        head[8] = version;
        let mut file = File::create(&path).expect("a file");
        file.write_all(&head).expect("written");
        file.set_len(5 << 30).expect("a file with a hole");
        let before = bytes_read();
        let mut reader = Reader::of(File::open(&path).expect("the file"), 5 << 30).expect("its header is good");
        assert_eq!(reader.next(), Some(Err(FormatError::Checksum(head.len() as u64))));
        assert_eq!(reader.next(), None);
        let read = bytes_read() - before;
        assert!(read < 1 << 30, "{read} bytes were read");
    }
    std::fs::remove_file(&path).expect("removed");
}

#[test]
fn header_that_claims_gigabytes_is_refused_at_once() {
    let mut head = file_head("{}");
    head[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    let endless = std::io::Read::chain(&head[..], std::io::repeat(b' '));
    assert_eq!(Reader::of(endless, 0).err(), Some(FormatError::Header));
}

#[test]
fn what_the_system_says_of_an_unreadable_file_is_passed_on() {
    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("the disk is on fire"))
        }
    }
    let head = file_head("{}");
    let mut reader = Reader::of(std::io::Read::chain(&head[..], Broken), 0).expect("its header is good");
    assert_eq!(reader.next(), Some(Err(FormatError::Unreadable("the disk is on fire".into()))));
    assert_eq!(reader.next(), None);
}
