//! Runs the examples: each asserts what it shows.

macro_rules! examples {
    ($($name:ident $path:literal)+) => {$(
        #[path = $path]
        mod $name;

        #[test]
        fn $name() {
            $name::main().expect("what it asserts");
        }
    )+};
}

examples! {
    malloc "../examples/malloc.rs"
    checked "../examples/checked.rs"
    objects "../examples/objects.rs"
    bump_allocator "../examples/bump_allocator.rs"
    pool_allocator "../examples/pool_allocator.rs"
    wrap_allocator "../examples/wrap_allocator.rs"
}
