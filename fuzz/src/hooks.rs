//! Hooks that do what the program says, which is seldom what they are for.

use std::rc::Rc;

use obmalloc::{Failed, Hooks, Info, ObjectError, ObjectHeap, Phase, TypeId, Visit};

use crate::model::{World, places, references};
use crate::program::Program;

/// Hooks inside one another that still do something.
const DEPTH_MAX: u32 = 4;

pub struct Script {
    pub world: Rc<World>,
    pub never_refuses: bool,
}

impl Script {
    /// Runs a few steps of the program.
    fn steps(&self, heap: &ObjectHeap) {
        let world = &*self.world;
        if world.quiet.get() || world.depth.get() >= DEPTH_MAX {
            return;
        }
        world.depth.set(world.depth.get() + 1);
        let mut program = Program { heap, world: &self.world, may_refuse: !self.never_refuses };
        for _ in 0..world.bytes.below(4) {
            let Some(op) = world.bytes.next() else { break };
            program.step(op);
        }
        world.depth.set(world.depth.get() - 1);
    }

    /// Gives an object's own references back.
    fn clear_self(&self, heap: &ObjectHeap, kind: TypeId, object: usize) {
        let program = Program { heap, world: &self.world, may_refuse: true };
        for (index, place) in places(heap, kind, object).into_iter().enumerate() {
            program.set_reference(object, index, place, None);
        }
    }
}

/// Says when the program wants what takes long to be given up.
pub fn is_to_give_up(world: &World) -> bool {
    let patience = world.patience.get();
    let over = !world.quiet.get() && patience == Some(0);
    if over {
        world.lied.set(true);
    }
    world.patience.set(patience.map(|questions| questions.saturating_sub(1)));
    over
}

impl Hooks for Script {
    fn traverse(&self, heap: &ObjectHeap, kind: TypeId, object: usize, visit: &mut Visit<'_>) -> Result<(), Failed> {
        let world = &*self.world;
        let references: Vec<usize> = references(heap, kind, object).into_iter().flatten().collect();
        let how = if world.quiet.get() { 0 } else { world.bytes.byte() };
        if how == 0 || how > 60 {
            for reference in references {
                // A reference that was stolen leads anywhere.
                if visit(reference).is_err() {
                    assert!(world.steals, "{reference:#x} is held, but cannot be visited");
                    return Err(Failed);
                }
            }
            return Ok(());
        }
        world.lied.set(true);
        let before = world.traversing.replace(true);
        let result = match how % 8 {
            // Less than it holds.
            1 => references.first().map_or(Ok(()), |&reference| visit(reference).map_err(|_| Failed)),
            // More than it holds.
            2 => {
                let twice = references.iter().chain(&references).chain([&object]);
                twice.copied().try_for_each(|reference| visit(reference).map_err(|_| Failed))
            }
            3 => Err(Failed),
            // Any address, and no failure.
            4 => {
                let _ = visit(world.any_address());
                Ok(())
            }
            5 => world.held().map_or(Ok(()), |other| visit(other).map_err(|_| Failed)),
            _ => {
                self.steps(heap);
                for reference in references {
                    let _ = visit(reference);
                }
                Ok(())
            }
        };
        world.traversing.set(before);
        result
    }

    fn clear(&self, heap: &ObjectHeap, kind: TypeId, object: usize) {
        if !self.world.quiet.get() && self.world.bytes.flag() {
            self.steps(heap);
        }
        if self.world.quiet.get() || self.world.bytes.below(3) != 0 {
            self.clear_self(heap, kind, object);
        }
    }

    fn finalize(&self, heap: &ObjectHeap, _: TypeId, _: usize) {
        self.steps(heap);
    }

    fn del(&self, heap: &ObjectHeap, _: TypeId, _: usize) {
        self.steps(heap);
    }

    fn dealloc(&self, heap: &ObjectHeap, kind: TypeId, object: usize) {
        assert!(!self.world.holds(object) || self.world.steals, "{object:#x} is destroyed, but held");
        self.steps(heap);
        if !self.world.quiet.get() && self.world.bytes.below(4) == 0 {
            self.clear_self(heap, kind, object);
        }
    }

    fn weakref_callback(&self, heap: &ObjectHeap, callback: u64, reference: usize) {
        if callback != 0 {
            assert!(self.world.callbacks_out.borrow().contains(&callback), "a callback is called that was given back");
        }
        assert!(self.world.steals || heap.type_of(reference).is_ok(), "the callback's weak reference is gone");
        self.steps(heap);
    }

    fn weakref_dropped(&self, callback: u64) {
        assert!(self.world.callbacks_out.borrow_mut().remove(&callback), "a callback came back twice");
    }

    fn gc_callback(&self, heap: &ObjectHeap, _: Phase, _: &Info) {
        self.steps(heap);
    }

    fn collection_failed(&self, heap: &ObjectHeap, error: ObjectError) {
        let explained = self.world.lied.get() || self.world.steals || matches!(error, ObjectError::NoMemory);
        assert!(explained, "a collection failed with {error}");
        self.steps(heap);
    }
}
