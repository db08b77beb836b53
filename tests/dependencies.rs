//! Dependencies have licences that `deny.toml` allows, and come from crates.io.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Licences that are allowed for all crates, and further ones for some.
struct Allowed {
    all: BTreeSet<String>,
    of: BTreeMap<String, BTreeSet<String>>,
}

impl Allowed {
    fn read(root: &Path) -> Allowed {
        let text = std::fs::read_to_string(root.join("deny.toml")).expect("deny.toml");
        let table: toml::Table = text.parse().expect("deny.toml is TOML");
        let set = |list: &toml::Value| {
            let names = list.as_array().expect("a list").iter();
            names.map(|name| name.as_str().expect("a licence").to_owned()).collect()
        };
        let licenses = &table["licenses"];
        let exceptions = licenses["exceptions"].as_array().expect("a list").iter();
        let of = exceptions.map(|e| (e["crate"].as_str().expect("a name").to_owned(), set(&e["allow"]))).collect();
        Allowed { all: set(&licenses["allow"]), of }
    }

    /// Whether one may use a crate whose licence is this expression of SPDX.
    fn allows(&self, name: &str, expression: &str) -> bool {
        let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
        let words: Vec<&str> = spaced.split_whitespace().collect();
        let (allowed, rest) = self.any(name, &words);
        allowed && rest.is_empty()
    }

    /// A OR B.
    fn any<'a, 'b>(&self, name: &str, words: &'a [&'b str]) -> (bool, &'a [&'b str]) {
        let (mut allowed, mut rest) = self.every(name, words);
        while let ["OR", tail @ ..] = rest {
            let (next, tail) = self.every(name, tail);
            (allowed, rest) = (allowed | next, tail);
        }
        (allowed, rest)
    }

    /// A AND B, which binds tighter.
    fn every<'a, 'b>(&self, name: &str, words: &'a [&'b str]) -> (bool, &'a [&'b str]) {
        let (mut allowed, mut rest) = self.one(name, words);
        while let ["AND", tail @ ..] = rest {
            let (next, tail) = self.one(name, tail);
            (allowed, rest) = (allowed & next, tail);
        }
        (allowed, rest)
    }

    fn one<'a, 'b>(&self, name: &str, words: &'a [&'b str]) -> (bool, &'a [&'b str]) {
        match words {
            ["(", tail @ ..] => match self.any(name, tail) {
                (allowed, [")", rest @ ..]) => (allowed, rest),
                (_, rest) => (false, rest),
            },
            // An exception allows more than the licence.
            [licence, "WITH", _, rest @ ..] | [licence, rest @ ..] => {
                (self.all.contains(*licence) || self.of.get(name).is_some_and(|more| more.contains(*licence)), rest)
            }
            [] => (false, &[]),
        }
    }
}

#[test]
fn dependencies_have_allowed_licences_and_come_from_crates_io() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let allowed = Allowed::read(root);
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root)
        .output()
        .expect("cargo runs");
    assert!(out.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&out.stderr));
    let metadata: Value = serde_json::from_slice(&out.stdout).expect("cargo metadata writes JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let mut wrong = Vec::new();
    let mut foreign = 0;
    for package in packages.iter().filter(|package| !package["source"].is_null()) {
        let name = package["name"].as_str().expect("a name");
        let licence = package["license"].as_str().unwrap_or("");
        if !allowed.allows(name, licence) {
            wrong.push(format!("{name}: licence \"{licence}\""));
        }
        if package["source"] != CRATES_IO {
            wrong.push(format!("{name}: from {}", package["source"]));
        }
        foreign += 1;
    }
    assert!(foreign > 50, "cargo metadata names only {foreign} dependencies");
    assert!(wrong.is_empty(), "not allowed by deny.toml:\n{}", wrong.join("\n"));
}

#[test]
fn expressions_of_licences_are_read_as_spdx_says() {
    let allowed = Allowed {
        all: ["MIT", "ISC"].map(str::to_owned).into(),
        of: [("font".to_owned(), ["OFL-1.1".to_owned()].into())].into(),
    };
    for good in ["MIT", "GPL-3.0 OR MIT", "MIT/Apache-2.0", "MIT AND ISC", "(GPL-3.0 OR ISC) AND MIT", "MIT WITH some-exception"]
    {
        assert!(allowed.allows("any", good), "{good}");
    }
    for bad in ["", "GPL-3.0", "MIT AND GPL-3.0", "GPL-3.0 OR MIT AND GPL-2.0", "(MIT", "MIT MIT", "OFL-1.1 AND MIT"] {
        assert!(!allowed.allows("any", bad), "{bad}");
    }
    assert!(allowed.allows("font", "OFL-1.1 AND MIT"));
}
