//! What the tests do to blocks under debug hooks, here and in real CPythons, to compare the results.

/// Raw, mem or obj, by the letter of the API id.
pub type Api = char;

/// A step, on the only block there is.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    Malloc(Api, usize),
    Calloc(Api, usize),
    /// Reallocates to another size. If there is no memory for that, the block stays.
    Realloc(Api, usize),
    Free(Api),
    /// Bytes that all data is filled with, by their index.
    Fill,
    /// So many bytes from an offset on become this one.
    Write(isize, usize, u8),
    /// Shows header, data and trailer.
    Show,
    /// Shows the freed block's bytes, without the link at its beginning.
    ShowFreed,
}

pub struct Case {
    pub name: String,
    pub ops: Vec<Op>,
}

/// The byte that [`Op::Fill`] writes.
pub fn pattern(index: usize) -> u8 {
    (index * 7 + 3) as u8
}

const APIS: [Api; 3] = ['r', 'm', 'o'];
const SIZES: [usize; 7] = [0, 1, 8, 16, 17, 100, 300];
/// A size for which there is no memory, and the largest size that can be requested.
const TOO_LARGE: usize = isize::MAX as usize - 24;

/// The ways to damage a block of so many bytes: what was done, and how.
fn damages(size: usize) -> Vec<(&'static str, Op)> {
    let end = size as isize;
    vec![
        ("overflow by 1", Op::Write(end, 1, 0)),
        ("overflow by 7", Op::Write(end, 7, 0xab)),
        ("overflow by 8", Op::Write(end, 8, b'A')),
        ("overflow of the last byte", Op::Write(end + 7, 1, 0)),
        ("underflow by 1", Op::Write(-1, 1, 0)),
        ("underflow by 7", Op::Write(-7, 7, 0xee)),
        ("underflow in the middle", Op::Write(-4, 2, 1)),
        ("underflow by 8", Op::Write(-8, 8, b'z')),
        ("underflow by 16", Op::Write(-16, 16, 0)),
        ("underflow by 16 of ones", Op::Write(-16, 16, 0xff)),
        ("id zero", Op::Write(-8, 1, 0)),
        ("id beyond ASCII", Op::Write(-8, 1, 0xe9)),
        ("size lower", Op::Write(-16, 8, 0)),
        ("both ends", Op::Write(-1, size + 2, b'B')),
    ]
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: String, ops: &[Op]| cases.push(Case { name, ops: ops.to_vec() });
    for size in SIZES {
        for (index, (what, damage)) in damages(size).into_iter().enumerate() {
            // Every domain comes up with every damage and every size.
            let api = APIS[(index + size) % 3];
            let (free, realloc) = (Op::Free(api), Op::Realloc(api, size + 1));
            add(format!("{what}, {api} {size}, free"), &[Op::Malloc(api, size), Op::Fill, damage, free]);
            add(format!("{what}, {api} {size}, realloc"), &[Op::Calloc(api, size), damage, realloc]);
        }
        for allocated in APIS {
            for used in APIS.into_iter().filter(|&used| used != allocated) {
                let name = format!("wrong domain {allocated} {size}");
                add(format!("{name}, free {used}"), &[Op::Malloc(allocated, size), Op::Free(used)]);
                if size == 17 {
                    add(format!("{name}, realloc {used}"), &[Op::Malloc(allocated, size), Op::Realloc(used, 5)]);
                }
            }
        }
    }
    // Large blocks of mem and obj are raw ones inside, with guard bytes of their own.
    for api in ['m', 'o'] {
        let damage = Op::Write(900 + 8, 3, 0);
        add(format!("inner overflow, {api} 900, free"), &[Op::Malloc(api, 900), Op::Fill, damage, Op::Free(api)]);
        add(format!("inner overflow, {api} 900, realloc"), &[Op::Malloc(api, 900), Op::Fill, damage, Op::Realloc(api, 950)]);
    }
    // A wrong domain, and its id was written over the right one.
    for (allocated, used) in [('m', 'o'), ('o', 'm')] {
        let id = Op::Write(-8, 1, used as u8);
        for (what, more) in [("only", id), ("and leading", Op::Write(-3, 1, 0)), ("and trailing", Op::Write(20, 1, 1))] {
            let name = format!("id {what}, {allocated} 20");
            let before = [Op::Malloc(allocated, 20), id, more];
            add(format!("{name}, free {used}"), &[&before[..], &[Op::Free(used)]].concat());
            add(format!("{name}, realloc {used}"), &[&before[..], &[Op::Realloc(used, 21)]].concat());
        }
    }
    // A fault comes before a size that cannot be had.
    add("overflow, realloc too large".into(), &[Op::Malloc('o', 9), Op::Write(9, 1, 0), Op::Realloc('o', TOO_LARGE + 1)]);

    for api in APIS {
        for size in [0, 1, 8, 16, 17, 63, 64, 65, 127, 128, 129, 130, 191, 192, 300, 600] {
            add(format!("malloc {api} {size}"), &[Op::Malloc(api, size), Op::Show]);
            add(format!("calloc {api} {size}"), &[Op::Calloc(api, size), Op::Show]);
            for to in [0, 1, 40, 64, 65, 100, 127, 128, 129, 140, 200, 299, 301, 700] {
                add(format!("realloc {api} {size} to {to}"), &[Op::Malloc(api, size), Op::Fill, Op::Realloc(api, to), Op::Show]);
            }
            add(
                format!("realloc {api} {size} that fails"),
                &[
                    Op::Malloc(api, size),
                    Op::Fill,
                    Op::Realloc(api, TOO_LARGE),
                    Op::Show,
                    Op::Realloc(api, TOO_LARGE + 1),
                    Op::Show,
                ],
            );
        }
    }
    for api in ['m', 'o'] {
        for size in [0, 1, 8, 16, 17, 100, 300, 480] {
            add(format!("free {api} {size}"), &[Op::Malloc(api, size), Op::Fill, Op::Free(api), Op::ShowFreed]);
        }
    }
    cases
}

pub fn hex(bytes: &[u8]) -> String {
    // Runs of the same byte are shown once, with their length.
    let mut text = String::new();
    for run in bytes.chunk_by(|a, b| a == b) {
        match run.len() {
            1 => text += &format!(" {:02x}", run[0]),
            length => text += &format!(" {:02x}*{length}", run[0]),
        }
    }
    text
}

/// The output of a case without what differs from run to run: addresses, the thread's number and its name. The distance from the block stands for
/// the tail's address.
pub fn normalised(output: &str) -> String {
    let mut lines = Vec::new();
    let mut block = 0usize;
    for line in output.lines() {
        let number = |after: &str| {
            let (before, rest) = line.split_once(after)?;
            let end = rest.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len());
            Some((before, usize::from_str_radix(&rest[..end], 16).ok()?, &rest[end..]))
        };
        lines.push(if let Some((before, address, rest)) = number("address p=0x") {
            block = address;
            format!("{before}address p{rest}")
        } else if let Some((before, tail, rest)) = number("tail=0x") {
            format!("{before}tail=p{:+}{rest}", tail.wrapping_sub(block) as isize)
        } else if let Some((before, _, rest)) = number("thread 0x") {
            let named = rest.starts_with(" [");
            let rest = rest.split_once(']').map_or(rest, |(_, rest)| rest);
            format!("{before}thread{}{rest}", if named { " [name]" } else { "" })
        } else {
            line.to_owned()
        });
    }
    lines.join("\n")
}
