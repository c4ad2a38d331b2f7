//! The tables of native methods: the name, arguments and result of each.

#![forbid(unsafe_code)]

/// A table of methods. Each line has the name, the names and [kinds](crate::args::kinds) of the arguments, the result's type in TypeScript, and the
/// function that gets the converted arguments. All are converted, in order, before the function is called.
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
