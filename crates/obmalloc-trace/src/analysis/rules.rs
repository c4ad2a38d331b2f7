//! The rules decide what `why` says: each looks at the facts and makes a finding, or none if the facts are below its threshold.

#![forbid(unsafe_code)]

use std::cmp::Reverse;

use rustc_hash::FxHashMap;
use serde::Serialize;

use super::census::{Census, ClassCensus, NodeCensus};
use super::growth;
use super::half_empty::HalfEmpty;
use super::inquiry::Asked;
use super::pinning::{self, Burst, Pinning};
use super::shares::{Share, Shares};
use super::sites::Sites;
use super::types::{self, TypeCount, Typed};
use super::why::Totals;
use super::words::{self, count, counted, percent, size};
use super::{Analysis, Sum};
use crate::moments::Outline;
use crate::replay::Report;
use crate::stacks::Stacks;

const MIB: u64 = 1 << 20;
/// Fewer bytes than this are not worth a change.
pub const WORTH: u64 = 4 * MIB;
/// A site grows if it has gained this many bytes a mark.
const GAIN: u64 = 64;
/// How many arenas must have been taken, or given back, for nothing to make a finding.
const MANY: u64 = 100;
/// How many bytes C's `malloc` must have to make a finding.
const LARGE: u64 = 4 * MIB;
/// How many functions a sentence names.
pub const NAMED: usize = 3;

/// Something that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The rule's name.
    pub rule: &'static str,
    /// What it is, in words.
    pub text: String,
    /// The site that it is about, the first of those below. As in them: its number among all, until [`resolve`](Self::resolve).
    pub site: Option<u32>,
    /// Bytes that would be saved, where that is known; else 0.
    pub saves: u64,
    /// What to look at next.
    pub command: String,
    /// All sites that it is about.
    pub sites: Vec<u32>,
    /// The sites of the blocks that lay around theirs.
    pub burst: Vec<u32>,
    /// The types of the live blocks that it is about. Absent if it is about none, or the recorder did not look.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub types: Option<Vec<TypeCount>>,
}

impl Finding {
    /// Puts indices in the place of sites' numbers.
    pub fn resolve(&mut self, index: impl Fn(u32) -> u32) {
        self.sites.iter_mut().chain(&mut self.burst).for_each(|site| *site = index(*site));
        self.site = self.sites.first().copied();
    }
}

/// What the rules look at.
pub struct Facts<'a> {
    pub asked: &'a Asked,
    pub outline: &'a Outline,
    pub analysis: &'a Analysis,
    pub report: &'a Report,
    pub census: &'a Census,
    /// When most was held, if that was before.
    pub peak: Option<&'a Census>,
    /// When the arenas that are held were full, if that was before.
    pub full: Option<&'a Census>,
    pub shares: &'a Shares,
    pub tree: &'a Stacks,
    pub totals: Totals,
    /// The sites that pin arenas; if there are none, the size classes with half-empty pools. Also the result of allocating these blocks anew.
    pub pinning: Option<&'a Pinning>,
    pub half_empty: Option<&'a HalfEmpty>,
    pub anew: Option<Anew>,
    /// Of what types blocks are, where the recorder looked.
    pub typed: Option<&'a Typed>,
}

/// How many arenas there are after the survivors were made anew, and how many there would be at least if some of them were dead.
#[derive(Clone, Copy, Debug)]
pub struct Anew {
    pub arenas: u64,
    pub at_least: u64,
    /// Whether all but one of a hundred of them may be dead.
    pub may_all_be_dead: bool,
}

/// Runs all rules.
pub fn find(facts: &Facts<'_>, sites: &mut Sites) -> Vec<Finding> {
    let mut found = Vec::new();
    found.extend(pinned(facts, sites));
    found.extend(grows(facts, sites));
    let kept = large(facts, sites);
    let keeps = kept.is_some();
    found.extend(peak(facts, keeps, sites));
    found.extend(thrash(facts, sites));
    found.extend(half_empty(facts, sites));
    found.extend(kept);
    let is_about_sites = !found.is_empty();
    found.extend(trim(facts));
    found.extend(not_pythons(facts));
    if found.is_empty() {
        found.push(live(facts));
    }
    if !keeps {
        found.extend(elsewhere(facts, sites));
    }
    if is_about_sites && facts.asked.frames == 0 {
        found.push(cannot_tell(facts));
    }
    found.extend(interpreters(facts));
    found.extend(unverified(facts));
    found
}

impl Facts<'_> {
    /// A finding about sites, by their numbers.
    pub fn finding(&self, rule: &'static str, text: String, saves: u64, about: &[u32], sites: &Sites) -> Finding {
        let command = match about.first().and_then(|&site| words::chief(sites, site)) {
            Some(frame) => format!("{} --site {}", self.look("why"), words::place(frame)),
            None => self.look("top"),
        };
        Finding { rule, text, site: None, saves, command, sites: about.to_vec(), burst: Vec::new(), types: None }
    }

    /// The trace's path for a command; a path that begins with `-` gets a `./`.
    fn file(&self) -> String {
        let path = &self.asked.path;
        if path.starts_with('-') { words::quoted(&format!("./{path}")) } else { words::quoted(path) }
    }

    /// A command that runs the recorded program again.
    fn run(&self, command: &str) -> String {
        match &*self.asked.command {
            [python, program @ ..] if !program.is_empty() => {
                let program: Vec<String> = program.iter().map(|word| words::quoted(word)).collect();
                format!("obmalloc {command} --python {} -- {}", words::quoted(python), program.join(" "))
            }
            _ => format!("obmalloc {command} -- …"),
        }
    }

    /// A command that looks at the same moment.
    fn look(&self, command: &str) -> String {
        match &*self.asked.at {
            "" | "end" => format!("obmalloc {command} {}", self.file()),
            at => format!("obmalloc {command} {} --at {}", self.file(), words::quoted(at)),
        }
    }

    /// Sites in words. "Cannot tell" where the trace has no stacks.
    pub fn named(&self, which: &[u32], sites: &Sites) -> String {
        if self.asked.frames == 0 {
            return "(cannot tell: recorded without stacks)".into();
        }
        words::sites(sites, which, NAMED)
    }

    /// When an event was, in words.
    fn when(&self, event: u64) -> String {
        match self.outline.seconds(event) {
            Some(seconds) => format!("at {seconds:.1} s"),
            None => format!("at event {}", count(event)),
        }
    }
}

/// Few long-lived blocks keep arenas that would not be needed. Silent below a quarter of held, below [`WORTH`], and where more than a
/// quarter of these arenas is live.
fn pinned(facts: &Facts<'_>, sites: &Sites) -> Option<Finding> {
    let pinning = facts.pinning?;
    let needed = facts.totals.needed / facts.census.geometry.arena_size as u64;
    let who = facts.named(&pinning.sites, sites);
    let mut text = format!(
        "{} ({}) from {who} pin {} of {}; packed, {} would do.",
        counted(pinning.live.blocks, "block"),
        size(pinning.live.bytes),
        count(pinning.arenas.len() as u64),
        counted(facts.totals.arenas, "arena"),
        count(needed),
    );
    let types = facts.typed.map(Typed::of_survivors);
    text += &words::types(types.as_deref(), pinning.live.blocks);
    if let Some(burst) = &pinning.burst {
        text += &format!(
            " They were made among {} others{}, most from {}; {}.",
            count(burst.blocks),
            if burst.is_of_same_classes { " of the same classes" } else { "" },
            facts.named(&burst.sites, sites),
            died(burst),
        );
    }
    let mut saves = 0;
    if let Some(Anew { arenas, at_least, may_all_be_dead }) = facts.anew {
        saves = facts.totals.arenas.saturating_sub(arenas) * facts.census.geometry.arena_size as u64;
        let gives =
            format!("making the survivors anew after the burst gives {} (tried on this recording)", counted(arenas, "arena"));
        // A real program would save more than the trial did: CPython keeps some dead objects for reuse, and the trial counts them as live.
        let between = "if gc.collect() is called before and after";
        let helps = helps(saves, facts.totals.held);
        text += &if saves == 0 {
            format!("\nWhat does not help: {gives}.")
        } else if at_least + 1 < arenas {
            // What has a type is alive.
            let alone = if may_all_be_dead && types.as_ref().is_some_and(Vec::is_empty) {
                format!(" If all of them are dead, gc.collect() alone gives {}.", counted(at_least, "arena"))
            } else {
                String::new()
            };
            format!(
                "\n{helps}: {gives}, {between}; perhaps fewer, down to {at_least}: CPython keeps some dead objects for new ones, and they look \
                 like survivors here.{alone}"
            )
        } else {
            format!("\n{helps}: {gives}, {between}: until then CPython keeps some dead objects for new ones.")
        };
    }
    let mut finding = facts.finding("pinned", text, saves, &pinning.sites, sites);
    finding.burst = pinning.burst.iter().flat_map(|burst| &burst.sites).copied().collect();
    finding.types = types.map(|types| types::bounded(types, types::MOST));
    Some(finding)
}

/// How much a change helps that saves so many of the bytes held: less than a quarter is little.
fn helps(saves: u64, held: u64) -> &'static str {
    if saves * 4 >= held { "What helps" } else { "What helps little" }
}

/// How much of a burst has died, and within what time.
fn died(burst: &Burst) -> String {
    let have_died = format!("{} of those have died", percent(burst.died, burst.blocks));
    match burst.within {
        Some(within) => {
            let (share, time) = (percent(within.blocks, burst.blocks), words::seconds(within.seconds));
            // Where the two shares are the same in words, one says it.
            if share == percent(burst.died, burst.blocks) {
                format!("{share} of those died within {time}")
            } else {
                format!("{have_died}, {share} within {time}")
            }
        }
        None => have_died,
    }
}

/// A site has more at every mark. Silent for fewer than [`growth::FEWEST`] marks, and below [`GAIN`] bytes a mark.
fn grows(facts: &Facts<'_>, sites: &mut Sites) -> Option<Finding> {
    let growth = &facts.analysis.growth;
    if growth.marks() < growth::FEWEST {
        return None;
    }
    let mut gains: FxHashMap<u32, u64> = FxHashMap::default();
    for (node, gain) in growth.growers() {
        *gains.entry(sites.site(facts.tree, node)).or_default() += gain;
    }
    let steps = growth.marks() as u64 - 1;
    let mut growers: Vec<(u32, u64)> = gains.into_iter().filter(|&(_, gain)| gain >= GAIN * steps).collect();
    growers.sort_unstable_by_key(|&(site, gain)| (Reverse(gain), site));
    let gain: u64 = growers.iter().map(|grower| grower.1).sum();
    let about: Vec<u32> = growers.iter().map(|grower| grower.0).collect();
    (!about.is_empty()).then(|| {
        let types = facts.typed.map(|typed| typed.of_sites(&about));
        let blocks = about.iter().filter_map(|site| facts.shares.index.get(site));
        let blocks = blocks.map(|&index| facts.shares.sites[index as usize].live.blocks).sum();
        let mut text = format!(
            "What comes from {} only grows: {} more from the first to the last of {} \"{}\" ({} a mark).",
            facts.named(&about, sites),
            size(gain),
            counted(growth.marks() as u64, "mark"),
            words::printable(&growth.name),
            size(gain / steps),
        );
        text += &words::types(types.as_deref(), blocks);
        let types = types.map(|types| types::bounded(types, types::MOST));
        Finding { types, ..facts.finding("grows", text, gain, &about, sites) }
    })
}

/// Reports a peak that was made of temporary blocks, in arenas or at C's `malloc`. Makes no finding if less than half of the peak, or less than
/// [`WORTH`], has gone. Says nothing of C's `malloc` if that `keeps` its memory: [`large`] reports it.
fn peak(facts: &Facts<'_>, keeps: bool, sites: &mut Sites) -> Option<Finding> {
    let Totals { held, raw, large, .. } = facts.totals;
    let most = facts.peak.map_or(held, Census::held);
    let (more, more_outside) = (most.saturating_sub(held), facts.analysis.ledger.most_outside.saturating_sub(raw + large));
    let is_worth = |more: u64, most: u64| more >= WORTH && more * 2 >= most;
    let (who, text, saves, at) = match facts.peak {
        Some(peak) if is_worth(more, most) => {
            let then = peak.nodes.iter().map(|(&node, then)| (node, then.live));
            let (who, sum) = gone(facts, then, |now| now.live, sites);
            let text = format!(
                "The peak, {} {}, was made of temporaries: {} ({}) from {} that are gone. Now {} are held.",
                size(most),
                facts.when(peak.event),
                counted(sum.blocks, "block"),
                size(sum.bytes),
                facts.named(&who, sites),
                size(held),
            );
            (who, text, more, "peak".into())
        }
        // Arenas that are still held weigh more.
        _ if !keeps && is_worth(more_outside, facts.analysis.ledger.most_outside) && more_outside >= held => {
            let full = &facts.analysis.ledger.full;
            let who = outside_gone(facts, sites);
            let text = format!(
                "C's malloc had blocks of {} at most, {}, made of temporaries: most were from {} and are gone. Now it has {}.",
                size(facts.analysis.ledger.most_outside),
                facts.when(full.event),
                facts.named(&who, sites),
                size(raw + large),
            );
            (who, text, more_outside, format!("event:{}", full.event))
        }
        _ => return None,
    };
    let command = format!("obmalloc why {} --at {at}", facts.file());
    Some(Finding { command, ..facts.finding("peak", text, saves, &who, sites) })
}

/// The sites with nine of ten of the bytes that were there `then` and are gone now, and what is gone of them.
fn gone(
    facts: &Facts<'_>,
    then: impl Iterator<Item = (u32, Sum)>,
    now: impl Fn(&NodeCensus) -> Sum,
    sites: &mut Sites,
) -> (Vec<u32>, Sum) {
    let mut sums: FxHashMap<u32, Sum> = FxHashMap::default();
    for (node, then) in then {
        let now = facts.census.nodes.get(&node).map_or(Sum::default(), &now);
        let sum = sums.entry(sites.site(facts.tree, node)).or_default();
        sum.blocks += then.blocks.saturating_sub(now.blocks);
        sum.bytes += then.bytes.saturating_sub(now.bytes);
    }
    let who = pinning::most(sums.iter().filter(|(_, sum)| sum.bytes > 0).map(|(&site, sum)| (site, sum.bytes)).collect());
    let add = |all: Sum, site| Sum { blocks: all.blocks + sums[site].blocks, bytes: all.bytes + sums[site].bytes };
    let sum = who.iter().fold(Sum::default(), add);
    (who, sum)
}

/// The same of what was at C's `malloc` when it had most, or nearly so: how much is gone is then not known exactly.
fn outside_gone(facts: &Facts<'_>, sites: &mut Sites) -> Vec<u32> {
    let then = facts.analysis.ledger.full.nodes.iter().map(|(&node, &then)| (node, then));
    let now = |now: &NodeCensus| Sum { blocks: now.raw.blocks + now.large.blocks, bytes: now.raw.bytes + now.large.bytes };
    gone(facts, then, now, sites).0
}

/// Arenas are given back at once, or taken again at once. Silent below [`MANY`], and below half of all.
fn thrash(facts: &Facts<'_>, sites: &mut Sites) -> Option<Finding> {
    let lives = &facts.analysis.lives;
    if lives.wasted < MANY || lives.wasted * 2 < lives.takes {
        return None;
    }
    let mut takers: FxHashMap<u32, u64> = FxHashMap::default();
    for (&node, &wasted) in &lives.wasted_of {
        *takers.entry(sites.site(facts.tree, node)).or_default() += wasted;
    }
    let who: Vec<u32> = pinning::most(takers).into_iter().take(NAMED).collect();
    let named = facts.named(&who, sites);
    let text = format!(
        "Arenas are taken and given back again and again: {} of {} were given back at once, or taken at once after another was, for {named}. Each costs a call to map it and one to unmap it, and its pages are filled with zeros anew.",
        count(lives.wasted),
        counted(lives.takes, "arena"),
    );
    // How often arenas of these sizes are mapped and unmapped.
    let command = format!("{} --arena 1M,4M,16M", facts.look("what-if"));
    Some(Finding { command, ..facts.finding("thrash", text, 0, &who, sites) })
}

/// The pools of one size class or of several are half empty. Silent where few blocks pin arenas, as that says more, and as
/// [`HalfEmpty::of`] says.
fn half_empty(facts: &Facts<'_>, sites: &mut Sites) -> Option<Finding> {
    let HalfEmpty { classes, free, sites: about } = facts.half_empty?;
    let census = facts.census;
    let sum = |of: fn(&ClassCensus) -> u64| classes.iter().map(|&class| of(&census.classes[usize::from(class)])).sum::<u64>();
    let (blocks, free_blocks) = (sum(|of| of.blocks), sum(|of| of.free_blocks));
    let sizes: Vec<String> = classes.iter().map(|&class| census.geometry.block_size(class.into()).to_string()).collect();
    let mut text = format!(
        "The pools of blocks of {} bytes are {} empty: {} hold {} and could hold {} more ({}). Most are from {}.",
        words::list(&sizes),
        percent(free_blocks, blocks + free_blocks),
        counted(sum(|of| of.pools), "pool"),
        counted(blocks, "block"),
        count(free_blocks),
        size(*free),
        facts.named(about, sites),
    );
    let arenas = (0..census.arenas.len() as u32).collect();
    let of = classes.iter().copied().collect();
    let deaths = facts.analysis.ledger.deaths.as_deref();
    let burst = facts.full.and_then(|full| pinning::burst(census, full, deaths, &arenas, &of, sites, facts.tree));
    // Blocks of other classes have nothing to do with these pools.
    let burst = burst.filter(|burst| burst.is_of_same_classes);
    if let Some(burst) = &burst {
        text += &format!(
            " {} lay there too and have died, most from {}.",
            counted(burst.died, "block"),
            facts.named(&burst.sites, sites)
        );
    }
    let mut saves = 0;
    if let Some(Anew { arenas, .. }) = facts.anew {
        let gives = format!("making these blocks anew gives {} (tried on this recording)", counted(arenas, "arena"));
        let saved = facts.totals.arenas.saturating_sub(arenas) * census.geometry.arena_size as u64;
        text += &if saved < WORTH {
            format!("\nWhat does not help: {gives}, as the new ones fill what is free before the old ones go.")
        } else {
            saves = saved;
            format!("\n{}: {gives}.", helps(saves, facts.totals.held))
        };
    }
    let mut finding = facts.finding("half-empty", text, saves, about, sites);
    finding.burst = burst.into_iter().flat_map(|burst| burst.sites).collect();
    Some(finding)
}

/// C's `malloc` keeps what it had from the system, though most of its blocks are gone. Makes no finding if C's `malloc` keeps less than
/// [`LARGE`], less than its live blocks take, or less than a fifth of the bytes that arenas hold. If memory was not sampled, "kept" is the most
/// that its blocks ever took, less what they take now.
fn large(facts: &Facts<'_>, sites: &mut Sites) -> Option<Finding> {
    let now = facts.census.large.bytes + facts.census.raw.bytes;
    let most = facts.analysis.ledger.most_outside;
    let Totals { unexplained, heap_free, .. } = facts.totals;
    // What is free is not always resident: its pages may have been given back.
    let free = heap_free.map(|free| free.min(unexplained.unwrap_or(free)));
    let unknown = unexplained.map(|unexplained| unexplained.min(most - now));
    let kept = free.or(unknown).unwrap_or(most - now);
    if kept < LARGE || kept < now || kept * 5 < facts.totals.held {
        return None;
    }
    let how = match (free, unknown) {
        (Some(free), _) => format!("keeps {} of free memory", size(free)),
        (None, Some(unknown)) => {
            format!("once had {}, and nothing else accounts for {} that are resident", size(most), size(unknown))
        }
        (None, None) => format!("once had {}, and may keep that", size(most)),
    };
    let about = makers(facts);
    let burst: Vec<u32> = outside_gone(facts, sites).into_iter().take(NAMED).collect();
    let freed =
        if burst.is_empty() { String::new() } else { format!(" Most of what was freed is from {}.", facts.named(&burst, sites)) };
    // Only glibc says how much is free. A replay has no glibc that it could trim.
    let untried =
        if free.is_some() { "\nNot tried: ctypes.CDLL(None).malloc_trim(0), which has glibc give free pages back." } else { "" };
    let text = format!("C's malloc {how}. {}.{freed}{untried}", outside(facts, &about, sites));
    Some(Finding { burst, ..facts.finding("large", text, free.or(unknown).unwrap_or(0), &about, sites) })
}

/// The pages of empty pools could go back to the system. Silent below [`WORTH`], and below a tenth of held.
fn trim(facts: &Facts<'_>) -> Option<Finding> {
    let Totals { trimmable, held, .. } = facts.totals;
    (trimmable >= WORTH && trimmable * 10 >= held).then(|| {
        let text = format!("`obmalloc trim` would give {} back: pages of empty pools, with nothing in them.", size(trimmable));
        Finding { command: facts.run("trim"), ..facts.finding("trim", text, trimmable, &[], &Sites::default()) }
    })
}

/// C's `malloc` has more than half as much as the arenas: that is not wrong, but worth knowing. Silent below [`LARGE`].
fn elsewhere(facts: &Facts<'_>, sites: &Sites) -> Option<Finding> {
    let now = facts.census.large.bytes + facts.census.raw.bytes;
    if now < LARGE || now * 2 < facts.totals.held {
        return None;
    }
    let about = makers(facts);
    let text = format!("C's malloc has more than a third of it all. {}.", outside(facts, &about, sites));
    Some(facts.finding("large", text, 0, &about, sites))
}

/// Most of what is resident was never asked of Python's allocators. Silent below [`LARGE`], and where C's `malloc` does
/// not tell how much of it is free.
fn not_pythons(facts: &Facts<'_>) -> Option<Finding> {
    let Totals { resident, unexplained, heap_free, .. } = facts.totals;
    let rest = unexplained?.saturating_sub(heap_free?);
    (rest >= LARGE && rest * 2 >= resident?).then(|| {
        let text = format!(
            "Python's allocators were not asked for most of what is resident: {} are of C code, such as the buffers of an extension \
             module. The recording cannot tell which lines made them.",
            size(rest)
        );
        facts.finding("not-pythons", text, 0, &[], &Sites::default())
    })
}

/// The sites with nine of ten of the bytes at C's `malloc`, and no more than are named.
fn makers(facts: &Facts<'_>) -> Vec<u32> {
    let bytes = |share: &Share| share.large.bytes + share.raw.bytes;
    let mut makers: Vec<(u64, u32)> =
        facts.shares.sites.iter().map(|share| (bytes(share), share.site)).filter(|&(bytes, _)| bytes > 0).collect();
    makers.sort_unstable_by_key(|&(bytes, site)| (Reverse(bytes), site));
    let all: u64 = makers.iter().map(|maker| maker.0).sum();
    let mut sum = 0;
    let is_enough = |&(bytes, _): &(u64, u32)| {
        let goes_on = sum * 10 < all * 9;
        sum += bytes;
        goes_on
    };
    makers.into_iter().take_while(is_enough).map(|maker| maker.1).take(NAMED).collect()
}

fn outside(facts: &Facts<'_>, about: &[u32], sites: &Sites) -> String {
    let (large, raw) = (facts.census.large, facts.census.raw);
    if large.blocks + raw.blocks == 0 {
        return "It has no block".into();
    }
    format!(
        "It has {} ({}) above 512 bytes and {} ({}) of the raw domain, most from {}",
        counted(large.blocks, "block"),
        size(large.bytes),
        count(raw.blocks),
        size(raw.bytes),
        facts.named(about, sites),
    )
}

/// Nothing else was found.
fn live(facts: &Facts<'_>) -> Finding {
    let Totals { held, live, needed, .. } = facts.totals;
    let text = if live * 4 >= held * 3 {
        // A collection has yet to find which of it is garbage.
        let unless = if live >= WORTH { ", unless it is garbage in cycles, which gc.collect() would free" } else { "" };
        format!(
            "Nothing is wrong: what is held is live ({} of {}). The program needs it{unless}.",
            percent(live, held),
            size(held)
        )
    } else if held.saturating_sub(needed) < WORTH {
        format!("Nothing is wrong: packed, the same blocks would take {}, which saves little.", size(needed))
    } else {
        format!("No single cause was found: {} are held, and packed, the same blocks would take {}.", size(held), size(needed))
    };
    facts.finding("live", text, 0, &[], &Sites::default())
}

fn cannot_tell(facts: &Facts<'_>) -> Finding {
    let text = "Cannot tell which lines: the program was recorded without stacks.".into();
    let command = facts.run(&format!("record --stacks 64 -o {}", facts.file()));
    Finding { command, ..facts.finding("cannot-tell", text, 0, &[], &Sites::default()) }
}

/// Interpreters with allocators of their own are left out.
fn interpreters(facts: &Facts<'_>) -> Option<Finding> {
    let others = facts.analysis.others.len() as u64;
    (others > 0).then(|| {
        let text =
            format!("Left out: {} with allocators of their own. What they hold is not counted.", counted(others, "interpreter"));
        facts.finding("interpreters", text, 0, &[], &Sites::default())
    })
}

/// The replay did not come to the moment, or not as recorded; or calls are missing.
fn unverified(facts: &Facts<'_>) -> Option<Finding> {
    let Report { mismatch, hooks_lost, remarks, .. } = facts.report;
    let text = match mismatch {
        Some(mismatch) => format!(
            "Not verified: the replay differs from the recording at event {}, and what is said is of that moment.",
            count(mismatch.operation)
        ),
        // Without raw every address is compared all the same.
        None if *hooks_lost & 0b110 == 0 => return None,
        None if remarks.is_empty() => "Not verified: the recorder's allocators were replaced, and calls are missing.".into(),
        None => format!("Not verified: {}.", remarks.join("; ")),
    };
    let command = format!("obmalloc replay {}", facts.file());
    Some(Finding { command, ..facts.finding("unverified", text, 0, &[], &Sites::default()) })
}

#[cfg(test)]
mod tests {
    use super::helps;

    #[test]
    fn less_than_a_quarter_helps_little() {
        assert_eq!([1, 24, 25, 100].map(|saves| helps(saves, 100) == "What helps"), [false, false, true, true]);
    }
}
