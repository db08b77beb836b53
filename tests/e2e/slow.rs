//! Peers that do not read: what the server wrote for them waits in its socket, and in its memory when that is full.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use tcpr_lab::client::{EchoClients, EchoOptions, Rate};
use tcpr_lab::member::Service;

use crate::ipv6::{Over, V4, V6};
use crate::world::{built, Fault, World, PATIENCE, PORT};

/// A client of the chat.
fn client(w: &World) -> TcpStream {
    let to = w.pair.addr();
    let stream = w.peer.enter(|| TcpStream::connect_timeout(&to, PATIENCE)).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// Line `i`, of 1,000 bytes.
fn line(i: usize) -> String {
    format!("{i:<999}\n")
}

/// Sends lines `from..to` and sees that the reader gets them.
fn say(sender: &mut TcpStream, reader: &mut BufReader<TcpStream>, from: usize, to: usize) {
    std::thread::scope(|threads| {
        threads.spawn(move || {
            for i in from..to {
                sender.write_all(line(i).as_bytes()).expect("sent");
            }
        });
        let mut got = String::new();
        for i in from..to {
            got.clear();
            reader.read_line(&mut got).expect("a line");
            assert_eq!(got, line(i));
        }
    });
}

/// A client that does not read while a megabyte is said gets it all, though its server dies meanwhile: ten times.
#[test]
fn a_client_that_reads_late_gets_it_all() {
    reads_late(&V4);
}

#[test]
fn a_client_that_reads_late_over_ipv6_gets_it_all() {
    reads_late(&V6);
}

fn reads_late(over: &Over) {
    let plain = built("plain_chat_server");
    let mut w = (over.new)("late", Service::new("late", PORT).lines(), &[&plain, "5555"]);
    let mut sender = client(&w);
    let mut reader = BufReader::new(client(&w));
    let mut late = BufReader::new(client(&w));
    let mut said = 0;
    for fault in w.faults(over.failovers) {
        say(&mut sender, &mut reader, said, said + 1000);
        w.fail_over(fault);
        // Still nothing is read by the late one while others speak.
        say(&mut sender, &mut reader, said + 1000, said + 1100);
        let mut got = String::new();
        for i in said..said + 1100 {
            got.clear();
            late.read_line(&mut got).unwrap_or_else(|e| panic!("{fault:?}, line {i}: {e}\n{}", w.pair.describe()));
            assert_eq!(got, line(i), "{fault:?}");
        }
        said += 1100;
        eprintln!("{fault:?}: {said} lines");
    }
    drop((sender, reader, late));
    w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
}

/// A client that never reads: when nothing more fits into the socket, a failover must reset it, and it alone.
#[test]
fn a_client_that_is_stuck_is_torn_alone() {
    let plain = built("plain_chat_server");
    let mut w = World::new("stuck", Service::new("stuck", PORT).lines(), &[&plain, "5555"]);
    // Small buffers, so that little fills them: a program asks for them when it listens.
    w.peer.sysctl("net.ipv4.tcp_rmem", "4096 65536 65536").expect("sysctl");
    for i in 0..2 {
        w.pair.host(i).sysctl("net.ipv4.tcp_wmem", "4096 65536 262144").expect("sysctl");
    }
    w.fail_over(Fault::KillServer);
    w.fail_over(Fault::KillServer);
    let mut sender = client(&w);
    let mut reader = BufReader::new(client(&w));
    let mut said = 0;
    for (round, fault) in w.faults(10).into_iter().enumerate() {
        let mut stuck = client(&w);
        w.pair.wait_sessions(3, PATIENCE).expect("three sessions");
        say(&mut sender, &mut reader, said, said + 1000);
        let before = torn(&w, 1 - w.protected());
        w.fail_over(fault);
        say(&mut sender, &mut reader, said + 1000, said + 1100);
        said += 1100;
        let mut got = Vec::new();
        let ended = stuck.read_to_end(&mut got).expect_err("reset");
        assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionReset, "{fault:?}");
        // Each line that came is right and in its place.
        let expected: String = (said - 1100..said).map(line).collect();
        assert!(expected.as_bytes().starts_with(&got), "{fault:?}: {} bytes", got.len());
        assert_eq!(torn(&w, w.protected()), before + 1, "{fault:?}");
        eprintln!("round {round}, {fault:?}: {} bytes came", got.len());
    }
    drop((sender, reader));
    w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
}

/// How many sessions this member has reset as torn.
fn torn(w: &World, member: usize) -> u64 {
    let status = w.pair.status(member).expect("status");
    status["counters"]["torn"].as_u64().expect("a counter")
}

/// More under way in both directions than all buffers hold, through ten failovers: the server cannot write, so it
/// does not read, so the clients cannot write.
#[test]
fn a_stream_that_fills_all_buffers_goes_on_through_ten_failovers() {
    fills_all_buffers(&V4);
}

#[test]
fn a_stream_over_ipv6_that_fills_all_buffers_goes_on() {
    fills_all_buffers(&V6);
}

fn fills_all_buffers(over: &Over) {
    let service = Service::new("bulk", PORT).port_key("independent", "true");
    let mut w = (over.new)("bulk", service, &[&built("echo_server"), "5555", over.any]);
    // Both ends' buffers at most half a megabyte each: 15 megabytes of them are moved at each failover otherwise.
    for host in [w.pair.host(0), w.pair.host(1), &w.peer] {
        host.sysctl("net.ipv4.tcp_rmem", "4096 131072 524288").expect("sysctl");
        host.sysctl("net.ipv4.tcp_wmem", "4096 131072 524288").expect("sysctl");
    }
    w.fail_over(Fault::KillServer);
    w.fail_over(Fault::KillServer);
    let mut options = EchoOptions::new(2, w.rng.next_u64()).rate(Rate::new((1, 65_536), (0, 0)));
    options.max_outstanding = 8 << 20;
    let clients = EchoClients::start(&w.peer, w.pair.addr(), &options).expect("clients");
    let faults = w.faults(over.failovers);
    w.survive(&clients, &faults);
    w.end(clients);
}
