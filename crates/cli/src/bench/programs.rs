//! Requests per second of real servers, and what a request costs the processor: unprotected, and as a member's program.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use tcpr_lab::member::{Pair, Service};
use tcpr_lab::{wait_listening, Host, Lab};

use super::report::{Group, Report};
use super::stand::{follows, PATIENCE, PORT};
use super::{usage, Options, Standby, Variant};
use crate::failure::Failure;

/// Where the unprotected ones listen.
const PLAIN_PORT: u16 = 6000;

const RATE: Group = group("requests per second", "1/s");
const BOTH: Group = group("processor time of both members for a request", "us");
const PROGRAM: Group = group("processor time of the master's program for a request", "us");

const fn group(name: &'static str, unit: &'static str) -> Group {
    Group { bench: "programs", name, unit, axis: "" }
}

/// A server, and what it is asked.
struct Case {
    name: &'static str,
    program: &'static str,
    package: &'static str,
    /// Its command line for this port; what it needs goes into the directory.
    command: fn(u16, &std::path::Path) -> Result<Vec<String>, Failure>,
    /// Said once, if anything, and how the answer to that ends.
    prepare: Option<(&'static str, &'static str)>,
    request: &'static str,
    /// How each answer ends; all answers have the same length.
    end: &'static str,
    clients: u32,
    /// Requests that are under way at once on each connection.
    pipelined: usize,
    tls: bool,
}

const CASES: [Case; 4] = [
    Case { name: "redis GET", pipelined: 1, ..REDIS },
    Case { name: "redis GET, 16 at once", pipelined: 16, ..REDIS },
    Case {
        name: "memcached -t 4 get",
        program: "memcached",
        package: "memcached",
        command: |port, _| Ok(words(&format!("memcached -u nobody -t 4 -p {port}"))),
        prepare: Some(("set key 0 0 3\r\nabc\r\n", "STORED\r\n")),
        request: "get key\r\n",
        end: "END\r\n",
        clients: 50,
        pipelined: 1,
        tls: false,
    },
    Case {
        name: "nginx, TLS, keep-alive",
        program: "nginx",
        package: "nginx-light",
        command: nginx,
        prepare: None,
        request: "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        end: "the answer",
        clients: 8,
        pipelined: 1,
        tls: true,
    },
];

const REDIS: Case = Case {
    name: "redis",
    program: "redis-server",
    package: "redis-server",
    command: |port, _| Ok(words(&format!("redis-server --port {port} --bind * --protected-mode no --save  --appendonly no"))),
    prepare: Some(("SET key abc\r\n", "OK\r\n")),
    request: "GET key\r\n",
    end: "abc\r\n",
    clients: 50,
    pipelined: 1,
    tls: false,
};

/// Two spaces make an empty word.
fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

fn nginx(port: u16, dir: &std::path::Path) -> Result<Vec<String>, Failure> {
    let path = |name: &str| dir.join(name).display().to_string();
    let (key, certificate, config) = (path("key"), path("certificate"), path(&format!("nginx-{port}")));
    if !dir.join("certificate").exists() {
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=example.net", "-keyout", &key, "-out", &certificate])
            .output()
            .map_err(|e| format!("openssl: {e}; apt-get install openssl"))?;
        if !made.status.success() {
            return Err(String::from_utf8_lossy(&made.stderr).into_owned().into());
        }
    }
    let text = format!(
        "user root; daemon off; master_process off; pid /dev/null; error_log stderr warn;\n\
         events {{ worker_connections 512; }}\n\
         http {{ access_log off; keepalive_requests 1000000000; keepalive_timeout 600s;\n\
         server {{ listen {port} ssl; ssl_certificate {certificate}; ssl_certificate_key {key};\n\
         location / {{ return 200 \"the answer\"; }} }} }}\n"
    );
    std::fs::write(&config, text)?;
    Ok(["nginx", "-e", "stderr", "-c", &config].map(str::to_owned).to_vec())
}

pub fn measure(options: &Options, variant: Variant, report: &mut Report) -> Result<(), Failure> {
    for case in &CASES {
        if !is_there(case.program) {
            report.remark("programs", format!("{} is not there: apt-get install {}", case.program, case.package));
            continue;
        }
        measure_case(options, variant, case, report).map_err(|e| format!("{}: {e}", case.name))?;
    }
    Ok(())
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian has servers where a plain user's path does not lead.
    std::env::split_paths(&path).chain(["/usr/sbin".into()]).any(|dir| dir.join(program).is_file())
}

fn measure_case(options: &Options, variant: Variant, case: &Case, report: &mut Report) -> Result<(), Failure> {
    let lab = Lab::new("programs")?;
    let a = lab.host("a", "192.0.2.1/24")?;
    let b = lab.host("b", "192.0.2.2/24")?;
    let peer = lab.host("peer", "192.0.2.9/24")?;
    let mut pair = Pair::new(&a, &b, variant.apply(Service::new("programs", PORT)))?;
    let command = (case.command)(PORT, lab.dir())?;
    pair.start_both(&command.iter().map(String::as_str).collect::<Vec<_>>())?;
    let master = follows(&pair, variant.standby == Standby::Hot)?;
    let host = pair.host(master);
    let command = (case.command)(PLAIN_PORT, lab.dir())?;
    let mut plain = Command::new(&command[0]);
    plain.args(&command[1..]);
    let plain = host.spawn("plain", plain)?;
    for port in [PORT, PLAIN_PORT] {
        wait_listening(host, port, PATIENCE)?;
    }
    let used = |pids: Vec<i32>| pids.into_iter().map(usage::cpu).sum::<f64>();
    // Of all that takes part, and of the program alone.
    let cpu = |protected: bool| {
        if !protected {
            return [used(vec![plain.pid()]); 2];
        }
        let all = (0..2).flat_map(|i| pair.host(i).pids()).filter(|pid| *pid != plain.pid());
        [used(all.collect()), used(pair.programs(master))]
    };
    let unprotected = ("unprotected", SocketAddr::new(host.ip(), PLAIN_PORT), false);
    for run in 1..=options.runs {
        for (way, to, protected) in [unprotected, (variant.name(), pair.addr(), true)] {
            report.progress(&format!("programs: {}, {way}, run {run}", case.name));
            let clients: Vec<Client> = (0..case.clients).map(|_| Client::new(case, &peer, to)).collect::<io::Result<_>>()?;
            let (before, start) = (cpu(protected), Instant::now());
            let asked = ask(options, case, clients)? as f64;
            let (after, took) = (cpu(protected), start.elapsed().as_secs_f64());
            let series = format!("{}: {way}", case.name);
            report.note(RATE, &series, None, asked / took);
            report.note(BOTH, &series, None, (after[0] - before[0]) * 1e6 / asked);
            report.note(PROGRAM, &series, None, (after[1] - before[1]) * 1e6 / asked);
        }
    }
    Ok(())
}

/// All ask at once, again and again; how many requests were answered.
fn ask(options: &Options, case: &Case, clients: Vec<Client>) -> Result<u64, Failure> {
    let start = Instant::now();
    let one = |mut client: Client| -> io::Result<u64> {
        let requests = case.request.repeat(case.pipelined);
        let mut answers = vec![0; client.answer * case.pipelined];
        let mut n = 0;
        while start.elapsed() < options.span() {
            client.write(requests.as_bytes())?;
            client.read(&mut answers)?;
            n += case.pipelined as u64;
        }
        match answers.ends_with(case.end.as_bytes()) {
            true => Ok(n),
            false => Err(io::Error::other("the answers are not as long as the first one")),
        }
    };
    let counts = std::thread::scope(|threads| {
        let all: Vec<_> = clients.into_iter().map(|client| threads.spawn(move || one(client))).collect();
        all.into_iter().map(|thread| thread.join().expect("no panic")).sum::<io::Result<u64>>()
    });
    Ok(counts?)
}

enum Stream {
    Plain(TcpStream),
    /// By `openssl s_client`, which has the connection.
    Tls(Child, ChildStdin, ChildStdout),
}

struct Client {
    stream: Stream,
    /// How long an answer is.
    answer: usize,
}

impl Client {
    fn new(case: &Case, peer: &Host, to: SocketAddr) -> io::Result<Client> {
        let stream = peer.enter(|| if case.tls { tls(to) } else { plain(to).map(Stream::Plain) })?;
        let mut client = Client { stream, answer: 0 };
        if let Some((said, end)) = case.prepare {
            client.write(said.as_bytes())?;
            client.read_until(end)?;
        }
        client.write(case.request.as_bytes())?;
        client.answer = client.read_until(case.end)?;
        Ok(client)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Plain(stream) => stream.write_all(bytes),
            Stream::Tls(_, to, _) => to.write_all(bytes),
        }
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Plain(stream) => stream.read_exact(bytes),
            Stream::Tls(_, _, from) => from.read_exact(bytes),
        }
    }

    /// Reads an answer whose length is not known; tells how long it is.
    fn read_until(&mut self, end: &str) -> io::Result<usize> {
        let mut text = Vec::new();
        while !text.ends_with(end.as_bytes()) {
            let mut byte = [0];
            self.read(&mut byte)?;
            text.push(byte[0]);
        }
        Ok(text.len())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Stream::Tls(process, ..) = &mut self.stream {
            let _ = process.kill().and_then(|()| process.wait());
        }
    }
}

fn plain(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn tls(to: SocketAddr) -> io::Result<Stream> {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-quiet", "-connect", &to.to_string()]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut process = command.spawn()?;
    let pipes = process.stdin.take().zip(process.stdout.take());
    let (stdin, stdout) = pipes.ok_or_else(|| io::Error::other("no pipes"))?;
    Ok(Stream::Tls(process, stdin, stdout))
}
