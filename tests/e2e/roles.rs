//! The program and the role of its member: callbacks, programs that run on the master only, programs that live on when their
//! member is a backup again, and when a program is ready.

use std::time::{Duration, Instant};

use serde_json::Value;
use tcpr_lab::client::{EchoClients, EchoOptions, Rate};
use tcpr_lab::member::{Hosted, Service};
use tcpr_lab::{wait_listening, wait_until};

use crate::hot::{follows, hot, Talker};
use crate::servers::answered_through;
use crate::world::{built, Dir, Fault, World, FOUR, PATIENCE, PORT};

/// Both members have been started.
fn started(label: &str, service: Service, program: &[&str], by: Hosted) -> World {
    World::started(label, service, program, by, FOUR, |_| ())
}

/// The program checks everything itself; the member has no partner, and is soon the master.
#[test]
fn callbacks_hear_of_roles() {
    let mut w = started("callbacks", Service::new("roles", PORT), &[&built("roles")], Hosted::ByRun);
    w.pair.kill_all(1);
    let ended = w.pair.process(0).expect("started").wait(PATIENCE);
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}\n{}", w.pair.describe());
    assert!(w.pair.process(0).expect("ran").err().contains("all is well"));
}

fn status(w: &World, member: usize) -> Value {
    w.pair.status(member).expect("status")
}

/// With a cold standby no program runs on the backup, and the pair is protected all the same. The one that is started at a takeover
/// goes on with all connections.
#[test]
fn a_cold_backup_starts_its_program_when_it_is_the_master() {
    let service = Service::new("cold", PORT).set("service", "standby", "\"cold\"");
    let mut w = started("cold", service, &[&built("echo_server"), "5555"], Hosted::ByRun);
    let master = w.protected();
    wait_listening(w.pair.host(master), PORT, PATIENCE).expect("the server listens");
    assert_eq!(status(&w, 1 - master)["program_starts"], 0);
    let mut options = EchoOptions::new(4, w.rng.next_u64()).rate(Rate::new((1, 4000), (1, 20)));
    options.max_outstanding = 24 << 10;
    let clients = EchoClients::start(&w.peer, w.pair.addr(), &options).expect("clients");
    for fault in [Fault::KillAll, Fault::KillServer, Fault::Cut, Fault::Switchover] {
        w.survive(&clients, &[fault]);
        let backup = 1 - w.protected();
        wait_until(PATIENCE, "no program runs on the backup", || w.pair.programs(backup).is_empty());
        let refused = w.pair.tcpr(backup, &["restart"]).expect("tcpr restart");
        let why = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && why.contains("standby = \"cold\""), "{why}");
    }
    w.end(clients);
}

/// A backup whose program cannot be started when its time comes protects nobody.
#[test]
fn a_cold_backup_without_a_program_is_no_protection() {
    let place = Dir::new("cold");
    let program = place.0.join("echo_server");
    std::fs::copy(built("echo_server"), &program).expect("copied");
    let service = Service::new("cold", PORT).set("service", "standby", "\"cold\"");
    let w = started("missing", service, &[&program.display().to_string(), "5555"], Hosted::ByRun);
    let master = w.protected();
    std::fs::remove_file(&program).expect("removed");
    let trouble = || status(&w, 1 - master)["program_trouble"].to_string();
    wait_until(PATIENCE, "the backup says why", || trouble().contains("is not there"));
    wait_until(PATIENCE, "the pair is not protected", || status(&w, master)["protected"] == false);
}

/// How often the program of a member has said this.
fn said(w: &World, member: usize, what: &str) -> usize {
    w.pair.process(member).expect("started").err().matches(what).count()
}

/// With `on_demote = "disconnect"` the program of a former master lives on: it hears of its role, tears its service down and sets
/// it up when its time comes again. The connections are the new master's.
#[test]
fn a_former_master_that_is_disconnected_lives_on() {
    let service = Service::new("phases", PORT).lines().set("service", "on_demote", "\"disconnect\"");
    phases(started("phases", service, &[&built("phases_server"), "5555"], Hosted::ByRun));
}

/// So does one that hosts the manager itself.
#[test]
fn a_former_master_that_hosts_the_manager_hears_of_its_role() {
    let service = Service::new("phases", PORT).lines();
    phases(started("phases2", service, &[&built("phases_server"), "5555"], Hosted::ByLinked));
}

fn phases(mut w: World) {
    let first = w.protected();
    wait_listening(w.pair.host(first), PORT, PATIENCE).expect("the server listens");
    let mut talkers = [Talker::new(&w), Talker::new(&w)];
    let mut lines = 0;
    let mut talk = |talkers: &mut [Talker; 2]| {
        for talker in talkers {
            lines += 1;
            talker.say("a line");
            assert_eq!(talker.line(), format!("{lines} a line"));
        }
    };
    talk(&mut talkers);
    let process = |w: &World| w.pair.process(first).map(tcpr_lab::Process::pid);
    let programs = |w: &World| (process(w), w.pair.programs(first));
    let before = programs(&w);
    for fault in [Fault::Switchover, Fault::Switchover, Fault::Freeze, Fault::Cut, Fault::KillAll, Fault::Switchover] {
        let master = w.protected();
        let torn_down = said(&w, master, "teardown");
        w.fail_over(fault);
        talk(&mut talkers);
        if !matches!(fault, Fault::KillAll) {
            wait_until(PATIENCE, "the former master's program tears down", || said(&w, master, "teardown") == torn_down + 1);
        }
        if matches!(fault, Fault::Cut) {
            assert_eq!(programs(&w), before, "the program lives on");
            assert_eq!((said(&w, first, ": setup"), said(&w, first, ": teardown")), (3, 2));
        }
    }
    w.no_reset();
}

/// The same with programs that know nothing of roles: they see connections end, and go on.
#[test]
fn a_program_that_knows_no_roles_may_live_on() {
    for (label, program, by) in [("live", "line_server", Hosted::ByRun), ("liveun", "static_line_server", Hosted::ByRunUnhooked)]
    {
        let service = Service::new("lines", PORT).lines().set("service", "on_demote", "\"disconnect\"");
        let mut w = World::hosted(label, service, &[&built(program), "5555", "keep"], by);
        let before: Vec<_> = (0..2).map(|member| w.pair.programs(member)).collect();
        answered_through(&mut w, &[Fault::Switchover, Fault::Cut, Fault::Switchover], 4, 50, 1000);
        let after: Vec<_> = (0..2).map(|member| w.pair.programs(member)).collect();
        assert_eq!(before, after, "the programs live on");
    }
}

/// A program that says READY=1 when somebody has made a file, beside listening at once.
const READY: &str = "
import os, socket, sys, time
listener = socket.create_server(('', 5555))
while not os.path.exists(sys.argv[1]):
    time.sleep(0.05)
name = os.environ['NOTIFY_SOCKET']
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'STATUS=loaded\\nREADY=1\\n', name.replace('@', '\\0', 1))
while True:
    connection = listener.accept()[0]
    connection.sendall(connection.recv(100))
";

/// With `ready = "notify"` the pair is protected when both programs have said so, and not before. Nobody hands over to one that is not.
#[test]
fn a_program_that_is_not_ready_does_not_count() {
    let place = Dir::new("ready");
    let file = place.0.join("file");
    let service = Service::new("ready", PORT).set("service", "ready", "\"notify\"");
    let w = started("ready", service, &["python3", "-c", READY, &file.display().to_string()], Hosted::ByRun);
    let not_ready = |w: &World, member| {
        let trouble = w.pair.status(member).map(|s| s["program_trouble"].to_string()).unwrap_or_default();
        trouble.contains("READY=1")
    };
    wait_until(PATIENCE, "both members wait for their programs", || not_ready(&w, 0) && not_ready(&w, 1));
    // Somebody who is none of the program's processes says so.
    let name = "import os, socket\n\
                for line in open('/proc/net/unix'):\n    \
                if '@tcpr-notify-' in line: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'READY=1', '\\0' + line.split('@')[1].strip())";
    for member in 0..2 {
        wait_listening(w.pair.host(member), PORT, PATIENCE).expect("the server listens");
        let mut stranger = std::process::Command::new("python3");
        stranger.args(["-c", name]);
        let out = w.pair.host(member).run(stranger, PATIENCE).expect("a stranger");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    std::thread::sleep(Duration::from_secs(2));
    let master = w.pair.wait_master(PATIENCE).expect("a master");
    assert!(not_ready(&w, 0) && not_ready(&w, 1) && status(&w, master)["protected"] == false);
    std::fs::write(&file, "").expect("written");
    let master = w.protected();
    let mut talker = Talker::new(&w);
    talker.say("hello");
    assert_eq!(talker.line(), "hello");
    // The next one has yet to say it.
    std::fs::remove_file(&file).expect("removed");
    w.pair.kill_program(1 - master).expect("killed");
    wait_until(PATIENCE, "the backup waits for its program", || not_ready(&w, 1 - master));
    // So a crash is mended at home: there is no place to go to.
    wait_until(PATIENCE, "the master knows", || status(&w, master)["partner"]["trouble"].to_string().contains("READY=1"));
    w.pair.kill_program(master).expect("killed");
    wait_until(PATIENCE, "the program is started again", || status(&w, master)["program_starts"] == 2);
    std::fs::write(&file, "").expect("written");
    talker.say("again");
    assert_eq!((talker.line().as_str(), w.protected()), ("again", master));
    w.no_reset();
}

/// A program that binds at once and listens when somebody has made a file; once it has one, it answers each connection once.
const LISTENS_LATE: &str = "
import os, socket, sys, time
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(('', 5555))
while not os.path.exists(sys.argv[1]):
    time.sleep(0.05)
listener.listen()
while True:
    connection = listener.accept()[0]
    connection.sendall(connection.recv(100))
";

/// With `ready = "listen"` a program counts as soon as it listens, and not when it has joined; so does the one after it.
#[test]
fn a_program_that_does_not_listen_yet_does_not_count() {
    let place = Dir::new("listens");
    let file = place.0.join("file");
    let service = Service::new("listens", PORT).set("service", "ready", "\"listen\"");
    let w = started("listens", service, &["python3", "-c", LISTENS_LATE, &file.display().to_string()], Hosted::ByRun);
    let trouble = |member| status(&w, member)["program_trouble"].to_string();
    let silent = |member| trouble(member).contains("ready = \\\"listen\\\"") && status(&w, member)["applications"] == 1;
    wait_until(PATIENCE, "both programs have joined and do not listen", || silent(0) && silent(1));
    let master = w.pair.wait_master(PATIENCE).expect("a master");
    assert_eq!(status(&w, master)["protected"], false);
    std::fs::write(&file, "").expect("written");
    assert_eq!(w.protected(), master);
    let mut talker = Talker::new(&w);
    talker.say("hello");
    assert_eq!(talker.line(), "hello");
    std::fs::remove_file(&file).expect("removed");
    w.pair.kill_program(1 - master).expect("killed");
    wait_until(PATIENCE, "the backup's next program does not listen", || silent(1 - master));
    wait_until(PATIENCE, "nor is the pair protected", || status(&w, master)["protected"] == false);
    std::fs::write(&file, "").expect("written");
    assert_eq!(w.protected(), master);
    w.no_reset();
}

/// A program that crashes each time is started again at once, then after a while, and after twice as long each time up to a bound.
#[test]
fn a_program_that_crashes_each_time_is_waited_for() {
    const CRASHES: &str = "import sys, time; print(time.monotonic()); sys.exit(1)";
    let service = Service::new("crashes", PORT).set("service", "back_off_ms", "300").set("service", "back_off_max_ms", "600");
    let w = started("crashes", service, &["python3", "-c", CRASHES], Hosted::ByRun);
    let starts = || -> Vec<f64> {
        let out = w.pair.process(0).expect("started").out();
        out.lines().map(|line| line.parse().expect("a time")).collect()
    };
    wait_until(PATIENCE, "the program has run eight times", || starts().len() >= 8);
    let starts = starts();
    let waited: Vec<f64> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    // Doubled without a bound, the seventh would come after 9.6 s.
    let least = [0.0, 0.3, 0.6, 0.6, 0.6, 0.6, 0.6];
    assert!(waited.iter().zip(least).all(|(waited, least)| *waited >= least) && waited[6] < 9.0, "{waited:?}");
    let trouble = status(&w, 0)["program_trouble"].to_string();
    assert!(trouble.contains("exit status: 1"), "{trouble}");
}

/// A program that does not end when it is told to is killed after `stop_timeout_ms`, and nothing of it is left.
#[test]
fn a_program_that_does_not_end_is_killed() {
    const IGNORES: &str = "
import signal, socket, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
listener = socket.create_server(('', 5555))
while True:
    time.sleep(100)
";
    let service = Service::new("ignores", PORT).set("service", "stop_timeout_ms", "700");
    let mut w = started("ignores", service, &["python3", "-c", IGNORES], Hosted::ByRun);
    let master = w.protected();
    wait_listening(w.pair.host(master), PORT, PATIENCE).expect("the server listens");
    // Nobody is there to hand over to.
    w.pair.kill_all(1 - master);
    wait_until(PATIENCE, "the master is alone", || status(&w, master)["partner"]["connected"] == false);
    let [program] = w.pair.programs(master)[..] else { panic!("one process") };
    let asked = Instant::now();
    let run = w.pair.process(master).expect("started");
    run.signal(libc::SIGTERM).expect("told to stop");
    let ended = run.wait(PATIENCE).expect("it ends");
    assert!(asked.elapsed() >= Duration::from_millis(700), "killed after {:?}", asked.elapsed());
    assert!(ended.success() && run.err().contains("the program does not end; killing it"), "{ended}\n{}", run.err());
    assert!(!std::path::Path::new(&format!("/proc/{program}")).exists(), "the program is still there");
}

/// What a program cannot have under a hot standby is refused, and it can tell.
#[test]
fn hot_standbys_are_refused_roles_and_data() {
    const ASKS: &str = "
import ctypes, errno, socket
library = ctypes.CDLL(None, use_errno=True)
callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p)(lambda role, argument: None)
room = ctypes.create_string_buffer(100)
listener = socket.create_server(('', 5555))
connection = listener.accept()[0]
calls = {
    b'on_role_change': lambda: library.tcpr_on_role_change(callback, None),
    b'put': lambda: library.tcpr_put(b'key', 3, b'value', 5),
    b'get': lambda: library.tcpr_get(b'key', 3, room, 100),
    b'delete': lambda: library.tcpr_delete(b'key', 3),
    b'iterate': lambda: library.tcpr_iterate(None, 0, room, 100),
    b'checkpoint': lambda: library.tcpr_checkpoint(connection.fileno(), b'data', 4),
    b'restore': lambda: library.tcpr_restore(connection.fileno(), room, 100),
}
while word := connection.recv(100).strip():
    ctypes.set_errno(0)
    result = calls[word]()
    connection.sendall(b'%d %s\\n' % (result, errno.errorcode.get(ctypes.get_errno(), 'none').encode()))
";
    let mut w = World::new("refused", hot("refused"), &["/usr/bin/python3", "-c", ASKS]);
    let mut talker = Talker::new(&w);
    for fault in [Fault::Switchover, Fault::KillAll] {
        for word in ["on_role_change", "put", "get", "delete", "iterate", "checkpoint", "restore"] {
            talker.say(word);
            assert_eq!(talker.line(), "-1 ENOTSUP", "{word}");
        }
        follows(&w);
        w.fail_over(fault);
    }
    w.no_reset();
}
