//! Link options of libtcpr_hot.so.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libtcpr_hot.so");
    // Its hooks stay referenced by other libraries: a dlclose must not take them away.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
