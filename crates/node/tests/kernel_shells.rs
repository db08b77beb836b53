//! The kernel shells against the real kernel: two hosts, each a network namespace, joined by a veth pair.
//! Needs root. Everything lives in the namespaces and goes with them.
//!
//! `cargo test --release -p tcpr-node --test kernel_shells -- --ignored --nocapture` also measures.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tcpr_node::doorbell;
use tcpr_node::nfqueue::{Queue, QueuedPacket};
use tcpr_node::rawsock::{RawSender, MARK};
use tcpr_node::repair::{close_silently, read_state, restore, SocketSpec, SocketState};
use tcpr_node::sockdiag::{state, Ours, SockDiag};
use tcpr_node::vip::Vip;

const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);
const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const SERVICE: SocketAddr = SocketAddr::V4(SocketAddrV4::new(VIP, 5555));
const DEADLINE: Duration = Duration::from_secs(20);

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;

// ---- nfqueue -----------------------------------------------------------------------------------------

#[test]
fn a_queue_in_use_is_a_clear_error_and_free_after_a_drop() {
    let net = Net::new();
    net.a(|| {
        let first = Queue::open(200).unwrap();
        let error = Queue::open(200).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy, "{error}");
        assert!(error.to_string().contains("NFQUEUE 200 is in use"), "{error}");
        drop(first);
        Queue::open(200).unwrap();
    });
}

#[test]
fn a_held_packet_is_delivered_when_released_and_dropped_with_the_queue() {
    let net = Net::new();
    let (mut client, mut server) = net.connection();
    net.a(|| rule("INPUT", "--dport 5555", 0));
    let mut queue = net.a(|| Queue::open(0).unwrap());

    client.write_all(b"held").unwrap();
    let id = only_data(&mut queue, b"held");
    server.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert_eq!(server.read(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert!(queue.verdicts().is_empty());
    queue.accept(id);
    queue.flush().unwrap();
    assert_eq!(read_n(&mut server, 4), b"held");

    client.write_all(b"lost").unwrap();
    only_data(&mut queue, b"lost");
    drop(queue);
    let mut queue = net.a(|| Queue::open(0).unwrap());
    // Only the peer's retransmission brings it back.
    let id = only_data(&mut queue, b"lost");
    queue.accept(id);
    queue.flush().unwrap();
    assert_eq!(read_n(&mut server, 4), b"lost");
}

#[test]
fn a_modified_packet_passes_with_a_full_checksum() {
    let net = Net::new();
    let (mut client, mut server) = net.connection();
    net.a(|| rule("INPUT", "--dport 5555", 0));
    let mut queue = net.a(|| Queue::open(0).unwrap());
    client.write_all(b"hello").unwrap();
    let mut modified = Vec::new();
    let mut id = 0;
    wait_for(|| {
        queue
            .recv_batch(|packet| {
                if data(packet.payload) == b"hello" {
                    id = packet.id;
                    modified = packet.payload.to_vec();
                }
            })
            .unwrap();
        id != 0
    });
    let at = modified.len() - 5;
    modified[at..].copy_from_slice(b"HELLO");
    set_checksum(&mut modified);
    queue.accept_modified(id, &modified).unwrap();
    queue.flush().unwrap();
    assert_eq!(read_n(&mut server, 5), b"HELLO");
}

#[test]
fn checksums_are_vouched_for_only_when_the_kernel_knows() {
    let net = Net::new();
    let (mut client, _server) = net.connection();
    net.a(|| rule("INPUT", "--dport 5555", 0));
    let mut queue = net.a(|| Queue::open(0).unwrap());
    client.write_all(b"local").unwrap();
    let mut seen = None;
    wait_for(|| {
        queue.recv_batch(|p| seen = Some((p.csum_not_ready, p.csum_verified, p.hook, p.indev))).unwrap();
        seen.is_some()
    });
    let (not_ready, verified, hook, indev) = seen.unwrap();
    // From another namespace: never computed, so not ready although it is input.
    assert!(not_ready && !verified && indev != 0);
    assert_eq!(i32::from(hook), libc::NF_INET_LOCAL_IN);

    let mut raw = net.b(|| RawSender::open().unwrap());
    let from = SocketAddrV4::new(PEER, 9);
    let mut packet = segment(from, v4(SERVICE), 1, 0, SYN, b"raw");
    packet[20 + 16] ^= 1;
    raw.send(&packet).unwrap();
    let mut seen = None;
    wait_for(|| {
        queue
            .recv_batch(|p| {
                if data(p.payload) == b"raw" {
                    seen = Some(p.checksum_ok());
                }
            })
            .unwrap();
        seen.is_some()
    });
    assert_eq!(seen, Some(false));
}

#[test]
fn bulk_passes_intact_both_ways_through_gso_batches() {
    let net = Net::new();
    let (client, server) = net.connection();
    net.a(|| {
        rule("INPUT", "--dport 5555", 0);
        rule("OUTPUT", "--sport 5555", 1);
    });
    let stop = AtomicBool::new(false);
    let mut queues = net.a(|| [Queue::open(0).unwrap(), Queue::open(1).unwrap()]);
    let (mut gso, mut modified, mut biggest) = ([0; 2], 0, 0);
    thread::scope(|scope| {
        let pump = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                poll_in(&[queues[0].as_raw_fd(), queues[1].as_raw_fd()], 10);
                for (i, queue) in queues.iter_mut().enumerate() {
                    queue
                        .recv_batch_with(|packet, verdicts| {
                            assert!(!packet.truncated());
                            biggest = biggest.max(packet.payload.len());
                            gso[i] += u32::from(packet.gso);
                            // Every 16th is replaced by a copy, to see that a replaced batch passes too.
                            if packet.id % 16 == 0 {
                                let mut copy = packet.payload.to_vec();
                                set_checksum(&mut copy);
                                modified += 1;
                                verdicts.accept_modified(packet.id, &copy).unwrap();
                            } else {
                                verdicts.accept(packet.id);
                            }
                        })
                        .unwrap();
                    queue.flush().unwrap();
                }
            }
        });
        // Both at once.
        const TOTAL: usize = 32 << 20;
        let there = scope.spawn(|| transfer(&client, &server, TOTAL, 1));
        transfer(&server, &client, TOTAL, 2);
        there.join().unwrap();
        stop.store(true, Ordering::Relaxed);
        pump.join().unwrap();
    });
    println!("gso in/out {gso:?}, modified {modified}, biggest {biggest}");
    assert!(gso[0] > 0 && gso[1] > 0 && modified > 0 && biggest > 30_000);
    for queue in &queues {
        assert_eq!((queue.overruns(), queue.refused()), (0, (0, 0)));
    }
}

#[test]
fn an_overrun_is_counted_and_the_queue_goes_on() {
    let net = Net::new();
    net.a(|| rule("INPUT", "--dport 5555", 0));
    let mut queue = net.a(|| Queue::open(0).unwrap());
    set_int(queue.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, 1);
    let mut raw = net.b(|| RawSender::open().unwrap());
    let packet = segment(SocketAddrV4::new(PEER, 9), v4(SERVICE), 1, 0, SYN, &[0; 1000]);
    for _ in 0..50 {
        raw.send(&packet).unwrap();
    }
    let mut ids = Vec::new();
    wait_for(|| {
        queue.recv_batch(|p| ids.push(p.id)).unwrap();
        queue.overruns() > 0
    });
    assert!(ids.len() < 50);
    while queue.recv_batch(|p| ids.push(p.id)).unwrap() > 0 {}
    raw.send(&packet).unwrap();
    let before = ids.len();
    wait_for(|| {
        queue.recv_batch(|p| ids.push(p.id)).unwrap();
        ids.len() > before
    });
}

#[test]
fn a_refused_verdict_is_counted() {
    let net = Net::new();
    let mut queue = net.a(|| Queue::open(0).unwrap());
    queue.accept(1);
    queue.drop_packet(2);
    queue.flush().unwrap();
    while queue.recv_batch(|_| {}).unwrap() > 0 {}
    assert_eq!(queue.refused(), (2, libc::ENOENT));
    assert_eq!(queue.num(), 0);
}

// ---- repair ------------------------------------------------------------------------------------------

#[test]
fn a_restored_connection_goes_on_and_has_the_same_parameters() {
    let net = Net::new();
    let (mut client, mut server) = net.connection();
    transfer(&client, &server, 100_000, 1);
    client.write_all(b"question").unwrap();
    assert_eq!(read_n(&mut server, 8), b"question");
    server.write_all(b"answer").unwrap();
    assert_eq!(read_n(&mut client, 6), b"answer");

    let tap = net.tap();
    let before = settled(&server);
    let (local, peer) = (server.local_addr().unwrap(), server.peer_addr().unwrap());
    close_silently(server.into()).unwrap();
    // A listener of the application still has the port; it does not matter.
    let restored = net.a(|| restore(&spec(&before, local, peer)).unwrap());
    let after = read_state(restored.as_fd()).unwrap();
    let server = TcpStream::from(restored);
    assert_eq!(server.local_addr().unwrap(), local);
    assert_eq!(server.peer_addr().unwrap(), peer);
    assert!(flags_of(server.as_raw_fd()));
    let same = |s: &SocketState| (s.state, s.snd_una_seq, s.write_seq, s.rcv_nxt_seq, s.mss, s.snd_wscale, s.rcv_wscale, s.sack);
    assert_eq!(same(&before), same(&after));
    assert_eq!(before.snd_mss, after.snd_mss);
    assert_eq!((before.snd_wnd, before.max_window), (after.snd_wnd, after.max_window));
    assert_eq!((before.rcv_wnd, before.rcv_wup), (after.rcv_wnd, after.rcv_wup));
    thread::sleep(Duration::from_millis(20));
    assert_eq!(tap.segments_of_service(), [], "neither the end nor the restoration may be heard");

    server.set_nonblocking(false).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| transfer(&client, &server, 8 << 20, 3));
        transfer(&server, &client, 8 << 20, 4);
    });
}

#[test]
fn connections_without_options_are_restored_too() {
    for (name, wscale, sack, timestamps) in
        [("tcp_window_scaling", false, true, true), ("tcp_sack", true, false, true), ("tcp_timestamps", true, true, false)]
    {
        let net = Net::new();
        net.b(|| sysctl(name, "0"));
        let (client, server) = net.connection();
        let before = settled(&server);
        assert_eq!(before.snd_wscale.is_some(), wscale);
        assert_eq!((before.sack, before.timestamps.is_some()), (sack, timestamps));
        let (local, peer) = (server.local_addr().unwrap(), server.peer_addr().unwrap());
        close_silently(server.into()).unwrap();
        let server = TcpStream::from(net.a(|| restore(&spec(&before, local, peer)).unwrap()));
        let after = read_state(server.as_fd()).unwrap();
        assert_eq!((after.sack, after.timestamps.is_some()), (sack, timestamps));
        assert_eq!(after.snd_wscale.unwrap_or(0), before.snd_wscale.unwrap_or(0));
        assert_eq!(after.rcv_wscale.unwrap_or(0), before.rcv_wscale.unwrap_or(0));
        server.set_nonblocking(false).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| transfer(&client, &server, 4 << 20, 5));
            transfer(&server, &client, 4 << 20, 6);
        });
    }
}

#[test]
fn a_queue_pushed_as_sent_is_retransmitted_when_its_timer_runs_out() {
    let net = Net::new();
    let (mut client, mut server) = net.connection();
    // What the server wrote last never reached the peer.
    net.b(|| iptables("-A INPUT -p tcp --sport 5555 -j DROP"));
    let lost = pattern(5000, 7);
    server.write_all(&lost).unwrap();
    let before = read_state(server.as_fd()).unwrap();
    assert_eq!(before.unacked + before.unsent, 5000);
    let (local, peer) = (server.local_addr().unwrap(), server.peer_addr().unwrap());
    close_silently(server.into()).unwrap();
    net.b(|| iptables("-D INPUT -p tcp --sport 5555 -j DROP"));

    let (first, second) = lost.split_at(1234);
    let tap = net.tap();
    let start = Instant::now();
    let restored = net.a(|| restore(&SocketSpec { snd_queue: [first, second], ..spec(&before, local, peer) }).unwrap());
    let state = read_state(restored.as_fd()).unwrap();
    assert_eq!((state.unacked, state.unsent), (5000, 0));
    poll_in(&[tap.0.as_raw_fd()], 10_000);
    println!("first segment after {:?}", start.elapsed());
    let mut byte = [0; 1];
    client.read_exact(&mut byte).unwrap();
    println!("first byte of the queue after {:?}: {:?}", start.elapsed(), tap.segments_of_service());
    assert_eq!(read_n(&mut client, 4999), lost[1..]);
    println!("all of the queue after {:?}", start.elapsed());
}

#[test]
fn unsent_bytes_leave_at_once_and_the_queue_follows() {
    let net = Net::new();
    let (mut client, mut server) = net.connection();
    net.b(|| iptables("-A INPUT -p tcp --sport 5555 -j DROP"));
    let bytes = pattern(9000, 7);
    server.write_all(&bytes[..5000]).unwrap();
    let before = read_state(server.as_fd()).unwrap();
    let (local, peer) = (server.local_addr().unwrap(), server.peer_addr().unwrap());
    close_silently(server.into()).unwrap();
    net.b(|| iptables("-D INPUT -p tcp --sport 5555 -j DROP"));
    let start = Instant::now();
    let _restored = net.a(|| {
        let spec = SocketSpec {
            snd_queue: [&bytes[..10], &bytes[10..5000]],
            unsent: [&bytes[5000..6000], &bytes[6000..]],
            ..spec(&before, local, peer)
        };
        restore(&spec).unwrap()
    });
    assert_eq!(read_n(&mut client, 9000), bytes);
    println!("queue and unsent bytes after {:?}", start.elapsed());
}

#[test]
fn a_peer_that_acknowledged_more_than_we_knew_is_believed() {
    let net = Net::new();
    let (mut client, mut server) = net.connection();
    let before = settled(&server);
    server.write_all(b"0123456789").unwrap();
    assert_eq!(read_n(&mut client, 10), b"0123456789");
    settled(&server);
    let (local, peer) = (server.local_addr().unwrap(), server.peer_addr().unwrap());
    close_silently(server.into()).unwrap();
    // The record is older: nothing is known of the acknowledgement.
    let restored = net.a(|| restore(&SocketSpec { snd_queue: [b"01234", b"56789"], ..spec(&before, local, peer) }).unwrap());
    let mut server = TcpStream::from(restored);
    client.write_all(b"go on").unwrap();
    server.set_nonblocking(false).unwrap();
    assert_eq!(read_n(&mut server, 5), b"go on");
    server.write_all(b"abc").unwrap();
    assert_eq!(read_n(&mut client, 3), b"abc");
    assert_eq!(settled(&server).write_seq, before.write_seq.wrapping_add(13));
}

#[test]
fn more_than_a_new_socket_takes_is_restored_whole() {
    let net = Net::new();
    let (mut client, server) = net.connection();
    net.a(|| sysctl("tcp_notsent_lowat", "16384"));
    let before = settled(&server);
    let (local, peer) = (server.local_addr().unwrap(), server.peer_addr().unwrap());
    close_silently(server.into()).unwrap();
    let bytes = pattern(9 << 20, 8);
    let (queue, unsent) = bytes.split_at(3 << 20);
    let restored = net.a(|| {
        let spec = SocketSpec {
            snd_queue: [&queue[..1000], &queue[1000..]],
            unsent: [&unsent[..5 << 20], &unsent[5 << 20..]],
            ..spec(&before, local, peer)
        };
        restore(&spec).unwrap()
    });
    assert_eq!(read_n(&mut client, bytes.len()), bytes);
    drop(restored);
}

#[test]
fn a_fin_that_was_sent_is_restored() {
    let net = Net::new();
    let (mut client, mut server) = net.connection();
    net.b(|| iptables("-A INPUT -p tcp --sport 5555 -j DROP"));
    server.write_all(b"bye").unwrap();
    let before = read_state(server.as_fd()).unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    let (local, peer) = (server.local_addr().unwrap(), server.peer_addr().unwrap());
    close_silently(server.into()).unwrap();
    net.b(|| iptables("-D INPUT -p tcp --sport 5555 -j DROP"));
    let restored = net.a(|| {
        let spec = SocketSpec { snd_queue: [b"bye", b""], fin_sent: true, ..spec(&before, local, peer) };
        restore(&spec).unwrap()
    });
    let mut all = Vec::new();
    client.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"bye");
    client.write_all(b"still open").unwrap();
    let mut server = TcpStream::from(restored);
    server.set_nonblocking(false).unwrap();
    assert_eq!(read_n(&mut server, 10), b"still open");
}

#[test]
fn a_restored_connection_does_not_keep_a_listener_from_its_port() {
    let net = Net::new();
    net.a(|| {
        let peer = SocketAddr::new(PEER.into(), 1000);
        let _restored = restore(&plain_spec(SERVICE, peer)).unwrap();
        TcpListener::bind(SERVICE).unwrap();
        TcpListener::bind("0.0.0.0:5555").unwrap();
        let error = restore(&plain_spec(SERVICE, peer)).unwrap_err();
        assert!(error.to_string().contains("connect"), "{error}");
        assert_eq!(error.errno(), Some(libc::EADDRNOTAVAIL));
    });
}

/// What becomes of a packet that is held in INPUT while the socket is made.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Held {
    /// No socket existed when it arrived: the other machine has taken over.
    Nobody,
    /// It came for a socket that is dead now: same machine. The kernel looked that one up before the queue
    /// (early demux), and delivers to it.
    Dead,
    /// As before, but dropped, and injected again as a raw packet.
    DeadInjected,
    /// As before with tcp_early_demux off.
    DeadNoDemux,
}

#[test]
fn a_packet_held_during_the_restoration_reaches_the_new_socket_unless_it_came_for_the_old_one() {
    for held in [Held::Nobody, Held::Dead, Held::DeadInjected, Held::DeadNoDemux] {
        let net = Net::new();
        let (mut client, server) = net.connection();
        let before = settled(&server);
        let (local, peer) = (server.local_addr().unwrap(), server.peer_addr().unwrap());
        let mut old = Some(server);
        match held {
            Held::Nobody => close_silently(old.take().unwrap().into()).unwrap(),
            Held::DeadNoDemux => net.a(|| sysctl("tcp_early_demux", "0")),
            Held::Dead | Held::DeadInjected => {}
        }
        net.a(|| rule("INPUT", &format!("--dport 5555 -m mark ! --mark {MARK:#x}"), 0));
        let mut queue = net.a(|| Queue::open(0).unwrap());
        client.write_all(b"held").unwrap();
        let (mut id, mut packet) = (0, Vec::new());
        wait_for(|| {
            queue.recv_batch(|p| (id, packet) = (p.id, p.payload.to_vec())).unwrap();
            id != 0
        });
        if let Some(old) = old {
            close_silently(old.into()).unwrap();
        }
        let restored = net.a(|| restore(&spec(&before, local, peer)).unwrap());
        let epoll = Epoll::new(restored.as_raw_fd());
        assert!(!epoll.ready(0));
        if held == Held::DeadInjected {
            let mut raw = net.a(|| RawSender::open().unwrap());
            set_checksum(&mut packet);
            raw.send(&packet).unwrap();
            queue.drop_packet(id);
        } else {
            queue.accept(id);
        }
        queue.flush().unwrap();
        let delivered = epoll.ready(50);
        println!("{held:?}: {delivered}");
        assert_eq!(delivered, held != Held::Dead);
        if delivered {
            assert_eq!(read_n(&mut TcpStream::from(restored), 4), b"held");
            let client = read_state(client.as_fd()).unwrap();
            assert_eq!((client.unacked, client.retransmitted), (0, 0));
        }
    }
}

#[test]
fn another_process_can_be_killed_with_its_connections_silent() {
    let net = Net::new();
    for (repair, keep) in [(false, true), (true, true), (true, false)] {
        let (client, server) = net.connection();
        let peer = server.peer_addr().unwrap();
        let mut command = Command::new("sleep");
        command.arg("1000").stdin(Stdio::from(OwnedFd::from(server)));
        // SAFETY: prctl is a plain system call, fit for the time between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let mut child = command.spawn().unwrap();
        drop(command); // it still holds its copy of the socket
        let ours = steal(child.id(), 0);
        let before = repair.then(|| read_state(ours.as_fd()).unwrap());
        if repair {
            set_int(ours.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_REPAIR, 1);
        }
        let ours = keep.then_some(ours);
        let tap = net.tap();
        child.kill().unwrap();
        child.wait().unwrap();
        thread::sleep(Duration::from_millis(50));
        assert_eq!(tap.segments_of_service(), [], "while we hold it, nothing happens");
        drop(ours);
        thread::sleep(Duration::from_millis(50));
        let sent = tap.segments_of_service();
        let left = net.a(|| SockDiag::open().unwrap().list(&Ours::at(&[SERVICE])).unwrap());
        let left: Vec<_> = left.iter().filter(|socket| socket.peer == peer).collect();
        println!("repair {repair}, kept past the kill {keep}: sent {sent:?}, left {left:?}");
        assert_eq!(sent.is_empty() && left.is_empty(), repair);
        if let Some(before) = before {
            // And the connection is still there to be had.
            let mut server = net.a(|| TcpStream::from(restore(&spec(&before, SERVICE, peer)).unwrap()));
            server.write_all(b"here").unwrap();
            assert_eq!(read_n(&mut &client, 4), b"here");
        }
    }
}

#[test]
#[ignore = "measures"]
fn cost_of_restoration() {
    let net = Net::new();
    net.a(raise_descriptor_limit);
    for (queued, count) in [(0, 64), (0, 512), (0, 10_000), (1000, 512), (65536, 512)] {
        let bytes = pattern(queued, 9);
        let (mut best, mut best_close) = (Duration::MAX, Duration::MAX);
        for _ in 0..5 {
            let mut sockets = Vec::with_capacity(count);
            let start = cpu_time();
            net.a(|| {
                for i in 0..count {
                    let ip = Ipv4Addr::new(192, 0, 2, 2 + (i / 1000) as u8);
                    let peer = SocketAddr::new(ip.into(), 1000 + (i % 1000) as u16);
                    let spec = SocketSpec { snd_queue: [&bytes, b""], ..plain_spec(SERVICE, peer) };
                    sockets.push(restore(&spec).unwrap());
                }
            });
            best = best.min((cpu_time() - start) / count as u32);
            let start = cpu_time();
            for socket in sockets {
                close_silently(socket).unwrap();
            }
            best_close = best_close.min((cpu_time() - start) / count as u32);
        }
        println!("{queued} bytes, {count} sessions: {best:?} each; to close: {best_close:?}");
    }
}

#[test]
#[ignore = "measures"]
fn cost_of_verdicts_while_packets_are_held() {
    let net = Net::new();
    net.a(|| rule("INPUT", "--dport 5555", 0));
    let mut queue = net.a(|| Queue::open(0).unwrap());
    let mut raw = net.b(|| RawSender::open().unwrap());
    let packet = segment(SocketAddrV4::new(PEER, 9), v4(SERVICE), 1, 0, SYN, b"");
    for held in [0u32, 1000, 10_000, 50_000] {
        let mut ids = Vec::new();
        let total = held as usize + 1000;
        while ids.len() < total {
            for _ in 0..(total - ids.len()).min(100) {
                raw.send(&packet).unwrap();
            }
            while queue.recv_batch(|p| ids.push(p.id)).unwrap() > 0 {}
        }
        let start = cpu_time();
        for id in &ids[held as usize..] {
            queue.drop_packet(*id);
        }
        queue.flush().unwrap();
        println!("{held} held, verdict of the newest: {:?}", (cpu_time() - start) / 1000);
        let start = cpu_time();
        for id in &ids[..held as usize] {
            queue.drop_packet(*id);
        }
        queue.flush().unwrap();
        println!("{held} held, all released in order: {:?} each", (cpu_time() - start) / held.max(1));
    }
}

// ---- rawsock -----------------------------------------------------------------------------------------

#[test]
fn an_injected_segment_is_received_whatever_the_filters_say() {
    for rp_filter in ["0", "1", "2"] {
        let net = Net::new();
        net.a(|| {
            for interface in ["all", "default", "lo", "v0"] {
                conf(interface, "rp_filter", rp_filter);
                conf(interface, "accept_local", "0");
                conf(interface, "route_localnet", "0");
            }
        });
        // A peer that exists nowhere: only its address is on the other host.
        net.b(|| iptables("-A INPUT -p tcp -j DROP"));
        let from = SocketAddrV4::new(PEER, 4000);
        let spec = SocketSpec { timestamps: None, ..plain_spec(SERVICE, from.into()) };
        let mut server = TcpStream::from(net.a(|| restore(&spec).unwrap()));
        let epoll = Epoll::new(server.as_raw_fd());
        let tap = net.tap();
        let lo = net.a(|| Tap::new("lo"));
        let mut raw = net.a(|| RawSender::open().unwrap());

        let good = segment(from, v4(SERVICE), spec.rcv_nxt_seq, spec.snd_una_seq, PSH | ACK, b"injected");
        let mut bad = good.clone();
        bad[20 + 16] ^= 1;
        raw.send(&bad).unwrap();
        assert!(!epoll.ready(50), "the checksum is believed blindly");
        assert_eq!(tap.segments_of_service(), []);

        raw.send(&good).unwrap();
        assert!(epoll.ready(1000), "rp_filter {rp_filter}");
        assert_eq!(read_n(&mut server, 8), b"injected");
        thread::sleep(Duration::from_millis(100));
        let acks = tap.segments_of_service();
        assert!(acks.iter().all(|a| *a == (ACK, spec.snd_una_seq, spec.rcv_nxt_seq + 8)), "{acks:?}");
        assert!(!acks.is_empty(), "the ACK goes out of the real interface");
        assert_eq!(lo.segments_of_service(), [], "and not over lo");

        // Of any size up to 64 KiB, for lo takes it.
        let spec_next = spec.rcv_nxt_seq + 8;
        let long = pattern(40_000, 1);
        raw.send(&segment(from, v4(SERVICE), spec_next, spec.snd_una_seq, ACK, &long)).unwrap();
        server.set_nonblocking(false).unwrap();
        assert_eq!(read_n(&mut server, long.len()), long);
        raw.send(&segment(from, v4(SERVICE), spec_next + 40_000, spec.snd_una_seq, FIN | ACK, b"")).unwrap();
        assert_eq!(server.read(&mut [0; 1]).unwrap(), 0, "an injected FIN half-closes");
    }
}

#[test]
fn injection_is_exempt_from_the_rules_and_needs_lo() {
    let net = Net::new();
    net.a(|| {
        rule("INPUT", &format!("--dport 5555 -m mark ! --mark {MARK:#x}"), 0);
        rule("OUTPUT", &format!("--dport 5555 -m mark ! --mark {MARK:#x}"), 0);
    });
    let from = SocketAddrV4::new(PEER, 4000);
    let spec = plain_spec(SERVICE, from.into());
    let mut server = TcpStream::from(net.a(|| restore(&spec).unwrap()));
    let mut raw = net.a(|| RawSender::open().unwrap());
    let packet = segment(from, v4(SERVICE), spec.rcv_nxt_seq, spec.snd_una_seq, ACK, b"x");
    net.a(|| run("ip", "link set lo down"));
    raw.send(&packet).unwrap(); // and is lost, in silence
    assert_eq!(server.read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    net.a(|| run("ip", "link set lo up"));
    raw.send(&packet).unwrap();
    server.set_nonblocking(false).unwrap();
    assert_eq!(read_n(&mut server, 1), b"x");
}

#[test]
fn a_probe_reaches_the_peer_and_is_answered() {
    let net = Net::new();
    let (_client, server) = net.connection();
    let before = settled(&server);
    let peer = server.peer_addr().unwrap();
    close_silently(server.into()).unwrap();
    net.a(|| rule("INPUT", "--dport 5555", 0));
    let mut queue = net.a(|| Queue::open(0).unwrap());
    let mut raw = net.a(|| RawSender::open().unwrap());
    // A keepalive probe: one before what the peer has acknowledged, no data.
    let una = before.snd_una_seq;
    let probe = segment(v4(SERVICE), v4(peer), una.wrapping_sub(1), before.rcv_nxt_seq, ACK, b"");
    raw.send(&probe).unwrap();
    let mut answer = None;
    wait_for(|| {
        queue.recv_batch(|p| answer = Some((seq(p.payload), ack(p.payload)))).unwrap();
        answer.is_some()
    });
    assert_eq!(answer, Some((before.rcv_nxt_seq, una)));
    assert!(raw.send(b"nonsense").is_err());
}

#[test]
fn ipv6_is_restored_and_injected_alike() {
    let net = Net::new();
    let vip: Ipv6Addr = "2001:db8::200".parse().unwrap();
    let peer: Ipv6Addr = "2001:db8::2".parse().unwrap();
    // It waits for the local route, without which what is injected would leave.
    net.a(|| Vip::new("v0", vip.into(), 64).unwrap().add(60).unwrap());
    let (local, from) = (SocketAddr::new(vip.into(), 5555), SocketAddr::new(peer.into(), 4000));
    let spec = plain_spec(local, from);
    let mut server = TcpStream::from(net.a(|| restore(&spec).unwrap()));
    let state = read_state(server.as_fd()).unwrap();
    println!("IPv6: segments of {} bytes", state.snd_mss);
    let epoll = Epoll::new(server.as_raw_fd());
    let mut raw = net.a(|| RawSender::open().unwrap());

    let mut packet = vec![0x60, 0, 0, 0, 0, 25, 6, 64];
    packet.extend_from_slice(&peer.octets());
    packet.extend_from_slice(&vip.octets());
    let mut tcp = tcp_header(4000, 5555, spec.rcv_nxt_seq, spec.snd_una_seq, ACK);
    tcp.extend_from_slice(b"hello");
    let mut pseudo = packet[8..40].to_vec();
    pseudo.extend_from_slice(&[0, 0, 0, 25, 0, 0, 0, 6]);
    pseudo.extend_from_slice(&tcp);
    let sum = checksum(&pseudo);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    packet.extend_from_slice(&tcp);
    // On a busy machine the local route may be there later than it is waited for.
    wait_for(|| {
        raw.send(&packet).unwrap();
        epoll.ready(100)
    });
    assert_eq!(read_n(&mut server, 5), b"hello");
    let listed = net.a(|| SockDiag::open().unwrap().list(&Ours::at(&[local])).unwrap());
    assert_eq!((listed.len(), listed[0].peer), (1, from));
    assert!(net.a(|| SockDiag::open().unwrap().destroy(local, from).unwrap()));
}

// ---- sockdiag ----------------------------------------------------------------------------------------

#[test]
fn connections_are_listed_and_destroyed_with_a_reset() {
    let net = Net::new();
    let (mut client, mut server) = net.connection();
    let peer = server.peer_addr().unwrap();
    client.write_all(b"unread").unwrap();
    thread::sleep(Duration::from_millis(20));
    let mut diag = net.a(|| SockDiag::open().unwrap());
    let other = SocketAddr::new(VIP.into(), 1);
    assert_eq!(diag.list(&Ours::at(&[])).unwrap(), []);
    assert_eq!(diag.list(&Ours::at(&[other])).unwrap(), []);
    let listed = diag.list(&Ours::at(&[other, SERVICE])).unwrap();
    assert_eq!(listed, diag.list(&Ours::at(&[SERVICE])).unwrap());
    assert_eq!(listed.len(), 1, "{listed:?}");
    let socket = listed[0];
    assert_eq!((socket.local, socket.peer, socket.state), (SERVICE, peer, state::ESTABLISHED));
    assert_eq!((socket.rqueue, socket.wqueue), (6, 0));
    assert_ne!(socket.inode, 0);

    // Another socket of these addresses.
    let mut other = socket;
    other.cookie ^= 1;
    assert!(!diag.destroy_this(&other).unwrap());
    assert_eq!(diag.list(&Ours::at(&[SERVICE])).unwrap().len(), 1);

    let tap = net.tap();
    assert!(diag.destroy_this(&socket).unwrap());
    assert!(!diag.destroy(SERVICE, peer).unwrap());
    // What was received before can still be read.
    assert_eq!(read_n(&mut server, 6), b"unread");
    assert_eq!(server.read(&mut [0; 8]).unwrap_err().raw_os_error(), Some(libc::ECONNABORTED));
    assert_eq!(diag.list(&Ours::at(&[SERVICE])).unwrap(), []);
    thread::sleep(Duration::from_millis(50));
    assert!(tap.segments_of_service().iter().all(|(flags, ..)| flags & RST != 0));
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

/// The kernel finds the listener where there is no connection with these addresses.
#[test]
fn a_listener_is_not_destroyed_for_a_connection_that_is_not_there() {
    let net = Net::new();
    let listener = net.a(|| TcpListener::bind(SERVICE).unwrap());
    listener.set_nonblocking(true).unwrap();
    let peer = "192.0.2.9:4000".parse().unwrap();
    assert!(!net.a(|| SockDiag::open().unwrap().destroy(SERVICE, peer).unwrap()));
    assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn orphans_are_destroyed_too() {
    let net = Net::new();
    let mut diag = net.a(|| SockDiag::open().unwrap());
    for (wanted, unsent) in [(state::FIN_WAIT1, false), (state::FIN_WAIT1, true), (state::FIN_WAIT2, false)] {
        let (_client, mut server) = net.connection();
        let peer = server.peer_addr().unwrap();
        if wanted == state::FIN_WAIT1 {
            net.b(|| iptables("-A INPUT -p tcp --sport 5555 -j DROP"));
        }
        if unsent {
            server.set_nonblocking(true).unwrap();
            while server.write(&[0; 65536]).is_ok() {}
        }
        drop(server);
        thread::sleep(Duration::from_millis(50));
        let find = |diag: &mut SockDiag| {
            let all = diag.list(&Ours::at(&[SERVICE])).unwrap();
            all.into_iter().find(|socket| socket.peer == peer)
        };
        let orphan = find(&mut diag).unwrap();
        assert_eq!((orphan.state, orphan.inode), (wanted, 0));
        let tap = net.tap();
        assert!(diag.destroy(SERVICE, peer).unwrap());
        thread::sleep(Duration::from_millis(50));
        println!("orphan {orphan:?}: sent {:?}, left {:?}", tap.segments_of_service(), find(&mut diag));
        assert_eq!(find(&mut diag), None);
        if wanted == state::FIN_WAIT1 {
            net.b(|| iptables("-D INPUT -p tcp --sport 5555 -j DROP"));
        }
        // The tuple is free.
        net.a(|| restore(&plain_spec(SERVICE, peer)).map(close_silently).unwrap().unwrap());
    }
}

#[test]
fn time_wait_can_be_destroyed_in_silence_for_a_restoration() {
    for timestamps in ["1", "0"] {
        let net = Net::new();
        net.b(|| sysctl("tcp_timestamps", timestamps));
        let mut diag = net.a(|| SockDiag::open().unwrap());
        for destroy in [false, true] {
            let (client, server) = net.connection();
            let peer = server.peer_addr().unwrap();
            drop(server);
            drop(client);
            wait_for(|| diag.list(&Ours::at(&[SERVICE])).unwrap().iter().any(|s| s.state == state::TIME_WAIT));
            let tap = net.tap();
            if destroy {
                assert!(diag.destroy(SERVICE, peer).unwrap());
                assert_eq!(diag.list(&Ours::at(&[SERVICE])).unwrap(), []);
            }
            let restored = net.a(|| restore(&plain_spec(SERVICE, peer)));
            println!("timestamps {timestamps}, TIME_WAIT destroyed {destroy}: {restored:?}");
            assert!(!destroy || restored.is_ok());
            restored.map(|socket| close_silently(socket).unwrap()).ok();
            diag.destroy(SERVICE, peer).unwrap();
            thread::sleep(Duration::from_millis(20));
            assert_eq!(tap.segments_of_service(), []);
        }
    }
}

// ---- two hosts ---------------------------------------------------------------------------------------

/// Host A (the member, has the VIP) and host B (the peer).
struct Net {
    home: OwnedFd,
    a: OwnedFd,
    b: OwnedFd,
}

impl Net {
    fn new() -> Net {
        let home = current_namespace();
        let [b, a] = std::array::from_fn(|_| {
            // SAFETY: no pointer is passed; it concerns this thread only.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "needs root");
            current_namespace()
        });
        let net = Net { home, a, b };
        let b_path = format!("/proc/{}/fd/{}", std::process::id(), net.b.as_raw_fd());
        net.a(|| {
            run("ip", &format!("link add v0 type veth peer name v1 netns {b_path}"));
            run("ip", "addr add 192.0.2.1/24 dev v0");
            run("ip", "addr add 192.0.2.200/24 dev v0");
            run("ip", "link set lo up");
            run("ip", "link set v0 up");
        });
        net.b(|| {
            run("ip", "addr add 192.0.2.2/24 dev v1");
            run("ip", "link set lo up");
            run("ip", "link set v1 up");
        });
        net
    }

    fn a<T>(&self, f: impl FnOnce() -> T) -> T {
        self.within(&self.a, f)
    }

    fn b<T>(&self, f: impl FnOnce() -> T) -> T {
        self.within(&self.b, f)
    }

    fn within<T>(&self, namespace: &OwnedFd, f: impl FnOnce() -> T) -> T {
        set_namespace(namespace);
        let result = f();
        set_namespace(&self.home);
        result
    }

    /// A connection from B to the service on A; the listener is gone.
    fn connection(&self) -> (TcpStream, TcpStream) {
        let listener = self.a(|| TcpListener::bind(SERVICE).unwrap());
        let client = self.b(|| TcpStream::connect(SERVICE).unwrap());
        let (server, _) = listener.accept().unwrap();
        for socket in [&client, &server] {
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
            socket.set_nodelay(true).unwrap();
        }
        (client, server)
    }

    /// Sees what arrives at B, before any rule.
    fn tap(&self) -> Tap {
        self.b(|| Tap::new("v1"))
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        set_namespace(&self.home);
    }
}

fn current_namespace() -> OwnedFd {
    std::fs::File::open("/proc/thread-self/ns/net").unwrap().into()
}

fn set_namespace(namespace: &OwnedFd) {
    // SAFETY: no pointer is passed; it concerns this thread only.
    assert_eq!(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
}

fn run(program: &str, args: &str) {
    let output = Command::new(program).args(args.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "{program} {args}: {}", String::from_utf8_lossy(&output.stderr));
}

fn iptables(args: &str) {
    run("iptables", &format!("-w {args}"));
}

fn rule(chain: &str, what: &str, queue: u16) {
    iptables(&format!("-A {chain} -p tcp {what} -j NFQUEUE --queue-num {queue}"));
}

fn sysctl(name: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/ipv4/{name}"), value).unwrap();
}

fn conf(interface: &str, name: &str, value: &str) {
    sysctl(&format!("conf/{interface}/{name}"), value);
}

/// A packet socket: what goes over an interface.
struct Tap(OwnedFd);

impl Tap {
    fn new(interface: &str) -> Tap {
        let kind = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: no pointer is passed.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, i32::from(protocol)) };
        assert!(fd >= 0);
        let name = std::ffi::CString::new(interface).unwrap();
        // SAFETY: the name is a C string; sockaddr_ll is plain data for which zeroes are valid; bind gets a
        // pointer to it and its length; the descriptor is new and ours.
        unsafe {
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = protocol;
            address.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
            let length = std::mem::size_of_val(&address) as u32;
            assert_eq!(libc::bind(fd, (&raw const address).cast(), length), 0);
            Tap(OwnedFd::from_raw_fd(fd))
        }
    }

    /// Flags, sequence number and ACK of the segments that came from the service since the last call.
    fn segments_of_service(&self) -> Vec<(u8, u32, u32)> {
        let mut found = Vec::new();
        let mut buffer = vec![0u8; 70_000];
        loop {
            // SAFETY: the pointer and length describe the buffer.
            let n = unsafe { libc::recv(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            let Ok(n) = usize::try_from(n) else { return found };
            let packet = &buffer[..n];
            if n >= 40 && packet[0] == 0x45 && packet[9] == 6 && packet[12..16] == VIP.octets() {
                found.push((packet[33] & 0x3f, seq(packet), ack(packet)));
            }
        }
    }
}

struct Epoll(OwnedFd);

impl Epoll {
    fn new(fd: RawFd) -> Epoll {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
        // SAFETY: the new descriptor is ours; `event` outlives the call.
        unsafe {
            let epoll = OwnedFd::from_raw_fd(libc::epoll_create1(libc::EPOLL_CLOEXEC));
            assert_eq!(libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event), 0);
            Epoll(epoll)
        }
    }

    fn ready(&self, timeout_ms: i32) -> bool {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: there is room for the one event asked for.
        unsafe { libc::epoll_wait(self.0.as_raw_fd(), &raw mut event, 1, timeout_ms) == 1 }
    }
}

/// The restoration of a connection as it was, with nothing in its queues.
fn spec(state: &SocketState, local: SocketAddr, peer: SocketAddr) -> SocketSpec<'static> {
    SocketSpec {
        local,
        peer,
        snd_una_seq: state.snd_una_seq,
        snd_queue: [&[]; 2],
        unsent: [&[]; 2],
        rcv_nxt_seq: state.rcv_nxt_seq,
        mss: state.mss,
        snd_wscale: state.snd_wscale,
        rcv_wscale: state.rcv_wscale,
        sack: state.sack,
        timestamps: state.timestamps.map(|value| value.wrapping_add(1000)),
        snd_wnd: state.snd_wnd,
        max_window: state.max_window,
        rcv_wnd: state.rcv_wnd,
        rcv_wup: state.rcv_wup,
        fin_sent: false,
    }
}

fn plain_spec(local: SocketAddr, peer: SocketAddr) -> SocketSpec<'static> {
    SocketSpec {
        local,
        peer,
        snd_una_seq: 1000,
        snd_queue: [&[]; 2],
        unsent: [&[]; 2],
        rcv_nxt_seq: 2000,
        mss: 1460,
        snd_wscale: Some(7),
        rcv_wscale: Some(7),
        sack: true,
        timestamps: Some(1 << 20),
        snd_wnd: 65536,
        max_window: 65536,
        rcv_wnd: 65536,
        rcv_wup: 2000,
        fin_sent: false,
    }
}

/// The state once all that was written is acknowledged.
fn settled(server: &TcpStream) -> SocketState {
    let mut state = None;
    wait_for(|| {
        let now = read_state(server.as_fd()).unwrap();
        state = Some(now);
        now.unacked + now.unsent == 0
    });
    state.unwrap()
}

/// The id of the packet with these data; anything else passes.
fn only_data(queue: &mut Queue, wanted: &[u8]) -> u32 {
    let mut id = None;
    wait_for(|| {
        queue
            .recv_batch_with(|packet: QueuedPacket<'_>, verdicts| {
                if data(packet.payload) == wanted {
                    id = Some(packet.id);
                } else {
                    verdicts.accept(packet.id);
                }
            })
            .unwrap();
        queue.flush().unwrap();
        id.is_some()
    });
    id.unwrap()
}

fn wait_for(mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < DEADLINE, "waited too long");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Processor time of this thread: on a busy machine the clock says little.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer names a timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn poll_in(fds: &[RawFd], timeout_ms: i32) {
    let mut polls: Vec<_> = fds.iter().map(|&fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
    // SAFETY: the pointer and length describe `polls`.
    unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, timeout_ms) };
}

fn set_int(fd: RawFd, level: i32, option: i32, value: i32) {
    // SAFETY: the pointer and length describe `value`.
    let result = unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), 4) };
    assert_eq!(result, 0);
}

/// Non-blocking and close-on-exec.
fn flags_of(fd: RawFd) -> bool {
    // SAFETY: no pointer is passed.
    unsafe { libc::fcntl(fd, libc::F_GETFL) & libc::O_NONBLOCK != 0 && libc::fcntl(fd, libc::F_GETFD) & libc::FD_CLOEXEC != 0 }
}

fn raise_descriptor_limit() {
    let limit = libc::rlimit { rlim_cur: 20_000, rlim_max: 20_000 };
    // SAFETY: the pointer names a valid rlimit.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
}

/// A copy of a descriptor of another process.
fn steal(pid: u32, fd: i32) -> OwnedFd {
    // SAFETY: no pointer is passed; the new descriptors are ours.
    unsafe {
        let pidfd = OwnedFd::from_raw_fd(libc::syscall(libc::SYS_pidfd_open, pid, 0) as i32);
        let copy = libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0);
        assert!(copy >= 0, "{}", io::Error::last_os_error());
        OwnedFd::from_raw_fd(copy as i32)
    }
}

fn pattern(length: usize, seed: u32) -> Vec<u8> {
    let mut x = seed;
    let next = |_| {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 24) as u8
    };
    (0..length).map(next).collect()
}

fn read_n(from: &mut impl Read, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    from.read_exact(&mut bytes).unwrap();
    bytes
}

/// Sends so many bytes and checks what arrives.
fn transfer(from: &TcpStream, to: &TcpStream, total: usize, seed: u32) {
    let bytes = pattern(total, seed);
    thread::scope(|scope| {
        let (mut from, mut to) = (from, to);
        let sender = scope.spawn({
            let bytes = &bytes;
            move || from.write_all(bytes).unwrap()
        });
        assert!(read_n(&mut to, total) == bytes);
        sender.join().unwrap();
    });
}

// ---- packets -----------------------------------------------------------------------------------------

fn v4(address: SocketAddr) -> SocketAddrV4 {
    match address {
        SocketAddr::V4(v4) => v4,
        SocketAddr::V6(_) => panic!("not IPv4"),
    }
}

fn tcp_header(from: u16, to: u16, seq: u32, ack: u32, flags: u8) -> Vec<u8> {
    let mut tcp = Vec::new();
    tcp.extend_from_slice(&from.to_be_bytes());
    tcp.extend_from_slice(&to.to_be_bytes());
    tcp.extend_from_slice(&seq.to_be_bytes());
    tcp.extend_from_slice(&ack.to_be_bytes());
    tcp.extend_from_slice(&[0x50, flags, 0x10, 0, 0, 0, 0, 0]);
    tcp
}

/// An IPv4 TCP segment with all checksums.
fn segment(from: SocketAddrV4, to: SocketAddrV4, seq: u32, ack: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = (40 + payload.len()) as u16;
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0];
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet.extend_from_slice(&from.ip().octets());
    packet.extend_from_slice(&to.ip().octets());
    packet.extend_from_slice(&tcp_header(from.port(), to.port(), seq, ack, flags));
    packet.extend_from_slice(payload);
    set_checksum(&mut packet);
    packet
}

fn header_length(packet: &[u8]) -> usize {
    usize::from(packet[0] & 0xf) * 4
}

fn set_checksum(packet: &mut [u8]) {
    let at = header_length(packet);
    packet[10..12].fill(0);
    let sum = checksum(&packet[..at]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet[at + 16..at + 18].fill(0);
    let mut pseudo = packet[12..20].to_vec();
    pseudo.extend_from_slice(&[0, 6]);
    pseudo.extend_from_slice(&((packet.len() - at) as u16).to_be_bytes());
    pseudo.extend_from_slice(&packet[at..]);
    let sum = checksum(&pseudo);
    packet[at + 16..at + 18].copy_from_slice(&sum.to_be_bytes());
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u64 = bytes.chunks(2).map(|c| u64::from(c[0]) << 8 | u64::from(*c.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn data(packet: &[u8]) -> &[u8] {
    let at = header_length(packet);
    &packet[at + usize::from(packet[at + 12] >> 4) * 4..]
}

fn seq(packet: &[u8]) -> u32 {
    field(packet, 4)
}

fn ack(packet: &[u8]) -> u32 {
    field(packet, 8)
}

fn field(packet: &[u8], offset: usize) -> u32 {
    let at = header_length(packet) + offset;
    u32::from_be_bytes(packet[at..at + 4].try_into().unwrap())
}

#[test]
fn of_processes_that_share_a_listener_one_has_it_alone() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let fd = listener.as_raw_fd();
    // Another process tells by its exit code whether it had the listener alone.
    let had_it = || {
        // SAFETY: the child makes system calls alone, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let alone = doorbell::Alone::with(fd);
            let had = alone.is_some();
            std::mem::forget(alone);
            // SAFETY: takes no pointers; nothing of the parent's is run at its end.
            unsafe { libc::_exit(libc::c_int::from(had)) };
        }
        let mut status = 0;
        // SAFETY: the pointer is that of `status`, which lives through the call.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        libc::WEXITSTATUS(status) == 1
    };
    let alone = doorbell::Alone::with(fd).unwrap();
    assert!(!had_it());
    drop(alone);
    assert!(had_it());
    // One that has ended has let it go.
    assert!(doorbell::Alone::with(fd).is_some());
}
