//! `tcpr demo`: the paper's experiment on one machine. Three hosts (network namespaces on a bridge), a chat
//! through the virtual IP, the master cut off, the chat going on; then the member rejoins and a planned
//! switchover brings the service back. In the second act the server's memory survives, too.

mod rooms;

use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::failure::Failure;
use serde_json::json;
use tcpr_lab::client::{ChatClients, ChatOptions, End, Heard, Rate};
use tcpr_lab::member::{example, Pair, Service};
use tcpr_lab::{wait_for, CaptureOptions, Host, Lab};

const PORT: u16 = 5555;
const PATIENCE: Duration = Duration::from_secs(30);

struct Show {
    json: bool,
    start: Instant,
    steps: Vec<serde_json::Value>,
}

impl Show {
    fn say(&self, text: &str) {
        if !self.json {
            println!("{:7.3} s  {text}", self.start.elapsed().as_secs_f64());
        }
    }

    /// What the clients heard in the meantime.
    fn chat(&self, heard: &mpsc::Receiver<Heard>, lines: usize) {
        let mut shown = 0;
        for h in heard.try_iter() {
            if shown < lines && h.by == 0 {
                shown += 1;
                self.say(&format!("    client {} hears client {} (line {}): {}", h.by, h.from, h.seq, h.text));
            }
        }
    }

    fn step(&mut self, name: &str, clients: &ChatClients, outage: Option<f64>) {
        let s = clients.stats();
        self.steps.push(json!({
            "name": name,
            "sessions": s.alive,
            "outage_ms": outage,
            "reconnects": s.reconnects,
            "bytes_lost": s.bytes_lost,
            "bytes_doubled": s.bytes_doubled,
        }));
    }
}

/// Runs it.
pub fn demo(json: bool, clients: usize) -> Result<u8, Failure> {
    let mut show = Show { json, start: Instant::now(), steps: Vec::new() };
    Lab::sweep();
    chat(&mut show, clients)?;
    rooms::play(&mut show)?;
    if json {
        println!("{}", json!({ "steps": show.steps }));
    }
    Ok(0)
}

/// Slower than the defaults: a demonstration must not fail over because a small machine paused.
fn service(name: &str) -> Service {
    Service::new(name, PORT)
        .set("failover", "heartbeat_ms", "50")
        .set("failover", "misses", "10")
        .set("failover", "solo_after_ms", "2000")
        .set("recovery", "max_turn_ms", "2000")
}

/// The first act: a chat whose connections survive.
fn chat(show: &mut Show, clients: usize) -> Result<(), Failure> {
    let lab = Lab::new("demo")?;
    let a = lab.host("a", "192.0.2.1/24")?;
    let b = lab.host("b", "192.0.2.2/24")?;
    let peer = lab.host("peer", "192.0.2.9/24")?;
    show.say("three hosts on one wire: members a (192.0.2.1) and b (192.0.2.2), and a peer (192.0.2.9)");

    let mut pair = Pair::new(&a, &b, service("chat").lines())?;
    let server = example("plain_chat_server")?;
    let server = server.to_str().ok_or("a path that is no text")?.to_owned();
    pair.start_both(&[&server, &PORT.to_string()])?;
    show.say("each member runs: tcpr run -- plain_chat_server 5555   (an ordinary C server, unmodified)");
    let first = pair.wait_protected(PATIENCE)?;
    tcpr_lab::wait_listening(host(&pair, first), PORT, PATIENCE)?;
    let names = ["a", "b"];
    show.say(&format!(
        "member {} is master and has the virtual IP 192.0.2.200; {} stands by: protected",
        names[first],
        names[1 - first]
    ));

    let capture = peer.capture(CaptureOptions::port(PORT))?;
    let (tell, heard) = mpsc::channel();
    let mut options = ChatOptions::new(clients.max(2), 7)
        .rate(Rate { bytes: (8, 40), pause: (Duration::from_millis(2), Duration::from_millis(6)) });
    options.phrases = ["hello there", "still here?", "never better", "nice weather", "so it goes", "what was that?"]
        .map(str::to_owned)
        .to_vec();
    options.tap = Some(tell);
    let chat = ChatClients::start(&peer, pair.addr(), &options)?;
    show.say(&format!("{} clients connect to 192.0.2.200:{PORT} and chat", options.connections));
    pair.wait_sessions(options.connections as u64, PATIENCE)?;
    std::thread::sleep(Duration::from_millis(500));
    show.chat(&heard, 4);
    show.step("chat", &chat, None);

    let first = pair.wait_protected(PATIENCE)?;
    show.say(&format!("--- the network cable of master {} is pulled ---", names[first]));
    let outage = outage(
        &chat,
        || host(&pair, first).cut_silent().map_err(Failure::from),
        || Ok(pair.wait_master_is(1 - first, PATIENCE)?),
    )?;
    show.chat(&heard, 0);
    std::thread::sleep(Duration::from_millis(300));
    show.say(&format!(
        "member {} is master now; the same connections go on; longest silence a client saw: {outage:.0} ms",
        names[1 - first]
    ));
    show.chat(&heard, 4);
    show.step("host cut off", &chat, Some(outage));

    host(&pair, first).heal()?;
    show.say(&format!("--- the cable of {} is plugged in again ---", names[first]));
    pair.wait_protected(PATIENCE)?;
    show.say(&format!("member {} has rejoined as backup with a snapshot of all sessions: protected again", names[first]));
    show.step("rejoin", &chat, None);

    pair.wait_protected(PATIENCE)?;
    show.say("--- planned switchover: tcpr switchover ---");
    let outage_planned =
        self::outage(&chat, || pair.switchover().map_err(Failure::from), || Ok(pair.wait_master_is(first, PATIENCE)?))?;
    show.say(&format!("member {} is master again; longest silence: {outage_planned:.0} ms", names[first]));
    std::thread::sleep(Duration::from_millis(300));
    show.chat(&heard, 3);
    show.step("switchover", &chat, Some(outage_planned));

    let stats = chat.stop_and_verify(PATIENCE, End::Keep)?;
    capture.no_fin_rst(&tcpr_lab::SegFilter::port(PORT))?;
    show.say(&format!(
        "every line arrived once, whole and in order: {} lines said, {} heard, {} bytes lost, {} doubled, {} reconnects; no FIN, no RST on the wire",
        stats.messages_sent, stats.messages_verified, stats.bytes_lost, stats.bytes_doubled, stats.reconnects
    ));
    show.step("end", &chat, None);
    Ok(())
}

fn host(pair: &Pair, i: usize) -> &Host {
    pair.host(i)
}

/// The longest silence that any client sees from `what` on, in ms.
fn outage(
    chat: &ChatClients,
    what: impl FnOnce() -> Result<(), Failure>,
    done: impl FnOnce() -> Result<(), Failure>,
) -> Result<f64, Failure> {
    chat.reset_stalls();
    what()?;
    done()?;
    let before = chat.stats().messages_verified;
    if !wait_for(PATIENCE, || chat.stats().messages_verified > before + 20) {
        return Err("the chat does not go on".into());
    }
    chat.check()?;
    Ok(chat.stats().max_stall_ms)
}
