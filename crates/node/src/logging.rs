//! What is written to the log, and in which form: one line for an event, with its data as `key=value` behind the words.
//!
//! The variable `TCPR_LOG` says how much: a level (`debug`), or levels of single targets beside the level of all others
//! (`link=debug,info`). A target is the module that a line is from.

use std::fmt;

use env_filter::{Builder, Filter};
use log::kv::{Error, Key, Value, VisitSource};
use log::{LevelFilter, Metadata, Record};

/// The target of everything that the library tells from inside a program.
const LIBRARY: &str = "library";

/// Which lines are written.
#[derive(Debug)]
pub struct Levels(Filter);

impl Levels {
    /// What `TCPR_LOG` says. What makes no sense in it is passed over; if it says nothing, the default counts.
    pub fn parse(text: &str, default: LevelFilter) -> Levels {
        let mut builder = Builder::new();
        builder.filter_level(default);
        // An error leaves the default: whoever wrote nonsense sees more than he asked for, and the manager runs.
        let _nonsense = builder.try_parse(text).is_err();
        Levels(builder.build())
    }

    /// The most that any target tells.
    pub fn most(&self) -> LevelFilter {
        self.0.filter()
    }

    /// Whether this line is written.
    pub fn admit(&self, record: &Record<'_>) -> bool {
        self.0.enabled(&Metadata::builder().level(record.level()).target(target(record)).build())
    }
}

/// The target of a line, as a person names it: the module of the manager or of its crate, and `library` inside a program.
pub fn target<'a>(record: &'a Record<'_>) -> &'a str {
    let path = record.target();
    let mut parts = path.split("::");
    match (parts.next(), parts.next(), parts.next()) {
        (Some("tcpr"), ..) => LIBRARY,
        (Some("tcpr_node"), Some("manager"), Some(module)) => module,
        (Some("tcpr_node" | "tcpr_session" | "tcpr_cli"), Some(module), _) => module,
        _ => path,
    }
}

/// What a line says: words, then `key=value` for each datum. A value with spaces is quoted.
pub struct Line<'a>(pub &'a Record<'a>);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What takes several lines elsewhere is one here.
        let mut words = self.0.args().to_string();
        if words.contains('\n') {
            words = words.replace('\n', "; ");
        }
        f.write_str(&words)?;
        self.0.key_values().visit(&mut Fields(f)).map_err(|_| fmt::Error)
    }
}

struct Fields<'f, 'a>(&'f mut fmt::Formatter<'a>);

impl<'kvs> VisitSource<'kvs> for Fields<'_, '_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        let text = value.to_string();
        let is_plain = !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || matches!(c, '"' | '='));
        let written = if is_plain { write!(self.0, " {key}={text}") } else { write!(self.0, " {key}={text:?}") };
        written.map_err(Error::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use log::Level;

    fn admits(levels: &str, target: &str, level: Level) -> bool {
        let record = Record::builder().level(level).target(target).args(format_args!("")).build();
        Levels::parse(levels, LevelFilter::Info).admit(&record)
    }

    #[test]
    fn a_level_is_for_all_targets_and_a_target_may_have_its_own() {
        let (link, of_link) = ("tcpr_node::manager::link", "tcpr_node::link::listener");
        assert!(admits("", link, Level::Info) && !admits("", link, Level::Debug));
        assert!(admits("debug", link, Level::Debug) && !admits("debug", link, Level::Trace));
        for target in [link, of_link] {
            assert!(admits("link=debug,info", target, Level::Debug));
            assert!(admits("link=debug", target, Level::Debug));
        }
        assert!(!admits("link=debug,info", "tcpr_node::guard", Level::Debug));
        assert!(admits("link=debug", "tcpr_node::guard", Level::Info));
        assert!(!admits("link=debug,error", "tcpr_node::guard", Level::Info));
        assert!(admits("library=trace,off", "tcpr::ops::accept", Level::Trace));
        assert!(!admits("library=trace,off", link, Level::Error));
        assert!(admits("what=nonsense", link, Level::Info), "passed over");
    }

    #[test]
    fn a_line_has_words_and_then_its_data() {
        let fields = [("session", Value::from(7)), ("error", Value::from("no room")), ("why", Value::from("a\"b"))];
        let record = Record::builder().args(format_args!("cannot\nrestore")).key_values(&fields).build();
        assert_eq!(Line(&record).to_string(), r#"cannot; restore session=7 error="no room" why="a\"b""#);
        assert_eq!(Line(&Record::builder().args(format_args!("done")).build()).to_string(), "done");
    }
}
