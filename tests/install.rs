//! What `make install` puts where compilers look for it: a C program is built with it by pkg-config and by CMake.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a command that has to succeed. Returns what it writes.
fn run(command: &mut Command, install: &str) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e} ({install})"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}\n{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// A directory that goes with the test.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const WARNINGS: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];

#[test]
fn a_c_program_is_built_with_what_is_installed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let library = tcpr_lab::member::bin_dir().expect("a directory").join("libtcpr.so");
    assert!(library.exists(), "no {}: make build", library.display());
    let scratch = Scratch(std::env::temp_dir().join(format!("tcpr-install-{}", std::process::id())));
    let prefix = scratch.0.join("prefix");
    let to = format!("PREFIX={}", prefix.display());
    let mut make = Command::new("make");
    // Not as a part of the make that runs the tests.
    make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL").env_remove("DESTDIR");
    run(make.args(["-s", "install-files", &to]).current_dir(root), "make");
    let version = concat!(env!("CARGO_PKG_VERSION"), "\n");

    let config = || {
        let mut command = Command::new("pkg-config");
        command.env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"));
        command
    };
    let apt = "apt-get install pkgconf cmake";
    assert_eq!(run(config().args(["--modversion", "tcpr"]), apt), version);
    let flags = run(config().args(["--cflags", "--libs", "tcpr"]), apt);
    let source = root.join("examples/room_chat.c");
    let program = scratch.0.join("room_chat");
    let mut compiler = Command::new("cc");
    compiler.args(WARNINGS).arg("-o").arg(&program).arg(&source).args(flags.split_whitespace());
    run(&mut compiler, "apt-get install gcc");
    usage(&program, &prefix);

    let project = scratch.0.join("project");
    std::fs::create_dir_all(&project).expect("a directory");
    let text = format!(
        "cmake_minimum_required(VERSION 3.10)\nproject(example C)\nfind_package(tcpr {} REQUIRED)\n\
         add_executable(room_chat {})\ntarget_compile_options(room_chat PRIVATE {})\n\
         target_link_libraries(room_chat PRIVATE tcpr::tcpr)\n",
        version.trim(),
        source.display(),
        WARNINGS.join(" "),
    );
    std::fs::write(project.join("CMakeLists.txt"), text).expect("a project");
    let with = format!("-DCMAKE_PREFIX_PATH={}", prefix.display());
    run(Command::new("cmake").args(["-S", ".", "-B", "build", &with]).current_dir(&project), apt);
    run(Command::new("cmake").args(["--build", "build"]).current_dir(&project), apt);
    usage(&project.join("build/room_chat"), &prefix);
}

/// The program runs with the library that is installed: it says how it is used.
fn usage(program: &Path, prefix: &Path) {
    let output = Command::new(program).env("LD_LIBRARY_PATH", prefix.join("lib")).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && text.contains("usage:"), "{:?} {text}", output.status);
}
