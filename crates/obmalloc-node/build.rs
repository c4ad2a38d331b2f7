//! Link arguments of a Node.js addon.

fn main() {
    // With dlltool's libraries, napi-build wants a library of Node.js's, which is not needed here.
    if std::env::var("TARGET").is_ok_and(|target| target != "x86_64-pc-windows-gnu") {
        napi_build::setup();
    }
    if std::env::var("CARGO_CFG_TARGET_FAMILY").is_ok_and(|family| family == "wasm") {
        // The functions that JavaScript calls are called through the table.
        println!("cargo:rustc-cdylib-link-arg=--export-table");
    }
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        // A worker that ends must not unload code that finalizers and thread-local storage of others still point to.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
}
