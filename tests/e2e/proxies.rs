//! Proxies: each client has a connection of its own to the backend, and has none but that, whatever becomes of the members.
//! The backend knows each connection by the first line that it heard from there, and says so with every answer. A client
//! either goes on with its own or is reset and counted; it never hears a word of another one's.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tcpr_lab::member::{Hosted, Service};
use tcpr_lab::{wait_for, Host, Rng};

use crate::world::{Fault, World, FOUR, PATIENCE, PORT, SIX};

const BACKEND: u16 = 7777;
/// How long a client hears nothing at the most: a connection that the program does not call for again is reset after a minute,
/// which begins anew with each takeover.
const SILENCE: Duration = Duration::from_secs(180);
const CLIENTS: usize = 20;

/// Answers each line with the first of its connection before it.
fn backend(on: &Host, at: SocketAddr, http: bool, stop: &Arc<AtomicBool>) {
    let listener = on.enter(|| TcpListener::bind(at)).expect("the backend listens");
    listener.set_nonblocking(true).expect("non-blocking");
    let stop = stop.clone();
    std::thread::spawn(move || {
        while !stop.load(Relaxed) {
            let Ok((stream, _)) = listener.accept() else {
                std::thread::sleep(Duration::from_millis(2));
                continue;
            };
            std::thread::spawn(move || drop(if http { answer_requests(stream) } else { answer_lines(stream) }));
        }
    });
}

fn answer_lines(mut stream: TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?);
    let (mut first, mut line) = (String::new(), String::new());
    while lines.read_line(&mut line)? > 0 {
        let said = line.trim_end();
        if first.is_empty() {
            said.clone_into(&mut first);
        }
        stream.write_all(format!("{first}|{said}\n").as_bytes())?;
        line.clear();
    }
    Ok(())
}

/// A request is a line and its headers; who asks is what stands before the path's second slash.
fn answer_requests(mut stream: TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    loop {
        let mut request = String::new();
        if lines.read_line(&mut request)? == 0 {
            return Ok(());
        }
        loop {
            let mut header = String::new();
            if lines.read_line(&mut header)? == 0 {
                return Ok(());
            }
            if header.trim_end().is_empty() {
                break;
            }
        }
        let said = request.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_owned();
        if first.is_empty() {
            said.clone_into(&mut first);
        }
        let body = format!("{first}|{said}\n");
        stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes())?;
    }
}

/// What a client has seen.
#[derive(Default)]
struct Seen {
    /// By client.
    answers: [AtomicUsize; CLIENTS],
    resets: AtomicUsize,
    /// Clients that have asked and have not been answered.
    waiting: AtomicUsize,
    /// Answers that came twice.
    doubled: AtomicUsize,
    wrong: Mutex<Vec<String>>,
}

/// One after another says its name and then numbers; who is reset comes again under another name.
fn client(i: usize, to: SocketAddr, (http, doubles): (bool, bool), stop: &AtomicBool, seen: &Seen, mut rng: Rng) {
    for life in 0.. {
        let name = format!("c{i}.{life}");
        let mut n = 0;
        let Ok(stream) = TcpStream::connect_timeout(&to, PATIENCE) else {
            if stop.load(Relaxed) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        stream.set_read_timeout(Some(SILENCE)).expect("a timeout");
        let mut answers = BufReader::new(stream.try_clone().expect("cloned"));
        let mut stream = stream;
        loop {
            if stop.load(Relaxed) {
                return;
            }
            let said = if n == 0 { name.clone() } else { format!("{n}") };
            let asked = if http { format!("GET /{said} HTTP/1.1\r\nHost: {name}\r\n\r\n") } else { format!("{said}\n") };
            let mut answer = String::new();
            seen.waiting.fetch_add(1, Relaxed);
            let mut heard = stream.write_all(asked.as_bytes()).and_then(|()| match http {
                true => body(&mut answers, &mut answer),
                false => answers.read_line(&mut answer),
            });
            if n > 1 && doubles && answer == format!("{name}|{}\n", n - 1) {
                seen.doubled.fetch_add(1, Relaxed);
                answer.clear();
                heard = answers.read_line(&mut answer);
            }
            seen.waiting.fetch_sub(1, Relaxed);
            match heard {
                Ok(n) if n > 0 => {}
                Err(e) if !matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof) => {
                    return seen.wrong.lock().expect("no panic").push(format!("{name}, {said}: {e}"));
                }
                _ => {
                    seen.resets.fetch_add(1, Relaxed);
                    break;
                }
            }
            if answer != format!("{name}|{said}\n") {
                return seen.wrong.lock().expect("no panic").push(format!("{name}, {said}: {answer:?}"));
            }
            seen.answers[i].fetch_add(1, Relaxed);
            n += 1;
            std::thread::sleep(rng.duration(Duration::ZERO, Duration::from_millis(60)));
        }
    }
}

fn body(answers: &mut BufReader<TcpStream>, body: &mut String) -> std::io::Result<usize> {
    let mut length = 0;
    loop {
        let mut header = String::new();
        if answers.read_line(&mut header)? == 0 {
            return Ok(0);
        }
        let header = header.trim_end().to_ascii_lowercase();
        if let Some(n) = header.strip_prefix("content-length: ") {
            length = n.parse().unwrap_or(0);
        }
        if header.is_empty() {
            break;
        }
    }
    let mut bytes = vec![0; length];
    answers.read_exact(&mut bytes)?;
    *body = String::from_utf8_lossy(&bytes).into_owned();
    Ok(length)
}

/// How a proxy is tried.
struct Proxy<'a> {
    label: &'a str,
    command: Vec<String>,
    http: bool,
    by: Hosted,
    six: bool,
    /// Python's threads wait for each other between a read and the write that answers it: that ends a turn, and what was read
    /// may be read and passed on once more (see docs/guarantees.md).
    doubles: bool,
    /// At most so many of a hundred may be reset at a failover: what cannot be known is, and who waits for an answer where the
    /// program connects only when its client says more. Clients that wait for an answer when it happens are not counted.
    most: usize,
}

impl<'a> Proxy<'a> {
    fn new(label: &'a str, command: &[&str]) -> Proxy<'a> {
        let command = command.iter().map(|s| (*s).to_owned()).collect();
        Proxy { label, command, http: false, by: Hosted::ByRun, six: false, doubles: false, most: 10 }
    }
}

fn proxied(p: &Proxy<'_>) {
    let (vip, upstream, addresses) =
        if p.six { ("2001:db8::200/64", "2001:db8::9", SIX) } else { ("192.0.2.200/24", "192.0.2.9", FOUR) };
    let to = SocketAddr::new(upstream.parse().expect("an address"), BACKEND);
    let service = Service::new("proxy", PORT).virtual_ip(vip).extra(&format!("[[service.outgoing]]\naddress = \"{to}\""));
    let command: Vec<&str> = p.command.iter().map(String::as_str).collect();
    let mut w = World::with(p.label, service, &command, p.by, addresses);
    let stop = Arc::new(AtomicBool::new(false));
    let _stopped = Stop(stop.clone());
    backend(&w.peer, to, p.http, &stop);
    let seen = Arc::new(Seen::default());
    let vip = w.pair.addr();
    let threads: Vec<_> = (0..CLIENTS)
        .map(|i| {
            let (peer, stop, seen, how) = (w.peer.clone(), stop.clone(), seen.clone(), (p.http, p.doubles));
            std::thread::spawn(move || peer.enter(|| client(i, vip, how, &stop, &seen, Rng::new(i as u64 + 1))))
        })
        .collect();
    let answers = || -> Vec<usize> { seen.answers.iter().map(|n| n.load(Relaxed)).collect() };
    let moves = |w: &World, what: &str| {
        let before = answers();
        let all: usize = before.iter().sum();
        let moved = wait_for(PATIENCE, || answers().iter().sum::<usize>() >= all + 30 * CLIENTS);
        // Each client has its connection again, or another one, before the next fault.
        let moved = moved && wait_for(SILENCE, || answers().iter().zip(&before).all(|(now, before)| now >= &(before + 2)));
        let wrong = seen.wrong.lock().expect("no panic").clone();
        assert!(wrong.is_empty(), "{what}: {wrong:?}\n{}", w.pair.describe());
        assert!(moved, "{what}: nothing moves\n{}", w.pair.describe());
    };
    moves(&w, "before");
    let whole = |fault| if p.by == Hosted::ByLinked && matches!(fault, Fault::KillServer) { Fault::KillAll } else { fault };
    // Sessions that the members have reset.
    let counted = |w: &World| {
        let of = |member: usize| {
            let status = w.pair.status(member).expect("status");
            status["counters"]["torn"].as_u64().expect("a counter")
        };
        usize::try_from(of(0) + of(1)).expect("few")
    };
    // A program that connects when its client has said something has nothing to do so for, if the client waits for an answer that
    // was on its way. On a busy machine that is so for many.
    let mut may_be_lost = 0;
    // Whoever counted lives.
    let mut counts = true;
    let mut lost: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for round in 0..2 {
        for fault in [Fault::Switchover, Fault::KillServer, Fault::Cut, Fault::KillAll].map(whole) {
            let (resets, began) = (seen.resets.load(Relaxed), Instant::now());
            if counts {
                w.protected();
                let counted = counted(&w);
                assert!(resets <= counted, "before {fault:?}: {resets} clients were reset, {counted} sessions counted");
            }
            counts &= !matches!(fault, Fault::KillAll);
            may_be_lost += seen.waiting.load(Relaxed);
            w.fail_over(fault);
            moves(&w, &format!("{fault:?}"));
            let reset = seen.resets.load(Relaxed) - resets;
            eprintln!("{} round {round}, {fault:?}: {reset} of {CLIENTS} reset, {:?}", p.label, began.elapsed());
            let sum = lost.entry(format!("{fault:?}")).or_default();
            *sum = (sum.0 + reset, sum.1 + CLIENTS);
        }
    }
    stop.store(true, Relaxed);
    for thread in threads {
        thread.join().expect("no panic");
    }
    let (reset, of) = lost.values().fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
    eprintln!(
        "{}: {reset} of {of} reset, {may_be_lost} waited, {} answers doubled: {lost:?}",
        p.label,
        seen.doubled.load(Relaxed)
    );
    let wrong = seen.wrong.lock().expect("no panic").clone();
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(
        reset * 100 <= p.most * of + may_be_lost * 100,
        "{reset} of {of} were reset, {may_be_lost} waited: {lost:?}\n{}",
        w.pair.describe()
    );
}

/// Ends the backend and the clients.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// A directory with a configuration, removed with the test.
struct Config(PathBuf);

impl Config {
    fn new(name: &str, text: &str) -> Config {
        let dir = std::env::temp_dir().join(format!("tcpr-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        fs::write(dir.join("conf"), text).expect("written");
        Config(dir)
    }

    fn path(&self) -> String {
        self.0.join("conf").display().to_string()
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn script() -> String {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/proxy.py").display().to_string()
}

fn python<'a>(label: &'a str, how: &str, upstream: &str) -> Proxy<'a> {
    Proxy::new(label, &["python3", &script(), how, "5555", upstream, "7777"])
}

#[test]
fn a_proxy_with_a_thread_for_each_client() {
    proxied(&Proxy { most: 15, doubles: true, ..python("pxthread", "thread", "192.0.2.9") });
}

#[test]
fn a_proxy_whose_threads_connect_first() {
    proxied(&Proxy { most: 15, doubles: true, ..python("pxfirst", "first", "192.0.2.9") });
}

#[test]
fn a_proxy_that_polls() {
    proxied(&python("pxpoll", "poll", "192.0.2.9"));
}

/// After a takeover it gets each client when that says something.
#[test]
fn a_proxy_that_polls_and_connects_late() {
    proxied(&Proxy { most: 30, ..python("pxlazy", "lazy", "192.0.2.9") });
}

#[test]
fn a_proxy_over_ipv6() {
    proxied(&Proxy { six: true, ..python("pxsix", "poll", "2001:db8::9") });
}

/// Threads take the clients from a queue.
#[test]
fn a_proxy_with_a_pool_of_threads() {
    proxied(&Proxy { most: 30, doubles: true, ..python("pxpool", "pool", "192.0.2.9") });
}

#[test]
fn a_proxy_on_asyncio() {
    proxied(&Proxy { most: 120, ..python("pxasync", "asyncio", "192.0.2.9") });
}

fn haproxy(mode: &str, threads: &str, options: &str) -> Config {
    let text = format!(
        "global\n  maxconn 200\n  {threads}\n\
         defaults\n  mode {mode}\n  {options}\n  timeout connect 60s\n  timeout client 10m\n  timeout server 10m\n  timeout http-request 10m\n\
         frontend in\n  bind :5555\n  default_backend out\n\
         backend out\n  {}  server s 192.0.2.9:7777\n",
        if mode == "http" { "http-reuse never\n" } else { "" },
    );
    let name = [mode, threads, options].concat().replace(|c: char| !c.is_ascii_alphanumeric(), "");
    Config::new(&format!("haproxy-{name}"), &text)
}

#[test]
fn haproxy_in_tcp_mode() {
    let config = haproxy("tcp", "nbthread 1", "");
    proxied(&Proxy { most: 60, ..Proxy::new("haptcp", &["haproxy", "-db", "-f", &config.path()]) });
}

/// What one connection sends goes to the other one through a pipe.
#[test]
fn haproxy_that_splices() {
    let config = haproxy("tcp", "nbthread 1", "option splice-request\n  option splice-response");
    proxied(&Proxy { most: 60, ..Proxy::new("hapsplice", &["haproxy", "-db", "-f", &config.path()]) });
}

/// Threads that read several clients in one turn: whose each connect is cannot be told on a busy machine, and all may be reset.
#[test]
fn haproxy_with_several_threads() {
    let config = haproxy("tcp", "nbthread 4", "");
    proxied(&Proxy { most: 120, ..Proxy::new("hapthr", &["haproxy", "-db", "-f", &config.path()]) });
}

/// It connects when it has read a request, and reads several clients in one turn on a busy machine, too.
#[test]
fn haproxy_in_http_mode() {
    let config = haproxy("http", "nbthread 1", "");
    proxied(&Proxy { http: true, most: 120, ..Proxy::new("haphttp", &["haproxy", "-db", "-f", &config.path()]) });
}

#[test]
fn socat_with_a_process_for_each_client() {
    proxied(&Proxy {
        most: 15,
        ..Proxy::new("pxsocat", &["socat", "TCP-LISTEN:5555,fork,reuseaddr,backlog=100", "TCP:192.0.2.9:7777"])
    });
}

#[test]
fn nginx_as_a_stream_proxy() {
    let text = "user root; daemon off; master_process off; pid /dev/null; error_log stderr warn;\n\
         load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n\
         events { worker_connections 512; }\n\
         stream { server { listen 5555; proxy_connect_timeout 60s; proxy_timeout 10m; proxy_pass 192.0.2.9:7777; } }\n";
    let config = Config::new("stream", text);
    proxied(&Proxy {
        most: 15,
        ..Proxy::new("pxnginx", &["nginx", "-c", &config.path(), "-p", &config.0.display().to_string()])
    });
}
