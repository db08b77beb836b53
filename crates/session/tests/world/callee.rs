//! A host that the application connects to: it accepts so many connections, once each, and refuses any more.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;

use tcpr_session::segment::{self, flags, Segment};
use tcpr_session::seq::Seq;
use tcpr_session::Now;

use crate::rng::Rng;
use crate::tcp::{self, Event, Setup, State, Tcp};

/// How often a half-open connection's timer runs before it is forgotten.
const TRIES: u32 = 6;

pub struct Callee {
    pub me: SocketAddr,
    setup: Setup,
    /// Conversations (by their peer's number) that are to come, and those that were accepted, by the caller's address.
    pub waiting: VecDeque<usize>,
    pub taken: HashMap<SocketAddr, usize>,
    pub all: Vec<usize>,
    half_open: BTreeMap<SocketAddr, (Tcp, u32)>,
    pub out: Vec<Vec<u8>>,
    /// When its timer is to run next.
    pub planned: Option<Now>,
    /// Connections that came when all were there.
    pub surplus: u64,
}

impl Callee {
    pub fn new(me: SocketAddr, setup: Setup) -> Callee {
        Callee {
            me,
            setup,
            waiting: VecDeque::new(),
            taken: HashMap::new(),
            all: Vec::new(),
            half_open: BTreeMap::new(),
            out: Vec::new(),
            planned: None,
            surplus: 0,
        }
    }

    /// A segment of no accepted connection. Returns the one that it completes.
    pub fn receive(&mut self, now: Now, p: &Segment<'_>, rng: &mut Rng) -> Option<(usize, Tcp)> {
        assert!(p.checksum_ok(), "a wrong checksum on the wire");
        let from = p.source();
        if p.has(flags::SYN) && !p.has(flags::ACK) && !self.half_open.contains_key(&from) {
            if self.waiting.is_empty() {
                self.out.push(tcp::refusal(p));
                return None;
            }
            let embryo = Tcp::answer(now, p, Seq(rng.next() as u32), self.setup, rng.next() as u32);
            self.half_open.insert(from, (embryo, 0));
            self.collect();
            return None;
        }
        let Some((embryo, _)) = self.half_open.get_mut(&from) else {
            if !p.has(flags::RST) && p.has(flags::ACK) {
                self.out.push(segment::reset_for(p));
            }
            return None;
        };
        let event = embryo.receive(now, p);
        if event != Some(Event::Established) {
            self.collect();
            return None;
        }
        let (mut tcp, _) = self.half_open.remove(&from).expect("there");
        let Some(index) = self.waiting.pop_front() else {
            self.surplus += 1;
            tcp.abort(now);
            self.out.append(&mut tcp.out);
            return None;
        };
        self.taken.insert(from, index);
        Some((index, tcp))
    }

    pub fn timer(&self) -> Option<Now> {
        self.half_open.values().filter_map(|(tcp, _)| tcp.timer()).min()
    }

    pub fn handle_timer(&mut self, now: Now) {
        for (tcp, tries) in self.half_open.values_mut().filter(|(tcp, _)| tcp.timer().is_some_and(|t| now >= t)) {
            *tries += 1;
            if *tries == TRIES {
                tcp.state = State::Gone;
            } else {
                tcp.handle_timer(now);
            }
        }
        self.collect();
    }

    fn collect(&mut self) {
        for (tcp, _) in self.half_open.values_mut() {
            self.out.append(&mut tcp.out);
        }
        self.half_open.retain(|_, (tcp, _)| tcp.state != State::Gone);
    }
}
