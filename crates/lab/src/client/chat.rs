//! Clients of a line chat: what one says reaches all others, and nobody else says anything.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use super::engine::{connect, Clients, Failure, Protocol, Received};
use super::Rate;
use crate::rng::{mix, Rng};
use crate::sys::{ctx, other};
use crate::Host;

/// What [`ChatClients`] do.
#[derive(Clone, Debug)]
pub struct ChatOptions {
    /// How many clients.
    pub connections: usize,
    /// The seed.
    pub seed: u64,
    /// Bytes of a line's payload, and the pause between two bursts of lines.
    pub rate: Rate,
    /// First part of the clients' names; two groups in one room need two.
    pub group: String,
    /// Time for all to connect and to be in the room.
    pub connect_timeout: Duration,
    /// What they say, chosen at random, if a person is to read it; else random characters.
    pub phrases: Vec<String>,
    /// Where every line that a client of the group has heard is told.
    pub tap: Option<Sender<Heard>>,
}

/// A line that was heard, right and in its turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Number of the client who heard it.
    pub by: usize,
    /// Number of the client who said it.
    pub from: usize,
    /// The speaker's number of it.
    pub seq: u64,
    /// What was said.
    pub text: String,
}

impl ChatOptions {
    /// Clients that together cause some four thousand deliveries a second, however many they are.
    pub fn new(connections: usize, seed: u64) -> Self {
        let n = connections as u64;
        // A burst has three lines on average, and each line goes to all the others.
        let mean_us = (3 * n * n.saturating_sub(1) * 1_000_000 / 4000).max(5000);
        let pause = (Duration::from_micros(mean_us / 4), Duration::from_micros(mean_us * 7 / 4));
        ChatOptions {
            connections,
            seed,
            rate: Rate { bytes: (1, 200), pause },
            group: "c".into(),
            connect_timeout: Duration::from_secs(20),
            phrases: Vec::new(),
            tap: None,
        }
    }

    /// With another rate.
    #[must_use]
    pub fn rate(mut self, rate: Rate) -> Self {
        self.rate = rate;
        self
    }

    /// With another group name.
    #[must_use]
    pub fn group(mut self, group: &str) -> Self {
        self.group = group.to_owned();
        self
    }
}

/// Clients in a chat room. Each says numbered, checksummed lines `NAME SEQ LEN CHECKSUM PAYLOAD`, in bursts,
/// cut anywhere over several writes with pauses in between; each checks that it hears every line of every
/// other client of the group once, whole, in each speaker's order. Lines of other groups must be whole.
pub type ChatClients = Clients<Chat>;

/// What all clients of a group know.
#[doc(hidden)]
pub struct Room {
    group: String,
    seed: u64,
    /// The lengths of the lines that each client has said, in whole, since the start.
    said: Vec<Vec<u32>>,
    total: u64,
    phrases: Vec<String>,
    tap: Option<Sender<Heard>>,
}

#[doc(hidden)]
pub struct Chat {
    index: usize,
    rng: Rng,
    next: u64,
    /// What is still to be said of a burst.
    queue: Vec<u8>,
    /// Lengths of lines made but not wholly written, and how far the first one is.
    ends: VecDeque<u32>,
    written_of_first: u32,
    said: u64,
    heard: Vec<u64>,
    heard_total: u64,
    input: Vec<u8>,
}

impl ChatClients {
    /// Connects all, waits until all are in the room (a server accepts later than a client connects, and
    /// what is said meanwhile is lost to it by right), then starts to talk.
    pub fn start(host: &Host, server: SocketAddr, options: &ChatOptions) -> io::Result<ChatClients> {
        let n = options.connections;
        let bad = |c: char| c.is_ascii_digit() || c.is_ascii_whitespace();
        if options.group.is_empty() || options.group.contains(bad) {
            return Err(other("a chat group's name has neither digits nor blanks"));
        }
        let deadline = Instant::now() + options.connect_timeout;
        let mut streams = connect(host, server, n, options.connect_timeout)?;
        let room = Room {
            group: options.group.clone(),
            seed: options.seed,
            said: vec![Vec::new(); n],
            total: 0,
            phrases: options.phrases.clone(),
            tap: options.tap.clone(),
        };
        let chat = |index| Chat {
            index,
            rng: Rng::fork(options.seed, index as u64),
            next: 1,
            queue: Vec::new(),
            ends: VecDeque::new(),
            written_of_first: 0,
            said: 0,
            heard: vec![0; n],
            heard_total: 0,
            input: Vec::new(),
        };
        let mut chats: Vec<Chat> = (0..n).map(chat).collect();
        for (i, s) in streams.iter_mut().enumerate() {
            s.write_all(&room.line(i, 0, b"hello"))?;
        }
        if let Some(first) = streams.first_mut() {
            chats[0].input = await_hellos(first, &room, n, deadline).map_err(ctx("chat room"))?;
        }
        Clients::launch(streams, chats, room, options.rate, u64::MAX, options.seed)
    }
}

/// Reads on the first connection until all others have greeted: a line is read only of who was accepted.
/// The first one itself was accepted before them.
fn await_hellos(s: &mut TcpStream, room: &Room, n: usize, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut missing: Vec<usize> = (1..n).collect();
    let mut input = Vec::new();
    let mut buf = [0; 4096];
    while !missing.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        let late = || other(format!("no hello of clients {missing:?} within the time to connect"));
        if left.is_zero() {
            return Err(late());
        }
        s.set_read_timeout(Some(left))?;
        match s.read(&mut buf) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(k) => input.extend_from_slice(&buf[..k]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(late()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        while let Some(end) = input.iter().position(|&b| b == b'\n') {
            let line = parse(&input[..end]).map_err(other)?;
            if let Some(who) = room.member(line.name) {
                missing.retain(|&m| m != who);
            }
            input.drain(..=end);
        }
    }
    s.set_read_timeout(None)?;
    Ok(input)
}

fn checksum(name: &str, seq: u64, payload: &[u8]) -> u32 {
    // FNV-1a, then mixed: enough against cuts, swaps and repeats.
    let mut h: u64 = 0xcbf2_9ce4_8422_2325;
    for &b in name.as_bytes().iter().chain(payload) {
        h = (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
    }
    mix(h ^ seq ^ ((payload.len() as u64) << 40)) as u32
}

struct Line<'a> {
    name: &'a str,
    seq: u64,
    payload: &'a [u8],
}

fn parse(line: &[u8]) -> Result<Line<'_>, String> {
    let broken = |why: &str| {
        let shown = String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned();
        format!("{why}: {} bytes {shown:?}", line.len())
    };
    let mut parts = line.splitn(5, |&b| b == b' ');
    let mut word = || parts.next().and_then(|w| std::str::from_utf8(w).ok());
    let (Some(name), Some(seq), Some(len), Some(sum)) = (word(), word(), word(), word()) else {
        return Err(broken("not a line of ours"));
    };
    let (Ok(seq), Ok(len), Ok(sum)) = (seq.parse(), len.parse::<usize>(), u32::from_str_radix(sum, 16)) else {
        return Err(broken("not a line of ours"));
    };
    let Some(payload) = parts.next() else { return Err(broken("a line without payload")) };
    if payload.len() != len || checksum(name, seq, payload) != sum {
        return Err(broken("a line that is not whole"));
    }
    Ok(Line { name, seq, payload })
}

impl Room {
    fn line(&self, index: usize, seq: u64, payload: &[u8]) -> Vec<u8> {
        let name = format!("{}{index}", self.group);
        let sum = checksum(&name, seq, payload);
        let mut l = format!("{name} {seq} {} {sum:08x} ", payload.len()).into_bytes();
        l.extend_from_slice(payload);
        l.push(b'\n');
        l
    }

    /// The number of a client of this group.
    fn member(&self, name: &str) -> Option<usize> {
        name.strip_prefix(&self.group)?.parse().ok().filter(|&i| i < self.said.len())
    }

    /// What client `index` says as its line `seq`.
    fn payload(&self, index: usize, seq: u64, bytes: (u32, u32)) -> Vec<u8> {
        let mut rng = Rng::fork(self.seed ^ mix(index as u64), seq);
        if !self.phrases.is_empty() {
            return self.phrases[rng.range(0, self.phrases.len() as u64 - 1) as usize].as_bytes().to_vec();
        }
        // Now and then one that needs several segments.
        let scale = if rng.chance(5) { 20 } else { 1 };
        let n = rng.range(bytes.0.max(1).into(), u64::from(bytes.1.max(1)) * scale);
        (0..n).map(|_| b' ' + rng.range(0, 94) as u8).collect()
    }
}

impl Protocol for Chat {
    type Shared = Room;
    const BROADCAST: bool = true;

    fn produce(&mut self, room: &mut Room, rate: Rate, out: &mut Vec<u8>) -> Duration {
        if self.queue.is_empty() {
            for _ in 0..self.rng.range(1, 5) {
                let payload = room.payload(self.index, self.next, rate.bytes);
                let line = room.line(self.index, self.next, &payload);
                self.ends.push_back(line.len() as u32);
                self.queue.extend_from_slice(&line);
                self.next += 1;
            }
        }
        let all = self.queue.len() as u64;
        let cut = if self.rng.chance(50) { all } else { self.rng.range(1, all) };
        out.extend(self.queue.drain(..cut as usize));
        if self.queue.is_empty() {
            self.rng.duration(rate.pause.0, rate.pause.1)
        } else {
            self.rng.duration(Duration::ZERO, Duration::from_millis(30))
        }
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.queue);
    }

    fn written(&mut self, room: &mut Room, n: usize, _: Instant) {
        self.written_of_first += n as u32;
        while let Some(&len) = self.ends.front().filter(|&&len| len <= self.written_of_first) {
            self.ends.pop_front();
            self.written_of_first -= len;
            self.said += 1;
            room.said[self.index].push(len);
            room.total += 1;
        }
    }

    fn received(&mut self, room: &mut Room, bytes: &[u8], _: Instant) -> Received {
        self.input.extend_from_slice(bytes);
        let mut r = Received::default();
        let mut at = 0;
        let mut scanned = self.input.len() - bytes.len();
        while let Some(end) = self.input[scanned..].iter().position(|&b| b == b'\n').map(|e| scanned + e) {
            let len = (end + 1 - at) as u64;
            match parse(&self.input[at..end]) {
                Ok(line) => {
                    let who = room.member(line.name);
                    match who.map(|who| hear(&mut self.heard, room, self.index, who, &line)) {
                        Some(Err(e)) => {
                            r.lost += e.lost;
                            r.doubled += if e.again { len } else { 0 };
                            r.failure.get_or_insert(Failure::Message { text: e.text });
                            self.heard_total += e.skipped + u64::from(!e.again);
                        }
                        Some(Ok(true)) => self.heard_total += 1,
                        Some(Ok(false)) | None => {}
                    }
                    r.right += if who.is_some() && r.failure.is_some() { 0 } else { len };
                }
                Err(text) => {
                    r.failure.get_or_insert(Failure::Message { text });
                }
            }
            at = end + 1;
            scanned = at;
        }
        self.input.drain(..at);
        r
    }

    fn outstanding(&self, room: &Room) -> u64 {
        (room.total - self.said).saturating_sub(self.heard_total)
    }

    fn outstanding_bytes(&self, room: &Room) -> u64 {
        let others = room.said.iter().enumerate().filter(|(who, _)| *who != self.index);
        let unheard = others.flat_map(|(who, said)| said.get(self.heard[who] as usize..).unwrap_or(&[]));
        unheard.map(|&l| u64::from(l)).sum()
    }

    fn counts(&self) -> (u64, u64, u64) {
        (self.said, self.heard_total, 0)
    }
}

struct Wrong {
    text: String,
    lost: u64,
    skipped: u64,
    again: bool,
}

/// Notes a line of a group's member; true if it is the next one, false for a greeting.
fn hear(heard: &mut [u64], room: &Room, me: usize, who: usize, line: &Line<'_>) -> Result<bool, Wrong> {
    if line.seq == 0 {
        return Ok(false);
    }
    let wrong = |text: String| Wrong { text, lost: 0, skipped: 0, again: true };
    let expected = heard[who] + 1;
    if who == me {
        return Err(wrong(format!("heard its own line {}", line.seq)));
    }
    if line.seq < expected {
        return Err(wrong(format!("line {} of {} twice", line.seq, line.name)));
    }
    if line.seq > expected {
        let missed = room.said[who].get(heard[who] as usize..line.seq as usize - 1).unwrap_or(&[]);
        let lost = missed.iter().map(|&l| u64::from(l)).sum();
        heard[who] = line.seq;
        return Err(Wrong {
            text: format!("line {} of {} where {expected} was expected", line.seq, line.name),
            lost,
            skipped: line.seq - expected,
            again: false,
        });
    }
    heard[who] = line.seq;
    if let Some(tap) = &room.tap {
        let text = String::from_utf8_lossy(line.payload).into_owned();
        // Nobody listening any more is no fault of the chat.
        let _ = tap.send(Heard { by: me, from: who, seq: line.seq, text });
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(n: usize) -> (Room, Vec<Chat>) {
        let room = Room { group: "c".into(), seed: 3, said: vec![Vec::new(); n], total: 0, phrases: Vec::new(), tap: None };
        let chat = |index| Chat {
            index,
            rng: Rng::fork(3, index as u64),
            next: 1,
            queue: Vec::new(),
            ends: VecDeque::new(),
            written_of_first: 0,
            said: 0,
            heard: vec![0; n],
            heard_total: 0,
            input: Vec::new(),
        };
        (room, (0..n).map(chat).collect())
    }

    /// Client 0 says a few lines, cut anywhere; returns them.
    fn talk(room: &mut Room, chat: &mut Chat) -> Vec<Vec<u8>> {
        let mut text = Vec::new();
        while chat.said < 6 || !chat.queue.is_empty() {
            let mut out = Vec::new();
            chat.produce(room, Rate::normal(), &mut out);
            chat.written(room, out.len(), Instant::now());
            text.extend(out);
        }
        text.split_inclusive(|&b| b == b'\n').map(<[u8]>::to_vec).collect()
    }

    #[test]
    fn hears_lines_however_they_are_cut() {
        let (mut room, mut chats) = room(2);
        let lines = talk(&mut room, &mut chats[0]);
        let all = lines.concat();
        assert_eq!(chats[1].outstanding_bytes(&room), all.len() as u64);
        for piece in all.chunks(7) {
            let r = chats[1].received(&mut room, piece, Instant::now());
            assert!(r.failure.is_none(), "{:?}", r.failure);
        }
        assert_eq!(chats[1].outstanding(&room), 0);
        assert_eq!(chats[0].outstanding(&room), 0);
    }

    #[test]
    fn finds_lost_doubled_and_broken_lines() {
        for what in ["lost", "doubled", "broken", "own"] {
            let (mut room, mut chats) = self::room(2);
            let lines = talk(&mut room, &mut chats[0]);
            let mut heard = lines.clone();
            match what {
                "lost" => drop(heard.drain(2..4)),
                "doubled" => heard.insert(3, lines[1].clone()),
                "broken" => {
                    heard[2].remove(15);
                }
                _ => {}
            }
            let me = usize::from(what != "own");
            let r = chats[me].received(&mut room, &heard.concat(), Instant::now());
            assert!(matches!(r.failure, Some(Failure::Message { .. })), "{what}");
            let len = |l: &[Vec<u8>]| l.concat().len() as u64;
            match what {
                "lost" => assert_eq!((r.lost, r.doubled), (len(&lines[2..4]), 0)),
                "doubled" => assert_eq!((r.lost, r.doubled), (0, len(&lines[1..2]))),
                _ => {}
            }
        }
    }
}
