//! The program's own data: it is there after a failover, exactly as it belongs to the connections.

use std::io::Write;

use tcpr_lab::client::{EchoClients, EchoOptions, Rate};
use tcpr_lab::member::Service;

use crate::hot::Talker;
use crate::world::{built, Fault, World, PORT};

/// What the server has read and not answered is in its checkpoints alone; the clients check every byte. Values are as large as
/// they may be.
#[test]
fn checkpoints_survive_with_their_sessions() {
    let mut w = World::new("data", Service::new("data", PORT), &[&built("keeper"), "5555", "32744"]);
    let mut options = EchoOptions::new(4, w.rng.next_u64()).rate(Rate::new((1, 4000), (1, 20)));
    options.max_outstanding = 24 << 10;
    let clients = EchoClients::start(&w.peer, w.pair.addr(), &options).expect("clients");
    let faults = w.faults(5);
    w.survive(&clients, &faults);
    w.end(clients);
}

/// Somebody in a room of the chat, who hears what is said there, each line once.
struct Guest {
    talker: Talker,
    name: String,
    room: String,
}

impl Guest {
    fn new(w: &World, n: usize) -> Guest {
        let mut talker = Talker::new(w);
        assert!(talker.line().starts_with("* guest"));
        let (name, room) = (format!("name{n}"), format!("room{}", n % 2));
        talker.say(&format!("/nick {name}"));
        assert_eq!(talker.line(), format!("* {name}"));
        talker.say(&format!("/join {room}"));
        Guest { talker, name, room }
    }
}

/// All guests of a room hear what one of them has said, and nothing before it.
fn all_hear(guests: &mut [Guest], by: usize, text: &str) {
    let (said, room) = (format!("{}: {text}", guests[by].name), guests[by].room.clone());
    for guest in guests.iter_mut().filter(|guest| guest.room == room) {
        assert_eq!(guest.talker.line(), said, "{} hears", guest.name);
    }
}

/// Nicknames, rooms and the line that somebody is in the middle of are in checkpoints, histories under keys. Nobody notices who
/// serves.
#[test]
fn rooms_nicknames_and_history_survive() {
    let mut w = World::new("rooms", Service::new("rooms", PORT), &[&built("room_chat"), "5555"]);
    let mut guests: Vec<Guest> = (0..4).map(|n| Guest::new(&w, n)).collect();
    for guest in &mut guests {
        assert_eq!(guest.talker.line(), format!("* {}", guest.room));
    }
    let mut said = [vec![], vec![]];
    for (round, fault) in [Fault::KillServer, Fault::Cut, Fault::Switchover, Fault::KillAll].into_iter().enumerate() {
        for by in 0..guests.len() {
            let text = format!("{round} by {by}");
            guests[by].talker.say(&text);
            all_hear(&mut guests, by, &text);
            said[by % 2].push(format!("name{by}: {text}"));
        }
        let by = round % guests.len();
        guests[by].talker.to.write_all(b"the half of ").expect("sent");
        w.fail_over(fault);
        guests[by].talker.say("a line");
        all_hear(&mut guests, by, "the half of a line");
        said[by % 2].push(format!("name{by}: the half of a line"));
        for (n, guest) in guests.iter_mut().enumerate() {
            guest.talker.say("/who");
            let mut names = guest.talker.line();
            // In the order of the server's descriptors.
            names.replace_range(..2, "");
            let mut names: Vec<&str> = names.split(' ').collect();
            names.sort_unstable();
            assert_eq!(names, [format!("name{}", n % 2), format!("name{}", n % 2 + 2)]);
        }
    }
    for room in 0..2 {
        let mut late = Guest::new(&w, 10 + room);
        for line in &said[room] {
            assert_eq!(late.talker.line(), *line, "the history of a room");
        }
        assert_eq!(late.talker.line(), format!("* room{room}"));
        late.talker.say("/rooms");
        assert_eq!(late.talker.line(), if room == 0 { "* room0 room1" } else { "* room1" });
        late.talker.say("/forget");
        assert_eq!(late.talker.line(), "* forgotten");
    }
    w.no_reset();
}
