//! A connection as a takeover with engine `splice` makes one, through the packet rules and the firewall of this host: begun in
//! the name of the partner's machine, which hears nothing of it, to a port that nobody else has.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use tcpr_node::config::Config;
use tcpr_node::conntrack::{self, Conntrack};
use tcpr_node::nfqueue::Queue;
use tcpr_node::rawsock::{RawSender, MARK_LOCAL};
use tcpr_node::rules::{tools_path, Rules};
use tcpr_session::segment::{flags, Build, Segment};
use tcpr_session::seq::Seq;
use tcpr_session::tuple::FourTuple;

/// How long each step may take.
const WAIT: Duration = Duration::from_millis(250);
/// What is said both ways.
const WORD: &[u8] = b"tcpr";
/// The peer's number.
const ISN: Seq = Seq(1000);
/// A port of the partner's machine, where nobody is asked.
const PEERS_PORT: u16 = 9;

/// Makes the connection, of which nothing is left. Returns what was seen to work.
///
/// # Errors
/// What does not work, and what to do about it.
pub fn connect(config: &Config) -> Result<String, String> {
    let partner = config.partner().and_then(|member| member.addresses().next());
    let Some(partner) = partner else { return Ok("not tried: there is no partner in whose name to connect".to_owned()) };
    let mut trial = Trial::new(partner).map_err(|e| format!("a connection could not be tried: {e}"))?;
    let before = counts();
    trial.run().map_err(|e| {
        let after = counts();
        let grew = |(rule, n): &&(String, u64)| *n > before.iter().find(|(r, _)| r == rule).map_or(0, |(_, n)| *n);
        let rule = after.iter().find(grew).map_or("a rule of this host's firewall".to_owned(), |(rule, _)| format!("\"{rule}\""));
        let iptables = if partner.is_ipv4() { "iptables" } else { "ip6tables" };
        format!(
            "{e}: {rule} swallows what a takeover needs; let it pass before that: \
             {iptables} -I INPUT -i lo -m mark --mark {MARK_LOCAL:#x} -j ACCEPT"
        )
    })?;
    Ok("a connection taken over is heard here, and its answers reach the queue".to_owned())
}

struct Trial {
    tuple: FourTuple,
    listener: Option<TcpListener>,
    rules: Rules,
    answers: Queue,
    _input: Queue,
    raw: RawSender,
    conntrack: Option<Conntrack>,
}

impl Trial {
    fn new(partner: IpAddr) -> io::Result<Trial> {
        // The address that speaks with the partner.
        let any: IpAddr = if partner.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let towards = UdpSocket::bind((any, 0))?;
        towards.connect((partner, PEERS_PORT))?;
        let own = towards.local_addr()?.ip();
        let listener = TcpListener::bind((own, 0))?;
        listener.set_nonblocking(true)?;
        let local = listener.local_addr()?;
        let (input, answers) = (queue(60_000)?, queue(60_100)?);
        let rules = Rules {
            service: format!("doctor-{}", std::process::id()),
            virtual_ips: vec![own],
            ports: vec![local.port()],
            outgoing: Vec::new(),
            queues: (input.num(), answers.num()),
        };
        let raw = RawSender::open_local()?;
        let conntrack = if conntrack::in_use() { Some(Conntrack::open()?) } else { None };
        let tuple = FourTuple { local, peer: SocketAddr::new(partner, PEERS_PORT) };
        let trial = Trial { tuple, listener: Some(listener), rules, answers, _input: input, raw, conntrack };
        trial.rules.install()?;
        Ok(trial)
    }

    fn run(&mut self) -> Result<(), String> {
        self.track();
        self.say(flags::SYN, Seq(0), ISN, &[])?;
        let Some((theirs, _)) = self.hear(|s| s.has(flags::SYN | flags::ACK)) else {
            return Err("no listener of this host hears who connects".to_owned());
        };
        // The handshake made connection tracking look at numbers again.
        self.track();
        self.say(flags::ACK, theirs.add(1), ISN.add(1), &[])?;
        self.say(flags::ACK | flags::PSH, theirs.add(1), ISN.add(1), WORD)?;
        let mut stream = self.accepted().ok_or("no handshake is completed")?;
        let mut word = [0; WORD.len()];
        let heard = stream.set_read_timeout(Some(WAIT)).and_then(|()| stream.read_exact(&mut word));
        if heard.is_err() || word != *WORD {
            return Err("what is said on a connection does not arrive".to_owned());
        }
        let said = stream.write_all(WORD);
        match self.hear(|s| s.payload() == WORD) {
            Some(_) if said.is_ok() => Ok(()),
            _ => Err("what a program answers does not reach the queue".to_owned()),
        }
    }

    /// As a takeover does.
    fn track(&mut self) {
        if let Some(conntrack) = &mut self.conntrack {
            conntrack.established(&self.tuple, false);
            conntrack.flush();
        }
    }

    fn say(&mut self, bits: u8, ack: Seq, seq: Seq, payload: &[u8]) -> Result<(), String> {
        let FourTuple { local, peer } = self.tuple;
        let mut packet = Vec::new();
        Build { source: peer, destination: local, seq, ack, flags: bits, window: 60_000, timestamps: None, payload }
            .write(&mut packet);
        self.raw.send(&packet).map_err(|e| format!("cannot give a packet to the local TCP ({e})"))
    }

    /// Waits for a segment that would leave, which none does.
    fn hear(&mut self, wanted: impl Fn(&Segment<'_>) -> bool) -> Option<(Seq, Seq)> {
        let until = Instant::now() + WAIT;
        let mut found = None;
        while found.is_none() && Instant::now() < until {
            let received = self.answers.recv_batch_with(|packet, verdicts| {
                let segment = Segment::parse(packet.payload).ok().filter(&wanted);
                found = found.or(segment.map(|s| (s.seq(), s.ack())));
                verdicts.drop_packet(packet.id);
            });
            if received.and_then(|n| self.answers.flush().map(|()| n)).ok()? == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        found
    }

    fn accepted(&self) -> Option<TcpStream> {
        let until = Instant::now() + WAIT;
        loop {
            match self.listener.as_ref()?.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).ok()?;
                    return Some(stream);
                }
                Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(1)),
                Err(_) => return None,
            }
        }
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        // What the kernel says of the end meets the rules.
        self.listener = None;
        if let Err(error) = self.rules.remove() {
            eprintln!("tcpr: {error}");
        }
        if let Some(conntrack) = &mut self.conntrack {
            conntrack.forget(&self.tuple);
            conntrack.flush();
        }
    }
}

/// The first free queue from this number on.
fn queue(first: u16) -> io::Result<Queue> {
    let mut numbers = first..first + 100;
    loop {
        match numbers.next().map(Queue::open) {
            Some(Err(e)) if e.raw_os_error() == Some(libc::EBUSY) || e.kind() == io::ErrorKind::ResourceBusy => {}
            Some(opened) => return opened,
            None => return Err(io::Error::other("no free queue number")),
        }
    }
}

/// How many packets each rule and policy of iptables has refused.
fn counts() -> Vec<(String, u64)> {
    let mut counts = Vec::new();
    for program in ["iptables-save", "iptables-legacy-save", "ip6tables-save", "ip6tables-legacy-save"] {
        let Ok(output) = Command::new(program).arg("-c").env("PATH", tools_path()).output() else { continue };
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let refuses = ["-j DROP", "-j REJECT", ":INPUT DROP", ":OUTPUT DROP"].iter().any(|word| line.contains(word));
            let Some((rest, numbers)) = line.split_once('[').filter(|_| refuses) else { continue };
            let Some((packets, rule)) = numbers.split_once(':').and_then(|(n, rest)| Some((n, rest.split_once(']')?.1))) else {
                continue;
            };
            counts.push((format!("{rest}{rule}").trim().to_owned(), packets.parse().unwrap_or(0)));
        }
    }
    counts
}
