//! Flags and options that a program gives to its connections: each does what it does without tcpr, or is refused with the
//! errno of a kernel that lacks it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use tcpr_lab::member::Service;

use crate::requests::connect;
use crate::world::{built, Fault, World, PATIENCE, PORT};

/// A client of the server.
pub struct Asker(BufReader<TcpStream>);

impl Asker {
    pub fn new(w: &World) -> Asker {
        let stream = w.peer.enter(|| connect(w.pair.addr())).expect("connected");
        stream.set_nodelay(true).expect("no delay");
        Asker(BufReader::new(stream))
    }

    pub fn say(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).expect("sent");
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("an answer");
        line.trim_end().to_owned()
    }

    fn ask(&mut self, question: &str) -> String {
        self.say(format!("{question}\n").as_bytes());
        self.line()
    }

    /// Asks for numbered bytes; those of places `from..to` are to come, and then the line.
    pub fn numbered(&mut self, question: &str, from: usize, to: usize) {
        self.say(format!("{question}\n").as_bytes());
        let mut got = vec![0; to - from];
        self.0.read_exact(&mut got).expect("all bytes");
        let expected: Vec<u8> = (from..to).step_by(10).flat_map(|at| format!("x{at:08}\n").into_bytes()).collect();
        let wrong = got.iter().zip(&expected).position(|(a, b)| a != b);
        assert_eq!(wrong, None, "{question}: the first byte that is wrong");
        assert_eq!(self.line(), question);
    }
}

const REFUSED: &str = "zerocopy -1/92 ulp -1/2 repair -1/1 receive -1/92 oob -1/95 urgent -1/22 fastopen -1/106 \
                       out -1/22 in -1/22 nodelay 0/0";

const INHERITED: &str = "inherited 0 mark 7 timestamp 1 pacing 1000000000 ttl 77 tos 8 keepidle 300 linger2 9";

#[test]
fn flags_and_options_of_a_connection_work_or_are_refused() {
    let mut w = World::new("options", Service::new("options", PORT), &[&built("option_server"), "5555"]);
    let mut asker = Asker::new(&w);
    for fault in [Fault::Switchover, Fault::KillAll, Fault::KillServer, Fault::Cut] {
        assert_eq!(asker.ask("options"), REFUSED, "before {fault:?}");
        assert_eq!(asker.ask("inherited"), INHERITED, "before {fault:?}");
        asker.numbered("zerocopy 3000000", 0, 3_000_000);
        asker.say(b"drop 70000\n");
        asker.say(&[b'd'; 70_000]);
        assert_eq!(asker.line(), "drop 70000");
        asker.say(b"peek 5000\n");
        asker.say(&[b'p'; 5_000]);
        assert_eq!(asker.line(), "peek same");
        asker.say(b"lowat 3000\n");
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(20));
            asker.say(&[b'l'; 1000]);
        }
        assert_eq!(asker.line(), "lowat 3000");
        asker.numbered("parts 301", 0, 3010);
        asker.numbered("file 500000", 500_000, 1_000_000);
        w.fail_over(fault);
    }
    // What is read and thrown away, or only looked at, is known: nothing of it is read again, and nothing is left out.
    assert_eq!(asker.ask("options"), REFUSED);
    assert_eq!(asker.ask("inherited"), INHERITED);
    drop(asker);
    w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
}

/// The peer has it all in a moment: a close that waits for that does not wait for the turn's time to be over (5 s here).
#[test]
fn a_close_that_lingers_takes_no_longer_than_the_peer() {
    let w = World::new("linger", Service::new("options", PORT), &[&built("option_server"), "5555"]);
    let mut asker = Asker::new(&w);
    assert_eq!(asker.ask("linger"), "linger 0");
    assert_eq!(asker.0.read(&mut [0]).expect("an orderly end"), 0);
    drop(asker);
    let mut other = Asker::new(&w);
    let mut ms: i64 = -1;
    tcpr_lab::wait_until(PATIENCE, "the close is over", || {
        ms = other.ask("closed").split(' ').nth(1).and_then(|ms| ms.parse().ok()).expect("a number");
        ms >= 0
    });
    assert!(ms < 4_000, "the close took {ms} ms");
}

/// Before it binds nobody knows whose socket it is: then a send is refused as where the kernel can pin no more memory.
#[test]
fn a_socket_told_of_zero_copy_before_it_was_protected_copies() {
    let w = World::new("early", Service::new("options", PORT), &[&built("option_server"), "5555", "early"]);
    let mut asker = Asker::new(&w);
    // The server gives up the bytes, and answers.
    assert_eq!(asker.ask("zerocopy 100000"), "zerocopy 100000");
}
