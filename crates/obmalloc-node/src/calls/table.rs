//! The tables of native methods: the name, arguments and result of each.

/// A table of methods, a line each: its name, what its arguments are called and [which kind](crate::args::kinds) each is of, the type of what it
/// gives in TypeScript, and the function that gets the converted arguments. All are converted, in order, before the function is called.
macro_rules! methods {
    ($to:expr, $($name:literal($($argument:ident: $kind:ident),*) -> $result:literal = $function:ident$(<$domain:ident>)?;)*) => {{
        $(
            #[inline(always)]
            fn $function$(<const $domain: u8>)?(
                core: &$crate::core::Core,
                env: $crate::js::Env,
                [$($argument),*]: [$crate::js::Value; <[&str]>::len(&[$(stringify!($argument)),*])],
            ) -> $crate::js::Outcome {
                $(let $argument = $crate::args::kinds::$kind(env, stringify!($argument), $argument)?;)*
                self::$function$(::<$domain>)?(core, env, $($argument),*)
            }
        )*
        let to = $to;
        $(
            $crate::shell::method(to, $name, [$(stringify!($argument)),*], $result, $function$(::<$domain>)?)?;
        )*
        Ok(())
    }};
}
pub(crate) use methods;
