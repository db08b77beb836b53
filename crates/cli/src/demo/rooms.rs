//! The second act: a server whose clients have names and are in rooms. All of that is in its memory, and survives.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Instant;

use serde_json::json;
use tcpr_lab::member::{example, Pair};
use tcpr_lab::{wait_for, wait_listening, CaptureOptions, Lab, SegFilter};

use super::{host, service, Show, PATIENCE, PORT};
use crate::failure::Failure;

/// Somebody at the server.
struct Guest {
    name: &'static str,
    to: TcpStream,
    from: BufReader<TcpStream>,
}

impl Guest {
    fn say(&mut self, line: &str) -> Result<(), Failure> {
        Ok(self.to.write_all(format!("{line}\n").as_bytes())?)
    }

    fn hear(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        match self.from.read_line(&mut line)? {
            0 => Err(format!("the server has closed {}'s connection", self.name).into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }

    fn ask(&mut self, line: &str) -> Result<String, Failure> {
        self.say(line)?;
        self.hear()
    }
}

pub(super) fn play(show: &mut Show) -> Result<(), Failure> {
    let lab = Lab::new("demo")?;
    let a = lab.host("a", "192.0.2.1/24")?;
    let b = lab.host("b", "192.0.2.2/24")?;
    let peer = lab.host("peer", "192.0.2.9/24")?;
    show.say("=== second act: the program's memory survives, too: standby = \"hot\" ===");
    let mut pair = Pair::new(&a, &b, service("rooms").set("service", "standby", "\"hot\""))?;
    let server = example("rooms_server")?;
    let server = server.to_str().ok_or("a path that is no text")?.to_owned();
    pair.start_both(&[&server, &PORT.to_string()])?;
    show.say("each member runs: tcpr run -- rooms_server 5555   (ordinary C; names, rooms and counters are in its memory)");
    let first = following(&pair)?;
    let names = ["a", "b"];
    wait_listening(host(&pair, first), PORT, PATIENCE)?;
    show.say(&format!("the program on {} leads; the one on {} follows it, one step behind", names[first], names[1 - first]));

    let capture = peer.capture(CaptureOptions::port(PORT))?;
    let to = pair.addr();
    let connect = |name| -> Result<Guest, Failure> {
        let to = peer.enter(|| TcpStream::connect(to))?;
        to.set_read_timeout(Some(PATIENCE))?;
        Ok(Guest { name, from: BufReader::new(to.try_clone()?), to })
    };
    let mut guests = [connect("alice")?, connect("bob")?, connect("carol")?];
    for guest in &mut guests {
        guest.ask(&format!("name {}", guest.name))?;
        guest.ask("join garden")?;
    }
    talk(show, &mut guests, 1, "is everybody here?")?;
    let before = state(&mut guests)?;
    show.say(&format!("    bob asks who is there: {}", before.0));

    following(&pair)?;
    show.say(&format!("--- the network cable of {} is pulled ---", names[first]));
    host(&pair, first).cut_silent()?;
    let cut = Instant::now();
    guests[1].say("count")?;
    let count = guests[1].hear()?;
    let ms = cut.elapsed().as_secs_f64() * 1000.0;
    pair.wait_master_is(1 - first, PATIENCE)?;
    show.say(&format!(
        "the follower on {} goes on where the leader was: bob had his answer after {ms:.0} ms: {count}",
        names[1 - first]
    ));
    talk(show, &mut guests, 2, "we still are, nobody had to log in again")?;
    let after = state(&mut guests)?;
    show.say(&format!("    bob asks who is there: {}", after.0));
    if after.0 != before.0 || after.1 != before.1 {
        return Err(format!("the server's memory is another: {before:?} before, {after:?} after").into());
    }
    host(&pair, first).heal()?;
    following(&pair)?;
    show.say(&format!("--- the cable of {} is plugged in again: its program follows now ---", names[first]));
    capture.no_fin_rst(&SegFilter::port(PORT))?;
    show.say("names, rooms, counters and the secret of each connection are what they were; no FIN, no RST on the wire");
    show.steps.push(json!({ "name": "state survives", "sessions": guests.len(), "outage_ms": ms, "reconnects": 0, "bytes_lost": 0, "bytes_doubled": 0 }));
    Ok(())
}

/// Waits until the program of one member follows that of the other; tells who leads.
fn following(pair: &Pair) -> Result<usize, Failure> {
    let mut last = String::new();
    let done = wait_for(PATIENCE, || {
        let Ok(status) = pair.master().and_then(|master| pair.status(master)) else { return false };
        last = status["standby"].to_string();
        status["standby"]["state"] == "following"
    });
    match done {
        true => Ok(pair.wait_protected(PATIENCE)?),
        false => Err(format!("no program follows: {last}").into()),
    }
}

/// One says something, and all hear it.
fn talk(show: &Show, guests: &mut [Guest], by: usize, text: &str) -> Result<(), Failure> {
    guests[by].say(&format!("say {text}"))?;
    for guest in guests.iter_mut() {
        let heard = guest.hear()?;
        show.say(&format!("    {} hears: {heard}", guest.name));
    }
    Ok(())
}

/// Who is in the room, and the secrets of all.
fn state(guests: &mut [Guest]) -> Result<(String, Vec<String>), Failure> {
    let who = guests[1].ask("who")?;
    let tokens = guests.iter_mut().map(|guest| guest.ask("token")).collect::<Result<_, _>>()?;
    Ok((who, tokens))
}
