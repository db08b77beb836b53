//! Programs of Debian, as it packs them: what a client has of its connection after a takeover, with `standby = "warm"` and with
//! `"hot"`. The table in docs/supported-programs.md is what these tests find.
//!
//! `TCPR_FAILOVERS=30` tries each so often instead of once.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tcpr_lab::member::Service;

use crate::hot::{follows, hot};
use crate::requests::connect;
use crate::world::{Dir, Fault, World, PATIENCE, PORT};

/// What a client sends, and what it waits for.
type Talk = &'static [(&'static [u8], &'static [u8])];

/// What is tried after a takeover.
enum After {
    /// The client goes on as if nothing was.
    GoesOn,
    /// It sends this, and gets that, or the end (`None`) instead of an answer. In words for the table.
    Damaged(&'static [u8], Option<&'static [u8]>, &'static str),
    /// This is not tried, for a reason that the table has.
    No(&'static str),
}

use After::{Damaged, GoesOn, No};

struct Program {
    /// In the table.
    name: &'static str,
    package: &'static str,
    /// Files that it needs. `{dir}` stands for their directory, here and below.
    files: &'static [(&'static str, &'static str)],
    /// A command that makes more of them.
    prepare: &'static [&'static str],
    command: &'static [&'static str],
    /// It says everything in its requests: `independent = true`.
    independent: bool,
    before: Talk,
    /// With its state; it may be repeated.
    after: Talk,
    warm: After,
    hot: After,
}

impl Program {
    const NEW: Program = Program {
        name: "",
        package: "",
        files: &[],
        prepare: &[],
        command: &[],
        independent: false,
        before: &[],
        after: &[],
        warm: GoesOn,
        hot: GoesOn,
    };
}

/// A connection, and what has come and was not waited for yet.
struct Client(TcpStream, Vec<u8>);

impl Client {
    fn new(w: &World) -> Client {
        let stream = w.peer.enter(|| connect(w.pair.addr())).expect("connected");
        stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        Client(stream, Vec::new())
    }

    /// Reads until `what` has come. False: the connection has ended.
    fn hears(&mut self, what: &[u8], when: &str) -> bool {
        let (mut room, begun) = ([0; 16384], Instant::now());
        loop {
            if let Some(at) = self.1.windows(what.len().max(1)).position(|w| w == what) {
                self.1.drain(..at + what.len());
                return true;
            }
            match self.0.read(&mut room) {
                Ok(0) => return false,
                Ok(n) => self.1.extend_from_slice(&room[..n]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => return false,
            }
            let late = begun.elapsed() > PATIENCE;
            assert!(!late, "{when}: \"{}\" and not \"{}\"", self.1.escape_ascii(), what.escape_ascii());
        }
    }

    fn talks(&mut self, talk: Talk, when: &str) {
        for (sent, answer) in talk {
            self.0.write_all(sent).unwrap_or_else(|e| panic!("{when}: {e}"));
            let heard = self.hears(answer, when);
            let (said, wanted) = (self.1.escape_ascii(), answer.escape_ascii());
            assert!(heard, "{when}: the connection has ended with \"{said}\", and not \"{wanted}\"");
        }
    }
}

fn tried(program: &Program, is_hot: bool) {
    let after = if is_hot { &program.hot } else { &program.warm };
    let label: String = program.name.chars().filter(char::is_ascii_alphanumeric).take(10).collect();
    let dir = Dir::new(&format!("{label}-{}", if is_hot { "hot" } else { "warm" }));
    let placed = |text: &str| text.replace("{dir}", &dir.0.display().to_string());
    program.files.iter().for_each(|(name, text)| drop(dir.file(name, &placed(text))));
    if let [first, more @ ..] = program.prepare {
        let made = Command::new(first).args(more.iter().map(|word| placed(word))).output();
        let made = made.unwrap_or_else(|e| panic!("{first}: {e}: apt-get install {}", program.package));
        assert!(made.status.success(), "{first}: {}", String::from_utf8_lossy(&made.stderr));
    }
    let command: Vec<String> = program.command.iter().map(|word| placed(word)).collect();
    let installed = Path::new(&command[0]).exists();
    assert!(installed, "{} is missing: apt-get install {}", command[0], program.package);
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let mut service = if is_hot { hot("program") } else { Service::new("program", PORT) };
    if program.independent {
        service = service.port_key("independent", "true");
    }
    let mut w = World::new(&label, service, &command);
    if is_hot {
        follows(&w);
    }
    let mut client = Client::new(&w);
    client.talks(program.before, "before");
    let failovers = std::env::var("TCPR_FAILOVERS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let faults = match after {
        GoesOn if failovers > 1 => w.faults(failovers),
        _ => vec![Fault::KillAll],
    };
    for (round, fault) in faults.into_iter().enumerate() {
        let when = format!("{}, round {round}, {fault:?}", program.name);
        if is_hot {
            let master = follows(&w);
            let trace = w.pair.status(master).map_or(Value::Null, |status| status["standby"]["trace_bytes"].clone());
            eprintln!("{when}: {trace} bytes of trace");
        }
        w.fail_over(fault);
        match after {
            GoesOn => client.talks(program.after, &when),
            Damaged(sent, seen, _) => {
                // It may be over already.
                let _ = client.0.write_all(sent);
                let heard = client.hears(seen.unwrap_or_default(), &when);
                assert_eq!(heard, seen.is_some(), "{when}: what its client sees");
            }
            No(_) => {}
        }
    }
    if let GoesOn = after {
        w.no_reset();
    }
}

/// Makes tests of each, with the kinds of standby that are tried, and a list of all.
macro_rules! programs {
    ($($name:ident, $($standby:ident)+: $program:expr;)*) => {
        $(mod $name {
            #[allow(clippy::wildcard_imports)]
            use super::*;

            pub const PROGRAM: Program = $program;

            $(#[test]
            fn $standby() {
                tried(&PROGRAM, stringify!($standby) == "hot");
            })+
        })*

        const ALL: &[Program] = &[$($name::PROGRAM,)*];
    };
}

const GET: Talk = &[(b"GET /page HTTP/1.1\r\nHost: example\r\n\r\n", b"the whole page")];
const PAGE: (&str, &str) = ("page", "the whole page");
const PROCESSES: After = No("not followed: several processes");
/// A query for the address of host.example, over TCP (RFC 1035 4.2.2), and its answer.
const QUERY: Talk = &[(
    b"\x00\x1e\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04host\x07example\x00\x00\x01\x00\x01",
    b"\x00\x04\xc0\x00\x02\x4d",
)];
const IRC: Talk =
    &[(b"NICK someone\r\nUSER someone 0 * :Someone\r\n", b" 255 someone "), (b"JOIN #room\r\n", b" 366 someone #room ")];
const IRC_AFTER: Talk = &[(b"NAMES #room\r\n", b" 366 someone #room ")];

programs! {
    lighttpd, warm hot: Program {
        name: "lighttpd",
        package: "lighttpd",
        files: &[PAGE, ("conf", "server.port = 5555\nserver.document-root = \"{dir}\"\nserver.max-keep-alive-requests = 100000\n")],
        command: &["/usr/sbin/lighttpd", "-D", "-f", "{dir}/conf"],
        independent: true,
        before: GET,
        after: GET,
        ..Program::NEW
    };
    webfsd, warm hot: Program {
        name: "webfsd",
        package: "webfs",
        files: &[PAGE],
        command: &["/usr/bin/webfsd", "-F", "-p", "5555", "-r", "{dir}"],
        independent: true,
        before: GET,
        after: GET,
        ..Program::NEW
    };
    nginx, warm: Program {
        name: "nginx, with workers",
        package: "nginx-light",
        files: &[PAGE, ("conf", "daemon off;\nworker_processes 2;\npid {dir}/pid;\nerror_log {dir}/error;\nevents {}\nhttp {\n\
            access_log off;\nserver {\nlisten 5555;\nroot {dir};\nkeepalive_timeout 1000s;\n}\n}\n")],
        command: &["/usr/sbin/nginx", "-c", "{dir}/conf"],
        independent: true,
        before: GET,
        after: GET,
        hot: PROCESSES,
        ..Program::NEW
    };
    apache, warm: Program {
        name: "Apache",
        package: "apache2-bin",
        files: &[PAGE, ("conf", "ServerRoot {dir}\nServerName example\nListen 5555\nPidFile {dir}/pid-${TCPR_MEMBER}\nErrorLog {dir}/error\n\
            LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so\n\
            LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so\n\
            DefaultRuntimeDir {dir}\nMutex pthread\nUser www-data\nGroup www-data\nDocumentRoot {dir}\nKeepAliveTimeout 1000\n\
            MaxKeepAliveRequests 0\n")],
        // A file that names a process of its own number keeps it from starting.
        command: &["/bin/sh", "-c", "rm -f {dir}/pid-$TCPR_MEMBER; exec /usr/sbin/apache2 -D FOREGROUND -f {dir}/conf"],
        independent: true,
        before: GET,
        after: GET,
        hot: PROCESSES,
        ..Program::NEW
    };
    dnsmasq, warm hot: Program {
        name: "dnsmasq, over TCP",
        package: "dnsmasq-base",
        command: &["/usr/sbin/dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=5555", "--no-resolv", "--no-hosts",
            "--address=/host.example/192.0.2.77", "--pid-file=", "--user=root"],
        before: QUERY,
        after: QUERY,
        ..Program::NEW
    };
    unbound, warm hot: Program {
        name: "unbound, over TCP",
        package: "unbound",
        files: &[("conf", "server:\nusername: \"\"\nchroot: \"\"\ndirectory: {dir}\npidfile: \"\"\ninterface: 0.0.0.0\nport: 5555\n\
            do-udp: no\naccess-control: 0.0.0.0/0 allow\nuse-syslog: no\nnum-threads: 1\nauto-trust-anchor-file: \"\"\n\
            tcp-idle-timeout: 1000000\nlocal-data: \"host.example A 192.0.2.77\"\n")],
        command: &["/usr/sbin/unbound", "-d", "-d", "-c", "{dir}/conf"],
        before: QUERY,
        after: QUERY,
        ..Program::NEW
    };
    redis, warm hot: Program {
        name: "Redis",
        package: "redis-server",
        command: &["/usr/bin/redis-server", "--port", "5555", "--bind", "*", "--protected-mode", "no", "--save", ""],
        before: &[(b"SELECT 3\r\nSET key value\r\n", b"+OK\r\n+OK\r\n")],
        after: &[(b"GET key\r\n", b"$5\r\nvalue\r\n")],
        warm: Damaged(b"GET key\r\n", Some(b"$-1\r\n"), "commands go to database 0, and what was not saved is gone, without an error"),
        ..Program::NEW
    };
    memcached, warm hot: Program {
        name: "memcached",
        package: "memcached",
        command: &["/usr/bin/memcached", "-u", "root", "-p", "5555", "-U", "0"],
        before: &[(b"set key 0 0 5\r\nvalue\r\n", b"STORED\r\n")],
        after: &[(b"get key\r\n", b"VALUE key 0 5\r\nvalue\r\nEND\r\n")],
        warm: Damaged(b"get key\r\n", Some(b"END\r\n"), "the connection goes on with an empty cache, as after any restart"),
        ..Program::NEW
    };
    beanstalkd, warm hot: Program {
        name: "beanstalkd",
        package: "beanstalkd",
        command: &["/usr/bin/beanstalkd", "-l", "0.0.0.0", "-p", "5555"],
        before: &[(b"put 0 0 100000 3\r\njob\r\nreserve\r\n", b"RESERVED 1 3\r\njob\r\n")],
        after: &[(b"touch 1\r\n", b"TOUCHED\r\n")],
        warm: Damaged(b"touch 1\r\n", Some(b"NOT_FOUND\r\n"), "a reserved job is given to somebody else"),
        ..Program::NEW
    };
    ngircd, warm hot: Program {
        name: "ngIRCd",
        package: "ngircd",
        files: &[("conf", "[Global]\nName = irc.example.net\nInfo = test\nPorts = 5555\nMotdPhrase = hello\nServerUID = nobody\nServerGID = nogroup\n[Limits]\nPingTimeout = 100000\n\
            MaxConnectionsIP = 0\n[Options]\nIdent = no\nPAM = no\nDNS = no\n")],
        command: &["/usr/sbin/ngircd", "-n", "-f", "{dir}/conf"],
        before: IRC,
        after: IRC_AFTER,
        warm: Damaged(b"NAMES #room\r\n", Some(b" 451 "), "nobody knows the client: \"451 Connection not registered\""),
        ..Program::NEW
    };
    inspircd, warm hot: Program {
        name: "InspIRCd",
        package: "inspircd",
        files: &[("conf", "<config format=\"xml\">\n<server name=\"irc.example\" description=\"x\" network=\"x\">\n\
            <bind address=\"\" port=\"5555\" type=\"clients\">\n\
            <connect allow=\"*\" timeout=\"60\" pingfreq=\"100000\" localmax=\"100\" globalmax=\"100\" resolvehostnames=\"no\">\n\
            <security runasuser=\"\" runasgroup=\"\">\n<log method=\"stderr\" type=\"*\" level=\"default\">\n\
            <pid file=\"{dir}/pid\">\n<path datadir=\"{dir}\" logdir=\"{dir}\">\n<admin name=\"a\" nick=\"a\" email=\"a@example\">\n")],
        command: &["/usr/sbin/inspircd", "--nofork", "--runasroot", "--config={dir}/conf"],
        before: IRC,
        after: IRC_AFTER,
        warm: Damaged(b"NAMES #room\r\n", Some(b" 451 "), "nobody knows the client: \"451 You have not registered\""),
        ..Program::NEW
    };
    mosquitto, warm hot: Program {
        name: "Mosquitto",
        package: "mosquitto",
        files: &[("conf", "listener 5555\nallow_anonymous true\n")],
        command: &["/usr/sbin/mosquitto", "-c", "{dir}/conf"],
        // CONNECT and CONNACK, PINGREQ and PINGRESP.
        before: &[(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01a", b"\x20\x02\x00\x00")],
        after: &[(b"\xc0\x00", b"\xd0\x00")],
        warm: Damaged(b"\xc0\x00", None, "the broker ends the connection at the next packet, which is no CONNECT"),
        ..Program::NEW
    };
    slapd, warm hot: Program {
        name: "OpenLDAP",
        package: "slapd",
        files: &[("conf", "include /etc/ldap/schema/core.schema\nmodulepath /usr/lib/ldap\nmoduleload back_ldif\ndatabase ldif\n\
            suffix \"dc=example\"\nrootdn \"cn=admin,dc=example\"\nrootpw secret\ndirectory {dir}\n")],
        command: &["/usr/sbin/slapd", "-d", "0", "-f", "{dir}/conf", "-h", "ldap://0.0.0.0:5555"],
        // A simple bind, and "Who am I?" (RFC 4532).
        before: &[(b"\x30\x25\x02\x01\x01\x60\x20\x02\x01\x03\x04\x13cn=admin,dc=example\x80\x06secret", b"\x61\x07\x0a\x01\x00")],
        after: &[(b"\x30\x1e\x02\x01\x02\x77\x19\x80\x171.3.6.1.4.1.4203.1.11.3", b"dn:cn=admin,dc=example")],
        warm: Damaged(b"\x30\x1e\x02\x01\x02\x77\x19\x80\x171.3.6.1.4.1.4203.1.11.3", Some(b"\x0a\x01\x00\x04\x00\x04\x00"),
            "operations are anonymous from then on, without an error"),
        ..Program::NEW
    };
    smtpd, warm hot: Program {
        name: "Python's smtpd",
        package: "python3",
        command: &["/usr/bin/python3", "-W", "ignore", "-m", "smtpd", "-n", "-c", "DebuggingServer", "0.0.0.0:5555"],
        before: &[(b"", b"220 "), (b"HELO a\r\nMAIL FROM:<a@example>\r\n", b"250 OK\r\n")],
        after: &[(b"RCPT TO:<b@example>\r\n", b"250 OK\r\n")],
        warm: Damaged(b"RCPT TO:<b@example>\r\n", Some(b"220 "), "a second greeting, taken for an answer; then \"503\""),
        ..Program::NEW
    };
    pgbouncer, warm hot: Program {
        name: "PgBouncer",
        package: "pgbouncer",
        files: &[("conf", "[databases]\n[pgbouncer]\nlisten_addr = 0.0.0.0\nlisten_port = 5555\nunix_socket_dir =\nauth_type = any\n\
            admin_users = admin\nuser = nobody\n")],
        command: &["/usr/sbin/pgbouncer", "{dir}/conf"],
        // The startup message, and then a query of the administrator.
        before: &[(b"\x00\x00\x00\x27\x00\x03\x00\x00user\x00admin\x00database\x00pgbouncer\x00\x00", b"Z\x00\x00\x00\x05I")],
        after: &[(b"Q\x00\x00\x00\x12SHOW VERSION;\x00", b"PgBouncer")],
        warm: Damaged(b"Q\x00\x00\x00\x12SHOW VERSION;\x00", None, "the next query is taken for a startup packet: the end"),
        ..Program::NEW
    };
    prosody, warm hot: Program {
        name: "Prosody",
        package: "prosody",
        files: &[("prosody.cfg.lua", "run_as_root = true\ndaemonize = false\ninterfaces = { '0.0.0.0' }\nc2s_ports = { 5555 }\ns2s_ports = {}\n\
            data_path = '{dir}'\nc2s_require_encryption = false\nauthentication = 'anonymous'\n\
            modules_enabled = { 'saslauth', 'ping' }\nmodules_disabled = { 's2s' }\nlog = { error = '*console' }\n\
            VirtualHost 'example'\n")],
        command: &["/usr/bin/lua5.4", "/usr/bin/prosody", "-F", "--config", "{dir}/prosody.cfg.lua"],
        before: &[
            (b"<stream:stream to='example' xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>",
             b"</stream:features>"),
            (b"<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='ANONYMOUS'/>", b"<success"),
            (b"<stream:stream to='example' xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>",
             b"</stream:features>"),
            (b"<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>", b"</jid>"),
        ],
        after: &[(b"<iq type='get' id='p' to='example'><ping xmlns='urn:xmpp:ping'/></iq>", b"id='p'")],
        warm: Damaged(b"<iq type='get' id='p' to='example'><ping xmlns='urn:xmpp:ping'/></iq>", Some(b"</stream:stream>"),
            "\"not-well-formed\" or \"invalid-xml\", and the end"),
        ..Program::NEW
    };
    vsftpd, warm: Program {
        name: "vsftpd",
        package: "vsftpd",
        files: &[("conf", "listen=YES\nlisten_port=5555\nbackground=NO\nisolate_network=NO\nanonymous_enable=YES\nidle_session_timeout=100000\n\
            anon_root=/usr/share/doc\nsecure_chroot_dir={dir}\n")],
        command: &["/usr/sbin/vsftpd", "{dir}/conf"],
        before: &[(b"", b"220 "), (b"USER anonymous\r\n", b"331 "), (b"PASS a@example\r\n", b"230 ")],
        warm: Damaged(b"PWD\r\n", Some(b"530 "), "a second greeting, then \"530 Please login\""),
        hot: PROCESSES,
        ..Program::NEW
    };
    dropbear, warm: Program {
        name: "Dropbear",
        package: "dropbear-bin",
        prepare: &["/usr/bin/dropbearkey", "-t", "ed25519", "-f", "{dir}/key"],
        command: &["/usr/sbin/dropbear", "-F", "-E", "-r", "{dir}/key", "-p", "5555", "-P", "{dir}/pid"],
        before: &[(b"", b"SSH-2.0-dropbear"), (b"SSH-2.0-client\r\n", b"curve25519-sha256")],
        warm: Damaged(&[0; 64], Some(b"SSH-2.0-dropbear"), "another version line in the middle: \"Bad packet length\""),
        hot: PROCESSES,
        ..Program::NEW
    };
    rsync, warm: Program {
        name: "rsync --daemon",
        package: "rsync",
        files: &[("conf", "use chroot = no\n[files]\npath = {dir}\n")],
        command: &["/usr/bin/rsync", "--daemon", "--no-detach", "--port=5555", "--config={dir}/conf"],
        before: &[(b"@RSYNCD: 31.0 sha512 sha256 sha1 md5 md4\n", b"@RSYNCD: ")],
        warm: Damaged(b"files\n", Some(b"@RSYNCD: "), "a second greeting in the middle: the transfer fails"),
        hot: PROCESSES,
        ..Program::NEW
    };
    node, warm: Program {
        name: "Node.js, HTTP",
        package: "nodejs",
        files: &[("server.js", "require('http').createServer((q, a) => a.end('the whole page'))\
            .on('connection', s => s.setTimeout(0)).listen({port: 5555, host: '0.0.0.0'}).keepAliveTimeout = 1e8\n")],
        command: &["/usr/bin/node", "{dir}/server.js"],
        independent: true,
        before: GET,
        after: GET,
        hot: No("not followed: its threads share memory without locks of the C library"),
        ..Program::NEW
    };
}

/// Name, package, what is left with each kind of standby, and a test of it with the file that has it.
type Row = (&'static str, &'static str, &'static str, &'static str, (&'static str, &'static str));

/// Programs that other tests try, under load and through all faults.
const ELSEWHERE: &[Row] = &[
    ("HAProxy, TCP", "haproxy", "goes on", "goes on", (include_str!("hot.rs"), "haproxy_goes_on_with_its_pairs_of_connections")),
    ("HAProxy, HTTP", "haproxy", "goes on", "goes on", (include_str!("hot.rs"), "haproxy_goes_on_with_requests_of_its_clients")),
    ("socat", "socat", "goes on", NO_PROCESSES, (include_str!("proxies.rs"), "socat_with_a_process_for_each_client")),
    ("nginx, stream", "libnginx-mod-stream", "goes on", NO_PROCESSES, (include_str!("proxies.rs"), "nginx_as_a_stream_proxy")),
    (
        "nginx, TLS, one process",
        "nginx-light",
        UNTRIED,
        "goes on",
        (include_str!("hot.rs"), "nginx_goes_on_with_its_tls_sessions"),
    ),
    ("stunnel, TLS 1.3", "stunnel4", UNTRIED, "goes on", (include_str!("hot.rs"), "stunnel_goes_on_with_its_tls_sessions")),
    (
        "Gunicorn",
        "gunicorn",
        "goes on",
        NO_PROCESSES,
        (include_str!("listeners.rs"), "gunicorn_with_its_workers_and_after_an_upgrade"),
    ),
    ("PHP-FPM", "php-fpm", "goes on", NO_PROCESSES, (include_str!("listeners.rs"), "php_fpm_answers_its_web_server")),
    ("Caddy (Go), with `--no-preload`", "caddy", "goes on", NO_LIBRARY, (include_str!("unhooked.rs"), "a_server_in_go_goes_on")),
    ("BIRD", "bird2", UNTRIED, "goes on", (include_str!("routing.rs"), "bgp_sessions_stay_established_through_ten_failovers")),
    ("Python asyncio", "python3", UNTRIED, "goes on", (include_str!("hot.rs"), "coroutines_of_python_go_on")),
];
const NO_PROCESSES: &str = words(&PROCESSES);
const NO_LIBRARY: &str = "not followed: no library can be loaded";
const UNTRIED: &str = "not tried";

/// What a takeover leaves, in the words of the table.
const fn words(after: &After) -> &'static str {
    match after {
        GoesOn => "goes on",
        Damaged(_, _, what) | No(what) => what,
    }
}

/// What users read is what these tests find.
#[test]
fn the_page_has_what_is_found_here() {
    let page = include_str!("../../docs/supported-programs.md");
    let row = |name: &str, package: &str, warm: &str, hot: &str| format!("| {name} | `{package}` | {warm} | {hot} |");
    let mut rows: Vec<String> = ALL.iter().map(|p| row(p.name, p.package, words(&p.warm), words(&p.hot))).collect();
    for (name, package, warm, hot, (file, test)) in ELSEWHERE {
        assert!(file.contains(&format!("fn {test}()")), "there is no test {test} any more");
        rows.push(row(name, package, warm, hot));
    }
    rows.sort_by_key(|row| row.to_lowercase());
    let found: Vec<&str> = page.lines().filter(|line| rows.iter().any(|row| row == line)).collect();
    assert!(found == rows, "docs/supported-programs.md must have these rows, in this order:\n{}", rows.join("\n"));
}
