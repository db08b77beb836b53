//! The connections that the members' applications make, in a part of the worlds: who calls when, and what the callees
//! hear of it.

use std::net::SocketAddr;

use tcpr_session::filter::Mode;
use tcpr_session::segment::{flags, Segment};
use tcpr_session::tuple::FourTuple;

use super::{Event, Guard, World, MS, SWEEP_US};
use crate::callee::Callee;
use crate::node::{line, Service};
use crate::peer::{Ending, Peer};
use crate::tcp::{Setup, Tcp};

/// The shortest of the pauses.
const FAST_US: u64 = 60_000;

impl World {
    /// Hosts to be called.
    pub(super) fn add_callees(&mut self) {
        self.login = self.rng.percent(50);
        self.call_pause = if self.rng.percent(50) { FAST_US } else { self.rng.range(FAST_US, 600_000) };
        self.give_up = if self.rng.percent(30) { 20 } else { 1 };
        for c in 0..self.rng.range(1, 4) as u8 {
            let me: SocketAddr = ([198, 51, 100, 9 + c], 179).into();
            let setup = self.peer_setup();
            self.callees.push(Callee::new(me, setup));
        }
    }

    /// What they will have to say.
    pub(super) fn plan_calls(&mut self) {
        for c in 0..self.callees.len() {
            // One each: the program's own connections to one destination come back in the order in which they were made, and
            // this one makes them in any.
            {
                let index = self.peers.len();
                let ending = match self.rng.below(10) {
                    0..=1 => Ending::Stays,
                    2..=4 => Ending::PeerFirst,
                    5..=8 => Ending::ServerFirst,
                    _ => Ending::Aborts,
                };
                // Much, where it is said fast enough.
                let most = if self.call_pause == FAST_US && self.rng.percent(20) { 100_000 } else { 6000 };
                let bytes = if self.rng.percent(10) { 0 } else { self.rng.below(most) as usize };
                let slow = self.rng.percent(25);
                let tcp = Tcp::none(self.callees[c].me);
                let mut peer = Peer::new(index, tcp, ending, Service::Echo, bytes, slow, Vec::new());
                if self.login {
                    peer.expect_login();
                }
                self.peers.push(peer);
                self.peer_timer.push(None);
                self.callees[c].all.push(index);
                self.callees[c].waiting.push_back(index);
            }
        }
    }

    pub(super) fn peer_setup(&mut self) -> Setup {
        Setup {
            mss: self.rng.range(100, 1460) as u16,
            shift: self.rng.percent(70).then(|| self.rng.below(4) as u8),
            timestamps: self.rng.percent(70),
            receive_buffer: self.rng.range(600, 20_000) as usize,
            send_buffer: 10_000,
        }
    }

    // ---- the callees' end -----------------------------------------------------------------------------------

    pub(super) fn arrived_at_callee(&mut self, c: usize, packet: &[u8]) {
        let p = Segment::parse(packet).expect("a segment");
        let known = self.callees[c].taken.get(&p.source()).copied();
        let anew = |peer: &Peer| p.has(flags::SYN) && (peer.over() || peer.tcp.may_be_replaced_by(&p));
        if let Some(i) = known.filter(|i| !anew(&self.peers[*i])) {
            let tuple = FourTuple { local: p.source(), peer: p.destination() };
            if p.has(flags::RST) && self.nodes.iter_mut().any(|n| n.unpaired.remove(&tuple)) {
                self.sums.unpaired += 1;
                self.peers[i].unpaired = true;
            }
            self.peers[i].receive(self.now, packet, &mut self.rng);
            return self.arrived_from_peer(i);
        }
        let accepted = self.callees[c].receive(self.now, &p, &mut self.rng);
        if let Some((i, tcp)) = accepted {
            if self.trace {
                eprintln!("{:?} callee {c} accepts {} as peer {i}", self.now, p.source());
            }
            self.peers[i].tcp = tcp;
            self.at(self.now + MS, Event::PeerStep(i));
            self.arrived_from_peer(i);
        }
        self.arrived_from_callee(c);
    }

    pub(super) fn callee_timer(&mut self, c: usize) {
        self.callees[c].planned = None;
        self.callees[c].handle_timer(self.now);
        self.arrived_from_callee(c);
    }

    fn arrived_from_callee(&mut self, c: usize) {
        for packet in std::mem::take(&mut self.callees[c].out) {
            if self.trace {
                eprintln!("{:?} callee {c} {}", self.now, line(&packet));
            }
            self.carry(Event::ToVip, packet);
        }
        if let Some(t) = self.callees[c].timer() {
            if self.callees[c].planned.is_none_or(|known| t < known) {
                self.callees[c].planned = Some(t);
                self.at(t, Event::CalleeTimer(c));
            }
        }
    }

    // ---- the callers' end -----------------------------------------------------------------------------------

    /// The application of a member looks whether it has all connections that it wants.
    pub(super) fn call(&mut self, n: usize) {
        if !self.alive[n] {
            return;
        }
        self.after(1000, self.call_pause, Event::Call(n));
        if self.rng.percent(self.give_up) {
            self.nodes[n].give_up_call(self.now);
        }
        for c in 0..self.callees.len() {
            let to = self.callees[c].me;
            let knows = n == self.master && self.nodes[n].filter.mode() != Mode::Frozen;
            let want =
                if knows { self.wanted(n, c) } else { self.callees[c].all.iter().filter(|i| !self.peers[**i].over()).count() };
            if self.nodes[n].calls(&to) >= want || !knows && self.rng.percent(70) {
                continue;
            }
            // What a backup wants may be more than there will be.
            self.guessed |= !knows;
            let local = self.choose_port(n, to);
            self.nodes[n].call(self.now, FourTuple { local, peer: to });
            self.soon(n);
        }
    }

    pub(super) fn sweep(&mut self, n: usize) {
        if !self.alive[n] {
            return;
        }
        self.after(SWEEP_US, SWEEP_US, Event::Sweep(n));
        self.nodes[n].sweep(self.now);
        self.arrived_from_node(n);
        self.soon(n);
    }

    /// Connections that are to be made, or had back.
    fn wanted(&self, n: usize, c: usize) -> usize {
        let callee = &self.callees[c];
        let sessions = || self.nodes[n].filter.store().iter().filter(|s| s.open.tuple.peer == callee.me);
        // One whose callee is gone may be left for good: its RST was beyond the local window, the answer to the challenge was
        // lost, and neither says anything more. A TCP without keepalive waits; an application makes another one.
        let gone = |i: &usize| self.peers[*i].over() && !self.peers[*i].aborted;
        let accepted = |local: &SocketAddr| callee.taken.get(local).is_some_and(|i| !gone(i));
        let under_way = sessions().filter(|s| !accepted(&s.open.tuple.local)).count();
        callee.waiting.len().saturating_sub(under_way) + sessions().filter(|s| !s.closed).count()
    }

    /// Another one each time, the next that there is; or one that a callee knows already.
    fn choose_port(&mut self, n: usize, to: SocketAddr) -> SocketAddr {
        let filter = &self.nodes[n].filter;
        let mut known: Vec<SocketAddr> =
            filter.store().iter().filter(|s| s.open.tuple.peer == to && !s.closed).map(|s| s.open.tuple.local).collect();
        known.sort_unstable();
        if filter.mode() != Mode::Passive && !known.is_empty() && self.rng.percent(25) {
            return known[self.rng.below(known.len() as u64) as usize];
        }
        self.next_port += 1;
        ([192, 0, 2, 200], self.next_port).into()
    }

    /// Each connection was accepted once; more were asked for only where somebody had to guess.
    pub(super) fn check_callees(&self) {
        for callee in &self.callees {
            assert!(callee.waiting.is_empty(), "not called: {:?}", callee.waiting);
            let guessed = self.guessed || self.guard.iter().any(|g| matches!(g, Guard::Overtaken(_)));
            assert!(callee.surplus == 0 || guessed, "{} accepts {} connections too many", callee.me, callee.surplus);
        }
    }
}
