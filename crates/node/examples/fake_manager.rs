//! A manager that only listens: admits the processes of a service and prints what their hooks tell, one event a
//! line. With it libtcpr can be tried without privileges.
//!
//! `fake_manager SERVICE TOKEN VIP PORT [INJECT [ABSORB]]`
//!
//! Every connection to VIP:INJECT is handed over as a recovered session of PORT, of whose next output ABSORB bytes
//! have been sent already. It ends at the end of its standard input.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tcpr_node::channel::server::{Channel, ChannelError, ChannelListener, ChannelRole, Greeting, Incoming};
use tcpr_node::channel::wire::{PortInfo, RecoveredInfo, Reply, Request, SessionFacts, MAX_RECOVERED};
use tcpr_node::channel::{Event, Origin};
use tcpr_node::doorbell;
use tcpr_session::tuple::FourTuple;

struct Fake {
    vip: IpAddr,
    port: u16,
    absorb: u64,
    channels: HashMap<u32, Channel>,
    injector: Option<TcpListener>,
    /// Connections that wait to be fetched.
    waiting: Vec<TcpStream>,
    /// Fetched or not, they were not attached yet.
    pending: u32,
    doorbell: Option<TcpStream>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, service, token, vip, port, rest @ ..] = arguments.as_slice() else {
        return Err("usage: fake_manager SERVICE TOKEN VIP PORT [INJECT [ABSORB]]".into());
    };
    let (vip, port): (IpAddr, u16) = (vip.parse()?, port.parse()?);
    let injector = match rest.first() {
        Some(inject) => {
            let listener = TcpListener::bind(SocketAddr::new(vip, inject.parse()?))?;
            listener.set_nonblocking(true)?;
            Some(listener)
        }
        None => None,
    };
    let mut listener = ChannelListener::bind(Greeting {
        service: service.clone(),
        token: token.clone(),
        vips: vec![vip],
        ports: vec![PortInfo { port, absorb_greeting: false }],
        spliced: false,
        outgoing: vec![],
    })?;
    println!("ready");
    let absorb = rest.get(1).map_or(Ok(0), |n| n.parse())?;
    let mut fake = Fake { vip, port, absorb, channels: HashMap::new(), injector, waiting: vec![], pending: 0, doorbell: None };
    let ended = Arc::new(AtomicBool::new(false));
    let input_ends = ended.clone();
    thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        input_ends.store(true, Ordering::Relaxed);
    });
    while !ended.load(Ordering::Relaxed) {
        while let Some(channel) = listener.accept()? {
            fake.channels.insert(channel.id(), channel);
        }
        fake.serve();
        thread::sleep(Duration::from_millis(1));
    }
    fake.drain();
    Ok(())
}

impl Fake {
    fn serve(&mut self) {
        while let Some(Ok((stream, _))) = self.injector.as_ref().map(TcpListener::accept) {
            self.waiting.push(stream);
            self.pending += 1;
        }
        self.drain();
        let ids: Vec<u32> = self.channels.keys().copied().collect();
        for id in ids {
            if let Err(error) = self.requests(id) {
                self.drain();
                println!("{id} gone: {error}");
                self.channels.remove(&id);
            }
        }
        self.ring();
        for channel in self.channels.values() {
            channel.set_pending(self.port, self.pending);
        }
    }

    fn drain(&mut self) {
        let mut spoiled = None;
        for (&id, channel) in &mut self.channels {
            let pending = &mut self.pending;
            let result = channel.drain(|event| match event {
                Event::Write { thread, handle, taken, asked, bytes } => {
                    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]);
                    println!("{id} Write {{ thread: {thread}, handle: {handle}, taken: {taken}, asked: {asked} }} {text:?}");
                }
                Event::Attach { handle, origin, tuple, .. } => {
                    if origin == Origin::Recovered {
                        *pending = pending.saturating_sub(1);
                    }
                    println!("{id} Attach {{ handle: {handle}, origin: {origin:?} }} {}", tuple.local);
                }
                event => println!("{id} {event:?}"),
            });
            if let Err(error) = result {
                println!("{id} spoiled: {error}");
                spoiled = Some(id);
            }
        }
        if let Some(id) = spoiled {
            self.channels.remove(&id);
        }
    }

    fn requests(&mut self, id: u32) -> Result<(), ChannelError> {
        let Some(channel) = self.channels.get_mut(&id) else { return Ok(()) };
        while let Some(incoming) = channel.receive()? {
            match incoming {
                Incoming::Joined(hello) => {
                    println!("{id} joined linked {}", hello.linked);
                    channel.set_role(ChannelRole::Master);
                    channel.set_epoch(1, 0);
                    channel.set_pending(self.port, self.pending);
                }
                Incoming::Resumes { number, channel: other } => {
                    let Some(by) = self.channels.remove(&id) else { return Ok(()) };
                    if let Some(channel) = self.channels.get_mut(&other) {
                        channel.resume(by, number)?;
                    }
                    return Ok(());
                }
                Incoming::Request(number, Request::GetRecovered { max, .. }, _) => {
                    let n = self.waiting.len().min(max as usize).min(MAX_RECOVERED);
                    let streams: Vec<TcpStream> = self.waiting.drain(..n).collect();
                    let local = SocketAddr::new(self.vip, self.port);
                    let sessions = streams
                        .iter()
                        .enumerate()
                        .map(|(i, stream)| RecoveredInfo {
                            options: Vec::new(),
                            tuple: FourTuple { local, peer: stream.peer_addr().unwrap_or(local) },
                            session: i as u32,
                            absorb: self.absorb,
                            greeted: true,
                            input_pending: 0,
                        })
                        .collect();
                    let fds: Vec<_> = streams.iter().map(AsFd::as_fd).collect();
                    let more = !self.waiting.is_empty();
                    channel.reply(number, Reply::Recovered { sessions, more }, &fds)?;
                }
                Incoming::Request(number, Request::SessionInfo { .. }, _) => {
                    let facts = SessionFacts { session: 7, in_done: 1, ..SessionFacts::default() };
                    channel.reply(number, Reply::Session(facts), &[])?;
                }
                Incoming::Request(number, request, _) => {
                    println!("{id} {request:?}");
                    channel.reply(number, Reply::Ok, &[])?;
                }
            }
        }
        Ok(())
    }

    /// As long as sessions wait, so does a local connection on the listener.
    fn ring(&mut self) {
        if self.pending == 0 {
            self.doorbell = None;
            return;
        }
        if !self.doorbell.as_ref().is_some_and(doorbell::waits) {
            self.doorbell = doorbell::ring(self.vip, self.port).ok();
        }
    }
}
