//! How a listener comes to the processes that accept from it, and how they wait on it: of several processes, by what event,
//! over exec, in a message. Recovered connections come out of each, at once, and evenly; and nobody sees the doorbell.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tcpr_lab::member::Service;
use tcpr_lab::{wait_for, wait_until};

use crate::hot::Talker;
use crate::requests::connect;
use crate::world::{built, engine, Dir, Fault, World, PATIENCE, PORT};

/// Recovered connections are accepted in this time; the barrier falls after three seconds.
const SOON: Duration = Duration::from_millis(2500);

/// How a server is asked.
#[derive(Clone)]
enum Says {
    Lines,
    Http,
    /// For this script.
    FastCgi(String),
}

/// A connection that is kept, and what it is asked.
struct Client {
    stream: TcpStream,
    answers: BufReader<TcpStream>,
    port: u16,
    asked: u32,
    says: Says,
}

impl Client {
    fn new(w: &World, says: Says) -> Client {
        let to = w.pair.addr();
        let stream = w.peer.enter(|| connect(to)).expect("connected");
        let port = stream.local_addr().expect("an address").port();
        Client { answers: BufReader::new(stream.try_clone().expect("cloned")), stream, port, asked: 0, says }
    }

    fn ask(&mut self) -> Result<(), String> {
        self.asked += 1;
        let what = format!("{}.{}", self.port, self.asked);
        let asked = match &self.says {
            Says::Lines => format!("line {what}\n").into_bytes(),
            Says::Http => format!("GET /{what} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes(),
            Says::FastCgi(script) => fast_cgi(script, &what),
        };
        self.stream.write_all(&asked).map_err(|e| format!("request: {e}"))
    }

    /// Who answers: the number of a process.
    fn answer(&mut self) -> Result<u32, String> {
        if let Says::FastCgi(_) = self.says {
            return self.fast_cgi_answer();
        }
        let mut line = || {
            let mut line = String::new();
            match self.answers.read_line(&mut line) {
                Ok(0) => Err("the connection has ended".to_owned()),
                Ok(_) => Ok(line.trim_end().to_owned()),
                Err(e) => Err(format!("answer: {e}")),
            }
        };
        if let Says::Lines = self.says {
            let line = line()?;
            let (process, said) = line.split_once(' ').ok_or_else(|| format!("{line:?}"))?;
            let right = said == format!("line {}.{}", self.port, self.asked);
            return process.parse().ok().filter(|_| right).ok_or_else(|| format!("{line:?} to line {}", self.asked));
        }
        let (status, mut length) = (line()?, 0);
        if !status.starts_with("HTTP/1.1 200") {
            return Err(status);
        }
        loop {
            let header = line()?.to_ascii_lowercase();
            if let Some(n) = header.strip_prefix("content-length: ") {
                length = n.parse().map_err(|_| header.clone())?;
            }
            if header.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.answers.read_exact(&mut body).map_err(|e| format!("body: {e}"))?;
        let body = String::from_utf8(body).map_err(|e| e.to_string())?;
        body.trim().parse().map_err(|_| format!("body {body:?}"))
    }

    fn fast_cgi_answer(&mut self) -> Result<u32, String> {
        let mut out = Vec::new();
        loop {
            let mut header = [0; 8];
            self.answers.read_exact(&mut header).map_err(|e| format!("record: {e}"))?;
            let length = u16::from_be_bytes([header[4], header[5]]);
            let mut content = vec![0; usize::from(length) + usize::from(header[6])];
            self.answers.read_exact(&mut content).map_err(|e| format!("content: {e}"))?;
            match header[1] {
                FCGI_STDOUT => out.extend_from_slice(&content[..usize::from(length)]),
                FCGI_END_REQUEST => break,
                kind => return Err(format!("record {kind}: {:?}", String::from_utf8_lossy(&content))),
            }
        }
        let text = String::from_utf8_lossy(&out).into_owned();
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
        body.and_then(|body| body.parse().ok()).ok_or_else(|| format!("{text:?}"))
    }
}

const FCGI_BEGIN_REQUEST: u8 = 1;
const FCGI_END_REQUEST: u8 = 3;
const FCGI_PARAMS: u8 = 4;
const FCGI_STDIN: u8 = 5;
const FCGI_STDOUT: u8 = 6;

/// A request of FastCGI, after which the connection is kept.
fn fast_cgi(script: &str, query: &str) -> Vec<u8> {
    let record = |kind: u8, content: &[u8]| {
        let length = u16::try_from(content.len()).expect("short").to_be_bytes();
        [&[1, kind, 0, 1, length[0], length[1], 0, 0], content].concat()
    };
    let mut params = Vec::new();
    for (name, value) in [("SCRIPT_FILENAME", script), ("REQUEST_METHOD", "GET"), ("QUERY_STRING", query)] {
        params.extend([name, value].map(|s| u8::try_from(s.len()).expect("short")));
        params.extend(name.bytes().chain(value.bytes()));
    }
    // The role of a responder; FCGI_KEEP_CONN.
    let begin = record(FCGI_BEGIN_REQUEST, &[0, 1, 1, 0, 0, 0, 0, 0]);
    [begin, record(FCGI_PARAMS, &params), record(FCGI_PARAMS, &[]), record(FCGI_STDIN, &[])].concat()
}

/// All are asked, then all answer. Returns how many connections each process has.
fn ask_all(w: &World, clients: &mut [Client], when: &str) -> BTreeMap<u32, usize> {
    let mut by_process = BTreeMap::new();
    let what = |i: usize, e: String| -> ! { panic!("{when}, client {i}: {e}\n{}", w.pair.describe()) };
    for (i, client) in clients.iter_mut().enumerate() {
        client.ask().unwrap_or_else(|e| what(i, e));
    }
    for (i, client) in clients.iter_mut().enumerate() {
        *by_process.entry(client.answer().unwrap_or_else(|e| what(i, e))).or_default() += 1;
    }
    by_process
}

/// The processes of a server: how many children its main one has, and how many serve; 0: it is not looked at who does. Whether
/// they have one listener.
struct Server {
    children: usize,
    serve: usize,
    shared: bool,
}

const ONE: Server = Server { children: 0, serve: 0, shared: true };
const FOUR: Server = Server { children: 3, serve: 4, shared: true };
const NGINX_SERVES: Server = Server { children: 2, serve: 2, shared: true };

/// Kept connections go on through these faults, soon; of so many processes each gets its part of them.
fn go_on(w: &mut World, clients: &mut [Client], faults: &[Fault], server: &Server) {
    for &fault in faults {
        let backup = 1 - w.protected();
        wait_until(PATIENCE, "the server runs", || {
            w.pair.programs(backup).first().is_some_and(|main| children(*main).len() >= server.children)
        });
        w.fail_over(fault);
        let when = format!("after {fault:?}");
        if matches!(fault, Fault::Cut) {
            // One that was cut off still serves whoever reaches it, until it has heard of the new master. Nobody hears its
            // answers, and what it has run is run again.
            let yielded = || w.pair.status(1 - backup).is_ok_and(|status| status["role"] != "master");
            wait_until(PATIENCE, "the old master has yielded", yielded);
        }
        let by_process = ask_all(w, clients, &when);
        let master = w.pair.wait_master(PATIENCE).unwrap_or_else(|e| panic!("{e}"));
        let mut status = serde_json::Value::Null;
        wait_until(PATIENCE, "the takeover is over", || {
            status = w.pair.status(master).unwrap_or_default();
            status["restoring"] == false && status["takeover"]["done_us"].as_u64().is_some_and(|us| us > 0)
        });
        let took = Duration::from_micros(status["takeover"]["done_us"].as_u64().expect("a time"));
        eprintln!("{when}: done in {took:?}, by process {by_process:?}");
        assert!(took < SOON, "{when}: {took:?}\n{}", w.pair.describe());
        if server.serve > 1 {
            // Nobody has nearly all of them: on a busy machine one may come too late for its part (`manager/sharing.rs` is tested
            // for the rest), and of several listeners the kernel chooses one for each doorbell.
            let most = by_process.values().max().expect("somebody answers");
            let even = by_process.len() <= server.serve && (!server.shared || most * 8 <= clients.len() * 7);
            // With engine splice they are the kernel's to hand out.
            assert!(even || engine() == "splice", "{when}: {by_process:?}\n{}", w.pair.describe());
        }
    }
    w.protected();
}

const FAULTS: [Fault; 3] = [Fault::Switchover, Fault::KillServer, Fault::KillAll];

fn world(way: &str) -> World {
    World::new(way, Service::new("listeners", PORT), &[&built("listeners"), "5555", way])
}

fn lines_go_on(way: &str, server: &Server) {
    let mut w = world(way);
    let mut clients = Vec::new();
    for _ in 0..32 {
        // One after another: of two at once an edge-triggered wait tells once.
        let mut client = vec![Client::new(&w, Says::Lines)];
        ask_all(&w, &mut client, "at first");
        clients.append(&mut client);
    }
    go_on(&mut w, &mut clients, &FAULTS, server);
    // And new ones are served beside.
    clients.push(Client::new(&w, Says::Lines));
    ask_all(&w, &mut clients, "at last");
    w.no_reset();
    drop(clients);
    w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
}

#[test]
fn a_worker_that_polls_before_it_accepts() {
    lines_go_on("poll", &ONE);
}

#[test]
fn workers_of_which_each_event_wakes_one() {
    lines_go_on("workers", &FOUR);
}

#[test]
fn workers_of_which_each_event_wakes_all() {
    lines_go_on("herd", &FOUR);
}

#[test]
fn workers_with_a_listener_each() {
    lines_go_on("reuseport", &Server { shared: false, ..FOUR });
}

#[test]
fn an_edge_triggered_wait_with_one_accept_for_each_event() {
    lines_go_on("et", &ONE);
}

#[test]
fn an_edge_triggered_wait_of_a_server_that_forks() {
    lines_go_on("etfork", &ONE);
}

#[test]
fn a_listener_that_came_over_exec() {
    lines_go_on("exec", &ONE);
}

#[test]
fn a_listener_that_was_passed_as_systemd_does() {
    lines_go_on("activate", &ONE);
}

#[test]
fn a_listener_that_came_in_a_message() {
    lines_go_on("scm", &ONE);
}

#[test]
fn a_listener_of_multipath_tcp() {
    lines_go_on("mptcp", &ONE);
}

/// A doorbell would be a client to it: its connections are made by its listener.
#[test]
fn a_listener_that_io_uring_accepts_from() {
    lines_go_on("uring", &ONE);
}

/// Sends a signal to a server of the backup, and waits until that has happened.
fn signal(w: &World, pid: i32, signal: &str, what: &str, done: impl Fn() -> bool) {
    let sent = Command::new("kill").args([signal, &pid.to_string()]).status().expect("kill");
    assert!(sent.success(), "{signal} to {pid}");
    assert!(wait_for(PATIENCE, done), "in vain until {what}\n{}", w.pair.describe());
}

fn children(pid: i32) -> Vec<i32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    fs::read_to_string(path).unwrap_or_default().split_whitespace().filter_map(|p| p.parse().ok()).collect()
}

/// A server's main process on a member, when it has so many children.
fn main_process(w: &World, member: usize, workers: usize) -> i32 {
    let mut main = 0;
    wait_until(PATIENCE, "the server runs", || {
        main = w.pair.programs(member).first().copied().unwrap_or_default();
        children(main).len() == workers
    });
    main
}

/// An upgraded binary has the environment that is named here.
const NGINX: &str = "env LD_PRELOAD;\nenv TCPR_SERVICE;\nenv TCPR_TOKEN;\nenv TCPR_PORTS;\nworker_processes 2;\nerror_log DIR/error.log;\npid DIR/MEMBER.pid;\n\
    events { worker_connections 256; }\n\
    http { access_log DIR/access.log; keepalive_timeout 600; keepalive_requests 1000000;\n\
    client_body_temp_path DIR/t1; proxy_temp_path DIR/t2; fastcgi_temp_path DIR/t3; uwsgi_temp_path DIR/t4; scgi_temp_path DIR/t5;\n\
    server { listen 5555LISTEN; default_type text/plain; return 200 $pid; } }\n";

fn nginx(label: &str, listen: &str, run: &str) -> (World, Dir) {
    let dir = Dir::new(label);
    let text = NGINX.replace("DIR", &dir.0.display().to_string()).replace("LISTEN", listen);
    // By member: each writes its own number.
    let config = dir.file("nginx.conf", &text.replace("MEMBER", "${TCPR_MEMBER}"));
    let start = format!("sed \"s/\\${{TCPR_MEMBER}}/$TCPR_MEMBER/\" {config} > {config}.$TCPR_MEMBER && {run}");
    let start = start.replace("CONFIG", &format!("{config}.$TCPR_MEMBER"));
    let w = World::new(label, Service::new(label, PORT), &["sh", "-c", &start]);
    (w, dir)
}

const STAYS: &str = "exec /usr/sbin/nginx -g 'daemon off;' -c CONFIG";

/// Nothing but what was asked for.
fn nothing_strange(dir: &Dir) {
    let log = fs::read_to_string(dir.0.join("access.log")).expect("a log");
    let strange: Vec<&str> = log.lines().filter(|line| !line.contains("\" 200 ") || line.contains("192.0.2.200 ")).collect();
    assert!(strange.is_empty(), "{strange:#?}");
    assert!(log.lines().count() >= 64, "{log}");
}

#[test]
fn nginx_with_its_workers() {
    let (mut w, dir) = nginx("nginxw", "", STAYS);
    let mut clients: Vec<Client> = (0..64).map(|_| Client::new(&w, Says::Http)).collect();
    go_on(&mut w, &mut clients, &FAULTS, &NGINX_SERVES);
    // Reloaded while it stands by: other workers accept.
    let backup = 1 - w.protected();
    let main = main_process(&w, backup, 2);
    let before = children(main);
    signal(&w, main, "-HUP", "it has other workers", || {
        let now = children(main);
        now.len() == 2 && now.iter().all(|pid| !before.contains(pid))
    });
    go_on(&mut w, &mut clients, &[Fault::Switchover], &NGINX_SERVES);
    w.no_reset();
    nothing_strange(&dir);
}

#[test]
fn nginx_with_a_listener_for_each_worker() {
    let (mut w, dir) = nginx("nginxr", " reuseport", STAYS);
    let mut clients: Vec<Client> = (0..64).map(|_| Client::new(&w, Says::Http)).collect();
    go_on(&mut w, &mut clients, &FAULTS, &Server { shared: false, ..NGINX_SERVES });
    w.no_reset();
    nothing_strange(&dir);
}

/// Another binary takes the place of the one that stands by, with its listener, and then that of the one that serves.
#[test]
fn nginx_whose_binary_is_upgraded() {
    let (mut w, dir) = nginx("nginxu", "", "/usr/sbin/nginx -c CONFIG && exec sleep 3600");
    let mut clients: Vec<Client> = (0..32).map(|_| Client::new(&w, Says::Http)).collect();
    for _ in 0..2 {
        let backup = 1 - w.protected();
        let pid_file = dir.0.join(format!("{}.pid", w.pair.host(backup).name()));
        let main =
            || fs::read_to_string(&pid_file).ok().and_then(|pid| pid.trim().parse().ok()).filter(|pid| children(*pid).len() == 2);
        wait_until(PATIENCE, "the server runs", || main().is_some());
        let old = main().expect("it runs");
        signal(&w, old, "-USR2", "another has its place", || main().is_some_and(|new: i32| new != old));
        // Its workers end, and it stays, as the manual says, until all is known to be well.
        signal(&w, old, "-WINCH", "the workers of the old one have ended", || children(old).len() <= 1);
        go_on(&mut w, &mut clients, &[Fault::Switchover], &Server { children: 0, ..NGINX_SERVES });
    }
    w.no_reset();
    nothing_strange(&dir);
}

#[test]
fn gunicorn_with_its_workers_and_after_an_upgrade() {
    let dir = Dir::new("gunicorn");
    dir.file("app.py", "import os\n\ndef app(environ, start):\n    body = str(os.getpid()).encode()\n    start('200 OK', [('Content-Length', str(len(body)))])\n    return [body]\n");
    let path = dir.0.display().to_string();
    let program = [
        "gunicorn",
        "-w",
        "3",
        "-k",
        "gthread",
        "--threads",
        "40",
        "--keep-alive",
        "600",
        "-b",
        "0.0.0.0:5555",
        "--chdir",
        &path,
        "--worker-tmp-dir",
        &path,
        "app:app",
    ];
    let mut w = World::new("gunicorn", Service::new("gunicorn", PORT), &program);
    let mut clients: Vec<Client> = (0..24).map(|_| Client::new(&w, Says::Http)).collect();
    go_on(&mut w, &mut clients, &[Fault::Switchover, Fault::KillAll], &Server { children: 3, serve: 3, shared: true });
    // The old one and the new one serve, and the old one ends.
    let backup = 1 - w.protected();
    let old = main_process(&w, backup, 3);
    let is_main = |pid: &i32| children(*pid).len() == 3;
    signal(&w, old, "-USR2", "the new one has its workers", || children(old).iter().any(is_main));
    go_on(&mut w, &mut clients, &[Fault::Switchover], &Server { children: 4, serve: 6, shared: true });
    w.no_reset();
}

#[test]
fn haproxy_with_its_workers_and_after_a_reload() {
    let dir = Dir::new("haproxyw");
    let text = "global\n nbthread 2\n maxconn 200\ndefaults\n mode http\n timeout client 600s\n timeout http-keep-alive 600s\n\
        frontend f\n bind 0.0.0.0:5555\n http-request return status 200 content-type text/plain lf-string %pid\n";
    let config = dir.file("haproxy.cfg", text);
    let mut w = World::new("haproxyw", Service::new("haproxyw", PORT), &["haproxy", "-W", "-db", "-f", &config]);
    let mut clients: Vec<Client> = (0..24).map(|_| Client::new(&w, Says::Http)).collect();
    go_on(&mut w, &mut clients, &[Fault::Switchover, Fault::KillAll], &Server { children: 1, ..ONE });
    let backup = 1 - w.protected();
    let main = main_process(&w, backup, 1);
    let before = children(main);
    // It begins by becoming itself once more, and hears nothing meanwhile.
    std::thread::sleep(Duration::from_secs(1));
    signal(&w, main, "-USR2", "it has another worker", || {
        let now = children(main);
        !now.is_empty() && now.iter().all(|pid| !before.contains(pid))
    });
    go_on(&mut w, &mut clients, &[Fault::Switchover], &ONE);
    w.no_reset();
}

/// Connections that are kept to a server of several processes, which adds what it runs to a log: they go on, and nothing is run
/// twice.
fn each_runs_once(label: &str, program: &[&str], log: &Path, says: &Says, server: &Server, n: usize) {
    let mut w = World::new(label, Service::new(label, PORT), program);
    let mut clients: Vec<Client> = (0..n).map(|_| Client::new(&w, says.clone())).collect();
    ask_all(&w, &mut clients, "at first");
    go_on(&mut w, &mut clients, &[Fault::Switchover, Fault::KillServer, Fault::Cut, Fault::KillAll], server);
    let asked: u32 = clients.iter().map(|c| c.asked).sum();
    let text = fs::read_to_string(log).expect("what was run");
    let mut times = BTreeMap::new();
    text.lines().for_each(|line| *times.entry(line).or_insert(0) += 1);
    let again: Vec<_> = times.iter().filter(|(_, n)| **n != 1).collect();
    assert!(again.is_empty(), "run again though answered: {again:?}\n{}", w.pair.describe());
    assert_eq!(times.len(), asked as usize);
    w.no_reset();
    drop(clients);
    w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
}

fn in_tests(name: &str) -> String {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests").join(name).display().to_string()
}

fn node(policy: &str, server: &Server) {
    let dir = Dir::new(&format!("node-{policy}"));
    let log = dir.0.join("log");
    let program = ["node", &in_tests("cluster.js"), "5555", &log.display().to_string(), policy];
    each_runs_once(&format!("node{policy}"), &program, &log, &Says::Http, server, 24);
}

/// Needs nodejs.
#[test]
fn node_whose_primary_passes_connections_to_its_workers() {
    node("rr", &Server { children: 4, ..ONE });
}

/// Needs nodejs.
#[test]
fn node_whose_workers_share_a_listener() {
    // It starts its workers one after another, and the first one may have all connections before the others listen.
    node("none", &Server { children: 4, serve: 4, shared: false });
}

fn python(way: &str, server: &Server) {
    let dir = Dir::new(&format!("python-{way}"));
    let log = dir.0.join("log");
    let program = ["python3", &in_tests("multiprocess.py"), "5555", &log.display().to_string(), way];
    each_runs_once(&format!("py{way}"), &program, &log, &Says::Lines, server, 24);
}

#[test]
fn processes_of_python_that_share_a_listener() {
    python("shared", &Server { children: 4, serve: 4, shared: true });
}

#[test]
fn processes_of_python_that_are_sent_connections() {
    python("sent", &Server { children: 4, ..ONE });
}

/// Each of its processes serves one connection until that ends.
#[test]
fn php_fpm_answers_its_web_server() {
    let dir = Dir::new("php");
    let (log, path) = (dir.0.join("log"), dir.0.display().to_string());
    let script =
        format!("<?php file_put_contents('{path}/log', $_SERVER['QUERY_STRING'] . \"\\n\", FILE_APPEND); echo getmypid();");
    let script = dir.file("run.php", &script);
    let text = format!(
        "[global]\nerror_log = {path}/error.log\ndaemonize = no\n\
         [www]\nuser = root\ngroup = root\nlisten = 0.0.0.0:5555\npm = static\npm.max_children = 12\n"
    );
    let config = dir.file("fpm.conf", &text);
    let names = fs::read_dir("/usr/sbin").expect("a directory").flatten().map(|entry| entry.path());
    let fpm = names.filter(|path| path.to_string_lossy().contains("/php-fpm")).max();
    let fpm = fpm.expect("this test needs php-fpm: apt-get install php-fpm").display().to_string();
    let server = Server { children: 12, serve: 12, shared: true };
    each_runs_once("php", &[&fpm, "-n", "-R", "-F", "-y", &config], &log, &Says::FastCgi(script), &server, 8);
}

/// systemd's own: the program begins with the first connection, which on a backup is the doorbell.
#[test]
fn a_program_that_systemd_starts_for_its_first_connection() {
    // It passes on what it is told to, and nothing else.
    let environment = ["LD_PRELOAD", "TCPR_SERVICE", "TCPR_TOKEN", "TCPR_PORTS", "TCPR_OUTGOING", "TCPR_CONFIG"];
    let mut program = vec!["systemd-socket-activate".to_owned(), "-l".to_owned(), "0.0.0.0:5555".to_owned()];
    program.extend(environment.iter().flat_map(|name| ["-E".to_owned(), (*name).to_owned()]));
    program.extend([built("listeners"), "5555".to_owned(), "activate".to_owned(), "passed".to_owned()]);
    let program: Vec<&str> = program.iter().map(String::as_str).collect();
    let mut w = World::new("activate", Service::new("activate", PORT), &program);
    let mut clients: Vec<Client> = (0..8).map(|_| Client::new(&w, Says::Lines)).collect();
    go_on(&mut w, &mut clients, &FAULTS, &ONE);
    w.no_reset();
}

/// A program that listens and does not accept: its connections are reset, and it is said; nobody hangs.
#[test]
fn connections_that_nobody_accepts_are_reset() {
    let mut w = World::new("deaf", Service::new("deaf", PORT), &["sh", "-c", &deaf_on_the_second()]);
    let mut clients: Vec<Client> = (0..4).map(|_| Client::new(&w, Says::Lines)).collect();
    ask_all(&w, &mut clients, "at first");
    let master = w.protected();
    w.fail_over(Fault::Switchover);
    let began = Instant::now();
    wait_until(PATIENCE, "it says so", || {
        w.pair.status(1 - master).is_ok_and(|s| s["protected"] == false && s["unaccepted"] == 4)
    });
    for client in &mut clients {
        let ended = client.ask().and_then(|()| client.answer().map(drop));
        assert!(ended.is_err(), "nobody is there to answer");
    }
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    let status = w.pair.status(1 - master).expect("status");
    assert_eq!(
        (&status["counters"]["unaccepted"], &status["sessions"], &status["restoring"]),
        (&4.into(), &0.into(), &false.into())
    );
    w.protected();
}

/// Member a serves; b listens.
fn deaf_on_the_second() -> String {
    let server = built("listeners");
    format!("if [ $TCPR_MEMBER = a ]; then exec {server} 5555 poll; else exec {server} 5555 deaf; fi")
}

/// Answers each line with the name of the listener that the connection came from. A virtual IP that is not here yet can be bound.
const BY_ADDRESS: &str = "
import selectors, socket
selector = selectors.DefaultSelector()
for address in ('192.0.2.200', '192.0.2.201'):
    listener = socket.socket()
    listener.setsockopt(socket.IPPROTO_IP, 15, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, 5555))
    listener.listen(64)
    selector.register(listener, selectors.EVENT_READ, (True, address))
while True:
    for key, _ in selector.select():
        listens, address = key.data
        if listens:
            selector.register(key.fileobj.accept()[0], selectors.EVENT_READ, (False, address))
        elif line := key.fileobj.recv(1000):
            key.fileobj.sendall(address.encode() + b' ' + line)
        else:
            selector.unregister(key.fileobj)
            key.fileobj.close()
";

/// A program with a listener for each of two virtual IPs means something by that.
#[test]
fn each_session_comes_from_the_listener_of_its_own_address() {
    let service = Service::new("two", PORT).set("service", "virtual_ip", "[\"192.0.2.200/24\", \"192.0.2.201/24\"]").lines();
    let mut w = World::new("twoaddr", service, &["/usr/bin/python3", "-c", BY_ADDRESS]);
    let addresses = ["192.0.2.200", "192.0.2.201"];
    let mut talkers: Vec<(Talker, &str)> = Vec::new();
    for n in 0..6 {
        let address = addresses[n % 2];
        talkers.push((Talker::to(&w, format!("{address}:5555").parse().expect("an address")), address));
    }
    let mut ask = |what: &str| {
        for (t, address) in &mut talkers {
            t.say(what);
            assert_eq!(t.line(), format!("{address} {what}"));
        }
    };
    ask("first");
    for fault in w.faults(5) {
        w.fail_over(fault);
        ask(&format!("{fault:?}"));
    }
    w.no_reset();
}

/// The program accepts by the system call's number: it has its sessions back, and sees no doorbell.
#[test]
fn who_accepts_by_number_is_handed_sessions() {
    const BY_NUMBER: &str = "
import ctypes, platform, selectors, socket
library = ctypes.CDLL(None, use_errno=True)
number = 288 if platform.machine() == 'x86_64' else 242
listener = socket.create_server(('', 5555))
selector = selectors.DefaultSelector()
selector.register(listener, selectors.EVENT_READ)
while True:
    for key, _ in selector.select():
        if key.fileobj is listener:
            fd = library.syscall(number, listener.fileno(), None, None, 0)
            if fd >= 0:
                selector.register(socket.socket(fileno=fd), selectors.EVENT_READ)
        elif line := key.fileobj.recv(1000):
            key.fileobj.sendall(line if line.endswith(b'ask\\r\\n') else b'what? ' + line)
        else:
            selector.unregister(key.fileobj)
            key.fileobj.close()
";
    let mut w = World::new("bynumber", Service::new("number", PORT).lines(), &["/usr/bin/python3", "-c", BY_NUMBER]);
    let mut talkers: Vec<Talker> = (0..4).map(|_| Talker::new(&w)).collect();
    for fault in w.faults(4) {
        w.fail_over(fault);
        for t in &mut talkers {
            t.say("ask");
            assert_eq!(t.line(), "ask", "{fault:?}");
        }
    }
    w.no_reset();
}

/// A listener with a timeout as short as a lent one: accept returns when that is over, and its program does its other work.
#[test]
fn a_listener_has_a_short_timeout_of_its_own() {
    const SHORT: &str = "
import socket, struct
listener = socket.create_server(('', 5555))
listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack('ll', 0, 5000))
clients = []
while True:
    try:
        client = listener.accept()[0]
        client.setblocking(False)
        clients.append(client)
    except BlockingIOError:
        pass
    for client in clients:
        try:
            client.sendall(client.recv(1000))
        except BlockingIOError:
            pass
";
    let mut w = World::new("shorttime", Service::new("short", PORT).lines(), &["/usr/bin/python3", "-c", SHORT]);
    let mut talkers: Vec<Talker> = (0..3).map(|_| Talker::new(&w)).collect();
    for fault in w.faults(3) {
        for t in &mut talkers {
            t.say("hello");
            assert_eq!(t.line(), "hello", "{fault:?}");
        }
        w.fail_over(fault);
    }
    w.no_reset();
}
