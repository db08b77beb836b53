//! What programs are compiled and linked against is in `tests/abi.txt`: the symbols of `libtcpr.so`, and the declarations, constants
//! and layouts of `include/tcpr.h`. A program that was built yesterday runs with today's library, or this fails.
//!
//! To change it on purpose: `TCPR_WRITE_ABI=1 cargo test --release --test abi` writes the file anew. See CONTRIBUTING.md for what
//! may be changed how.

use std::path::Path;
use std::process::Command;

/// Runs a command that has to succeed. Returns what it writes.
fn run(command: &mut Command, install: &str) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e} ({install})"));
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// What the library exports.
fn symbols(library: &Path) -> Vec<String> {
    let all = run(Command::new("nm").args(["-D", "--defined-only", "--format=posix"]).arg(library), "apt-get install binutils");
    let mut symbols: Vec<String> = all.lines().filter_map(|line| Some(line.split(' ').next()?.to_owned())).collect();
    symbols.sort();
    symbols
}

/// The header without its comments, one line for each declaration.
fn declarations(header: &str) -> Vec<String> {
    let comments = |line: &&str| !line.trim_start().starts_with("//") && !line.contains("extern \"C\"");
    let code: String =
        header.split("*/").nth(1).expect("a comment at the top").lines().filter(comments).collect::<Vec<_>>().join("\n");
    let (preprocessor, rest): (Vec<&str>, Vec<&str>) = code.lines().partition(|line| line.starts_with('#'));
    let mut all: Vec<String> =
        preprocessor.into_iter().filter(|line| line.starts_with("#define TCPR_M")).map(str::to_owned).collect();
    let (mut declaration, mut depth) = (String::new(), 0);
    for c in rest.join("\n").chars() {
        depth += match c {
            '{' => 1,
            '}' => -1,
            _ => 0,
        };
        declaration.push(c);
        if c == ';' && depth == 0 {
            let words: Vec<&str> = declaration.split_whitespace().collect();
            all.push(words.join(" "));
            declaration.clear();
        }
    }
    all
}

/// The names between the braces of such a declaration.
fn members<'a>(declaration: &'a str, of: &str) -> Option<(&'a str, Vec<&'a str>)> {
    let (name, rest) = declaration.strip_prefix(of)?.split_once(" { ")?;
    let body = rest.strip_suffix(" };")?;
    let separator = if of == "struct " { ';' } else { ',' };
    let name_of = |member: &'a str| match separator {
        ';' => member.trim().rsplit(' ').next(),
        _ => member.trim().split(' ').next(),
    };
    Some((name, body.split(separator).filter_map(name_of).filter(|name| !name.is_empty()).collect()))
}

/// A C program that says how large everything is, and where.
fn questions(declarations: &[String]) -> String {
    let mut text = "#include <tcpr.h>\n#include <stdio.h>\nint main(void)\n{\n".to_owned();
    let mut ask = |what: &str, value: &str| text += &format!("    printf(\"{what} %ld\\n\", (long)({value}));\n");
    for declaration in declarations {
        if let Some(constant) = declaration.strip_prefix("#define ").and_then(|rest| rest.split(' ').next()) {
            ask(constant, constant);
        } else if let Some((name, members)) = members(declaration, "enum ") {
            ask(&format!("size of enum {name}"), &format!("sizeof(enum {name})"));
            members.iter().for_each(|member| ask(member, member));
        } else if let Some((name, members)) = members(declaration, "struct ") {
            ask(&format!("size of struct {name}"), &format!("sizeof(struct {name})"));
            for member in members {
                ask(&format!("offset of {name}.{member}"), &format!("offsetof(struct {name}, {member})"));
                ask(&format!("size of {name}.{member}"), &format!("sizeof(((struct {name} *)0)->{member})"));
            }
        }
    }
    text + "    return 0;\n}\n"
}

#[test]
fn symbols_and_layouts_are_those_of_the_list() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let library = tcpr_lab::member::bin_dir().expect("a directory").join("libtcpr.so");
    assert!(library.exists(), "no {}: make build", library.display());
    let header = std::fs::read_to_string(root.join("include/tcpr.h")).expect("include/tcpr.h");
    let declarations = declarations(&header);
    let symbols = symbols(&library);

    // Each declared function is there, and each other symbol with the prefix is one of the hot standby's own.
    let declares = |symbol: &String| declarations.iter().any(|d| d.contains(&format!("{symbol}(")));
    let ours: Vec<&String> = symbols.iter().filter(|symbol| symbol.starts_with("tcpr_")).collect();
    let functions = declarations.iter().filter(|d| d.contains("tcpr_") && d.ends_with(");")).count();
    assert_eq!(ours.iter().filter(|symbol| declares(symbol)).count(), functions, "each function of tcpr.h is exported");
    let undeclared: Vec<_> = ours.iter().filter(|symbol| !declares(symbol) && !symbol.starts_with("tcpr_hot_")).collect();
    assert!(functions > 30 && undeclared.is_empty(), "exported, and not in tcpr.h: {undeclared:?}");

    let scratch = std::env::temp_dir().join(format!("tcpr-abi-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).expect("a directory");
    let (source, program) = (scratch.join("abi.c"), scratch.join("abi"));
    std::fs::write(&source, questions(&declarations)).expect("written");
    let mut compiler = Command::new("cc");
    compiler
        .args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I"])
        .arg(root.join("include"))
        .arg("-o")
        .args([&program, &source]);
    run(&mut compiler, "apt-get install gcc");
    let layouts = run(&mut Command::new(&program), "");
    let _ = std::fs::remove_dir_all(&scratch);
    assert!(layouts.contains("TCPR_MAX_VALUE 32768") && layouts.contains("offset of tcpr_session_info.torn"), "{layouts}");

    let sections = [
        ("symbols of libtcpr.so", symbols.join("\n")),
        ("declarations of tcpr.h", declarations.join("\n")),
        ("constants and layouts, 64-bit Linux", layouts.trim_end().to_owned()),
    ];
    let now: String = sections.iter().map(|(title, text)| format!("== {title}\n{text}\n")).collect();
    let list = root.join("tests/abi.txt");
    if std::env::var_os("TCPR_WRITE_ABI").is_some() {
        std::fs::write(&list, &now).expect("tests/abi.txt is writable");
    }
    let there = std::fs::read_to_string(&list).unwrap_or_default();
    let differ =
        |a: &str, b: &str| a.lines().filter(|line| !b.lines().any(|other| other == *line)).collect::<Vec<_>>().join("\n");
    assert!(
        there == now,
        "what programs are built against has changed.\nNot any more:\n{}\nNew:\n{}\nIf that is meant: TCPR_WRITE_ABI=1 cargo test \
         --release --test abi; CONTRIBUTING.md says more",
        differ(&there, &now),
        differ(&now, &there)
    );
}
