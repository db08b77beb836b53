//! Processes that are made, locked in and interrupted in other ways than by the C library alone, and that close what they do
//! not know: nothing of ours gets into what is theirs, nobody is killed or stalled for us, and connections go on.

use std::io::{BufRead, BufReader, Write};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tcpr_lab::member::{Hosted, Service};

use crate::requests::{connect, pause, through};
use crate::servers::answered_through;
use crate::world::{built, Fault, World, PATIENCE, PORT};

const FAULTS: [Fault; 3] = [Fault::KillServer, Fault::Switchover, Fault::KillAll];

fn server(program: &str, way: &str) -> World {
    // What the library says must not get into a connection either.
    World::new(way, Service::new("lines", PORT).lines(), &["env", "TCPR_LOG=debug", &built(program), "5555", way])
}

fn counter(w: &World, name: &str) -> u64 {
    let status = w.pair.status(w.protected()).expect("status");
    status["counters"][name].as_u64().expect("a counter")
}

/// Lines are answered at once, whatever their process had to do first; and again after each fault.
fn lines_are_answered(program: &str, way: &str) -> World {
    let mut w = server(program, way);
    let to = w.pair.addr();
    let slowest = w.peer.enter(|| {
        let mut slowest = (Duration::ZERO, String::new());
        for i in 0..4 {
            let stream = connect(to).expect("connected");
            let mut answers = BufReader::new(stream.try_clone().expect("cloned"));
            for j in 0..3 {
                let (line, began, mut answer) = (format!("{i} {j}\n"), Instant::now(), String::new());
                (&stream).write_all(line.as_bytes()).expect("sent");
                answers.read_line(&mut answer).unwrap_or_else(|e| panic!("line {j}: {e}"));
                assert_eq!(answer.replace('.', ""), line);
                slowest = slowest.max((began.elapsed(), line));
            }
        }
        slowest
    });
    // Who waits in vain for the manager goes on after five seconds.
    assert!(slowest.0 < Duration::from_secs(4), "an answer took {slowest:?}\n{}", w.pair.describe());
    answered_through(&mut w, &FAULTS, 3, 40, 1000);
    assert_eq!((counter(&w, "contradicted"), counter(&w, "lost_track"), counter(&w, "cut_off")), (0, 0, 0));
    w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
    w
}

#[test]
fn the_child_of_a_child_answers() {
    assert_eq!(counter(&lines_are_answered("process_server", "dfork"), "adopted_bytes"), 0);
}

#[test]
fn a_process_that_is_cloned_by_a_system_call_answers() {
    assert_eq!(counter(&lines_are_answered("process_server", "clone"), "adopted_bytes"), 0);
}

#[test]
fn a_process_that_is_cloned_by_the_library_answers() {
    assert_eq!(counter(&lines_are_answered("process_server", "clonefn"), "adopted_bytes"), 0);
}

#[test]
fn a_process_that_enters_another_network_namespace_answers() {
    assert_eq!(counter(&lines_are_answered("process_server", "newnet"), "adopted_bytes"), 0);
}

/// It cannot reach the manager, and goes on without it, at once.
#[test]
fn a_process_that_is_made_in_another_network_namespace_answers() {
    lines_are_answered("process_server", "clonenet");
}

#[test]
fn a_process_that_forbids_itself_little_answers() {
    assert_eq!(counter(&lines_are_answered("process_server", "open"), "adopted_bytes"), 0);
}

/// Nothing is done for it that it has not asked for: it would be killed. The same of one that executes another program.
#[test]
fn a_process_that_locks_itself_in_lives_and_is_counted() {
    for way in ["strict", "filter", "late", "exec"] {
        let w = lines_are_answered("process_server", way);
        let master = w.protected();
        let unhooked = |n: u64| {
            let told = |s: serde_json::Value| s["unhooked"].as_u64() == Some(n);
            tcpr_lab::wait_until(PATIENCE, "it is counted", || w.pair.status(master).is_ok_and(told));
        };
        let stream = w.peer.enter(|| connect(w.pair.addr())).expect("connected");
        (&stream).write_all(b"hello\n").expect("sent");
        unhooked(1);
        drop(stream);
        unhooked(0);
    }
}

/// The same where the manager is a thread of the program, preloaded or linked.
#[test]
fn what_a_program_does_with_its_manager_inside_stops_nobody() {
    let both = |program: &str, way: &str| {
        let linked = format!("linked_{program}");
        for (program, by) in [(program, Hosted::ByPreloaded), (&linked, Hosted::ByLinked)] {
            let mut w = World::hosted(way, Service::new("lines", PORT).lines(), &[&built(program), "5555", way], by);
            answered_through(&mut w, &[Fault::Switchover, Fault::KillAll], 3, 40, 1000);
            assert_eq!((counter(&w, "contradicted"), counter(&w, "lost_track"), counter(&w, "cut_off")), (0, 0, 0));
        }
    };
    both("process_server", "range");
    both("process_server", "libc");
    both("signal_server", "jump");
}

/// As in servers that inetd runs.
#[test]
fn what_the_library_says_does_not_get_into_a_connection_that_is_standard_error() {
    lines_are_answered("process_server", "stderr");
}

#[test]
fn a_server_that_closes_what_it_does_not_know_answers() {
    for way in ["range", "syscall", "each", "over", "libc"] {
        lines_are_answered("process_server", way);
    }
}

#[test]
fn a_handler_that_jumps_out_of_a_read_stops_nobody() {
    let w = lines_are_answered("signal_server", "jump");
    assert_eq!(counter(&w, "adopted_bytes"), 0);
}

/// What a handler writes is announced like everything else. Lines may have dots by the one, and be answered twice by the other.
/// (A crash may be between a dot and its line, and what is sent again be without it: the one is left alone.)
#[test]
fn a_handler_that_writes_or_jumps_out_of_a_write_contradicts_nothing() {
    for way in ["write", "rejump"] {
        let mut w = server("signal_server", way);
        let to = w.pair.addr();
        let faults = if way == "write" { &[][..] } else { &FAULTS };
        through(&mut w, 4, faults, |clients, mut rng| {
            let stream = connect(to)?;
            let mut answers = BufReader::new(stream.try_clone().expect("cloned"));
            let mut i = 0;
            while if way == "write" { i < 300 } else { !clients.stop.load(Relaxed) } {
                i += 1;
                let line = format!("{i} {}\n", "x".repeat(rng.range(1, 1000) as usize));
                (&stream).write_all(line.as_bytes()).map_err(|e| format!("line {i}: {e}"))?;
                loop {
                    let mut answer = String::new();
                    answers.read_line(&mut answer).map_err(|e| format!("answer {i}: {e}"))?;
                    let answer = answer.replace('.', "");
                    if answer == line {
                        break;
                    }
                    // One of the line before, of which it was not known that it was written.
                    let before: Option<u32> = answer.split(' ').next().and_then(|n| n.parse().ok());
                    if way == "write" || before != Some(i - 1) {
                        return Err(format!("answer {i}: {} bytes, {answer:.20}", answer.len()));
                    }
                }
                clients.done.fetch_add(1, Relaxed);
                pause(&mut rng, 5);
            }
            Ok(())
        });
        assert_eq!((counter(&w, "contradicted"), counter(&w, "adopted_bytes")), (0, 0), "{way}");
    }
}

/// vsftpd clones a process for each client, in namespaces of its own, and locks it in: it answers as without us, and ends.
#[test]
fn vsftpd_answers_from_its_sandbox() {
    let dir = std::env::temp_dir().join(format!("tcpr-vsftpd-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("empty")).expect("a directory");
    let config = dir.join("vsftpd.conf");
    let empty = dir.join("empty").display().to_string();
    let text = format!(
        "listen=YES\nbackground=NO\nlisten_port=5555\nanonymous_enable=YES\nanon_root={empty}\n\
         secure_chroot_dir={empty}\nseccomp_sandbox=YES\nisolate=YES\nisolate_network=YES\n"
    );
    std::fs::write(&config, text).expect("written");
    assert!(std::path::Path::new("/usr/sbin/vsftpd").exists(), "this test needs vsftpd: apt-get install vsftpd");
    let w = World::new("vsftpd", Service::new("ftp", PORT), &["/usr/sbin/vsftpd", &config.display().to_string()]);
    let began = Instant::now();
    w.peer.enter(|| {
        for _ in 0..3 {
            let stream = connect(w.pair.addr()).expect("connected");
            let mut answers = BufReader::new(stream.try_clone().expect("cloned"));
            for (says, code) in
                [("", "220"), ("USER ftp", "331"), ("PASS x", "230"), ("PWD", "257"), ("NOOP", "200"), ("QUIT", "221")]
            {
                if !says.is_empty() {
                    (&stream).write_all(format!("{says}\r\n").as_bytes()).expect("sent");
                }
                let mut answer = String::new();
                answers.read_line(&mut answer).unwrap_or_else(|e| panic!("{says}: {e}\n{}", w.pair.describe()));
                assert!(answer.starts_with(code), "{says}: {answer}\n{}", w.pair.describe());
            }
            let mut rest = String::new();
            assert_eq!(answers.read_line(&mut rest).expect("an end"), 0, "{rest}");
        }
    });
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert_eq!((counter(&w, "contradicted"), counter(&w, "lost_track")), (0, 0));
    w.pair.wait_sessions(0, PATIENCE).unwrap_or_else(|e| panic!("records are left: {e}"));
    std::fs::remove_dir_all(&dir).expect("removed");
}
