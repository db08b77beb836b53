//! A bad network: loses, reorders, doubles or slows down the segments of a port, by a queue of our own (there need be no
//! netem).

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tcpr_node::nfqueue::Queue;
use tcpr_node::rawsock::{RawSender, MARK};
use tcpr_session::segment;

use crate::sys::{self, other};
use crate::{Host, Rng};

/// The queue in the host's namespace; tcpr's own hosts are others.
const QUEUE: u16 = 77;

/// What happens to segments, in both directions: all but the rate in thousandths, and independent of the others.
#[derive(Clone, Copy, Debug, Default)]
pub struct Impairment {
    /// Never arrive.
    pub loss: u64,
    /// Arrive 1 to 20 ms late, behind those that were sent after them.
    pub reorder: u64,
    /// Arrive twice.
    pub duplicate: u64,
    /// Bytes a second that get through in each direction; 0: all. So much as half a second's waits, and no more.
    pub rate: u64,
}

/// An impairment that is in force until this is dropped.
pub struct Shim {
    host: Host,
    rules: Vec<String>,
    stop: Arc<AtomicBool>,
    stalled: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Shim {
    /// Impairs what `host` and others say to each other on a TCP port of theirs.
    pub fn start(host: &Host, port: u16, impairment: Impairment, seed: u64) -> io::Result<Shim> {
        let (queue, sender) = host.enter(|| Ok::<_, io::Error>((Queue::open(QUEUE)?, RawSender::open()?)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stalled = Arc::new(AtomicBool::new(false));
        let slow = [Slow::new(), Slow::new()];
        let told = stalled.clone();
        let mut worker = Worker { queue, sender, impairment, rng: Rng::new(seed), late: Vec::new(), slow, stalled: told };
        let told = stop.clone();
        let thread = std::thread::spawn(move || worker.run(&told));
        let mut shim = Shim { host: host.clone(), rules: Vec::new(), stop, stalled, thread: Some(thread) };
        for (chain, which) in [("INPUT", "--sport"), ("OUTPUT", "--dport")] {
            let rule = format!("{chain} -p tcp {which} {port} -m mark ! --mark {MARK} -j NFQUEUE --queue-num {QUEUE}");
            iptables(host, "-I", &rule)?;
            shim.rules.push(rule);
        }
        Ok(shim)
    }

    /// Lets nothing through of what has a rate, until told otherwise.
    pub fn stall(&self, stalled: bool) {
        self.stalled.store(stalled, Ordering::Relaxed);
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        for rule in &self.rules {
            if let Err(e) = iptables(&self.host, "-D", rule) {
                eprintln!("{e}");
            }
        }
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Err(e))) => eprintln!("the shim ended: {e}"),
            Some(Err(_)) => eprintln!("the shim panicked"),
            _ => {}
        }
    }
}

/// `iptables WHAT RULE` on a host, and the same for IPv6.
pub(crate) fn iptables(host: &Host, what: &str, rule: &str) -> io::Result<()> {
    for program in ["iptables", "ip6tables"] {
        let mut c = Command::new(program);
        c.args(["-w", what]).args(rule.split_whitespace());
        let out = host.run(c, Duration::from_secs(30))?;
        if !out.status.success() {
            return Err(other(format!("{program} {what} {rule}: {}", String::from_utf8_lossy(&out.stderr))));
        }
    }
    Ok(())
}

struct Worker {
    queue: Queue,
    sender: RawSender,
    impairment: Impairment,
    rng: Rng,
    late: Vec<(Instant, u32)>,
    slow: [Slow; 2],
    stalled: Arc<AtomicBool>,
}

/// One direction of a slow line.
struct Slow {
    waiting: VecDeque<(u32, usize)>,
    bytes: usize,
    free: Instant,
}

impl Slow {
    fn new() -> Slow {
        Slow { waiting: VecDeque::new(), bytes: 0, free: Instant::now() }
    }
}

impl Worker {
    fn run(&mut self, stop: &AtomicBool) -> io::Result<()> {
        // A network does not stand still because the machines are busy: after three seconds the members give up their link.
        sys::raise_priority();
        while !stop.load(Ordering::Relaxed) {
            let idle = self.late.is_empty() && self.slow.iter().all(|slow| slow.waiting.is_empty());
            let wait = if idle { 50 } else { 1 };
            sys::wait_readable(self.queue.as_fd(), Duration::from_millis(wait))?;
            let Worker { queue, sender, impairment, rng, late, slow, stalled } = self;
            queue.recv_batch_with(|packet, verdicts| {
                if rng.range(1, 1000) <= impairment.loss {
                    return verdicts.drop_packet(packet.id);
                }
                if rng.range(1, 1000) <= impairment.duplicate {
                    if let Some(copy) = segment::completed(packet.payload, packet.checksum_ok()) {
                        // A batch that segmentation offload made is longer than the interface takes: not doubled.
                        let _ = sender.send(&copy);
                    }
                }
                if rng.range(1, 1000) <= impairment.reorder {
                    let due = Instant::now() + rng.duration(Duration::from_millis(1), Duration::from_millis(20));
                    return late.push((due, packet.id));
                }
                if impairment.rate == 0 {
                    return verdicts.accept(packet.id);
                }
                let slow = &mut slow[usize::from(packet.hook == libc::NF_INET_LOCAL_OUT as u8)];
                if slow.bytes > impairment.rate as usize / 2 {
                    return verdicts.drop_packet(packet.id);
                }
                slow.bytes += packet.wire_len;
                slow.waiting.push_back((packet.id, packet.wire_len));
            })?;
            let now = Instant::now();
            for slow in slow.iter_mut().filter(|_| !stalled.load(Ordering::Relaxed)) {
                while slow.free <= now {
                    let Some((id, length)) = slow.waiting.pop_front() else { break };
                    queue.accept(id);
                    slow.bytes -= length;
                    // What was not used for a moment is made up for.
                    let from = slow.free.max(now - Duration::from_millis(5));
                    slow.free = from + Duration::from_secs_f64(length as f64 / impairment.rate as f64);
                }
            }
            late.retain(|(due, id)| {
                if *due <= now {
                    queue.accept(*id);
                }
                *due > now
            });
            queue.flush()?;
        }
        // The rules are gone; what is still here goes on.
        for (_, id) in self.late.drain(..) {
            self.queue.accept(id);
        }
        for (id, _) in self.slow.iter_mut().flat_map(|slow| slow.waiting.drain(..)) {
            self.queue.accept(id);
        }
        self.queue.flush()
    }
}
