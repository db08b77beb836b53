//! Clients that ask, and check what they are answered, while masters are lost.

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tcpr_lab::Rng;

use crate::world::{Fault, Stop, World, PATIENCE};

/// Clients that go on until they are told to stop, or find a mistake.
pub struct Clients<'a> {
    pub stop: &'a AtomicBool,
    pub done: &'a AtomicU64,
}

/// Runs `client` in `n` threads of the peer while `faults` happen one after another; each failover must be survived by
/// as many further requests, and no connection be reset.
pub fn through(w: &mut World, n: usize, faults: &[Fault], client: impl Fn(&Clients, Rng) -> Result<(), String> + Sync) {
    through_resets(w, n, faults, client);
    w.no_reset();
}

/// The same where the server itself resets connections.
pub fn through_resets(w: &mut World, n: usize, faults: &[Fault], client: impl Fn(&Clients, Rng) -> Result<(), String> + Sync) {
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let (peer, clients) = (w.peer.clone(), Clients { stop: &stop, done: &done });
    let seeds: Vec<u64> = (0..n).map(|_| w.rng.next_u64()).collect();
    std::thread::scope(|threads| {
        let _stop = Stop(&stop);
        let running: Vec<_> = seeds
            .iter()
            .map(|seed| {
                let (peer, client, clients) = (&peer, &client, &clients);
                threads.spawn(move || {
                    let ended = peer.enter(|| client(clients, Rng::new(*seed)));
                    // The first mistake ends all.
                    if ended.is_err() {
                        clients.stop.store(true, Relaxed);
                    }
                    ended
                })
            })
            .collect();
        for (round, fault) in faults.iter().enumerate() {
            if stop.load(Relaxed) {
                break;
            }
            w.fail_over(*fault);
            let before = done.load(Relaxed);
            let go_on = || stop.load(Relaxed) || done.load(Relaxed) >= before + n as u64;
            if !tcpr_lab::wait_for(PATIENCE, go_on) {
                panic!("round {round}, {fault:?}: no progress\n{}", w.pair.describe());
            }
            eprintln!("round {round}: {fault:?}: {} requests", done.load(Relaxed));
        }
        stop.store(true, Relaxed);
        for (i, client) in running.into_iter().enumerate() {
            if let Err(e) = client.join().expect("no panic") {
                panic!("client {i}: {e}\n{}", w.pair.describe());
            }
        }
    });
    assert!(done.load(Relaxed) >= (n * faults.len()) as u64);
    w.protected();
}

/// A connection that waits for everything with patience.
pub fn connect(to: SocketAddr) -> Result<TcpStream, String> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE).map_err(|e| format!("connect: {e}"))?;
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    Ok(stream)
}

/// A random moment.
pub fn pause(rng: &mut Rng, most_ms: u64) {
    std::thread::sleep(rng.duration(Duration::ZERO, Duration::from_millis(most_ms)));
}
