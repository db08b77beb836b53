//! Writes `fuzz/seeds`, the inputs from which fuzzing begins: `cargo run -p tcpr-fuzz --features targets --bin seeds`.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use tcpr_node::link::{encode, Continuation, Goodbye, Hello, Message};
use tcpr_session::record::{self, Adopted, Cause, Committed, EndReason, Open, Sync};
use tcpr_session::role::Epoch;
use tcpr_session::segment::{flags, Build};
use tcpr_session::seq::Seq;
use tcpr_session::trace::{longest, Accepted, Call, Cursor, Marker, Record, ACCEPTED_MAX, SESSION};
use tcpr_session::tuple::FourTuple;

fn write(target: &str, name: &str, bytes: &[u8]) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    fs::create_dir_all(&dir).expect("fuzz/seeds is writable");
    fs::write(dir.join(name), bytes).expect("fuzz/seeds is writable");
}

fn segments() {
    let ends = |v6: bool| match v6 {
        false => ("192.0.2.9:1000".parse().expect("an address"), "192.0.2.200:5555".parse().expect("an address")),
        true => ("[2001:db8::9]:1000".parse().expect("an address"), "[2001:db8::200]:5555".parse().expect("an address")),
    };
    let syn_options = [2, 4, 5, 0xb4, 1, 3, 3, 7, 1, 1, 4, 2];
    let signature = [[1, 1, 19, 18].as_slice(), &[7; 16]].concat();
    let kinds: [(&str, u8, &[u8], &[u8]); 5] = [
        ("syn", flags::SYN, &syn_options, b""),
        ("syn-ack", flags::SYN | flags::ACK, &syn_options, b""),
        ("data", flags::ACK | flags::PSH, &[], b"hello\n"),
        ("fin", flags::ACK | flags::FIN | flags::URG, &[1, 1, 5, 10, 0, 0, 0, 9, 0, 0, 0, 19], b"bye"),
        ("signed", flags::ACK, &signature, b"x"),
    ];
    for (name, bits, options, payload) in kinds {
        for v6 in [false, true] {
            let (source, destination) = ends(v6);
            let timestamps = (options.len() <= 12).then_some((1, 2));
            let (seq, ack) = (Seq(7), Seq(9));
            let mut packet = Vec::new();
            Build { source, destination, seq, ack, flags: bits, window: 500, timestamps, payload }
                .write_with(options, &mut packet);
            write("segment", &format!("{name}-{}", if v6 { 6 } else { 4 }), &packet);
        }
    }
}

fn records() {
    let open = |session, tuple: FourTuple, established| Open {
        session,
        tuple,
        internal_port: tuple.local.port(),
        isn_in: Seq(100),
        isn_out: Seq(200),
        mss: 1460,
        shifts: Some((7, 7)),
        sack: true,
        timestamps: true,
        established,
        window: 500,
        ts_recent: 1,
        ts_value: 2,
        in_done: 0,
        out_acked: 0,
    };
    let tuple = |local: &str, peer: &str| FourTuple {
        local: local.parse().expect("an address"),
        peer: peer.parse().expect("an address"),
    };
    let mut log = Vec::new();
    open(1, tuple("192.0.2.200:5555", "192.0.2.9:1000"), false).encode(&mut log);
    Sync { session: 1, established: true, out_acked: 0, in_edge: 0, window: 9, ts_recent: 3, ts_value: 4 }.encode(&mut log);
    record::encode_input(1, 0, b"hello\n", false, &mut log);
    record::encode_output(1, 0, b"world\n", &mut log);
    let commit = |in_done, out_done| Committed { session: 1, in_done, out_done, open: 0, fin: false, closed: false, torn: false };
    record::encode_commit(&[commit(6, 6)], &mut log);
    write("records", "exchange", &log);
    let mut more = log.clone();
    open(2, tuple("[2001:db8::200]:40000", "[2001:db8::9]:179"), true).encode(&mut more);
    record::encode_cause(2, Some(Cause::Of { session: 1, nth: 1, read: true }), &mut more);
    record::encode_options(1, &[6, 1, 4, 1, 0, 0, 0], &mut more);
    record::encode_adopted(&Adopted { session: 1, in_done: 6, out_done: 7, out_base: 7 }, &mut more);
    record::encode_input(1, 6, b"", true, &mut more);
    write("records", "two", &more);
    record::encode_end(1, EndReason::Closed, &mut more);
    write("records", "end", &more);
}

fn messages() {
    let epoch = Epoch { number: 3, member: 1 };
    let hello = Hello { protocol: 3, service: "chat".into(), member: 1, boot: 7, epoch, role: 2, config_digest: 9 };
    let all = [
        ("hello", vec![Message::Hello(hello)]),
        (
            "pair",
            vec![
                Message::SnapshotBegin { epoch, position: 5 },
                Message::Records { epoch, position: 5, bytes: b"record" },
                Message::Records { epoch, position: 11, bytes: b"next" },
                Message::SnapshotEnd { epoch, position: 15 },
                Message::Paired { epoch },
                Message::PairedAck { epoch },
                Message::Ack { epoch, position: 15 },
            ],
        ),
        (
            "handover",
            vec![
                Message::Handover { epoch, position: 15 },
                Message::HandoverAck { epoch },
                Message::Alone { epoch, more: 4, names: b"name" },
                Message::Forward { bytes: b"packet" },
                Message::Program { trouble: Cow::Borrowed("it exits") },
                Message::Bye { reason: Goodbye::Other(Cow::Borrowed("stop")) },
            ],
        ),
    ];
    for (name, messages) in all {
        let (mut stream, mut state) = (Vec::new(), Continuation::default());
        for message in &messages {
            let mut bytes = Vec::new();
            encode(message, &mut state, &mut bytes).expect("a message");
            // The target wants two bytes of length instead of the prefix.
            let prefix = bytes.iter().position(|byte| byte & 0x80 == 0).expect("a length") + 1;
            stream.extend_from_slice(&((bytes.len() - prefix) as u16).to_le_bytes());
            stream.extend_from_slice(&bytes[prefix..]);
        }
        write("link", name, &stream);
    }
}

fn heartbeats() {
    // What to do next is chosen by these bytes; see targets/heartbeat.rs.
    let mut run = Vec::new();
    for step in 0..40u8 {
        run.extend_from_slice(&[step % 7, step, 1, 0, 1, 2, step]);
    }
    write("heartbeat", "steps", &run);
}

fn rings() {
    let entry = |kind: u8, flags: u8, a: u64, state: u32, payload: &[u8]| {
        let len = (32 + payload.len() + 7) & !7;
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&(len as u32).to_le_bytes());
        bytes.extend_from_slice(&[kind, flags, 0, 0]);
        bytes.extend_from_slice(&[1, 0, 0, 0, 2, 0, 0, 0]);
        bytes.extend_from_slice(&a.to_le_bytes());
        bytes.extend_from_slice(&state.to_le_bytes());
        bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        bytes.extend_from_slice(payload);
        bytes.resize(len, 0);
        bytes
    };
    let mut tuple = [0; 40];
    tuple[0] = 4;
    let mut ring = entry(1, 0, 0, 0, &tuple);
    ring.extend(entry(3, 0, 6, 0, b""));
    ring.extend(entry(2, 0, 6, 0x8000_0006, b"world\n"));
    ring.extend(entry(20, 6, 1, 0, &[1, 0, 0, 0]));
    for kind in 4..14 {
        ring.extend(entry(kind, kind % 2, 1, 0, b""));
    }
    write("ring", "all", &[&(ring.len() as u64).to_le_bytes()[..], &ring].concat());
    let open = entry(2, 0, 6, 0, b"world\n");
    write("ring", "open", &[&(open.len() as u64).to_le_bytes()[..], &open].concat());
}

fn traces() {
    let tuple = FourTuple { local: "192.0.2.200:6667".parse().expect("an end"), peer: "192.0.2.9:1000".parse().expect("an end") };
    let mut session = [0; SESSION];
    session[..FourTuple::BYTES].copy_from_slice(&tuple.to_bytes());
    let mut accepted = [0; ACCEPTED_MAX];
    let address = [2, 0, 3, 232, 192, 0, 2, 9, 0, 0, 0, 0, 0, 0, 0, 0];
    let len = Accepted { address: &address, session: Some(session) }.encode(&mut accepted);
    let now = 1_700_000_000_123_456_789;
    let records: [(u16, Call, i32, i64, &[u8]); 15] = [
        (0, Call::Accept, 4, 7, &accepted[..len]),
        (0, Call::Marker, 0, Marker::Promoted as i64, b""),
        (0, Call::Clock, 0, now, b""),
        (0, Call::Clock, 0, now, b""),
        (0, Call::Clock, 1, now / 1000, b""),
        (0, Call::Clock, 0, now + 50_000, b""),
        (0, Call::Read, 7, 10, b"NICK bob\r\n"),
        (0, Call::Write, 7, 20, &[9; 8]),
        (0, Call::Read, 7, -11, b""),
        (0, Call::Thread, 0, 1, b""),
        (1, Call::Lock, 0, 0, b""),
        (0, Call::Signal, -1, 15, &[15; 128]),
        (0, Call::Connected, 8, 0, &[2; SESSION]),
        (0, Call::EpollWait, 5, 1, &[1, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]),
        (1, Call::Tsc, 0, -1, b""),
    ];
    let (mut trace, mut cursor) = (Vec::new(), Cursor::default());
    for (thread, call, fd, result, data) in records {
        let at = trace.len();
        trace.resize(at + longest(data.len()), 0);
        let record = Record { thread, call, fd, result, data };
        let len = cursor.append(&record, &[data], &mut trace[at..]).expect("there is room");
        trace.truncate(at + len);
    }
    write("trace", "all", &trace);
}

fn configurations() {
    // The first examples of the documentation.
    let text = include_str!("../docs/configuration.md");
    let examples = text.split("```toml\n").skip(1).filter_map(|part| part.split("```").next());
    for (i, example) in examples.enumerate() {
        write("configuration", &format!("example-{i}.toml"), example.as_bytes());
    }
}

fn main() {
    segments();
    records();
    messages();
    heartbeats();
    rings();
    traces();
    configurations();
}
