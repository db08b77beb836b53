//! Link options of libtcpr.so.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Programs that link it record this name.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libtcpr.so");
    // Its hooks stay referenced by other libraries: a dlclose must not take them away.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
