//! A partner of another version of the protocol: a program that speaks the replication link and the heartbeats as one.

use std::net::{SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tcpr_lab::client::{ChatClients, ChatOptions};
use tcpr_lab::member::{Pair, Service};
use tcpr_lab::{Host, Lab};
use tcpr_node::heartbeat::{Codec, HeartbeatBody, VERSION};
use tcpr_node::key;
use tcpr_node::link::{CloseReason, Fault, Hello, Link, LinkConfig, Listener, Message, PROTOCOL};
use tcpr_session::role::Epoch;

use crate::world::{built, FOUR, PATIENCE, PORT};

/// The other member, as another version of the code might be.
struct Fake {
    config: Arc<LinkConfig>,
    codec: Codec,
    /// Bound once: for a moment after its end, a process that another test starts may hold a copy.
    heartbeats: Option<UdpSocket>,
    host: Host,
    start: Instant,
}

impl Fake {
    fn new(host: &Host, member: u8, versions: RangeInclusive<u16>) -> Fake {
        let key = key::load(host.dir().join("chat.key")).expect("the key");
        let config = Arc::new(LinkConfig { versions, ..LinkConfig::new("chat", key.clone()) });
        let codec = Codec::new(key, "chat", member).expect("a boot id");
        Fake { config, codec, heartbeats: None, host: host.clone(), start: Instant::now() }
    }

    fn at(host: &Host) -> SocketAddr {
        SocketAddr::new(host.ip(), 7400)
    }

    fn dial(&self, to: &Host) -> Link {
        let from = SocketAddr::new(self.host.ip(), 0);
        let dial = || Link::connect(self.start.elapsed(), Fake::at(to), Some(from), self.config.clone());
        self.host.enter(dial).expect("it dials")
    }

    /// Lets the link go on until this is so.
    fn until(&self, link: &mut Link, mut done: impl FnMut(&mut Link) -> bool) {
        let met = tcpr_lab::wait_for(PATIENCE, || {
            let (read, write) = link.interest();
            link.on_ready(self.start.elapsed(), read, write);
            link.flush();
            done(link)
        });
        assert!(met, "{link:?}");
    }

    /// A heartbeat in the layout of today, under another version.
    fn heartbeat(&mut self, to: &Host, version: u8) {
        let body = HeartbeatBody {
            epoch: Epoch { number: 1 << 40, member: 1 },
            role: 2,
            paired: false,
            full_replica: false,
            unguarded: false,
            position: 0,
            partner_boot: 0,
            partner_counter: 0,
        };
        let mut datagram = self.codec.seal(&body);
        datagram[4] = version;
        let bind = || self.host.enter(|| UdpSocket::bind(Fake::at(&self.host))).expect("the heartbeat port");
        self.heartbeats.get_or_insert_with(bind).send_to(&datagram, Fake::at(to)).expect("sent");
    }
}

/// How often a member's log says this.
fn lines(pair: &Pair, member: usize, words: &str) -> usize {
    pair.process(member).expect("runs").err().lines().filter(|l| l.contains(words)).count()
}

/// A member whose partner speaks later protocol versions only goes on without it, and both are told why.
#[test]
fn a_partner_of_another_version_is_refused() {
    let lab = Lab::new("versions").expect("a lab");
    let [a, b, peer] = [("a", FOUR[0]), ("b", FOUR[1]), ("peer", FOUR[2])].map(|(n, at)| lab.host(n, at).expect("host"));
    let mut pair = Pair::new(&a, &b, Service::new("chat", PORT).lines().patient()).expect("a pair");
    pair.start(0, &[&built("plain_chat_server"), "5555"]).expect("started");
    pair.wait_master_is(0, PATIENCE).expect("alone");
    tcpr_lab::wait_listening(&a, PORT, PATIENCE).expect("the server listens");
    let clients = ChatClients::start(&peer, pair.addr(), &ChatOptions::new(4, 1)).expect("clients");
    let began = Instant::now();
    let (theirs, ours) = (PROTOCOL + 2, PROTOCOL);

    let mut fake = Fake::new(&b, 1, theirs - 1..=theirs);
    let refused = |status: &serde_json::Value| status["partner"]["heartbeats_refused"].as_u64().expect("a count");
    let before = refused(&pair.status(0).expect("status"));
    for _ in 0..20 {
        let mut link = fake.dial(&a);
        fake.until(&mut link, |link| link.close_reason().is_some());
        let fault = Fault::Version { theirs: ours, ours: theirs };
        assert_eq!(link.close_reason(), Some(&CloseReason::Handshake(fault)), "the dialer is told");
        fake.heartbeat(&a, VERSION + 1);
        fake.heartbeat(&a, 0);
    }
    let status = pair.status(0).expect("status");
    let trouble = status["partner"]["trouble"].as_str().unwrap_or_default();
    assert!(trouble.contains(&format!("the partner speaks up to {theirs}, we speak up to {ours}")), "{status}");
    assert!(status["role"] == "master" && status["protected"] == false && status["partner"]["heard"] == false, "{status}");
    assert!(refused(&status) >= before + 40, "{status}");
    // Each once in ten seconds.
    let most = 1 + began.elapsed().as_secs() as usize / 10;
    for words in ["no common protocol version", "a heartbeat of another protocol version"] {
        let said = lines(&pair, 0, words);
        assert!((1..=most).contains(&said), "{said} times {words:?}");
    }

    // One that speaks ours, too, agrees on it, and is turned away if it then says something else.
    let newer = Fake::new(&b, 1, ours..=ours + 1);
    for protocol in [ours + 1, ours] {
        let mut link = newer.dial(&a);
        newer.until(&mut link, |link| link.established());
        assert_eq!(link.version(), Some(ours));
        let hello =
            Hello { protocol, service: "chat".into(), member: 1, boot: 1, epoch: Epoch::default(), role: 0, config_digest: 0 };
        link.send(&Message::Hello(hello)).expect("sent");
        let mut heard = None;
        newer.until(&mut link, |link| {
            heard = match link.poll_message() {
                Some(Message::Hello(hello)) if protocol == ours => Some(hello.protocol.to_string()),
                Some(Message::Bye { reason }) => Some(reason.to_string()),
                _ => None,
            };
            heard.is_some()
        });
        let heard = heard.unwrap_or_default();
        assert!(if protocol == ours { heard == ours.to_string() } else { heard.contains("protocol version") }, "{heard}");
    }
    clients.wait_progress(PATIENCE).and_then(|()| clients.check()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(pair.status(0).expect("status")["role"], "master");
}

/// A member that starts beside a manager of another version does not take the place of a master that it cannot know.
#[test]
fn a_member_does_not_start_beside_another_version() {
    let lab = Lab::new("beside").expect("a lab");
    let a = lab.host("a", FOUR[0]).expect("host");
    let b = lab.host("b", FOUR[1]).expect("host");
    let mut pair = Pair::new(&a, &b, Service::new("chat", PORT).patient()).expect("a pair");
    let fake = Fake::new(&a, 0, PROTOCOL + 1..=PROTOCOL + 2);
    let mut listener = a.enter(|| Listener::listen(Fake::at(&a), fake.config.clone())).expect("a listener");
    pair.start(1, &["/bin/sleep", "1000"]).expect("started");
    let began = Instant::now();
    // Alone it would be master after four seconds or so.
    while began.elapsed() < Duration::from_secs(12) {
        assert!(listener.on_ready(fake.start.elapsed()).is_none(), "no version in common");
        std::thread::sleep(Duration::from_millis(5));
    }
    let status = pair.status(1).expect("status");
    assert!(status["role"] == "starting" && status["partner"]["trouble"].to_string().contains("protocol version"), "{status}");
    assert!(listener.rejections().version > 10);
    let said = lines(&pair, 1, "not starting to serve");
    assert!(said == 1 || said == 2, "{said}");
    drop(listener);
    pair.wait_master_is(1, PATIENCE).unwrap_or_else(|e| panic!("{e}"));
}
