//! The lab on itself: hosts, cuts, captures, processes, and the checking clients against plain servers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tcpr_lab::client::{
    ChatClients, ChatOptions, EchoClients, EchoOptions, End, MemcachedClients, MemcachedOptions, Rate, StreamClient,
    StreamOptions,
};
use tcpr_lab::{flags, seed_from_env, wait_for, wait_listening, wait_until, CaptureOptions, Host, Lab, Process, SegFilter};

const PORT: u16 = 5555;
/// Long enough for a machine that has ten other things to do.
const LONG: Duration = Duration::from_secs(120);

fn two_hosts(label: &str) -> (Lab, Host, Host) {
    let lab = Lab::new(label).unwrap_or_else(|e| panic!("{e}"));
    let a = lab.host("a", "192.0.2.1/24").expect("host a");
    let c = lab.host("c", "192.0.2.9/24").expect("host c");
    (lab, a, c)
}

fn seed() -> u64 {
    let seed = seed_from_env();
    println!("TCPR_SEED={seed}");
    seed
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}

fn python_echo(host: &Host) -> Process {
    let mut c = Command::new("/usr/bin/python3");
    c.arg(examples().join("asyncio_echo.py")).arg(PORT.to_string());
    let p = host.spawn("echo", c).expect("echo server");
    wait_listening(host, PORT, LONG).expect("echo server");
    p
}

fn chat_server(lab: &Lab, host: &Host) -> Process {
    let bin = lab.dir().join("plain_chat_server");
    let cc = Command::new("gcc")
        .args(["-O2", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(&bin)
        .arg(examples().join("plain_chat_server.c"))
        .status()
        .expect("gcc");
    assert!(cc.success());
    let mut c = Command::new(&bin);
    c.arg(PORT.to_string());
    let p = host.spawn("chat", c).expect("chat server");
    wait_listening(host, PORT, LONG).expect("chat server");
    p
}

fn addr(host: &Host) -> SocketAddr {
    SocketAddr::new(host.ip(), PORT)
}

/// Whether a connection from `from` to a listener on `to` comes about in time.
fn reaches(from: &Host, to: &Host, timeout: Duration) -> bool {
    let listener = to.enter(|| TcpListener::bind(("0.0.0.0", 0))).expect("listen");
    let at = SocketAddr::new(to.ip(), listener.local_addr().expect("address").port());
    from.enter(|| TcpStream::connect_timeout(&at, timeout)).is_ok()
}

#[test]
fn hosts_talk_until_they_are_cut_off() {
    let (_lab, a, c) = two_hosts("cut");
    let short = Duration::from_millis(300);
    assert!(reaches(&c, &a, LONG));
    let listener = a.enter(|| TcpListener::bind(("0.0.0.0", PORT))).expect("listen");
    let mut peer = c.enter(|| TcpStream::connect(addr(&a))).expect("connect");
    let (mut server, _) = listener.accept().expect("accept");
    let carrier = || a.ip_cmd("-o link show dev eth0").expect("ip link").contains("LOWER_UP");

    for carrier_too in [false, true] {
        assert!(carrier());
        let cut = if carrier_too { a.cut_carrier() } else { a.cut_silent() };
        cut.expect("cut");
        assert!(!reaches(&c, &a, short));
        assert!(!reaches(&a, &c, short));
        assert_eq!(carrier(), !carrier_too);
        // What is written meanwhile arrives once the cable is back.
        peer.write_all(b"hello").expect("write");
        a.heal().expect("heal");
        let mut buf = [0; 5];
        server.set_read_timeout(Some(LONG)).expect("timeout");
        server.read_exact(&mut buf).expect("read");
        assert_eq!(&buf, b"hello");
        // Again and again: an address that was looked for in vain meanwhile fails once more.
        wait_until(LONG, "c is reached again", || reaches(&a, &c, LONG));
    }
}

#[test]
fn isolated_hosts_reach_only_the_others() {
    let (lab, a, c) = two_hosts("isolate");
    let b = lab.host("b", "192.0.2.2/24").expect("host b");
    let short = Duration::from_millis(300);
    a.isolate(true).expect("isolate");
    b.isolate(true).expect("isolate");
    assert!(!reaches(&a, &b, short));
    assert!(!reaches(&b, &a, short));
    assert!(reaches(&a, &c, LONG) && reaches(&c, &b, LONG));
    // A partition outlasts a cut.
    a.cut_silent().expect("cut");
    a.heal().expect("heal");
    assert!(!reaches(&a, &b, short));
    a.isolate(false).expect("heal");
    wait_until(LONG, "b is reached again", || reaches(&a, &b, LONG));
}

#[test]
fn a_capture_sees_every_segment() {
    let (lab, a, c) = two_hosts("capture");
    let at_c = c.capture(CaptureOptions::port(PORT)).expect("capture");
    let everything = a.capture(CaptureOptions::default()).expect("capture");
    let listener = a.enter(|| TcpListener::bind(("0.0.0.0", PORT))).expect("listen");
    let unseen = a.enter(|| TcpListener::bind(("0.0.0.0", PORT + 1))).expect("listen");
    let other: SocketAddr = (a.ip(), unseen.local_addr().expect("address").port()).into();
    c.enter(|| TcpStream::connect(other)).expect("connect");
    let mut peer = c.enter(|| TcpStream::connect(addr(&a))).expect("connect");
    let (mut server, _) = listener.accept().expect("accept");
    let local = peer.local_addr().expect("address");
    peer.write_all(&[7; 1000]).expect("write");
    let mut buf = [0; 1000];
    server.read_exact(&mut buf).expect("read");
    let any = SegFilter::port(PORT);

    assert_eq!(at_c.syn_count(c.ip()), 1);
    assert_eq!(at_c.no_fin_rst(&any), Ok(()));
    let segs = at_c.tcp(&any);
    assert_eq!(segs.iter().map(|s| s.payload_len).sum::<u32>(), 1000);
    let (syn, synack) = (&segs[0], &segs[1]);
    assert!(syn.has(flags::SYN) && syn.src == local && syn.outgoing && syn.mss == Some(1460));
    assert!(synack.has(flags::SYN | flags::ACK) && !synack.outgoing && synack.ack == syn.seq.wrapping_add(1));
    assert_eq!(synack.tsecr, syn.tsval);
    assert!(segs.iter().all(|s| s.t <= at_c.now()) && segs.windows(2).all(|w| w[0].t <= w[1].t));
    assert!(at_c.tcp(&SegFilter::port(PORT + 1)).is_empty());
    assert_eq!(everything.syn_count(c.ip()), 2);

    let mark = at_c.now();
    drop(server);
    wait_until(LONG, "the FIN is seen", || at_c.no_fin_rst(&any).is_err());
    assert!(at_c.no_fin_rst(&any.clone().until(mark)).is_ok());
    assert!(at_c.no_fin_rst(&any.clone().since(mark).outgoing(false)).is_err());

    let file = lab.dir().join("test.pcap");
    at_c.save(&file).expect("save");
    let size = std::fs::metadata(&file).expect("pcap").len() as usize;
    assert!(size > 24 + at_c.len() * (16 + 54), "{size}");
    at_c.clear();
    assert!(at_c.is_empty());
}

#[test]
fn processes_run_in_their_host_and_are_signalled() {
    let (_lab, a, c) = two_hosts("process");
    let sh = |script: &str| {
        let mut c = Command::new("sh");
        c.arg("-c").arg(script);
        c
    };
    let p = a.spawn("show", sh("echo $$; echo trouble >&2; ip -o -4 addr show dev eth0; exit 3")).expect("spawn");
    assert_eq!(p.wait(LONG).and_then(|s| s.code()), Some(3));
    assert!(p.out().starts_with(&format!("{}\n", p.pid())) && p.out().contains("192.0.2.1/24"), "{}", p.out());
    assert_eq!(p.err(), "trouble\n");
    assert!(p.tail(1).contains("trouble") && p.tail(1).contains("192.0.2.1"));

    let p = a.spawn("sleep", sh("sleep 1000 & sleep 1000; true")).expect("spawn");
    wait_until(LONG, "both children run", || p.children().len() == 2);
    wait_until(LONG, "host a has three processes", || a.pids().len() == 3);
    assert_eq!(c.pids(), Vec::<i32>::new());
    assert_eq!(p.wait(Duration::from_millis(20)), None);
    let state = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().and_then(|s| s.chars().next())
    };
    p.stop().expect("stop");
    wait_until(LONG, "it is stopped", || state(p.pid()) == Some('T'));
    p.cont().expect("cont");
    wait_until(LONG, "it goes on", || state(p.pid()) == Some('S'));
    a.freeze();
    wait_until(LONG, "the host is frozen", || a.pids().iter().all(|&pid| state(pid) == Some('T')));
    a.thaw();
    p.kill().expect("kill");
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(p.wait(LONG).and_then(|s| s.signal()), Some(libc::SIGKILL));
    wait_until(LONG, "its children are dead too", || a.pids().is_empty());

    // Children that have left the group die with their host.
    let p = a.spawn("daemon", sh("setsid sh -c 'echo up; exec sleep 1000' & wait")).expect("spawn");
    wait_until(LONG, "the daemon runs", || p.out().contains("up"));
    drop(p);
    assert_eq!(a.pids().len(), 1);
    a.kill_all();
    assert!(a.pids().is_empty());

    let out = a.run(sh("echo hello; exit 4"), LONG).expect("run");
    assert_eq!((out.stdout.as_slice(), out.status.code()), (b"hello\n".as_slice(), Some(4)));
    let late = a.run(sh("sleep 1000"), Duration::from_millis(50)).expect_err("a timeout");
    assert_eq!(late.kind(), std::io::ErrorKind::TimedOut);
    a.sysctl("net.ipv4.tcp_timestamps", "0").expect("sysctl");
    let read = |h: &Host| h.run(sh("cat /proc/sys/net/ipv4/tcp_timestamps"), LONG).expect("cat").stdout;
    assert_eq!((read(&a).as_slice(), read(&c).as_slice()), (b"0\n".as_slice(), b"1\n".as_slice()));
}

fn leftovers(id: &str) -> Vec<String> {
    let mut found = Vec::new();
    for dir in ["/run/netns", "/tmp/tcpr-lab"] {
        for e in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = e.file_name().to_string_lossy().into_owned();
            if name.starts_with(&format!("{id}-")) {
                found.push(format!("{dir}/{name}"));
            }
        }
    }
    found
}

#[test]
fn nothing_is_left_after_the_end_nor_after_a_panic() {
    let (lab, a, _c) = two_hosts("end");
    let id = lab.id().to_owned();
    let mut sleep = Command::new("sleep");
    sleep.arg("1000");
    let p = a.spawn("sleep", sleep).expect("spawn");
    let pid = p.pid();
    assert_eq!(leftovers(&id).len(), 4, "{:?}", leftovers(&id));
    assert!(Lab::sweep().iter().all(|s| *s != id), "sweep took a lab that lives");
    // Even if the process outlives its lab.
    drop(lab);
    assert_eq!(leftovers(&id), Vec::<String>::new());
    drop(p);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());

    let panicked = std::thread::spawn(|| {
        let (lab, a, _c) = two_hosts("panic");
        let mut sleep = Command::new("sleep");
        sleep.arg("1000");
        std::mem::forget(a.spawn("sleep", sleep).expect("spawn"));
        std::panic::panic_any((lab.id().to_owned(), lab.dir().to_owned()));
    });
    let cause = panicked.join().expect_err("a panic");
    let (id, dir) = cause.downcast_ref::<(String, PathBuf)>().expect("the id");
    // The logs are kept to be read; nothing else is.
    assert_eq!(leftovers(id), vec![dir.display().to_string()]);
    std::fs::remove_dir_all(dir).expect("remove");
}

/// Not a test: what `a_dead_labs_leftovers_are_swept` runs as another process, and kills.
#[test]
#[ignore = "the victim of another test"]
fn victim() {
    let (lab, a, _c) = two_hosts("victim");
    let mut sleep = Command::new("sleep");
    sleep.arg("1000");
    let _p = a.spawn("sleep", sleep).expect("spawn");
    println!("VICTIM {}", lab.id());
    std::thread::sleep(Duration::from_secs(1000));
}

#[test]
fn a_dead_labs_leftovers_are_swept() {
    let mut child = Command::new(std::env::current_exe().expect("exe"))
        .args(["--ignored", "--exact", "victim", "--nocapture"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("victim");
    let mut out = String::new();
    let pipe = child.stdout.as_mut().expect("pipe");
    let mut buf = [0; 256];
    while !out.contains("VICTIM") || !out.ends_with('\n') {
        let n = pipe.read(&mut buf).expect("read");
        assert!(n > 0, "the victim ended: {out}");
        out.push_str(&String::from_utf8_lossy(&buf[..n]));
    }
    let id = out.split("VICTIM ").nth(1).and_then(|s| s.split_whitespace().next()).expect("id").to_owned();
    assert!(!Lab::sweep().contains(&id));
    assert_eq!(leftovers(&id).len(), 4);
    child.kill().expect("kill");
    child.wait().expect("wait");
    // A lab made by a test beside this one may have swept it first.
    Lab::sweep();
    wait_until(LONG, "the leftovers are gone", || leftovers(&id).is_empty());
}

#[test]
fn echo_clients_check_a_plain_server() {
    let (_lab, a, c) = two_hosts("echo");
    let _server = python_echo(&a);
    let capture = c.capture(CaptureOptions::port(PORT)).expect("capture");
    let seed = seed();
    let clients = EchoClients::start(&c, addr(&a), &EchoOptions::new(40, seed)).expect("clients");
    clients.wait_progress(LONG).expect("progress");
    clients.set_rate(Rate::busy());
    clients.wait_progress(LONG).expect("progress");

    // A cut is seen as a stall of all, and as nothing else.
    clients.set_rate(Rate::normal());
    clients.wait_progress(LONG).expect("progress");
    clients.reset_stalls();
    let cut = Instant::now();
    a.cut_silent().expect("cut");
    std::thread::sleep(Duration::from_millis(300));
    let lasting = clients.stats();
    a.heal().expect("heal");
    let healed = cut.elapsed();
    assert!(lasting.outstanding > 0 && lasting.max_stall_ms >= 150.0, "{lasting:?}");
    clients.wait_progress(LONG).expect("progress");
    let longest = clients.max_stalls().into_iter().max().expect("stalls");
    assert!(longest >= Duration::from_millis(250), "{longest:?} of {healed:?}");
    assert!(clients.stalls().iter().any(|s| s.length >= Duration::from_millis(250)));

    clients.pause();
    // What was being sent when they heard of it is sent.
    std::thread::sleep(Duration::from_millis(200));
    let paused = clients.stats().sent;
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(clients.stats().sent, paused);
    clients.resume();
    wait_until(LONG, "they send again", || clients.stats().sent > paused);

    let kept = clients.stop_and_verify(LONG, End::Keep).expect("verify");
    assert_eq!((kept.sent, kept.alive, kept.outstanding), (kept.verified, 40, 0));
    capture.no_fin_rst(&SegFilter::port(PORT)).expect("no end");
    clients.resume();
    clients.wait_progress(LONG).expect("progress");
    let s = clients.stop_and_verify(LONG, End::HalfClose).expect("verify");
    assert!(s.verified > kept.verified && s.sent == s.verified && s.errors.is_empty());
    assert_eq!((s.bytes_lost, s.bytes_doubled, s.reconnects), (0, 0, 0));
    assert_eq!(capture.syn_count(c.ip()), 40);
    println!("{}", serde_json::to_string(&s).expect("json"));
}

#[test]
fn echo_clients_notice_a_reset() {
    let (_lab, a, c) = two_hosts("reset");
    let server = python_echo(&a);
    let clients = EchoClients::start(&c, addr(&a), &EchoOptions::new(3, seed())).expect("clients");
    clients.wait_progress(LONG).expect("progress");
    server.kill().expect("kill");
    wait_until(LONG, "all have noticed", || clients.stats().alive == 0);
    let text = clients.stop_and_verify(LONG, End::Keep).expect_err("errors");
    assert!(text.contains("seed") && (text.contains("Reset") || text.contains("Eof")), "{text}");
}

#[test]
fn two_thousand_connections_fit() {
    let (_lab, a, c) = two_hosts("many");
    let _server = python_echo(&a);
    let options = EchoOptions::new(2000, seed()).rate(Rate::new((1, 100), (1000, 3000)));
    let begin = Instant::now();
    let clients = EchoClients::start(&c, addr(&a), &options).expect("clients");
    println!("2000 connections in {:?}", begin.elapsed());
    clients.wait_progress(LONG).expect("progress");
    let s = clients.stop_and_verify(LONG, End::HalfClose).expect("verify");
    assert!(s.sent >= 2000);
}

#[test]
fn chat_clients_check_a_plain_server() {
    let (lab, a, c) = two_hosts("chat");
    let _server = chat_server(&lab, &a);
    let capture = c.capture(CaptureOptions::port(PORT)).expect("capture");
    let seed = seed();
    let options = ChatOptions::new(12, seed).rate(Rate::new((1, 300), (5, 80)));
    let clients = ChatClients::start(&c, addr(&a), &options).expect("clients");
    clients.wait_progress(LONG).expect("progress");
    a.cut_silent().expect("cut");
    std::thread::sleep(Duration::from_millis(100));
    a.heal().expect("heal");
    clients.wait_progress(LONG).expect("progress");
    // Another group in the same room, for a while, that talks as people do.
    let (tap, heard) = std::sync::mpsc::channel();
    let mut others = ChatOptions::new(3, seed + 1).group("guest");
    others.phrases = vec!["good morning".into(), "how are you?".into()];
    others.tap = Some(tap);
    let guests = ChatClients::start(&c, addr(&a), &others).expect("guests");
    guests.wait_progress(LONG).expect("progress");
    guests.stop_and_verify(LONG, End::HalfClose).expect("guests");
    let first = heard.recv().expect("a line");
    assert!(first.seq == 1 && others.phrases.contains(&first.text), "{first:?}");

    wait_until(LONG, "a few hundred lines are heard", || clients.stats().messages_verified > 1000);
    let s = clients.stop_and_verify(LONG, End::Keep).expect("verify");
    assert_eq!(s.messages_verified, s.messages_sent * 11);
    capture.no_fin_rst(&SegFilter::port(PORT).src(clients.local_addrs()[0])).expect("no end");
    clients.stop_and_verify(LONG, End::HalfClose).expect("close");
    assert_eq!(capture.syn_count(c.ip()), 15);
    println!("{}", serde_json::to_string(&s).expect("json"));
}

#[test]
fn a_large_chat_room() {
    let (lab, a, c) = two_hosts("room");
    let _server = chat_server(&lab, &a);
    let clients = ChatClients::start(&c, addr(&a), &ChatOptions::new(256, seed())).expect("clients");
    clients.wait_progress(LONG).expect("progress");
    let s = clients.stop_and_verify(LONG, End::HalfClose).expect("verify");
    assert_eq!(s.messages_verified, s.messages_sent * 255);
}

#[test]
fn a_stream_client_measures_an_outage() {
    let (_lab, a, c) = two_hosts("stream");
    let _server = python_echo(&a);
    let stream = StreamClient::start(&c, addr(&a), &StreamOptions::new(seed())).expect("client");
    wait_until(LONG, "a hundred records are back", || stream.stats().messages_verified > 100);
    stream.take_longest_gap();
    let cut = Instant::now();
    a.cut_carrier().expect("cut");
    std::thread::sleep(Duration::from_millis(250));
    a.heal().expect("heal");
    let back = stream.stats().messages_verified;
    wait_until(LONG, "records come back", || stream.stats().messages_verified > back);
    let (gap, at_most) = (stream.take_longest_gap(), cut.elapsed() + Duration::from_millis(100));
    assert!(gap >= Duration::from_millis(200) && gap <= at_most, "{gap:?}, at most {at_most:?}");
    let s = stream.stop_and_verify(LONG, End::HalfClose).expect("verify");
    assert_eq!(s.messages_sent, s.messages_verified);
    let mut trips = stream.take_round_trips();
    assert_eq!(trips.len() as u64, s.messages_verified);
    trips.sort_unstable();
    println!("round trip p50 {} us, gap {gap:?}", trips[trips.len() / 2]);
}

#[test]
fn memcached_clients_check_their_answers() {
    if !Path::new("/usr/bin/memcached").exists() {
        println!("no memcached here: not tested");
        return;
    }
    let (_lab, a, c) = two_hosts("memcached");
    let mut m = Command::new("/usr/bin/memcached");
    m.args(["-u", "nobody", "-l", "0.0.0.0", "-t", "2", "-U", "0", "-p", &PORT.to_string()]);
    let _server = a.spawn("memcached", m).expect("memcached");
    wait_listening(&a, PORT, LONG).expect("memcached");
    for pipeline in [1, 5] {
        let mut options = MemcachedOptions::new(10, seed());
        options.pipeline = pipeline;
        let clients = MemcachedClients::start(&c, addr(&a), &options).expect("clients");
        wait_until(LONG, "a few hundred answers came", || clients.stats().messages_verified > 500);
        assert_eq!(clients.stats().misses, 0);
        // A server that has forgotten everything is no error, but it is counted.
        c.enter(|| {
            let mut s = TcpStream::connect(addr(&a)).expect("connect");
            s.write_all(b"flush_all\r\nquit\r\n").expect("flush");
            s.read_to_string(&mut String::new()).expect("ok");
        });
        assert!(wait_for(LONG, || clients.stats().misses > 0));
        let s = clients.stop_and_verify(LONG, End::HalfClose).expect("verify");
        assert_eq!(s.messages_sent, s.messages_verified);
    }
}
