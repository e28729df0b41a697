//! Compresses the debug information of the binaries: with it, backtraces name file and line, and
//! without compression it is three quarters of their size. What prints a backtrace (the standard
//! library), `gdb` and `addr2line` read it as it is.
//!
//! Watches the folder of golden scripts, too: each file in it is a test, so a new one is a reason
//! to compile.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=testdata");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo:rustc-link-arg-bins=-Wl,--compress-debug-sections=zlib");
    }
}
