//! Safe Rust cannot crash a heap: random calls of every public function, from outside and from inside hooks and guests, with whatever
//! arguments a program can get hold of.
//!
//! [`ARMS`] has every function under its name and calls that very function. A test compares the names with the sources.

#![forbid(unsafe_code)]

#[path = "safe/arms.rs"]
mod arms;
mod common;
#[path = "safe/programs.rs"]
mod programs;
#[path = "common/sources.rs"]
mod sources;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::rc::{Rc, Weak};
use std::sync::Mutex;
use std::sync::atomic::AtomicPtr;

use arms::ARMS;
use common::{Random, seed, shrink};
use obmalloc::profile::{self, Geometry, Profile};
use obmalloc::{
    AllocatorId, AllocatorName, Answer, ArenaGuest, ArenaInfo, ArenaMapCounts, ArenaMapStats, CheckedHeap, Corruption, Domain,
    Failed, Fault, FaultKind, Field, FieldKind, GenerationStats, Guest, GuestFault, GuestHeap, Heap, HeapError, HeapOptions,
    HookSet, Hooks, Info, ItemKind, NoHooks, ObjectError, ObjectHeap, OwnAllocators, OwnError, Phase, PoolInfo, SetError, Stats,
    StatsBytes, TakeDown, Threw, Trimmed, Type, TypeId, TypeSpec, Undone, Value, Visit, Window,
};

/// The functions that safe Rust cannot call, each with the reason.
const UNSAFE: [(&str, &str); 7] = [
    ("Heap::realloc", "the heap trusts that the block is live"),
    ("Heap::free", "the heap trusts that the block is live"),
    ("Heap::set_allocator", "the heap trusts the functions"),
    ("Heap::set_arena_allocator", "the heap trusts the functions"),
    ("CheckedHeap::set_arena_allocator", "the heap trusts the functions"),
    ("ObjectHeap::set_arena_allocator", "the heap trusts the functions"),
    ("ObjectHeap::set_interrupt", "the function must neither use the heap nor unwind"),
];

/// Every release, and what came before a fix inside one.
const ROWS: [&Profile; 12] = [
    &profile::V3_8,
    &profile::V3_9,
    &profile::V3_10,
    &profile::V3_11,
    &profile::V3_12_0,
    &profile::V3_12,
    &profile::V3_13_0,
    &profile::V3_13,
    &profile::V3_14_0,
    &profile::V3_14_4,
    &profile::V3_14,
    &profile::V3_15,
];

/// What hooks and guests panic with.
struct Planned;

/// One call of a program: which function, and the seed of its arguments and of all that happens inside it.
#[derive(Clone, Copy, Debug)]
struct Op {
    arm: usize,
    seed: u64,
}

/// A function and a call of it.
struct Arm {
    name: &'static str,
    run: fn(&Rc<World>) -> Option<()>,
}

/// Blocks of a heap that trusts its caller, which only unsafe code could free.
static LEFT: Mutex<Vec<AtomicPtr<u8>>> = Mutex::new(Vec::new());

/// Heaps of one kind that a program has.
const HEAPS: usize = 2;

/// What a program has at hand.
struct World {
    profile: Profile,
    hooked: bool,
    random: RefCell<Random>,
    /// Calls that may still be made inside the present one.
    fuel: Cell<u32>,
    heaps: RefCell<Vec<Rc<Heap>>>,
    checked: RefCell<Vec<Rc<CheckedHeap>>>,
    guests: RefCell<Vec<Rc<GuestHeap>>>,
    objects: RefCell<Vec<Rc<ObjectHeap>>>,
    leaving: RefCell<Vec<TakeDown>>,
    maps: RefCell<Vec<ArenaMapCounts>>,
    players: Vec<Rc<Player>>,
    mood: Mood,
    addresses: RefCell<Vec<usize>>,
    made: RefCell<Vec<usize>>,
    ids: RefCell<Vec<AllocatorId>>,
    types: RefCell<Vec<TypeId>>,
    /// Memory that is none of the heaps' business.
    foreign: Vec<u64>,
    /// The first thing that went wrong.
    wrong: RefCell<Option<String>>,
}

const FOREIGN: u64 = 0x5a5a_0123_4567_89ab;

impl World {
    fn new(seed: u64) -> Rc<Self> {
        Rc::new_cyclic(|world: &Weak<Self>| Self {
            profile: *ROWS[seed as usize % ROWS.len()],
            hooked: (seed as usize / ROWS.len()).is_multiple_of(2),
            random: RefCell::new(Random::new(seed)),
            fuel: Cell::new(0),
            heaps: RefCell::default(),
            checked: RefCell::default(),
            guests: RefCell::default(),
            objects: RefCell::default(),
            leaving: RefCell::default(),
            maps: RefCell::default(),
            players: (0..3).map(|_| Rc::new(Player(world.clone()))).collect(),
            mood: Mood(world.clone()),
            addresses: RefCell::default(),
            made: RefCell::default(),
            ids: RefCell::default(),
            types: RefCell::default(),
            foreign: vec![FOREIGN; 64],
            wrong: RefCell::default(),
        })
    }

    fn below(&self, limit: usize) -> usize {
        self.random.borrow_mut().below(limit)
    }

    fn one_in(&self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn pick<T: Clone>(&self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    /// One of those at hand, often the latest.
    fn known<T: Clone>(&self, from: &RefCell<Vec<T>>) -> Option<T> {
        let len = from.borrow().len();
        let from_end = if len == 0 || self.one_in(3) { 1 } else { 1 + self.below(len) };
        from.borrow().get(len.wrapping_sub(from_end)).cloned()
    }

    /// A heap of a kind: one that is there, or a new one.
    fn heap_of<T>(&self, from: &RefCell<Vec<Rc<T>>>, make: impl Fn() -> Result<T, HeapError>) -> Option<Rc<T>> {
        if let Some(heap) = self.known(from) {
            return Some(heap);
        }
        self.add(from, make())
    }

    /// Keeps a heap, in place of another when there are enough.
    fn add<T>(&self, to: &RefCell<Vec<Rc<T>>>, made: Result<T, HeapError>) -> Option<Rc<T>> {
        let heap = match made {
            Ok(heap) => Rc::new(heap),
            Err(error) => {
                self.take(error);
                return None;
            }
        };
        let is_full = to.borrow().len() >= HEAPS;
        let gone = is_full.then(|| to.borrow_mut().swap_remove(self.below(HEAPS)));
        to.borrow_mut().push(heap.clone());
        // A heap may call guests while it is dropped, and they look for heaps.
        drop(gone);
        Some(heap)
    }

    /// One that nothing else uses, taken out.
    fn alone<T>(&self, from: &RefCell<Vec<Rc<T>>>) -> Option<T> {
        let len = from.borrow().len();
        let heap = (len != 0).then(|| from.borrow_mut().swap_remove(self.below(len)))?;
        Rc::try_unwrap(heap).map_err(|heap| from.borrow_mut().push(heap)).ok()
    }

    fn heap(&self) -> Option<Rc<Heap>> {
        self.heap_of(&self.heaps, || Heap::with_options(HeapOptions { allocator: AllocatorName::Default, ..self.options() }))
    }

    fn checked(&self) -> Option<Rc<CheckedHeap>> {
        self.heap_of(&self.checked, || CheckedHeap::new(self.options()))
    }

    fn guest_heap(&self) -> Option<Rc<GuestHeap>> {
        self.heap_of(&self.guests, || GuestHeap::new(self.options()))
    }

    fn object_heap(&self) -> Option<Rc<ObjectHeap>> {
        self.heap_of(&self.objects, || ObjectHeap::new(self.options(), self.hooks()))
    }

    fn hooks(&self) -> Box<dyn Hooks> {
        if self.one_in(8) { Box::new(NoHooks) } else { Box::new(self.mood.clone()) }
    }

    fn profile(&self) -> Profile {
        let profile = if self.one_in(8) { *self.pick(&ROWS) } else { self.profile };
        if self.one_in(16) { profile.without_arena_map() } else { profile }
    }

    fn geometry(&self) -> Geometry {
        let small = Geometry { arena_size: 64 << 10, pool_size: 4 << 10, alignment: 16, small_request_threshold: 512 };
        let mut geometry = match self.below(4) {
            0 => Geometry { alignment: 8, small_request_threshold: 256, ..small },
            1 => Geometry { pool_size: 16 << 10, small_request_threshold: 4096, ..small },
            _ => small,
        };
        let junk = self.pick(&[0, 1, 7, 8, 24, 32, 500, 4096, 65_536, 1 << 20, 1 << 47, usize::MAX]);
        match self.below(24) {
            0 => geometry.arena_size = junk,
            1 => geometry.pool_size = junk,
            2 => geometry.alignment = junk,
            3 => geometry.small_request_threshold = junk,
            4 if !cfg!(miri) => geometry.arena_size = 64 << 20,
            _ => {}
        }
        geometry
    }

    fn options(&self) -> HeapOptions {
        let mut options = HeapOptions::new(&self.profile());
        if cfg!(miri) || !self.one_in(3) {
            options.geometry = Some(self.geometry());
        }
        if self.one_in(4) {
            options.arena_slack = self.pick(&[4096, 16 << 10, 64 << 10, 8, usize::MAX]);
        }
        let (hooked, plain) =
            ([AllocatorName::Debug, AllocatorName::MallocDebug], [AllocatorName::Default, AllocatorName::Malloc]);
        let usual = if self.hooked { hooked } else { plain };
        options.allocator = if self.one_in(8) { self.pick(&AllocatorName::ALL) } else { usual[usize::from(self.one_in(4))] };
        options.memory_limit = self.one_in(4).then(|| self.pick(&[0, 5000, 70_000, 300_000, 3 << 20, usize::MAX]));
        if self.one_in(3) {
            options.quarantine = self.pick(&[1, 600, 20_000, 1 << 20, usize::MAX]);
        }
        options.trim_above = self.one_in(3).then(|| self.pick(&[0, 16 << 10, 100_000, usize::MAX]));
        options
    }

    fn domain(&self) -> Domain {
        self.pick(&Domain::ALL)
    }

    fn size(&self) -> usize {
        match self.below(16) {
            0 => self.pick(&[0, 1, 15, 16, 17, 511, 512, 513, 4096, 16_337]),
            1 => self.below(if cfg!(miri) { 2000 } else { 200_000 }),
            2 => self.pick(&[usize::MAX, isize::MAX as usize, isize::MAX as usize + 1, usize::MAX / 2 - 40, usize::MAX - 15]),
            3..=5 => self.below(5000),
            _ => self.below(600),
        }
    }

    fn count(&self) -> usize {
        match self.below(8) {
            0 => self.pick(&[usize::MAX, isize::MAX as usize, usize::MAX / 8, usize::MAX / 16 + 1]),
            1 => self.below(300),
            _ => self.below(9),
        }
    }

    /// An address: of a block, a grant, an object, an arena, of any heap, live or not, or near one, or of something else.
    fn address(&self) -> usize {
        let known = self.known(if self.one_in(4) { &self.made } else { &self.addresses }).unwrap_or(0);
        match self.below(12) {
            0 => known.wrapping_add(self.pick(&[1, 8, 16, 24, 32, 48, 64, 4096, usize::MAX, usize::MAX - 15, usize::MAX - 31])),
            1 => self.pick(&[0, 1, 8, 16, 0x1000, 1 << 46, 1 << 47, usize::MAX - 15, usize::MAX]),
            2 => std::ptr::from_ref(&self.foreign[self.below(self.foreign.len())]).addr(),
            _ => known,
        }
    }

    fn object(&self) -> usize {
        if self.one_in(12) { self.address() } else { self.known(&self.made).unwrap_or(0) }
    }

    fn some_objects(&self) -> Vec<usize> {
        (0..self.below(6)).map(|_| self.object()).collect()
    }

    fn maybe<T>(&self, value: impl FnOnce() -> T) -> Option<T> {
        (!self.one_in(4)).then(value)
    }

    fn id(&self) -> AllocatorId {
        match self.below(8) {
            0 => AllocatorId::Guest(self.pick(&[0, 1, 2, 77, u32::MAX])),
            1 => AllocatorId::Own(self.pick(&[3, 4, 9, u32::MAX])),
            2..=3 => self.known(&self.ids).unwrap_or(AllocatorId::Own(0)),
            _ => AllocatorId::Own(self.below(3) as u32),
        }
    }

    fn spec(&self) -> TypeSpec {
        let kinds =
            [FieldKind::Object, FieldKind::Object, FieldKind::U8, FieldKind::I32, FieldKind::U32, FieldKind::I64, FieldKind::F64];
        let count = if self.one_in(16) { self.below(200) } else { self.below(5) };
        let fields = (0..count).map(|index| {
            let name = if self.one_in(50) {
                String::new()
            } else {
                ["a", "b", "c"].get(index).map_or_else(|| index.to_string(), |name| (*name).to_owned())
            };
            (name, self.pick(&kinds))
        });
        let fields = fields.collect();
        let flag = || !self.one_in(3);
        TypeSpec {
            name: self.pick(&["", "t", "weakref"]).to_owned(),
            fields,
            items: self.one_in(3).then(|| self.pick(&[ItemKind::Object, ItemKind::Byte])),
            gc: flag(),
            weakrefs: flag(),
            managed_dict: self.one_in(3),
            free_list: if self.one_in(4) { self.pick(&[1, 3, 300, usize::MAX]) } else { 0 },
            hooks: HookSet { traverse: flag(), clear: flag(), finalize: flag(), del: self.one_in(4), dealloc: flag() },
        }
    }

    fn kind(&self, heap: &ObjectHeap) -> Option<TypeId> {
        if self.types.borrow().is_empty() {
            self.take(heap.define_type(self.spec()));
        }
        self.known(&self.types)
    }

    fn field(&self) -> Field<'static> {
        match self.below(4) {
            0 => Field::Name(self.pick(&["a", "b", "z", ""])),
            1 => Field::Item(self.count()),
            _ => Field::Member(self.below(4)),
        }
    }

    fn value(&self) -> Value {
        match self.below(8) {
            0 => Value::Null,
            1 => Value::Number(self.pick(&[0.0, -1.0, 255.0, 256.0, 0.5, -0.0, f64::NAN, f64::INFINITY, 4e9, -1e300])),
            2 => Value::Integer(self.pick(&[0, -1, i64::MIN, i64::MAX])),
            _ => Value::Object(self.object()),
        }
    }

    fn fault(&self) -> Fault {
        Fault::new(FaultKind::ForeignPointer, self.address(), self.domain())
    }

    fn player(&self) -> Rc<Player> {
        self.pick(&self.players)
    }

    /// Notes what a call gave. The program may use these addresses and ids from now on. Some faults can only come from a stray write, and are
    /// errors here.
    fn take(&self, result: impl Taken) {
        result.taken(self);
    }

    /// Objects that a call made.
    fn make(&self, result: Result<usize, ObjectError>) -> Option<()> {
        if let Ok(object) = result {
            keep(&self.made, object, 24);
        }
        self.take(result);
        Some(())
    }

    fn go_wrong(&self, what: String) {
        self.wrong.borrow_mut().get_or_insert(what);
    }

    /// What happens inside a hook or a guest: other calls, and now and then a panic.
    fn disturb(self: &Rc<Self>) {
        if self.one_in(3) {
            for _ in 0..=self.below(3) {
                let Some(left) = self.fuel.get().checked_sub(1) else { break };
                self.fuel.set(left);
                let arm = any_arm(&mut self.random.borrow_mut(), FOCUS[0]);
                let call = || (ARMS[arm].run)(self);
                // A program may catch what it panics with inside, and go on with a heap that is closed.
                let _ = if self.one_in(2) { catch_planned(call) } else { call() };
            }
        }
        // A second panic while the first is on its way would end any program.
        if !std::thread::panicking() && self.one_in(100) {
            resume_unwind(Box::new(Planned));
        }
    }

    fn is_over(self: &Rc<Self>) -> bool {
        self.disturb();
        self.one_in(4)
    }

    /// Makes one call, and looks at all heaps.
    fn step(self: &Rc<Self>, op: Op) -> Result<(), String> {
        self.random.replace(Random::new(op.seed));
        self.fuel.set(if cfg!(miri) { 6 } else { 12 });
        let name = ARMS[op.arm].name;
        let result = catch_unwind(AssertUnwindSafe(|| (ARMS[op.arm].run)(self)));
        self.expect_planned(result.map(|_| ())).map_err(|error| format!("{name}: {error}"))?;
        self.look().map_err(|error| format!("after {name}: {error}"))
    }

    fn expect_planned(&self, result: Result<(), Box<dyn Any + Send>>) -> Result<(), String> {
        let Err(panic) = result else { return Ok(()) };
        if panic.is::<Planned>() {
            return Ok(());
        }
        let text = panic.downcast_ref::<String>().cloned();
        Err(text.or(panic.downcast_ref::<&str>().map(|&text| text.to_owned())).unwrap_or_else(|| "a panic".to_owned()))
    }

    /// Checks every heap that no panic has closed, and that no fault was found that can only come from a stray write.
    fn look(&self) -> Result<(), String> {
        if let Some(what) = self.wrong.borrow().clone() {
            return Err(what);
        }
        let say = |kind: &str, corruption: Corruption| format!("{kind}: {corruption}");
        self.heaps.borrow().iter().try_for_each(|heap| heap.verify().map_err(|found| say("Heap", found)))?;
        for heap in self.checked.borrow().iter() {
            heap.verify().map_err(|found| say("CheckedHeap", found))?;
            heap.verify_guards().map_err(|fault| format!("CheckedHeap: {fault}"))?;
            if heap.is_corrupted() || heap.is_closed() {
                return Err("CheckedHeap: corrupted or closed".to_owned());
            }
        }
        for heap in self.guests.borrow().iter() {
            let found = heap.verify();
            if !is_closed(heap) {
                found.map_err(|found| say("GuestHeap", found))?;
            }
        }
        for heap in self.objects.borrow().iter() {
            let (found, guards) = (heap.verify(), heap.verify_guards());
            if !heap.is_closed() {
                found.map_err(|found| say("ObjectHeap", found))?;
                guards.map_err(|fault| format!("ObjectHeap: {fault}"))?;
                if heap.is_corrupted() {
                    return Err("ObjectHeap: corrupted".to_owned());
                }
            }
        }
        if self.foreign.iter().any(|&word| word != FOREIGN) { Err("foreign memory was written to".to_owned()) } else { Ok(()) }
    }

    /// Drops everything.
    fn end(&self) -> Result<(), String> {
        self.fuel.set(0);
        self.drop_all(&self.heaps)?;
        self.drop_all(&self.checked)?;
        self.drop_all(&self.guests)?;
        self.drop_all(&self.objects)?;
        self.drop_all(&self.leaving)
    }

    fn drop_all<T>(&self, from: &RefCell<Vec<T>>) -> Result<(), String> {
        loop {
            let Some(next) = from.borrow_mut().pop() else { return Ok(()) };
            let result = catch_unwind(AssertUnwindSafe(|| drop(next)));
            self.expect_planned(result).map_err(|error| format!("at the end: {error}"))?;
        }
    }
}

/// Calls something, and ignores a panic that the program planned.
fn catch_planned(call: impl FnOnce() -> Option<()>) -> Option<()> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| if panic.is::<Planned>() { None } else { resume_unwind(panic) })
}

/// Whether a panic has closed a heap.
fn is_closed(heap: &GuestHeap) -> bool {
    let (Ok(own), Ok(id)) = (heap.own_allocators(), heap.allocator(Domain::Raw)) else { return false };
    matches!(own.free(id, None), Err(OwnError::Fault(Fault { kind: FaultKind::HeapClosed, .. })))
}

fn keep<T>(list: &RefCell<Vec<T>>, value: T, most: usize) {
    let mut list = list.borrow_mut();
    list.push(value);
    if list.len() > most {
        list.remove(0);
    }
}

/// What a function gives.
trait Taken {
    fn taken(self, world: &World);
}

impl<T: Taken, E: Taken> Taken for Result<T, E> {
    fn taken(self, world: &World) {
        match self {
            Ok(value) => value.taken(world),
            Err(error) => error.taken(world),
        }
    }
}

impl<T: Taken> Taken for Option<T> {
    fn taken(self, world: &World) {
        if let Some(value) = self {
            value.taken(world);
        }
    }
}

impl<T: Taken> Taken for Vec<T> {
    fn taken(self, world: &World) {
        self.into_iter().take(20).for_each(|value| value.taken(world));
    }
}

impl Taken for NonNull<u8> {
    fn taken(self, world: &World) {
        self.as_ptr().expose_provenance().taken(world);
    }
}

impl Taken for usize {
    fn taken(self, world: &World) {
        // A small one is a count.
        if self >= 1 << 20 {
            keep(&world.addresses, self, 32);
        }
    }
}

impl Taken for (usize, usize) {
    fn taken(self, world: &World) {
        self.0.taken(world);
        self.0.wrapping_add(self.1).taken(world);
    }
}

impl Taken for (usize, usize, Domain) {
    fn taken(self, world: &World) {
        self.0.taken(world);
    }
}

impl Taken for ArenaInfo {
    fn taken(self, world: &World) {
        (self.address, self.size).taken(world);
    }
}

impl Taken for PoolInfo {
    fn taken(self, world: &World) {
        self.address.taken(world);
    }
}

impl Taken for Window {
    fn taken(self, world: &World) {
        for part in [self.memory, self.live, self.objects, self.headers] {
            (part.as_ptr().expose_provenance(), part.len()).taken(world);
        }
    }
}

impl Taken for AllocatorId {
    fn taken(self, world: &World) {
        keep(&world.ids, self, 8);
    }
}

impl Taken for TypeId {
    fn taken(self, world: &World) {
        keep(&world.types, self, 6);
    }
}

impl Taken for Value {
    fn taken(self, world: &World) {
        if let Self::Object(object) = self {
            object.taken(world);
        }
    }
}

impl Taken for Fault {
    fn taken(self, world: &World) {
        use FaultKind::{BufferOverflow, BufferUnderflow, HeapCorrupted, WriteAfterFree};
        let text = self.to_string();
        if matches!(self.kind, BufferOverflow | BufferUnderflow | WriteAfterFree | HeapCorrupted) {
            world.go_wrong(format!("{:?} without a stray write: {text}", self.kind));
        }
    }
}

impl Taken for ObjectError {
    fn taken(self, world: &World) {
        match self {
            Self::Fault(fault) => fault.taken(world),
            other => drop(other.to_string()),
        }
    }
}

impl Taken for OwnError {
    fn taken(self, world: &World) {
        match self {
            Self::Fault(fault) => fault.taken(world),
            Self::Guest(fault) => fault.taken(world),
            other => drop(other.to_string()),
        }
    }
}

impl Taken for GuestFault {
    fn taken(self, world: &World) {
        drop(self.to_string());
        self.address.taken(world);
    }
}

/// What is only looked at.
macro_rules! only_text {
    ($($kind:ty),* $(,)?) => { $(impl Taken for $kind { fn taken(self, _: &World) { drop(format!("{self:?}")); } })* };
}

only_text!(
    (),
    bool,
    u32,
    [i32; 3],
    [usize; 3],
    StatsBytes,
    [GenerationStats; 3],
    &str,
    Profile,
    &Profile,
    Geometry,
    Corruption,
    HeapError,
    SetError,
    Undone,
    Stats,
    Trimmed,
    ArenaMapStats,
    Threw,
    Failed,
    AllocatorName,
    profile::Algorithm,
    profile::GeometryError,
    ItemKind,
    HookSet,
    obmalloc::Allocator,
    obmalloc::ArenaAllocator,
    HeapOptions,
    &[obmalloc::FieldInfo],
    &Type,
);

/// An allocator that keeps the rules, or does not.
struct Player(Weak<World>);

impl Player {
    fn ask(&self, answer: impl FnOnce(&Rc<World>) -> Answer) -> Answer {
        let Some(world) = self.0.upgrade() else { return Ok(None) };
        world.disturb();
        let answer = match world.below(16) {
            0 => Ok(Some(world.address())),
            1 => Ok(None),
            2 => Err(Threw(world.below(9) as u64)),
            3 => Ok(world.known(&world.addresses).map(|address| address.wrapping_add(16 * world.below(9)))),
            _ => answer(&world),
        };
        world.take(answer);
        answer
    }

    fn tell(&self, told: impl FnOnce(&Rc<World>) -> Result<(), OwnError>) -> Result<(), Threw> {
        let Some(world) = self.0.upgrade() else { return Ok(()) };
        world.disturb();
        match world.below(8) {
            0 => Err(Threw(1)),
            1 => Ok(()),
            _ => fail(&world, told(&world)),
        }
    }
}

fn fail<T>(world: &World, result: Result<T, OwnError>) -> Result<T, Threw> {
    result.map_err(|error| {
        world.take(error);
        Threw(7)
    })
}

/// Bytes before a block that a guest puts behind a header.
const HEADER: usize = 16;

impl Guest for Player {
    fn malloc(&self, own: &OwnAllocators<'_>, size: usize) -> Answer {
        self.ask(|world| match world.below(3) {
            0 => Ok(fail(world, own.malloc(world.id(), size.saturating_add(HEADER + 1)))?.map(|grant| grant + HEADER)),
            _ => fail(world, own.malloc(world.id(), size)),
        })
    }
    fn calloc(&self, own: &OwnAllocators<'_>, count: usize, size: usize) -> Answer {
        self.ask(|world| match world.below(6) {
            0 => fail(world, own.malloc(world.id(), count.saturating_mul(size))),
            _ => fail(world, own.calloc(world.id(), count, size)),
        })
    }
    fn realloc(&self, own: &OwnAllocators<'_>, address: Option<usize>, size: usize) -> Answer {
        self.ask(|world| match (world.below(6), address) {
            (0, Some(address)) => {
                let grant = own.realloc(world.id(), Some(address.wrapping_sub(HEADER)), size.saturating_add(HEADER));
                Ok(fail(world, grant)?.map(|grant| grant + HEADER))
            }
            (1, _) => {
                let moved = fail(world, own.malloc(world.id(), size))?;
                fail(world, own.free(world.id(), address))?;
                Ok(moved)
            }
            (2, _) => {
                fail(world, own.realloc(world.id(), address, size))?;
                Ok(address)
            }
            _ => fail(world, own.realloc(world.id(), address, size)),
        })
    }
    fn free(&self, own: &OwnAllocators<'_>, address: Option<usize>) -> Result<(), Threw> {
        self.tell(|world| {
            own.free(world.id(), address.map(|address| if world.one_in(3) { address.wrapping_sub(HEADER) } else { address }))
        })
    }
}

impl ArenaGuest for Player {
    fn alloc(&self, own: &OwnAllocators<'_>, size: usize) -> Answer {
        self.ask(|world| match world.below(4) {
            0 => Ok(fail(world, own.malloc(world.id(), size.saturating_add(HEADER)))?
                .map(|grant| grant + world.pick(&[0, 8, HEADER]))),
            _ => Ok(own.arena_alloc(size)),
        })
    }
    fn free(&self, own: &OwnAllocators<'_>, address: usize, size: usize) -> Result<(), Threw> {
        self.tell(|_| own.arena_free(address, size))
    }
}

/// Hooks that keep the rules, or do not.
#[derive(Clone)]
struct Mood(Weak<World>);

impl Mood {
    fn disturb(&self) {
        if let Some(world) = self.0.upgrade() {
            world.disturb();
        }
    }

    /// Something is done with the object, too.
    fn touch(&self, heap: &ObjectHeap, object: usize) {
        let Some(world) = self.0.upgrade() else { return };
        match world.below(8) {
            0 => world.take(heap.decref(object)),
            1 => world.take(heap.incref(object)),
            2 => world.take(heap.set(object, world.field(), world.value())),
            3 => world.take(heap.track(object)),
            4 => world.take(heap.gc_del(object)),
            _ => {}
        }
        world.disturb();
    }
}

impl Hooks for Mood {
    fn traverse(&self, heap: &ObjectHeap, _: TypeId, object: usize, visit: &mut Visit<'_>) -> Result<(), Failed> {
        let Some(world) = self.0.upgrade() else { return Ok(()) };
        self.disturb();
        match world.below(12) {
            0 => return Err(Failed),
            1 => world.take(visit(world.address())),
            2 => return Ok(()),
            _ => {}
        }
        for index in 0..12 {
            for field in [Field::Member(index), Field::Item(index)] {
                if let Ok(Value::Object(reference)) = heap.get(object, field)
                    && let Err(fault) = visit(reference)
                {
                    world.take(fault);
                    return Err(Failed);
                }
            }
        }
        Ok(())
    }
    fn clear(&self, heap: &ObjectHeap, _: TypeId, object: usize) {
        for index in 0..3 {
            let _ = heap.set(object, Field::Member(index), Value::Null);
        }
        self.touch(heap, object);
    }
    fn finalize(&self, heap: &ObjectHeap, _: TypeId, object: usize) {
        self.touch(heap, object);
    }
    fn del(&self, heap: &ObjectHeap, _: TypeId, object: usize) {
        self.touch(heap, object);
    }
    fn dealloc(&self, heap: &ObjectHeap, _: TypeId, object: usize) {
        self.touch(heap, object);
    }
    fn weakref_callback(&self, heap: &ObjectHeap, _: u64, reference: usize) {
        self.touch(heap, reference);
    }
    fn weakref_dropped(&self, _: u64) {
        self.disturb();
    }
    fn gc_callback(&self, heap: &ObjectHeap, _: Phase, _: &Info) {
        heap.is_scheduled();
        self.disturb();
    }
    fn collection_failed(&self, _: &ObjectHeap, error: ObjectError) {
        if let Some(world) = self.0.upgrade() {
            world.take(error);
        }
        self.disturb();
    }
    fn write(&self, text: &str) {
        assert!(!text.is_empty());
        self.disturb();
    }
}

/// Owners of functions that have to do with each other; one in three programs calls those of all.
const FOCUS: [&[&str]; 5] = [
    &["ObjectHeap", "Blocks", "Hooks"],
    &["ObjectHeap", "Blocks", "OwnAllocators"],
    &["GuestHeap", "OwnAllocators"],
    &["CheckedHeap"],
    &[],
];

/// Functions that look at something, and are called less often than what changes something.
const LOOKS: [&str; 13] =
    ["is_", "has_", "check_", "name", "profile", "geometry", "region", "stats", "arenas", "held", "touched", "threshold", "code"];

fn any_arm(random: &mut Random, focus: &[&str]) -> usize {
    let is_apt = |arm: &Arm| {
        let (owner, name) = arm.name.split_once("::").expect("a name in two parts");
        (focus.is_empty() || focus.contains(&owner)) && !LOOKS.iter().any(|look| name.starts_with(look))
    };
    let mut arm = random.below(ARMS.len());
    for _ in 0..12 {
        if is_apt(&ARMS[arm]) {
            break;
        }
        arm = random.below(ARMS.len());
    }
    arm
}

fn program(seed: u64) -> Vec<Op> {
    let mut random = Random::new(seed);
    let (count, focus) = (if cfg!(miri) { 40 } else { 120 }, FOCUS[random.below(FOCUS.len())]);
    (0..count).map(|_| Op { arm: any_arm(&mut random, focus), seed: random.next() }).collect()
}

fn run(seed: u64, ops: &[Op]) -> Result<(), String> {
    let world = World::new(seed);
    let fail = |index: usize, what: String| format!("call {index} of {}: {what}", ops.len());
    ops.iter().enumerate().try_for_each(|(index, &op)| world.step(op).map_err(|what| fail(index, what)))?;
    world.end()
}

fn check(seed: u64, ops: Vec<Op>) {
    if let Err(error) = run(seed, &ops) {
        eprintln!("seed {seed}: {error}");
        let shortest = shrink(ops, |ops| run(seed, ops).is_err());
        let error = run(seed, &shortest).err().unwrap_or(error);
        let shortest: Vec<_> = shortest.iter().map(|op| (ARMS[op.arm].name, op.seed)).collect();
        panic!("seed {seed}: {error}\nshortest: {shortest:#?}");
    }
}

/// How many random programs there are: `OBMALLOC_PROGRAMS`.
fn programs() -> u64 {
    let given = std::env::var("OBMALLOC_PROGRAMS").ok().and_then(|count| count.parse().ok());
    given.unwrap_or(if cfg!(miri) { 4 } else { 2000 })
}

#[test]
fn random_calls_of_everything_crash_nothing() {
    let seed = seed();
    // The harness's output would be lost if the process crashed, so this is written past it.
    let _ = writeln!(std::io::stderr(), "safe: OBMALLOC_SEED={seed}");
    for seed in (0..programs()).map(|index| seed + index) {
        check(seed, program(seed));
    }
}

#[test]
#[cfg_attr(miri, ignore = "the random test calls what there is time for")]
fn every_function_is_called_on_every_release_with_and_without_hooks() {
    for row in 0..2 * ROWS.len() as u64 {
        let mut random = Random::new(row + 1);
        check(row, (0..ARMS.len()).map(|arm| Op { arm, seed: random.next() }).collect());
    }
}

/// The public functions that a program can reach, and whether they are unsafe.
fn public_functions() -> BTreeMap<String, bool> {
    let files = sources::sources(&sources::root().join("crates/obmalloc/src"));
    let lib = &files.iter().find(|(name, _)| name == "lib.rs").expect("lib.rs").1;
    let mut public: BTreeSet<&str> =
        lib.split("\npub use ").skip(1).flat_map(|rest| sources::words(rest.split(';').next().unwrap_or_default())).collect();
    let modules: Vec<&str> = lib.split("\npub mod ").skip(1).filter_map(|rest| rest.split(';').next()).collect();
    let is_in = |name: &str, module: &str| name.starts_with(&format!("{module}/")) || *name == format!("{module}.rs");
    for (_, text) in files.iter().filter(|(name, _)| modules.iter().any(|module| is_in(name, module))) {
        for line in text.lines().filter_map(|line| line.strip_prefix("pub ")) {
            public.extend(sources::words(line).nth(1));
        }
    }
    let mut found = BTreeMap::new();
    for (_, text) in &files {
        let mut owner: Option<(&str, bool)> = None;
        for line in text.lines() {
            let is_trait = line.starts_with("pub trait ");
            if is_trait || (line.starts_with("impl") && !line.contains(" for ")) {
                let line = line.strip_prefix("impl<").map_or(line, |rest| rest.split_once("> ").map_or(rest, |(_, rest)| rest));
                let name = sources::words(line).find(|word| !matches!(*word, "impl" | "pub" | "trait" | "unsafe"));
                owner = name.filter(|name| public.contains(name)).map(|name| (name, is_trait));
            } else if line == "}" {
                owner = None;
            }
            let (prefix, owner) = match (owner, line.starts_with("pub ")) {
                (Some((owner, false)), _) => ("    pub ", owner),
                (Some((owner, true)), _) => ("    ", owner),
                (None, true) => ("pub ", "function"),
                (None, false) => continue,
            };
            // The macro `delegate` makes methods of lines that are indented once more.
            let line = line.strip_prefix("    ").filter(|inner| inner.starts_with("    pub fn ")).unwrap_or(line);
            let Some(rest) = line.strip_prefix(prefix) else { continue };
            let head: Vec<&str> = sources::words(rest).take_while(|word| *word != "fn").collect();
            let is_function = head.iter().all(|word| matches!(*word, "const" | "unsafe" | "extern" | "C"));
            let Some((_, name)) = rest.split_once("fn ").filter(|_| is_function) else { continue };
            let name = sources::words(name).next().expect("a name");
            if owner != "function" || public.contains(name) {
                found.insert(format!("{owner}::{name}"), head.contains(&"unsafe"));
            }
        }
    }
    found
}

#[test]
#[cfg_attr(miri, ignore = "reads the sources, and runs nothing of them")]
fn every_public_function_is_called_or_unsafe() {
    let found = public_functions();
    let of = |is_unsafe: bool| found.iter().filter(move |(_, of)| **of == is_unsafe).map(|(name, _)| name.as_str());
    let called: BTreeSet<&str> = ARMS.iter().map(|arm| arm.name).collect();
    let safe: BTreeSet<&str> = of(false).collect();
    let missing: Vec<_> = safe.difference(&called).collect();
    assert!(missing.is_empty(), "no arm calls {missing:#?}");
    // Derived, so no text of the sources has it.
    let gone: Vec<_> = called.difference(&safe).filter(|name| **name != "ArenaMapCounts::default").collect();
    assert!(gone.is_empty(), "no public function is {gone:#?}");
    assert_eq!(of(true).collect::<BTreeSet<_>>(), UNSAFE.iter().map(|(name, _)| *name).collect(), "functions that are unsafe");
}
