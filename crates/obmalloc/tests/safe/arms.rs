//! A call of every function, with arguments from what there is.

use super::*;

use obmalloc::Blocks;

/// Names each function, and gives it to its call under the first name between the bars.
macro_rules! arms {
    ($($owner:ident :: $name:ident => |$call:ident, $w:ident| $body:expr;)*) => {
        &[$(Arm {
            name: concat!(stringify!($owner), "::", stringify!($name)),
            run: |$w: &Rc<World>| {
                let $call = $owner::$name;
                $body
            },
        }),*]
    };
}

/// Makes a call and notes its result.
macro_rules! take {
    ($w:ident, $result:expr) => {{
        $w.take($result);
        Some(())
    }};
}

/// The same, with a heap's own allocators.
macro_rules! own {
    ($w:ident, |$own:ident| $result:expr) => {{
        let heap = $w.lender()?;
        let $own = &heap.own_allocators().map_err(|error| $w.take(error)).ok()?;
        take!($w, $result)
    }};
}

pub const ARMS: &[Arm] = arms! {
    AllocatorName::name => |call, w| take!(w, call(w.pick(&AllocatorName::ALL)));
    AllocatorName::named => |call, w| take!(w, call(w.pick(&["debug", "malloc", "mimalloc", ""])));
    AllocatorName::has_pymalloc => |call, w| take!(w, call(w.pick(&AllocatorName::ALL)));
    AllocatorName::has_debug_hooks => |call, w| take!(w, call(w.pick(&AllocatorName::ALL)));
    Domain::name => |call, w| take!(w, call(w.domain()));
    FaultKind::code => |call, w| take!(w, call(w.fault().kind));
    Fault::new => |call, w| take!(w, call(FaultKind::DoubleFree, w.address(), w.domain()));
    FieldKind::size => |call, w| take!(w, call(w.pick(&[FieldKind::Object, FieldKind::U8, FieldKind::I32, FieldKind::F64])));
    Geometry::size_classes => |call, w| take!(w, call(&w.geometry()));
    Geometry::pools_per_arena => |call, w| take!(w, call(&w.geometry()));
    Geometry::block_size => |call, w| take!(w, call(&w.geometry(), w.below(4096)));
    Geometry::blocks_per_pool => |call, w| take!(w, call(&w.geometry(), w.below(4096)));
    Geometry::check => |call, w| take!(w, call(&w.geometry()));
    Profile::release => |call, w| take!(w, call(&w.profile()));
    Profile::geometry => |call, w| take!(w, call(&w.profile()));
    Profile::algorithm => |call, w| take!(w, call(&w.profile()));
    Profile::without_arena_map => |call, w| take!(w, call(&w.profile()));
    Profile::named => |call, w| take!(w, call(w.pick(&["3.8", "3.14.0", "", "4"])));
    Profile::of_version => |call, w| take!(w, call(w.pick(&["3.8.1", "3.12.99999999999", "3", "", "3..", "3.13.12"])));
    HeapOptions::new => |call, w| take!(w, call(&w.profile()));

    ArenaMapCounts::new => |call, w| {
        keep(&w.maps, call(&w.profile()), 3);
        Some(())
    };
    ArenaMapCounts::default => |call, w| {
        keep(&w.maps, call(), 3);
        Some(())
    };
    ArenaMapCounts::mark_used => |call, w| {
        let mut map = w.maps.borrow_mut().pop()?;
        let done = call(&mut map, w.address() as u64, |size| {
            w.take(size);
            w.disturb();
            !w.one_in(4)
        });
        keep(&w.maps, map, 3);
        take!(w, done)
    };
    ArenaMapCounts::stats => |call, w| take!(w, call(w.maps.borrow().last()?));

    ArenaMapStats::lost => |call, w| take!(w, call(&w.maps.borrow().last()?.stats()?));
    Stats::bytes => |call, w| take!(w, call(&w.heap()?.stats()));
    Stats::arenas_reclaimed => |call, w| take!(w, call(&w.heap()?.stats()));
    StatsBytes::total => |call, w| take!(w, call(&w.heap()?.stats().bytes()));

    Heap::new => |call, w| w.add(&w.heaps, call(&w.profile())).map(drop);
    Heap::with_options => |call, w| w.add(&w.heaps, call(w.options())).map(drop);
    Heap::profile => |call, w| take!(w, call(&*w.heap()?));
    Heap::geometry => |call, w| take!(w, call(&*w.heap()?));
    Heap::malloc => |call, w| w.leave(call(&*w.heap()?, w.domain(), w.size()));
    Heap::calloc => |call, w| w.leave(call(&*w.heap()?, w.domain(), w.count(), w.size()));
    Heap::allocator => |call, w| take!(w, call(&*w.heap()?, w.domain()));
    Heap::arena_allocator => |call, w| take!(w, call(&*w.heap()?));
    Heap::region => |call, w| take!(w, call(&*w.heap()?));
    Heap::allocated_blocks => |call, w| take!(w, call(&*w.heap()?));
    Heap::arenas => |call, w| take!(w, call(&*w.heap()?));
    Heap::arena_base => |call, w| take!(w, call(&*w.heap()?, w.address()));
    Heap::pool => |call, w| take!(w, call(&*w.heap()?, w.address()));
    Heap::used_blocks => |call, w| take!(w, call(&*w.heap()?, w.address(), &mut vec![w.one_in(2); w.below(2100)]));
    Heap::stats => |call, w| take!(w, call(&*w.heap()?));
    Heap::trim => |call, w| take!(w, call(&*w.heap()?));
    Heap::forget_pool => |call, w| take!(w, call(&*w.heap()?, w.address() & !w.pick(&[0, (4 << 10) - 1, (16 << 10) - 1])));
    Heap::verify => |call, w| take!(w, call(&*w.heap()?));

    CheckedHeap::new => |call, w| w.add(&w.checked, call(w.options())).map(drop);
    CheckedHeap::profile => |call, w| take!(w, call(&*w.checked()?));
    CheckedHeap::geometry => |call, w| take!(w, call(&*w.checked()?));
    CheckedHeap::malloc => |call, w| take!(w, call(&*w.checked()?, w.domain(), w.size()));
    CheckedHeap::calloc => |call, w| take!(w, call(&*w.checked()?, w.domain(), w.count(), w.size()));
    CheckedHeap::realloc => |call, w| take!(w, call(&*w.checked()?, w.domain(), w.maybe(|| w.address()), w.size()));
    CheckedHeap::free => |call, w| take!(w, call(&*w.checked()?, w.domain(), w.address()));
    CheckedHeap::free_null => |call, w| take!(w, call(&*w.checked()?, w.domain()));
    CheckedHeap::usable_size => |call, w| take!(w, call(&*w.checked()?, w.domain(), w.address()));
    CheckedHeap::owns => |call, w| take!(w, call(&*w.checked()?, w.address()));
    CheckedHeap::region => |call, w| take!(w, call(&*w.checked()?));
    CheckedHeap::held => |call, w| take!(w, call(&*w.checked()?));
    CheckedHeap::set_nomemory => |call, w| take!(w, call(&*w.checked()?, w.count(), w.maybe(|| w.count())));
    CheckedHeap::remove_nomemory => |call, w| take!(w, call(&*w.checked()?));
    CheckedHeap::set_refusing => |call, w| take!(w, call(&*w.checked()?, w.one_in(2)));
    CheckedHeap::is_closed => |call, w| take!(w, call(&*w.checked()?));
    CheckedHeap::allocated_blocks => |call, w| take!(w, call(&*w.checked()?));
    CheckedHeap::arenas => |call, w| take!(w, call(&*w.checked()?));
    CheckedHeap::arena_base => |call, w| take!(w, call(&*w.checked()?, w.address()));
    CheckedHeap::pool => |call, w| take!(w, call(&*w.checked()?, w.address()));
    CheckedHeap::used_blocks => |call, w| take!(w, call(&*w.checked()?, w.address(), &mut vec![w.one_in(2); w.below(2100)]));
    CheckedHeap::stats => |call, w| take!(w, call(&*w.checked()?));
    CheckedHeap::trim => |call, w| take!(w, call(&*w.checked()?));
    CheckedHeap::setup_debug_hooks => |call, w| take!(w, call(&*w.checked()?));
    CheckedHeap::has_debug_hooks => |call, w| take!(w, call(&*w.checked()?));
    CheckedHeap::take_fault => |call, w| take!(w, call(&*w.checked()?));
    CheckedHeap::is_quarantining => |call, w| take!(w, call(&*w.checked()?));
    CheckedHeap::is_corrupted => |call, w| take!(w, call(&*w.checked()?));
    CheckedHeap::verify_guards => |call, w| take!(w, call(&*w.checked()?));
    CheckedHeap::check_free => |call, w| take!(w, call(&*w.checked()?, w.domain(), w.address()));
    CheckedHeap::check_realloc => |call, w| take!(w, call(&*w.checked()?, w.domain(), w.address()));
    CheckedHeap::verify => |call, w| take!(w, call(&*w.checked()?));
    CheckedHeap::take_late_fault => |call, w| take!(w, call(&*w.checked()?));
    CheckedHeap::empty_quarantine => |call, w| take!(w, call(&*w.checked()?));

    GuestHeap::new => |call, w| w.add(&w.guests, call(w.options())).map(drop);
    GuestHeap::allocator => |call, w| take!(w, call(&*w.guest_heap()?, w.domain()));
    GuestHeap::add_guest => |call, w| take!(w, call(&*w.guest_heap()?, w.player()));
    GuestHeap::set_allocator => |call, w| take!(w, call(&*w.guest_heap()?, w.domain(), w.id()));
    GuestHeap::own_allocators => |call, w| take!(w, call(&*w.guest_heap()?).map(drop));
    GuestHeap::set_arena_guest => |call, w| {
        let guest = w.maybe(|| w.player() as Rc<dyn ArenaGuest>);
        take!(w, call(&*w.guest_heap()?, guest))
    };
    GuestHeap::take_guest_fault => |call, w| take!(w, call(&*w.guest_heap()?));
    GuestHeap::malloc => |call, w| take!(w, call(&*w.guest_heap()?, w.domain(), w.size()));
    GuestHeap::calloc => |call, w| take!(w, call(&*w.guest_heap()?, w.domain(), w.count(), w.size()));
    GuestHeap::realloc => |call, w| take!(w, call(&*w.guest_heap()?, w.domain(), w.maybe(|| w.address()), w.size()));
    GuestHeap::free => |call, w| take!(w, call(&*w.guest_heap()?, w.domain(), w.address()));
    GuestHeap::free_null => |call, w| take!(w, call(&*w.guest_heap()?, w.domain()));
    GuestHeap::remove_nomemory => |call, w| take!(w, call(&*w.guest_heap()?));
    GuestHeap::trim => |call, w| take!(w, call(&*w.guest_heap()?));
    GuestHeap::verify => |call, w| take!(w, call(&*w.guest_heap()?));
    GuestHeap::take_down => |call, w| {
        let down = call(w.alone(&w.guests)?);
        w.leave_heap(down)
    };

    OwnAllocators::is_raw => |call, w| own!(w, |own| call(own, w.id()));
    OwnAllocators::domain_block => |call, w| own!(w, |own| call(own, w.id(), w.address()).map(Domain::name));
    OwnAllocators::malloc => |call, w| own!(w, |own| call(own, w.id(), w.size()));
    OwnAllocators::calloc => |call, w| own!(w, |own| call(own, w.id(), w.count(), w.size()));
    OwnAllocators::realloc => |call, w| own!(w, |own| call(own, w.id(), w.maybe(|| w.address()), w.size()));
    OwnAllocators::free => |call, w| own!(w, |own| call(own, w.id(), w.maybe(|| w.address())));
    OwnAllocators::grant_size => |call, w| own!(w, |own| call(own, w.address()));
    OwnAllocators::arena_alloc => |call, w| own!(w, |own| call(own, w.pick(&[64 << 10, 256 << 10, 1 << 20, w.size()])));
    OwnAllocators::arena_free => |call, w| {
        let size = w.pick(&[64 << 10, 256 << 10, 1 << 20, w.size()]);
        own!(w, |own| call(own, w.address(), size))
    };

    Guest::malloc => |call, w| own!(w, |own| call(w.player().as_ref(), own, w.size()));
    Guest::calloc => |call, w| own!(w, |own| call(w.player().as_ref(), own, w.count(), w.size()));
    Guest::realloc => |call, w| own!(w, |own| call(w.player().as_ref(), own, w.maybe(|| w.address()), w.size()));
    Guest::free => |call, w| own!(w, |own| call(w.player().as_ref(), own, w.maybe(|| w.address())));
    ArenaGuest::alloc => |call, w| own!(w, |own| call(w.player().as_ref(), own, w.size()));
    ArenaGuest::free => |call, w| own!(w, |own| call(w.player().as_ref(), own, w.address(), w.size()));

    TakeDown::go_on => |call, w| {
        let mut down = w.leaving.borrow_mut().pop()?;
        let is_done = call(&mut down, || w.is_over());
        if !is_done || w.one_in(2) { w.leave_heap(down) } else { Some(()) }
    };
    TakeDown::take_guest_fault => |call, w| {
        let mut down = w.leaving.borrow_mut().pop()?;
        w.take(call(&mut down));
        w.leave_heap(down)
    };

    Blocks::malloc => |call, w| take!(w, call(&w.object_heap()?.blocks(), w.domain(), w.size()));
    Blocks::calloc => |call, w| take!(w, call(&w.object_heap()?.blocks(), w.domain(), w.count(), w.size()));
    Blocks::realloc => |call, w| take!(w, call(&w.object_heap()?.blocks(), w.domain(), w.maybe(|| w.address()), w.size()));
    Blocks::free => |call, w| take!(w, call(&w.object_heap()?.blocks(), w.domain(), w.address()));
    Blocks::free_null => |call, w| take!(w, call(&w.object_heap()?.blocks(), w.domain()));
    Blocks::usable_size => |call, w| take!(w, call(&w.object_heap()?.blocks(), w.domain(), w.address()));
    Blocks::check_free => |call, w| take!(w, call(&w.object_heap()?.blocks(), w.domain(), w.address()));
    Blocks::check_realloc => |call, w| take!(w, call(&w.object_heap()?.blocks(), w.domain(), w.address()));
    Blocks::is_guests => |call, w| take!(w, call(&w.object_heap()?.blocks(), w.domain(), w.address()));
    Blocks::owns => |call, w| take!(w, call(&w.object_heap()?.blocks(), w.address()));

    ObjectHeap::new => |call, w| w.add(&w.objects, call(w.options(), w.hooks())).map(drop);
    ObjectHeap::blocks => |call, w| take!(w, call(&*w.object_heap()?).malloc(Domain::Obj, w.size()));
    ObjectHeap::profile => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::geometry => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::region => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::allocated_blocks => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::arenas => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::arena_base => |call, w| take!(w, call(&*w.object_heap()?, w.address()));
    ObjectHeap::pool => |call, w| take!(w, call(&*w.object_heap()?, w.address()));
    ObjectHeap::used_blocks => |call, w| take!(w, call(&*w.object_heap()?, w.address(), &mut vec![w.one_in(2); w.below(2100)]));
    ObjectHeap::stats => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::window => |call, w| take!(w, call(&*w.object_heap()?, w.pick(&[0, 0, 1, 2, w.below(9), usize::MAX])));
    ObjectHeap::has_types => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::is_plain => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::held => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::touched => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::setup_debug_hooks => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::has_debug_hooks => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::verify_guards => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::take_fault => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::take_late_fault => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::is_corrupted => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::is_quarantining => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::is_closed => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::trim => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::empty_quarantine => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::set_nomemory => |call, w| take!(w, call(&*w.object_heap()?, w.count(), w.maybe(|| w.count())));
    ObjectHeap::remove_nomemory => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::set_refusing => |call, w| take!(w, call(&*w.object_heap()?, w.one_in(2)));
    ObjectHeap::allocator => |call, w| take!(w, call(&*w.object_heap()?, w.domain()));
    ObjectHeap::add_guest => |call, w| take!(w, call(&*w.object_heap()?, w.player()));
    ObjectHeap::set_allocator => |call, w| take!(w, call(&*w.object_heap()?, w.domain(), w.id()));
    ObjectHeap::own_allocators => |call, w| take!(w, call(&*w.object_heap()?).map(drop));
    ObjectHeap::set_arena_guest => |call, w| {
        let guest = w.maybe(|| w.player() as Rc<dyn ArenaGuest>);
        take!(w, call(&*w.object_heap()?, guest))
    };
    ObjectHeap::has_guests => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::calls_guests => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::take_guest_fault => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::verify => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::take_down => |call, w| {
        let down = call(w.alone(&w.objects)?);
        w.leave_heap(down)
    };

    ObjectHeap::define_type => |call, w| take!(w, call(&*w.object_heap()?, w.spec()));
    ObjectHeap::type_info => |call, w| {
        let heap = w.object_heap()?;
        let kind = w.kind(&heap)?;
        let info = catch_unwind(AssertUnwindSafe(|| call(&heap, kind)));
        match info {
            Ok(info) => w.take(info),
            // Another heap's type: the documentation says that this panics, and a program may let it.
            Err(_) if w.one_in(2) && !std::thread::panicking() => resume_unwind(Box::new(Planned)),
            Err(_) => {}
        }
        Some(())
    };
    ObjectHeap::type_of => |call, w| take!(w, call(&*w.object_heap()?, w.object()));
    ObjectHeap::nitems => |call, w| take!(w, call(&*w.object_heap()?, w.object()));
    ObjectHeap::refcount => |call, w| take!(w, call(&*w.object_heap()?, w.object()));
    ObjectHeap::incref => |call, w| take!(w, call(&*w.object_heap()?, w.object()));
    ObjectHeap::decref => |call, w| take!(w, call(&*w.object_heap()?, w.object()));
    ObjectHeap::set_immortal => |call, w| take!(w, call(&*w.object_heap()?, w.object()));
    ObjectHeap::alloc => |call, w| {
        let heap = w.object_heap()?;
        w.make(call(&heap, w.kind(&heap)?, w.count()))
    };
    ObjectHeap::new_object => |call, w| {
        let heap = w.object_heap()?;
        w.make(call(&heap, w.kind(&heap)?))
    };
    ObjectHeap::new_var => |call, w| {
        let heap = w.object_heap()?;
        w.make(call(&heap, w.kind(&heap)?, w.count()))
    };
    ObjectHeap::init => |call, w| {
        let heap = w.object_heap()?;
        let block = heap.blocks().malloc(Domain::Obj, w.size());
        w.take(block);
        w.make(call(&heap, w.kind(&heap)?, w.address()))
    };
    ObjectHeap::init_var => |call, w| {
        let heap = w.object_heap()?;
        w.make(call(&heap, w.kind(&heap)?, w.address(), w.count()))
    };
    ObjectHeap::check_init => |call, w| {
        let heap = w.object_heap()?;
        take!(w, call(&heap, w.kind(&heap)?, w.address(), w.count()))
    };
    ObjectHeap::gc_resize => |call, w| w.make(call(&*w.object_heap()?, w.object(), w.count()));
    ObjectHeap::get => |call, w| take!(w, call(&*w.object_heap()?, w.object(), w.field()));
    ObjectHeap::set => |call, w| take!(w, call(&*w.object_heap()?, w.object(), w.field(), w.value()));
    ObjectHeap::new_weakref => |call, w| {
        let callback = w.maybe(|| NonZeroU64::new(1 + w.below(5) as u64)).flatten();
        w.make(call(&*w.object_heap()?, w.object(), callback))
    };
    ObjectHeap::deref_weakref => |call, w| take!(w, call(&*w.object_heap()?, w.object()));
    ObjectHeap::run_scheduled => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::is_scheduled => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::track => |call, w| take!(w, call(&*w.object_heap()?, w.object()));
    ObjectHeap::untrack => |call, w| take!(w, call(&*w.object_heap()?, w.object()));
    ObjectHeap::is_tracked => |call, w| take!(w, call(&*w.object_heap()?, w.object()));
    ObjectHeap::is_finalized => |call, w| take!(w, call(&*w.object_heap()?, w.object()));
    ObjectHeap::gc_del => |call, w| take!(w, call(&*w.object_heap()?, w.object()));
    ObjectHeap::collect => |call, w| take!(w, call(&*w.object_heap()?, w.pick(&[0, 1, 2, 2, 3, usize::MAX])));
    ObjectHeap::enable_gc => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::disable_gc => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::gc_is_enabled => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::threshold => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::set_threshold => |call, w| {
        let number = || w.pick(&[1, 1, 2, 10, 0, -1, i32::MIN, i32::MAX]);
        take!(w, call(&*w.object_heap()?, number(), w.maybe(number), w.maybe(number)))
    };
    ObjectHeap::count => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::gc_stats => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::objects => |call, w| take!(w, call(&*w.object_heap()?, w.maybe(|| w.pick(&[0, 1, 2, 3, usize::MAX]))));
    ObjectHeap::referrers => |call, w| take!(w, call(&*w.object_heap()?, &w.some_objects()));
    ObjectHeap::referents => |call, w| take!(w, call(&*w.object_heap()?, &w.some_objects()));
    ObjectHeap::freeze => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::unfreeze => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::freeze_count => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::set_debug => |call, w| take!(w, call(&*w.object_heap()?, w.pick(&[0, 1, 6, 32, 39, u32::MAX])));
    ObjectHeap::debug => |call, w| take!(w, call(&*w.object_heap()?));
    ObjectHeap::take_garbage => |call, w| take!(w, call(&*w.object_heap()?));

    TypeId::index => |call, w| take!(w, call(w.known(&w.types)?));
    Type::id => |call, w| w.with_type(|kind| take!(w, call(kind)));
    Type::name => |call, w| w.with_type(|kind| take!(w, call(kind)));
    Type::basicsize => |call, w| w.with_type(|kind| take!(w, call(kind)));
    Type::itemsize => |call, w| w.with_type(|kind| take!(w, call(kind)));
    Type::items => |call, w| w.with_type(|kind| take!(w, call(kind)));
    Type::fields => |call, w| w.with_type(|kind| take!(w, call(kind)));
    Type::hooks => |call, w| w.with_type(|kind| take!(w, call(kind)));
    Type::is_gc => |call, w| w.with_type(|kind| take!(w, call(kind)));
    Type::presize => |call, w| w.with_type(|kind| take!(w, call(kind)));

    Hooks::traverse => |call, w| {
        let heap = w.object_heap()?;
        let result = call(&w.mood, &heap, w.kind(&heap)?, w.object(), &mut |reference| {
            w.take(reference);
            w.disturb();
            if w.one_in(4) { Err(w.fault()) } else { Ok(()) }
        });
        take!(w, result)
    };
    Hooks::clear => |call, w| w.with_kind(|heap, kind| call(&w.mood, heap, kind, w.object()));
    Hooks::finalize => |call, w| w.with_kind(|heap, kind| call(&w.mood, heap, kind, w.object()));
    Hooks::del => |call, w| w.with_kind(|heap, kind| call(&w.mood, heap, kind, w.object()));
    Hooks::dealloc => |call, w| w.with_kind(|heap, kind| call(&w.mood, heap, kind, w.object()));
    Hooks::weakref_callback => |call, w| w.with_kind(|heap, _| call(&w.mood, heap, 1, w.object()));
    Hooks::weakref_dropped => |call, w| take!(w, call(&w.mood, 1));
    Hooks::gc_callback => |call, w| w.with_kind(|heap, _| call(&w.mood, heap, Phase::Start, &Info::default()));
    Hooks::collection_failed => |call, w| w.with_kind(|heap, _| call(&w.mood, heap, ObjectError::NoMemory));
    Hooks::write => |call, w| take!(w, call(&w.mood, "text"));
};

/// What arms of one kind have in common.
impl World {
    /// A block of a heap that trusts its caller.
    fn leave(&self, block: Option<NonNull<u8>>) -> Option<()> {
        let block = block?;
        LEFT.lock().ok()?.push(AtomicPtr::new(block.as_ptr()));
        self.take(block);
        Some(())
    }

    fn leave_heap(&self, down: TakeDown) -> Option<()> {
        let is_full = self.leaving.borrow().len() >= HEAPS;
        let gone = is_full.then(|| self.leaving.borrow_mut().remove(0));
        self.leaving.borrow_mut().push(down);
        drop(gone);
        Some(())
    }

    /// A heap with allocators of its own.
    fn lender(&self) -> Option<Lender> {
        Some(if self.one_in(2) { Lender::Guests(self.guest_heap()?) } else { Lender::Objects(self.object_heap()?) })
    }

    fn with_kind(&self, call: impl FnOnce(&ObjectHeap, TypeId)) -> Option<()> {
        let heap = self.object_heap()?;
        call(&heap, self.kind(&heap)?);
        Some(())
    }

    fn with_type(&self, call: impl FnOnce(&Type) -> Option<()>) -> Option<()> {
        let heap = self.object_heap()?;
        let kind = heap.define_type(self.spec()).ok()?;
        self.take(kind);
        call(heap.type_info(kind))
    }
}

enum Lender {
    Guests(Rc<GuestHeap>),
    Objects(Rc<ObjectHeap>),
}

impl Lender {
    fn own_allocators(&self) -> Result<OwnAllocators<'_>, HeapError> {
        match self {
            Self::Guests(heap) => heap.own_allocators(),
            Self::Objects(heap) => heap.own_allocators(),
        }
    }
}
