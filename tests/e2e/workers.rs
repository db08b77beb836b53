//! Servers whose worker threads get their work in every way that there is: what blocks a thread ends its turn, whatever it
//! waits in. A request that was answered is not run again after a failover, and an answer does not wait for a turn's limit.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tcpr_lab::member::Service;
use tcpr_lab::wait_listening;

use crate::requests::connect;
use crate::world::{built, Fault, World, PATIENCE, PORT};

/// A turn's limit is 50 ms.
const AT_ONCE: Duration = Duration::from_millis(40);
/// In a lock a thread must have slept for half a second.
const REST: Duration = Duration::from_millis(1500);

#[test]
fn what_a_worker_waits_in_does_not_matter() {
    let kinds = ["pipe", "pair", "event", "mq", "sysv", "sem", "barrier", "cnd", "thrd", "stdio", "bare", "relay", "mutex"];
    run("workers", &[&built("workers")], &kinds);
}

#[test]
fn workers_of_python_answer_once() {
    let script = format!("{}/tests/workers.py", env!("CARGO_MANIFEST_DIR"));
    run("pyworkers", &["python3", &script], &["pipe", "simple", "queue"]);
}

/// Python's threads take turns at the interpreter: one that waits for it is in the middle of its work.
#[test]
fn a_request_is_not_lost_while_its_thread_waits_for_the_interpreter() {
    let script = format!("{}/tests/busy_python.py", env!("CARGO_MANIFEST_DIR"));
    let w = World::new("busypython", Service::new("lines", PORT).lines(), &["python3", &script, "5555"]);
    let (to, peer) = (w.pair.addr(), w.peer.clone());
    let mut client = peer.enter(|| connect(to)).expect("connected");
    for round in 0..5 {
        let master = w.protected();
        // The one that was killed takes long to come back beside a thread that computes.
        (0..2).for_each(|i| wait_listening(w.pair.host(i), PORT, PATIENCE).expect("the server listens"));
        let line = format!("line {round}\n");
        client.write_all(line.as_bytes()).expect("sent");
        if round > 0 {
            // By now it was read, and not answered yet.
            std::thread::sleep(Duration::from_millis(50));
            w.pair.kill_program(master).expect("killed");
        }
        let mut answer = vec![0; line.len()];
        client.read_exact(&mut answer).unwrap_or_else(|e| panic!("round {round}: {e}\n{}", w.pair.describe()));
        assert_eq!(String::from_utf8_lossy(&answer), line);
    }
    w.no_reset();
}

/// The file to which the servers of both members add what they have run.
struct Ran(PathBuf);

impl Drop for Ran {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn run(label: &str, program: &[&str], kinds: &[&str]) {
    let ran = Ran(std::env::temp_dir().join(format!("tcpr-{label}-{}", std::process::id())));
    let log = ran.0.display().to_string();
    let mut program = program.to_vec();
    program.extend(["5555", &log]);
    let mut w = World::new(label, Service::new("lines", PORT), &program);
    let (to, peer) = (w.pair.addr(), w.peer.clone());
    let mut clients: Vec<TcpStream> = kinds.iter().map(|_| peer.enter(|| connect(to)).expect("connected")).collect();
    let mut fastest = vec![Duration::MAX; kinds.len()];
    let mut asked = 0;
    for fault in [None, Some(Fault::KillServer), Some(Fault::Switchover), Some(Fault::Cut)] {
        if let Some(fault) = fault {
            std::thread::sleep(REST);
            w.fail_over(fault);
            w.protected();
        }
        for _ in 0..4 {
            for (i, client) in clients.iter_mut().enumerate() {
                let line = format!("{} {asked}\n", kinds[i]);
                let start = Instant::now();
                client.write_all(line.as_bytes()).expect("asked");
                let mut answer = vec![0; line.len()];
                client.read_exact(&mut answer).unwrap_or_else(|e| panic!("{fault:?}, {line:?}: {e}\n{}", w.pair.describe()));
                assert_eq!(String::from_utf8_lossy(&answer), line, "after {fault:?}");
                fastest[i] = fastest[i].min(start.elapsed());
            }
            asked += 1;
        }
    }
    let text = fs::read_to_string(&ran.0).expect("what was run");
    let mut times = BTreeMap::new();
    text.lines().for_each(|line| *times.entry(line.to_owned()).or_insert(0) += 1);
    let wrong: Vec<_> = times.iter().filter(|(_, n)| **n != 1).collect();
    assert!(wrong.is_empty(), "run again though answered: {wrong:?}");
    assert_eq!(times.len(), asked * kinds.len());
    let slow: Vec<_> = kinds.iter().zip(&fastest).filter(|(kind, fastest)| **kind != "mutex" && **fastest >= AT_ONCE).collect();
    assert!(slow.is_empty(), "answers that wait: {slow:?}");
    w.no_reset();
}
