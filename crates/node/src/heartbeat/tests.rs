use super::*;
use proptest::prelude::*;
use std::collections::HashSet;
use std::net::SocketAddr;

const BODY: HeartbeatBody = HeartbeatBody {
    epoch: Epoch { number: 4, member: 1 },
    role: 2,
    paired: true,
    full_replica: false,
    unguarded: false,
    position: 99,
    partner_boot: 0,
    partner_counter: 0,
};

fn codec(member: u8, boot: u128) -> Codec {
    Codec::with_boot(Key::new([9; 32]), "chat", member, boot)
}

fn beat(from: &mut Codec) -> [u8; DATAGRAM_LEN] {
    let body = from.start_round(&BODY);
    from.seal(&body)
}

/// Heartbeats both ways until each believes the other; how many rounds it took.
fn meet(a: &mut Codec, b: &mut Codec) -> usize {
    for round in 1..10 {
        let (from_a, from_b) = (beat(a), beat(b));
        b.open(&from_a).unwrap();
        a.open(&from_b).unwrap();
        if a.partner_boot() == Some(b.boot()) && b.partner_boot() == Some(a.boot()) {
            return round;
        }
    }
    panic!("never met");
}

#[test]
fn two_boots_believe_each_other_after_an_echo() {
    let (mut a, mut b) = (codec(0, 100), codec(1, 200));
    let heard = b.open(&beat(&mut a)).unwrap();
    assert_eq!((heard.member, heard.boot, heard.counter, heard.alive), (0, 100, 1, false));
    assert_eq!(HeartbeatBody { partner_boot: 0, partner_counter: 0, ..heard.body }, BODY);
    // `b` answers what it heard, but `a` had not asked it anything yet.
    let heard = a.open(&beat(&mut b)).unwrap();
    assert_eq!((heard.body.partner_boot, heard.body.partner_counter, heard.alive), (100, 1, false));
    let heard = b.open(&beat(&mut a)).unwrap();
    assert!(heard.alive && heard.first);
    let heard = a.open(&beat(&mut b)).unwrap();
    assert!(heard.alive && heard.first);
    let heard = b.open(&beat(&mut a)).unwrap();
    assert!(heard.alive && !heard.first);
}

#[test]
fn a_restarted_partner_replaces_the_old_boot_for_good() {
    let (mut a, mut b) = (codec(0, 100), codec(1, 200));
    meet(&mut a, &mut b);
    // What somebody recorded and we never saw: authentic, answering our boot, with new counters.
    let withheld: Vec<_> = (0..50).map(|_| beat(&mut b)).collect();
    let mut reborn = codec(1, 201);
    let rounds = meet(&mut a, &mut reborn);
    assert!(rounds <= 3, "{rounds}");
    for datagram in &withheld {
        assert!(a.open(datagram).is_ok_and(|heard| !heard.alive));
        assert!(a.open(&beat(&mut reborn)).unwrap().alive);
        reborn.open(&beat(&mut a)).unwrap();
    }
    assert_eq!(a.partner_boot(), Some(201));
}

#[test]
fn an_overtaken_heartbeat_is_authentic_and_out_of_date() {
    let (mut a, mut b) = (codec(0, 100), codec(1, 200));
    meet(&mut a, &mut b);
    let late = beat(&mut b);
    for _ in 0..62 {
        assert!(a.open(&beat(&mut b)).is_ok_and(|heard| heard.newest));
    }
    let overtaker = beat(&mut b);
    assert!(a.open(&overtaker).is_ok_and(|heard| heard.newest));
    let heard = a.open(&late).unwrap();
    assert!(heard.alive && !heard.newest);
    assert_eq!(a.open(&late), Err(Rejected::Replayed));
    // Those that are even later nobody can tell from recordings.
    let later = beat(&mut b);
    for _ in 0..64 {
        a.open(&beat(&mut b)).unwrap();
    }
    assert_eq!(a.open(&later), Err(Rejected::Replayed));
}

#[test]
fn recordings_cannot_keep_a_new_boot_out() {
    let (mut a, mut live) = (codec(0, 100), codec(1, 200));
    meet(&mut a, &mut live);
    let mut old: Vec<_> = (0..MAX_NOTED as u128 - 1).map(|n| codec(1, 300 + n)).collect();
    let mut reborn = codec(1, 201);
    for round in 0.. {
        assert!(round < 20, "kept out");
        for recorded in &mut old {
            a.open(&beat(recorded)).unwrap();
        }
        a.open(&beat(&mut live)).unwrap();
        if a.open(&beat(&mut reborn)).unwrap().alive {
            break;
        }
        reborn.open(&beat(&mut a)).unwrap();
    }
    assert!(a.noted.len() <= MAX_NOTED);
}

#[test]
fn what_is_not_the_partners_is_dropped_and_counted() {
    let (mut a, mut b) = (codec(0, 100), codec(1, 200));
    let good = beat(&mut b);
    assert_eq!(a.open(&beat(&mut codec(0, 300))), Err(Rejected::Ourselves));
    let own = beat(&mut a);
    assert_eq!(a.open(&own), Err(Rejected::Ourselves));
    let mut wrong_key = Codec::with_boot(Key::new([8; 32]), "chat", 1, 200);
    assert_eq!(a.open(&beat(&mut wrong_key)), Err(Rejected::Forged));
    let mut wrong_service = Codec::with_boot(Key::new([9; 32]), "mail", 1, 200);
    assert_eq!(a.open(&beat(&mut wrong_service)), Err(Rejected::Forged));
    for version in [0, VERSION + 1] {
        let mut other = good;
        other[4] = version;
        assert_eq!(a.open(&other), Err(Rejected::Version));
    }
    assert_eq!(a.open(&[0; 2000]), Err(Rejected::Garbage));
    assert!(a.noted.is_empty(), "nothing is kept of what is not authentic");
    assert!(a.open(&good).is_ok());
    assert_eq!(a.open(&good), Err(Rejected::Replayed));
    let counts = a.rejected();
    assert_eq!((counts.ourselves, counts.forged, counts.version), (2, 2, 2));
    assert_eq!((counts.garbage, counts.replayed, counts.total()), (1, 1, 8));
}

#[test]
fn a_longer_body_of_a_later_version_is_read() {
    let mut a = codec(0, 100);
    let cipher = boot_cipher(&Key::new([9; 32]), "chat", 1, 200);
    let mut datagram = beat(&mut codec(1, 200))[..HEADER_LEN].to_vec();
    let mut text = BODY.to_bytes().to_vec();
    text.extend([1, 2, 3]);
    let tag = cipher.seal_in_place_separate_tag(nonce(1), Aad::from(&datagram), &mut text).unwrap();
    datagram.extend(&text);
    datagram.extend(tag.as_ref());
    assert_eq!(a.open(&datagram).unwrap().body, BODY);
}

#[test]
fn over_two_paths() {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    // Held together, so that the three ports differ.
    let held: Vec<_> = (0..3).map(|_| std::net::UdpSocket::bind(any).unwrap()).collect();
    let ports: Vec<SocketAddr> = held.iter().map(|socket| socket.local_addr().unwrap()).collect();
    drop(held);
    // `a` has one address, `b` has two.
    let mut a = HeartbeatSocket::bind(&[(ports[0], ports[1]), (ports[0], ports[2])], codec(0, 100)).unwrap();
    let mut b = HeartbeatSocket::bind(&[(ports[1], ports[0]), (ports[2], ports[0])], codec(1, 200)).unwrap();
    assert_eq!((a.fds().count(), b.fds().count(), b.local_addrs().count()), (1, 2, 2));
    assert!(a.recv().is_none());
    for _ in 0..3 {
        assert_eq!((a.send(&BODY), b.send(&BODY)), (2, 2));
        while b.recv().is_some() {}
        while a.recv().is_some() {}
    }
    // Garbage on one path hides nothing.
    let stranger = std::net::UdpSocket::bind(any).unwrap();
    for _ in 0..20 {
        stranger.send_to(&[1; 700], ports[1]).unwrap();
    }
    a.send(&BODY);
    let mut heard = Vec::new();
    while let Some(received) = b.recv() {
        assert!(received.heard.alive && received.from == ports[0]);
        heard.push(received.fd);
    }
    let fds: Vec<_> = b.fds().collect();
    assert_eq!(heard.iter().collect::<HashSet<_>>(), fds.iter().collect());
    assert_eq!((b.rejected().garbage, b.rejected().total(), b.unsent()), (20, 20, 0));
    assert_eq!(b.codec().partner_boot(), Some(100));
}

proptest! {
    #[test]
    fn garbage_and_truncations_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        cut in 0..DATAGRAM_LEN,
    ) {
        let (mut a, mut b) = (codec(0, 100), codec(1, 200));
        prop_assert!(a.open(&bytes).is_err());
        let datagram = beat(&mut b);
        prop_assert!(a.open(&datagram[..cut]).is_err());
        let mut headed = datagram[..HEADER_LEN].to_vec();
        headed.extend(&bytes);
        prop_assert!(a.open(&headed).is_err());
        prop_assert!(a.noted.is_empty());
    }

    #[test]
    fn every_flipped_bit_is_seen(bit in 0..DATAGRAM_LEN * 8) {
        let (mut a, mut b) = (codec(0, 100), codec(1, 200));
        let mut datagram = beat(&mut b);
        datagram[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(a.open(&datagram).is_err());
        prop_assert!(a.noted.is_empty());
    }

    #[test]
    fn bodies_survive(number: u64, member: u8, role: u8, flags: (bool, bool, bool), position: u64) {
        let (mut a, mut b) = (codec(0, 100), codec(1, 200));
        let body = HeartbeatBody {
            epoch: Epoch { number, member },
            role,
            paired: flags.0,
            full_replica: flags.1,
            unguarded: flags.2,
            position,
            partner_boot: 0,
            partner_counter: 0,
        };
        let datagram = b.seal(&body);
        prop_assert_eq!(a.open(&datagram).unwrap().body, body);
    }

    /// The window against a set that remembers all.
    #[test]
    fn the_window_admits_each_counter_once(counters in proptest::collection::vec(0u64..200, 0..400)) {
        let (mut window, mut seen, mut highest) = (ReplayWindow::default(), HashSet::new(), 0);
        for counter in counters {
            let fresh = counter > 0 && counter + 64 > highest && seen.insert(counter);
            highest = highest.max(counter);
            prop_assert_eq!(window.admit(counter), fresh, "{}", counter);
        }
    }
}
