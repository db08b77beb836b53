//! Two members with a server under protection, a peer, and the connections between them.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tcpr_lab::client::connect_via;
use tcpr_lab::member::{example, Pair, Service};
use tcpr_lab::{allow_descriptors, wait_for, wait_listening, Host, Lab, Process};

use super::{usage, Options, Standby, Variant};
use crate::failure::Failure;

/// Where the server echoes; the next port takes bytes, the one after it gives them.
pub const PORT: u16 = 5555;
/// The same program, unprotected.
const PLAIN_PORT: u16 = 6000;
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Connections of one address of the peer.
const EACH_ADDRESS: u32 = 25_000;
/// Open files of a process that are no sessions.
const OTHER_FILES: u64 = 512;
/// Threads that open connections: some wait while others go on.
const OPENERS: u32 = 8;

/// Two members, a peer, and the same server without protection beside.
pub struct Stand {
    // Dropped in this order: processes first, then the hosts.
    pub pair: Pair,
    hot: bool,
    plain: [Process; 2],
    pub peer: Host,
    _lab: Lab,
}

impl Stand {
    pub fn new(options: &Options, variant: Variant, sessions: u32) -> Result<Stand, Failure> {
        // What is started has the same limit.
        let each = most_sessions(sessions)?;
        let lab = Lab::new("bench")?;
        let a = lab.host("a", "192.0.2.1/24")?;
        let b = lab.host("b", "192.0.2.2/24")?;
        let peer = lab.host("peer", "192.0.2.9/24")?;
        // Ports for all, and one that was closed is used again.
        peer.sysctl("net.ipv4.ip_local_port_range", "1024 65535")?;
        peer.sysctl("net.ipv4.tcp_tw_reuse", "1")?;
        let service = variant
            .apply(Service::new("bench", PORT))
            .and_port(PORT + 1)
            .unanswered("discard")
            .and_port(PORT + 2)
            .port_key("independent", "true")
            .set("failover", "heartbeat_ms", &options.heartbeat.to_string())
            .set("failover", "misses", &options.misses.to_string())
            .set("failover", "solo_after_ms", &(2 * options.heartbeat * options.misses).max(100).to_string());
        let mut pair = Pair::new(&a, &b, service)?;
        let server = example("traffic_server")?;
        let plain = |host: &Host| {
            let mut command = Command::new(&server);
            command.arg(PLAIN_PORT.to_string());
            host.spawn("plain", command).map_err(Failure::from)
        };
        let plain = [plain(&a)?, plain(&b)?];
        let server = server.to_str().ok_or("a path that is no text")?;
        let (port, workers) = (PORT.to_string(), sessions.div_ceil(each));
        // Some files of each are for connections beside the sessions.
        let spread = [workers, each + OTHER_FILES as u32 / 2].map(|n| n.to_string());
        let mut command = vec![server, &port];
        if workers > 1 {
            command.extend(spread.iter().map(String::as_str));
        }
        pair.start_both(&command)?;
        let hot = variant.standby == Standby::Hot;
        let stand = Stand { pair, hot, plain, peer, _lab: lab };
        // One that ends at once says why.
        let process = |i| stand.pair.process(i).expect("started");
        let ended = || (0..2).find(|&i| process(i).try_exit().is_some());
        let protected = || stand.pair.master().is_ok_and(|m| stand.pair.status(m).is_ok_and(|s| s["protected"] == true));
        wait_for(PATIENCE, || ended().is_some() || protected());
        if let Some(i) = ended() {
            return Err(format!("tcpr run ended: {}", process(i).err().trim()).into());
        }
        stand.ready()?;
        for i in 0..2 {
            for port in [PORT, PLAIN_PORT] {
                wait_listening(stand.pair.host(i), port, PATIENCE)?;
            }
        }
        Ok(stand)
    }

    /// Waits until a takeover would lose nothing; tells who is master.
    pub fn ready(&self) -> Result<usize, Failure> {
        follows(&self.pair, self.hot)
    }

    /// The server on this member, with nothing of tcpr at work.
    pub fn unprotected(&self, member: usize) -> SocketAddr {
        SocketAddr::new(self.pair.host(member).ip(), PLAIN_PORT)
    }

    /// Processor time that a service has used so far, on both members: protected, with the managers.
    pub fn cpu(&self, protected: bool) -> f64 {
        let plain = self.plain.each_ref().map(Process::pid);
        if !protected {
            return plain.into_iter().map(usage::cpu).sum();
        }
        let pids = (0..2).flat_map(|i| self.pair.host(i).pids());
        pids.filter(|pid| !plain.contains(pid)).map(usage::cpu).sum()
    }

    /// An address of the peer's, which has more than one.
    fn source(&self, i: u32) -> Result<Ipv4Addr, Failure> {
        let IpAddr::V4(first) = self.peer.ip() else { return Err("the peer has no IPv4 address".into()) };
        let source = Ipv4Addr::from(u32::from(first) + i);
        if i > 0 {
            self.peer.ip_cmd(&format!("addr replace {source}/24 dev eth0"))?;
        }
        Ok(source)
    }

    /// So many connections of the peer, in processes of their own: one may have descriptors for only so many.
    pub fn holders(&self, n: u32) -> Result<Holders, Failure> {
        let each = most_sessions(n)?.min(EACH_ADDRESS);
        let (program, to) = (example("holder")?, v4(self.pair.addr())?);
        let start = |i: u32| {
            let mut command = Command::new(&program);
            let (address, port, n) = (to.ip().to_string(), to.port().to_string(), each.min(n - i * each).to_string());
            command.args([self.source(i)?.to_string(), address, port, n]);
            self.peer.spawn("holder", command).map_err(Failure::from)
        };
        let holders = Holders { processes: (0..n.div_ceil(each)).map(start).collect::<Result<_, _>>()?, said: 0 };
        holders.wait_said("ready", 1)?;
        Ok(holders)
    }

    /// So many connections of the peer, each of which has echoed a message.
    pub fn connections(&self, n: u32) -> Result<Vec<TcpStream>, Failure> {
        if most_sessions(n)? < n {
            return Err(format!("a process may not have so many open files ({n}); raise the hard limit (`ulimit -Hn`)").into());
        }
        let sources = (0..n.div_ceil(EACH_ADDRESS)).map(|i| self.source(i)).collect::<Result<Vec<_>, _>>()?;
        let to = v4(self.pair.addr())?;
        let share = |from: u32, until: u32| -> Result<Vec<TcpStream>, Failure> {
            (from..until)
                .map(|i| {
                    let source = sources[(i / EACH_ADDRESS) as usize];
                    let stream = connect_via(source, to, PATIENCE).map_err(|e| format!("connection {i} of {n}: {e}"))?;
                    let mut stream = prepared(stream)?;
                    echo(&mut stream, b"0123456789abcdef").map_err(|e| format!("echo: {e}"))?;
                    Ok(stream)
                })
                .collect()
        };
        let shares: Vec<_> = (0..=OPENERS).map(|k| (u64::from(n) * u64::from(k) / u64::from(OPENERS)) as u32).collect();
        let made: Vec<Result<Vec<TcpStream>, Failure>> = self.peer.enter(|| {
            std::thread::scope(|threads| {
                let share = &share;
                let all: Vec<_> = shares.windows(2).map(|w| threads.spawn(move || share(w[0], w[1]))).collect();
                all.into_iter().map(|t| t.join().expect("no panic")).collect()
            })
        });
        let mut all = Vec::with_capacity(n as usize);
        for part in made {
            all.extend(part?);
        }
        Ok(all)
    }
}

/// Processes that hold connections (`benches/holder.c`).
pub struct Holders {
    processes: Vec<Process>,
    said: usize,
}

impl Holders {
    /// Every peer asks, then every peer hears its answer.
    pub fn ask(&mut self) -> Result<(), Failure> {
        const SIGUSR1: i32 = 10;
        self.said += 1;
        self.processes.iter().try_for_each(|p| p.signal(SIGUSR1))?;
        self.wait_said("answered", self.said)
    }

    fn wait_said(&self, what: &str, times: usize) -> Result<(), Failure> {
        for process in &self.processes {
            let said = || process.out().lines().filter(|line| *line == what).count() >= times;
            if !wait_for(10 * PATIENCE, || said() || process.try_exit().is_some()) || !said() {
                return Err(process.tail(1).into());
            }
        }
        Ok(())
    }
}

/// Waits until the pair is protected, and the backup's program follows if it is `hot`; tells who is master.
pub fn follows(pair: &Pair, hot: bool) -> Result<usize, Failure> {
    let master = pair.wait_protected(PATIENCE)?;
    let mut standby = Value::Null;
    let follows = !hot
        || wait_for(PATIENCE, || {
            standby = pair.status(master).map_or(Value::Null, |status| status["standby"].clone());
            standby["state"] == "following"
        });
    follows.then_some(master).ok_or_else(|| format!("the backup's program does not follow: {standby}").into())
}

/// How many sessions a process may hold; the limit of the members, which are started later, is raised with ours.
pub fn most_sessions(wanted: u32) -> Result<u32, Failure> {
    let allowed = allow_descriptors(u64::from(wanted) + OTHER_FILES)?;
    Ok(allowed.saturating_sub(OTHER_FILES) as u32)
}

/// Every peer asks, then every peer hears its answer.
pub fn ask_all(connections: &mut [TcpStream]) -> Result<(), Failure> {
    const QUESTION: &[u8] = b"are you there?";
    let lost = |i: usize, e: io::Error| format!("connection {i}: {e}");
    for (i, stream) in connections.iter_mut().enumerate() {
        stream.write_all(QUESTION).map_err(|e| lost(i, e))?;
    }
    for (i, stream) in connections.iter_mut().enumerate() {
        let mut back = [0; QUESTION.len()];
        stream.read_exact(&mut back).map_err(|e| lost(i, e))?;
        if back != QUESTION {
            return Err(format!("connection {i}: what came back is not what was sent").into());
        }
    }
    Ok(())
}

fn v4(address: SocketAddr) -> Result<SocketAddrV4, Failure> {
    match address {
        SocketAddr::V4(v4) => Ok(v4),
        SocketAddr::V6(_) => Err("no IPv4 address".into()),
    }
}

fn prepared(stream: TcpStream) -> Result<TcpStream, Failure> {
    stream.set_read_timeout(Some(PATIENCE)).and_then(|()| stream.set_nodelay(true))?;
    Ok(stream)
}

pub fn connect(from: &Host, to: SocketAddr) -> Result<TcpStream, Failure> {
    prepared(from.enter(|| TcpStream::connect_timeout(&to, PATIENCE)).map_err(|e| format!("connect: {e}"))?)
}

/// Sends a message, and waits until it has come back; tells how long that took.
pub fn echo(stream: &mut TcpStream, message: &[u8]) -> io::Result<Duration> {
    let mut back = vec![0; message.len()];
    let start = Instant::now();
    if message.len() <= 16 << 10 {
        stream.write_all(message)?;
        stream.read_exact(&mut back)?;
    } else {
        // An echo that cannot be rid of its answer takes no more.
        let mut writing = stream.try_clone()?;
        std::thread::scope(|threads| {
            let writer = threads.spawn(move || writing.write_all(message));
            stream.read_exact(&mut back)?;
            writer.join().expect("no panic")
        })?;
    }
    let took = start.elapsed();
    if back != message {
        return Err(io::Error::other("what came back is not what was sent"));
    }
    Ok(took)
}
