//! `tcpr trace`: the trace of a hot standby, for people.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::json;
use tcpr_session::trace::memory::{
    state, HEAD_AT, KEPT_AT, LIMIT_AT, MAGIC, MAGIC_AT, REASON_AT, REASON_LEN_AT, REASON_MAX, STATE_AT, TRACE_AT, VERSION,
    VERSION_AT,
};
use tcpr_session::trace::{decode, Deltas, Malformed, Record};

use crate::failure::Failure;

#[derive(clap::Args)]
pub struct Options {
    /// The file: what TCPR_HOT_FILE named, or a copy of a trace's memory
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The number of the first record that is printed
    #[arg(long, value_name = "N", default_value_t = 0)]
    from: u64,
    /// Print so many records [default: all]
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A trace, and what stands before it.
struct Trace {
    state: &'static str,
    reason: Option<String>,
    limit: u64,
    bytes: Vec<u8>,
}

/// `tcpr trace`.
pub fn trace(options: &Options) -> Result<u8, Failure> {
    let trace = read(&options.file)?;
    let mut out = BufWriter::new(io::stdout().lock());
    let printed = if options.json { print_json(&trace, options, &mut out) } else { print_text(&trace, options, &mut out) };
    match printed.and_then(|malformed| out.flush().map(|()| malformed)) {
        Ok(None) => Ok(0),
        Ok(Some(malformed)) => Err(Failure::NoTrace { path: options.file.clone(), why: malformed.0.to_owned() }),
        // Whoever reads has enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(0),
        Err(error) => Err(error.into()),
    }
}

fn read(path: &Path) -> Result<Trace, Failure> {
    let bad = |why: &str| Failure::NoTrace { path: path.to_owned(), why: why.to_owned() };
    let cannot = |error: io::Error| bad(&error.to_string());
    let file = File::open(path).map_err(cannot)?;
    let mut head = Vec::new();
    (&file).take(TRACE_AT as u64).read_to_end(&mut head).map_err(cannot)?;
    let head: &[u8; TRACE_AT] = head[..].try_into().map_err(|_| bad("it is too short"))?;
    let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let long = |at: usize| u64::from_ne_bytes(std::array::from_fn(|i| head[at + i]));
    if word(MAGIC_AT) != MAGIC {
        return Err(bad("it does not begin as one"));
    }
    if word(VERSION_AT) != VERSION {
        return Err(bad(&format!("it has version {}, and this command reads version {VERSION}", word(VERSION_AT))));
    }
    if long(KEPT_AT) > 0 {
        return Err(bad("its beginning is not there any more, and it can only be read from there"));
    }
    let mut bytes = Vec::new();
    // A file has room for more than was recorded.
    file.take(long(HEAD_AT)).read_to_end(&mut bytes).map_err(cannot)?;
    if (bytes.len() as u64) < long(HEAD_AT) {
        return Err(bad(&format!("{} of its {} bytes are there", bytes.len(), long(HEAD_AT))));
    }
    let reason = &head[REASON_AT..REASON_AT + (word(REASON_LEN_AT) as usize).min(REASON_MAX)];
    let reason = Some(String::from_utf8_lossy(reason).into_owned()).filter(|reason| !reason.is_empty());
    Ok(Trace { state: state_words(word(STATE_AT)), reason, limit: long(LIMIT_AT), bytes })
}

fn state_words(state: u32) -> &'static str {
    match state {
        state::STARTING => "starting",
        state::RECORDING => "recording",
        state::FOLLOWING => "following",
        state::AT_END => "at the end",
        state::LIVE => "live",
        state::DIVERGED => "diverged",
        state::FULL => "full",
        state::REFUSED => "refused",
        _ => "unknown",
    }
}

impl Trace {
    /// Gives the records that were asked for to `print`, with number and position. Returns where and why reading ended early.
    fn each(
        &self,
        options: &Options,
        mut print: impl FnMut(u64, usize, &Record<'_>) -> io::Result<()>,
    ) -> io::Result<Option<Malformed>> {
        let (mut at, mut deltas) = (0, Deltas::default());
        let end = options.count.map_or(u64::MAX, |count| options.from.saturating_add(count));
        for number in 0..end {
            match decode(&self.bytes[at..], &mut deltas) {
                Ok(Some((record, len))) => {
                    if number >= options.from {
                        print(number, at, &record)?;
                    }
                    at += len;
                }
                Ok(None) => break,
                Err(malformed) => return Ok(Some(malformed)),
            }
        }
        Ok(None)
    }
}

fn print_text(trace: &Trace, options: &Options, out: &mut impl Write) -> io::Result<Option<Malformed>> {
    let malformed = trace.each(options, |number, _, record| writeln!(out, "record {number}: {record}"))?;
    let reason = trace.reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    writeln!(out, "state {}{reason}, {} of {} bytes", trace.state, trace.bytes.len(), trace.limit)?;
    Ok(malformed)
}

/// One value, written piece by piece: a trace may have millions of records.
fn print_json(trace: &Trace, options: &Options, out: &mut impl Write) -> io::Result<Option<Malformed>> {
    let Trace { state, reason, limit, bytes } = trace;
    write!(
        out,
        "{{\"state\":{},\"reason\":{},\"bytes\":{},\"limit\":{limit},\"records\":[",
        json!(state),
        json!(reason),
        bytes.len()
    )?;
    let mut separator = "";
    let malformed = trace.each(options, |number, position, record| {
        let data: String = record.data.iter().map(|byte| format!("{byte:02x}")).collect();
        let one = json!({
            "record": number,
            "position": position,
            "thread": record.thread,
            "call": record.call.words(),
            "descriptor": record.fd,
            "result": record.result,
            "data": data,
            "text": record.to_string(),
        });
        write!(out, "{separator}\n{one}")?;
        separator = ",";
        Ok(())
    })?;
    writeln!(out, "]}}")?;
    Ok(malformed)
}

#[cfg(test)]
mod tests {
    use tcpr_session::trace::{longest, Call, Cursor};

    use super::*;

    fn file(name: &str, change: impl Fn(&mut Vec<u8>)) -> PathBuf {
        let mut bytes = vec![0; TRACE_AT];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(MAGIC_AT, &MAGIC.to_ne_bytes());
        put(VERSION_AT, &VERSION.to_ne_bytes());
        put(STATE_AT, &state::FULL.to_ne_bytes());
        put(LIMIT_AT, &1000u64.to_ne_bytes());
        put(REASON_LEN_AT, &3u32.to_ne_bytes());
        put(REASON_AT, b"why");
        let mut cursor = Cursor::default();
        for n in 0..3 {
            let mut room = vec![0; longest(5)];
            let record = Record { thread: 0, call: Call::Read, fd: 7, result: 5, data: &[] };
            let len = cursor.append(&record, &[b"line", &[b'0' + n]], &mut room).expect("there is room");
            bytes.extend_from_slice(&room[..len]);
        }
        bytes[HEAD_AT..HEAD_AT + 8].copy_from_slice(&cursor.position().to_ne_bytes());
        // Files have more room.
        bytes.resize(TRACE_AT + 1000, 0);
        change(&mut bytes);
        let path = std::env::temp_dir().join(format!("tcpr-trace-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).expect("it can be written");
        path
    }

    fn printed(path: &Path, from: u64, count: Option<u64>, json: bool) -> Result<String, Failure> {
        let trace = read(path);
        std::fs::remove_file(path).expect("it is there");
        let (options, trace, mut out) = (Options { file: path.into(), from, count, json }, trace?, Vec::new());
        let print = if json { print_json } else { print_text };
        let malformed = print(&trace, &options, &mut out).expect("memory takes all");
        Ok(String::from_utf8(out).expect("text") + malformed.map(|malformed| malformed.0).unwrap_or_default())
    }

    #[test]
    fn records_are_printed() {
        let line = |n: u8| format!("record {n}: thread 0, read of descriptor 7 gave 5 bytes: \"line{n}\"\n");
        let end = "state full (why), 25 of 1000 bytes\n";
        let path = || file("text", |_| {});
        assert_eq!(printed(&path(), 0, None, false).expect("text"), format!("{}{}{}{end}", line(0), line(1), line(2)));
        assert_eq!(printed(&path(), 1, Some(1), false).expect("text"), format!("{}{end}", line(1)));
        let json: serde_json::Value = serde_json::from_str(&printed(&path(), 1, None, true).expect("JSON")).expect("JSON");
        assert_eq!((&json["state"], &json["reason"], &json["bytes"]), (&json!("full"), &json!("why"), &json!(25)));
        let records = json["records"].as_array().expect("a list");
        assert_eq!((records.len(), &records[0]["record"], &records[0]["data"]), (2, &json!(1), &json!("6c696e6531")));
        assert_eq!((&records[1]["descriptor"], &records[1]["result"]), (&json!(7), &json!(5)));
    }

    #[test]
    fn what_is_no_trace_is_said_so() {
        let says = |path: PathBuf, words: &str| {
            let error = printed(&path, 0, None, false).expect_err("no trace").to_string();
            assert!(error.contains(words) && error.contains("tcpr-trace-"), "{error}");
        };
        says(file("short", |bytes| bytes.truncate(100)), "too short");
        says(file("other", |bytes| bytes[MAGIC_AT] ^= 1), "does not begin as one");
        says(file("version", |bytes| bytes[VERSION_AT] = 99), "it has version 99");
        says(file("given-up", |bytes| bytes[KEPT_AT] = 1), "its beginning is not there any more");
        says(file("cut", |bytes| bytes.truncate(TRACE_AT + 10)), "10 of its 25 bytes");
        let broken = file("broken", |bytes| bytes[TRACE_AT] = 0xff);
        assert!(printed(&broken, 0, None, false).expect("what is there").ends_with("a record of unknown form"));
    }
}
