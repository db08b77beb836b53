//! Peers: ordinary TCP programs that know what they have to hear, byte for byte.

use tcpr_session::segment::{flags, Segment};
use tcpr_session::Now;

use crate::node::{Service, CLOSE_MARK, LOGIN};
use crate::rng::Rng;
use crate::tcp::{Event, State, Tcp};

/// How a peer's conversation ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// It ends its stream when it has said all, and hears the rest.
    PeerFirst,
    /// Its last byte makes the server close.
    ServerFirst,
    /// It stays until all others are done.
    Stays,
    /// It vanishes in the middle, with an RST.
    Aborts,
}

pub struct Peer {
    pub index: usize,
    pub tcp: Tcp,
    pub ending: Ending,
    plan: Vec<u8>,
    /// Echo: what it is to hear.
    due: Vec<u8>,
    written: usize,
    got: Vec<u8>,
    service: Service,
    /// Lines: the next number of each sender, and how far `got` was looked at.
    next_line: Vec<u64>,
    checked: usize,
    pub lines_each: Vec<u64>,
    pub ended: bool,
    pub aborted: bool,
    /// The members could not know who is to have its connection.
    pub unpaired: bool,
    slow: bool,
    pub may_end: bool,
}

impl Peer {
    #[allow(clippy::too_many_arguments)] // all that a conversation is
    pub fn new(index: usize, tcp: Tcp, ending: Ending, service: Service, bytes: usize, slow: bool, lines_each: Vec<u64>) -> Peer {
        let plan = match service {
            Service::Echo => {
                let mut plan: Vec<u8> =
                    (0..bytes).map(|k| ((k as u64 * 31 + (k as u64 >> 8) * 7 + index as u64 * 101) % 251) as u8).collect();
                if ending == Ending::ServerFirst {
                    plan.push(CLOSE_MARK);
                }
                plan
            }
            Service::Lines => (0..lines_each[index])
                .flat_map(|n| format!("{index}:{n}:{}\n", "x".repeat((n as usize * 7) % 40)).into_bytes())
                .collect(),
        };
        Peer {
            index,
            tcp,
            ending,
            due: plan.clone(),
            plan,
            written: 0,
            got: Vec::new(),
            service,
            next_line: vec![0; lines_each.len()],
            checked: 0,
            lines_each,
            ended: false,
            aborted: false,
            unpaired: false,
            slow,
            may_end: false,
        }
    }

    /// What the application says first.
    pub fn expect_login(&mut self) {
        self.due.splice(..0, LOGIN.iter().copied());
    }

    /// It has said all and heard all.
    pub fn satisfied(&self) -> bool {
        self.aborted
            || match self.service {
                Service::Echo => self.got.len() == self.due.len(),
                Service::Lines => self.next_line == self.lines_each,
            } && self.written == self.plan.len()
    }

    /// Nothing is to come for it any more.
    pub fn over(&self) -> bool {
        self.aborted || self.satisfied() && self.ended && matches!(self.tcp.state, State::TimeWait(_) | State::Gone)
    }

    pub fn to_say(&self) -> bool {
        self.written < self.plan.len()
    }

    /// Says something, hears something, ends if it is time.
    pub fn step(&mut self, now: Now, rng: &mut Rng) {
        if self.aborted {
            return;
        }
        // What came is there to be read after both ends have closed, too.
        self.hear(now, rng);
        if self.tcp.state != State::Open {
            return;
        }
        if self.to_say() && rng.percent(70) {
            let n = (rng.range(1, 600) as usize).min(self.plan.len() - self.written);
            self.written += self.tcp.write(now, &self.plan[self.written..self.written + n]);
        }
        if self.ending == Ending::Aborts && self.written > self.plan.len() / 2 {
            self.tcp.abort(now);
            self.aborted = true;
            return;
        }
        self.end(now);
    }

    fn hear(&mut self, now: Now, rng: &mut Rng) {
        let most = if self.slow { rng.below(300) as usize } else { usize::MAX };
        let bytes = self.tcp.read(now, most);
        self.got.extend(bytes);
        self.check();
    }

    fn end(&mut self, now: Now) {
        if self.tcp.at_end() {
            let asked = self.ended || self.ending == Ending::ServerFirst;
            assert!(asked && self.satisfied(), "peer {} sees an end that nobody asked for", self.index);
        }
        if self.tcp.at_end() && !self.ended {
            self.ended = true;
            self.tcp.close(now);
        }
        let said = self.written == self.plan.len();
        let ends = match self.ending {
            Ending::PeerFirst => said,
            Ending::Stays | Ending::Aborts => self.may_end,
            Ending::ServerFirst => false,
        };
        if ends && !self.ended && self.tcp.state == State::Open {
            self.ended = true;
            self.tcp.shutdown(now);
        }
    }

    fn check(&mut self) {
        match self.service {
            Service::Echo => {
                let n = self.got.len();
                assert!(n <= self.due.len(), "peer {} hears more than it said", self.index);
                let wrong = (self.checked..n).find(|&i| self.got[i] != self.due[i]);
                assert!(
                    wrong.is_none(),
                    "peer {}: byte {} is {} not {}",
                    self.index,
                    wrong.unwrap(),
                    self.got[wrong.unwrap()],
                    self.due[wrong.unwrap()]
                );
                self.checked = n;
            }
            Service::Lines => {
                while let Some(end) = self.got[self.checked..].iter().position(|b| *b == b'\n') {
                    let line = std::str::from_utf8(&self.got[self.checked..self.checked + end]).expect("a line");
                    let mut parts = line.split(':');
                    let sender: usize = parts.next().unwrap().parse().expect("a sender");
                    let n: u64 = parts.next().unwrap().parse().expect("a number");
                    assert_eq!(n, self.next_line[sender], "peer {}: a line of {sender} lost, doubled or moved", self.index);
                    self.next_line[sender] += 1;
                    self.checked += end + 1;
                }
            }
        }
    }

    pub fn receive(&mut self, now: Now, packet: &[u8], rng: &mut Rng) {
        let p = Segment::parse(packet).expect("a segment");
        assert!(p.checksum_ok(), "a wrong checksum on the wire");
        if self.aborted || self.tcp.state == State::Gone {
            if !p.has(flags::RST) && p.has(flags::ACK) {
                self.tcp.out.push(tcpr_session::segment::reset_for(&p));
            }
            return;
        }
        let event = self.tcp.receive(now, &p);
        assert!(event != Some(Event::FutureAck), "peer {}: an ACK of what it never sent", self.index);
        if event == Some(Event::Reset) {
            // What came before is there to be read.
            self.got.extend(self.tcp.read(now, usize::MAX));
            self.check();
            if self.unpaired {
                self.aborted = true;
                return;
            }
            // A late word to a connection that both have ended: TIME_WAIT, where the FIN's acknowledgement might
            // be repeated, dies with its machine.
            assert!(self.satisfied() && self.ended && self.tcp.all_bytes_acknowledged(), "peer {} is reset", self.index);
        }
        if !self.slow {
            self.hear(now, rng);
        }
        self.end(now);
    }

    pub fn describe(&self) -> String {
        format!(
            "peer {} {:?} said {} of {} heard {} ended {} aborted {}: {:?}",
            self.index,
            self.ending,
            self.written,
            self.plan.len(),
            self.got.len(),
            self.ended,
            self.aborted,
            self.tcp
        )
    }
}
