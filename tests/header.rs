//! `include/tcpr.h` is made of the documentation and declarations in `src/api` and checked in.
//! `TCPR_WRITE_HEADER=1 cargo test --test header` writes it anew.

use std::path::Path;

/// What cbindgen makes of the sources, without the sections that are for Rust callers only.
fn generated(root: &Path) -> String {
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml");
    // It follows the modules itself.
    let builder = cbindgen::Builder::new().with_config(config).with_src(root.join("src/api/mod.rs"));
    let mut bytes = Vec::new();
    builder.generate().expect("cbindgen").write(&mut bytes);
    let text = String::from_utf8(bytes).expect("text");
    let mut kept = Vec::new();
    let mut safety = false;
    for line in text.lines() {
        safety = line.starts_with("//") && (safety || line == "// # Safety");
        if safety && kept.last() == Some(&"//") {
            kept.pop();
        }
        if !safety {
            kept.push(line);
        }
    }
    kept.join("\n") + "\n"
}

#[test]
fn the_header_is_what_the_sources_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let header = root.join("include/tcpr.h");
    let generated = generated(root);
    if std::env::var_os("TCPR_WRITE_HEADER").is_some() {
        std::fs::write(&header, &generated).expect("include/tcpr.h is writable");
    }
    let declared: Vec<&str> = generated.lines().filter(|line| line.contains("tcpr_") && line.ends_with(");")).collect();
    let once: std::collections::BTreeSet<_> = declared.iter().collect();
    assert!(declared.len() > 30 && once.len() == declared.len(), "something is declared twice, or not at all");
    let there = std::fs::read_to_string(&header).unwrap_or_default();
    assert!(there == generated, "include/tcpr.h is not up to date: TCPR_WRITE_HEADER=1 cargo test --test header");
}
