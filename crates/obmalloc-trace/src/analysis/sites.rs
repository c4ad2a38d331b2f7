//! Sites: stacks as people see them. Two nodes of a trace's tree whose frames have the same files, lines and functions are one site.

#![forbid(unsafe_code)]

use rustc_hash::FxHashMap;
use serde::Serialize;

use crate::stacks::Stacks;

/// A frame.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize)]
#[allow(missing_docs, reason = "as in `stacks::Frame`")]
pub struct Frame {
    pub file: String,
    pub line: u32,
    pub function: String,
}

/// The sites that have been looked up so far.
#[derive(Debug, Default)]
pub struct Sites {
    /// The most frames of a stack, from the header: deeper frames are not right.
    most: usize,
    frames: Vec<Frame>,
    frame_numbers: FxHashMap<Frame, u32>,
    /// By node: the number of its innermost frame.
    of_frame: FxHashMap<u64, u32>,
    /// By site: its frames, innermost first.
    stacks: Vec<Vec<u32>>,
    numbers: FxHashMap<Vec<u32>, u32>,
    of_node: FxHashMap<u32, u32>,
}

impl Sites {
    /// No sites yet, of stacks of at most `limit` frames.
    pub fn new(most: usize) -> Self {
        Self { most, ..Self::default() }
    }

    /// The site of a node.
    pub fn site(&mut self, tree: &Stacks, node: u32) -> u32 {
        if let Some(&site) = self.of_node.get(&node) {
            return site;
        }
        let stack: Vec<u32> = tree.nodes_of(node.into()).take(self.most).map(|node| self.frame(tree, node)).collect();
        let next = self.stacks.len() as u32;
        let site = *self.numbers.entry(stack).or_insert_with_key(|stack| {
            self.stacks.push(stack.clone());
            next
        });
        self.of_node.insert(node, site);
        site
    }

    fn frame(&mut self, tree: &Stacks, node: u64) -> u32 {
        if let Some(&frame) = self.of_frame.get(&node) {
            return frame;
        }
        let frame = tree.frame(node);
        let frame = Frame { file: frame.file.into(), line: frame.line, function: frame.function.into() };
        let next = self.frames.len() as u32;
        let number = *self.frame_numbers.entry(frame).or_insert_with_key(|frame| {
            self.frames.push(frame.clone());
            next
        });
        self.of_frame.insert(node, number);
        number
    }

    /// How many sites there are.
    pub fn len(&self) -> usize {
        self.stacks.len()
    }

    /// The numbers of a site's frames, innermost first.
    pub fn stack(&self, site: u32) -> &[u32] {
        &self.stacks[site as usize]
    }

    /// The frames that were seen.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// A site's frames, innermost first.
    pub fn frames_of(&self, site: u32) -> impl Iterator<Item = &Frame> {
        self.stacks[site as usize].iter().map(|&frame| &self.frames[frame as usize])
    }
}
