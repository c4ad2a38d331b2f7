//! The statistics of `sys._debugmallocstats()` (`_PyObject_DebugMallocStats`), as numbers and as CPython's text.

#![forbid(unsafe_code)]

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};

use super::Pymalloc;
use super::arena_map::ArenaMapStats;
use crate::profile::{Geometry, POOL_OVERHEAD};

/// The pools and blocks of one size class.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ClassStats {
    /// Pools that hold at least one block.
    pub pools: usize,
    /// Blocks handed out.
    pub blocks_in_use: usize,
    /// Blocks that these pools could still hand out.
    pub avail_blocks: usize,
}

/// A census of arenas, pools and blocks. Its text ([`Display`](fmt::Display)) is CPython's, character for character.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stats {
    /// The heap's geometry.
    pub geometry: Geometry,
    /// One entry per size class.
    pub classes: Vec<ClassStats>,
    /// Arenas ever taken.
    pub arenas_allocated_total: usize,
    /// Most arenas held at one time.
    pub arenas_highwater: usize,
    /// Arenas held now.
    pub arenas: usize,
    /// Pools of those arenas that hold no block.
    pub unused_pools: usize,
    /// Bytes that arenas lose because their base is not a multiple of the pool size.
    pub arena_alignment: usize,
    /// The arena map, if the release has one.
    pub arena_map: Option<ArenaMapStats>,
}

/// Bytes of the arenas, by their use. A pool that holds a block counts by its parts: blocks, header, and the rest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StatsBytes {
    /// Blocks handed out.
    pub allocated_blocks: usize,
    /// Blocks that could still be handed out.
    pub available_blocks: usize,
    /// Pools that hold no block.
    pub unused_pools: usize,
    /// The heads of pools.
    pub pool_headers: usize,
    /// The ends of pools, where no whole block fits.
    pub quantization: usize,
    /// Bytes that arenas lose because their base is not a multiple of the pool size.
    pub arena_alignment: usize,
}

impl StatsBytes {
    /// The sum of all.
    pub fn total(&self) -> usize {
        let Self { allocated_blocks, available_blocks, unused_pools, pool_headers, quantization, arena_alignment } = *self;
        allocated_blocks + available_blocks + unused_pools + pool_headers + quantization + arena_alignment
    }
}

impl Stats {
    /// Arenas that were taken and have been given back.
    pub fn arenas_reclaimed(&self) -> usize {
        self.arenas_allocated_total - self.arenas
    }

    /// Bytes of the arenas held now.
    pub fn bytes(&self) -> StatsBytes {
        let geometry = &self.geometry;
        let mut bytes = StatsBytes {
            unused_pools: self.unused_pools * geometry.pool_size,
            arena_alignment: self.arena_alignment,
            ..StatsBytes::default()
        };
        for (class, entry) in self.classes.iter().enumerate() {
            let size = geometry.block_size(class);
            bytes.allocated_blocks += entry.blocks_in_use * size;
            bytes.available_blocks += entry.avail_blocks * size;
            bytes.pool_headers += entry.pools * POOL_OVERHEAD;
            bytes.quantization += entry.pools * ((geometry.pool_size - POOL_OVERHEAD) % size);
        }
        bytes
    }
}

impl Pymalloc {
    pub fn stats(&self) -> Stats {
        let geometry = self.geometry;
        let mut stats = Stats {
            geometry,
            classes: alloc::vec![ClassStats::default(); geometry.size_classes()],
            arenas_allocated_total: self.ntimes_arena_allocated,
            arenas_highwater: self.narenas_highwater,
            arenas: self.narenas_currently_allocated,
            unused_pools: 0,
            arena_alignment: 0,
            arena_map: self.arena_map.stats(),
        };
        for arena in self.arenas.iter().filter(|arena| arena.address != 0) {
            stats.unused_pools += arena.nfreepools as usize;
            if !arena.address.is_multiple_of(geometry.pool_size) {
                stats.arena_alignment += geometry.pool_size;
            }
        }
        self.each_pool(|_, header| {
            if header.count != 0 {
                let class = usize::from(header.szidx);
                let count = header.count as usize;
                let entry = &mut stats.classes[class];
                entry.pools += 1;
                entry.blocks_in_use += count;
                entry.avail_blocks += geometry.blocks_per_pool(class) - count;
            }
        });
        stats
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let geometry = &self.geometry;
        let (threshold, classes) = (geometry.small_request_threshold, geometry.size_classes());
        writeln!(f, "Small block threshold = {threshold}, in {classes} size classes.\n")?;
        writeln!(f, "class   size   num pools   blocks in use  avail blocks")?;
        writeln!(f, "-----   ----   ---------   -------------  ------------")?;
        for (class, entry) in self.classes.iter().enumerate().filter(|(_, entry)| entry.pools != 0) {
            let size = geometry.block_size(class);
            let ClassStats { pools, blocks_in_use, avail_blocks } = *entry;
            writeln!(f, "{class:5} {size:6} {pools:11} {blocks_in_use:15} {avail_blocks:13}")?;
        }
        writeln!(f)?;
        printone(f, "# arenas allocated total", self.arenas_allocated_total)?;
        printone(f, "# arenas reclaimed", self.arenas_reclaimed())?;
        printone(f, "# arenas highwater mark", self.arenas_highwater)?;
        printone(f, "# arenas allocated current", self.arenas)?;
        let arena_bytes = self.arenas * geometry.arena_size;
        printone(f, format_args!("{} arenas * {} bytes/arena", self.arenas, geometry.arena_size), arena_bytes)?;
        writeln!(f)?;
        let bytes = self.bytes();
        printone(f, "# bytes in allocated blocks", bytes.allocated_blocks)?;
        printone(f, "# bytes in available blocks", bytes.available_blocks)?;
        printone(f, format_args!("{} unused pools * {} bytes", self.unused_pools, geometry.pool_size), bytes.unused_pools)?;
        printone(f, "# bytes lost to pool headers", bytes.pool_headers)?;
        printone(f, "# bytes lost to quantization", bytes.quantization)?;
        printone(f, "# bytes lost to arena alignment", bytes.arena_alignment)?;
        printone(f, "Total", bytes.total())?;
        let Some(map) = &self.arena_map else { return Ok(()) };
        let [root, mid, bot] = map.lost();
        writeln!(f, "\narena map counts")?;
        printone(f, "# arena map mid nodes", map.mid_count)?;
        printone(f, "# arena map bot nodes", map.bot_count)?;
        writeln!(f)?;
        printone(f, "# bytes lost to arena map root", root)?;
        printone(f, "# bytes lost to arena map mid", mid)?;
        printone(f, "# bytes lost to arena map bot", bot)?;
        printone(f, "Total", root + mid + bot)
    }
}

/// Writes one line: the text, padded to 35 columns; `=`; the number with commas between thousands, right-aligned in 21 columns.
fn printone(f: &mut fmt::Formatter<'_>, text: impl fmt::Display, value: usize) -> fmt::Result {
    let mut label = String::new();
    write!(label, "{text}")?;
    let digits = alloc::format!("{value}");
    let mut number = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index != 0 && (digits.len() - index).is_multiple_of(3) {
            number.push(',');
        }
        number.push(digit);
    }
    writeln!(f, "{label:35}={number:>21}")
}
