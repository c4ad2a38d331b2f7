//! Stacks as a tree, outermost frames first, folded to a size that a page bears.

#![forbid(unsafe_code)]

use rustc_hash::FxHashMap;

use super::sites::{Frame, Sites};

/// Most nodes.
const MOST: usize = 30_000;
/// The parent of a root.
const ROOT: u32 = u32::MAX;

/// What a stack has itself, bytes and blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Values {
    pub held: u64,
    pub live: u64,
    pub peak: u64,
    pub allocated: u64,
    pub temporary: u64,
    pub blocks: u64,
}

impl Values {
    fn all(&mut self) -> [&mut u64; 6] {
        [&mut self.held, &mut self.live, &mut self.peak, &mut self.allocated, &mut self.temporary, &mut self.blocks]
    }

    fn add(&mut self, mut other: Self) {
        self.all().into_iter().zip(other.all()).for_each(|(to, more)| *to += *more);
    }

    /// How much it is of `whole`, all values together.
    fn weight(mut self, mut whole: Self) -> f64 {
        self.all().into_iter().zip(whole.all()).map(|(part, whole)| *part as f64 / (*whole).max(1) as f64).sum()
    }
}

/// A node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Node {
    pub parent: u32,
    pub frame: u32,
    pub own: Values,
}

/// The tree. Node 0 is no Python frame; a parent stands before its children.
#[derive(Clone, Debug)]
pub struct Tree {
    pub nodes: Vec<Node>,
    /// The frames that they name.
    pub frames: Vec<Frame>,
    /// How many nodes there were before it was folded.
    pub of: usize,
}

impl Tree {
    /// The tree of all sites, whose `values` are by their numbers.
    pub fn of(sites: &Sites, values: &[Values]) -> Self {
        let mut frames = vec![Frame { file: String::new(), line: 0, function: "(no Python frame)".into() }];
        frames.extend_from_slice(sites.frames());
        let mut nodes = vec![Node { parent: ROOT, frame: 0, own: Values::default() }];
        let mut children: FxHashMap<(u32, u32), u32> = FxHashMap::default();
        for (site, &own) in (0..).zip(values) {
            let mut at = ROOT;
            for &frame in sites.stack(site).iter().rev() {
                at = *children.entry((at, frame + 1)).or_insert_with(|| {
                    nodes.push(Node { parent: at, frame: frame + 1, own: Values::default() });
                    nodes.len() as u32 - 1
                });
            }
            nodes[if at == ROOT { 0 } else { at as usize }].own.add(own);
        }
        let of = nodes.len();
        Self { nodes, frames, of }.folded(MOST)
    }

    /// Keeps at most `most` nodes, those with most in them and below them. What the others have goes to their parents.
    fn folded(mut self, most: usize) -> Self {
        if self.nodes.len() <= most {
            return self;
        }
        let mut sums: Vec<Values> = self.nodes.iter().map(|node| node.own).collect();
        let mut whole = Values::default();
        for index in (0..sums.len()).rev() {
            match self.nodes[index].parent {
                ROOT => whole.add(sums[index]),
                parent => {
                    let sum = sums[index];
                    sums[parent as usize].add(sum);
                }
            }
        }
        let weights: Vec<f64> = sums.into_iter().map(|sum| sum.weight(whole)).collect();
        // A child weighs no more than its parent, and of two of one weight the parent comes first.
        let mut order: Vec<usize> = (1..self.nodes.len()).collect();
        order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]).then(a.cmp(&b)));
        let mut kept = vec![false; self.nodes.len()];
        kept[0] = true;
        order.iter().take(most - 1).for_each(|&index| kept[index] = true);
        for index in (1..self.nodes.len()).rev().filter(|&index| !kept[index]) {
            let (parent, own) = (self.nodes[index].parent, self.nodes[index].own);
            self.nodes[if parent == ROOT { 0 } else { parent as usize }].own.add(own);
        }
        let mut numbers = vec![ROOT; self.nodes.len()];
        let mut nodes = Vec::with_capacity(most);
        for (index, node) in self.nodes.iter().enumerate().filter(|&(index, _)| kept[index]) {
            numbers[index] = nodes.len() as u32;
            let parent = if node.parent == ROOT { ROOT } else { numbers[node.parent as usize] };
            nodes.push(Node { parent, ..*node });
        }
        self.nodes = nodes;
        self.with_used_frames()
    }

    /// Leaves out frames that no node names.
    fn with_used_frames(mut self) -> Self {
        let mut numbers = vec![None; self.frames.len()];
        let mut frames = Vec::new();
        for node in &mut self.nodes {
            let number = numbers[node.frame as usize].get_or_insert_with(|| {
                frames.push(self.frames[node.frame as usize].clone());
                frames.len() as u32 - 1
            });
            node.frame = *number;
        }
        self.frames = frames;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_folded_away_goes_to_its_parent() {
        let own = |held| Values { held, ..Values::default() };
        let node = |parent, frame, held| Node { parent, frame, own: own(held) };
        let frame = |line| Frame { file: "a.py".into(), line, function: "f".into() };
        let nodes = vec![node(ROOT, 0, 1), node(ROOT, 1, 2), node(1, 2, 40), node(2, 3, 50), node(1, 4, 3)];
        let tree = Tree { nodes, frames: (0..5).map(frame).collect(), of: 5 };
        let folded = tree.folded(3);
        assert_eq!(folded.nodes, [node(ROOT, 0, 1), node(ROOT, 1, 5), node(1, 2, 90)]);
        assert_eq!((folded.frames.len(), folded.of), (3, 5));
    }
}
