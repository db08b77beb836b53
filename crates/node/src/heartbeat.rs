//! Heartbeats: small authenticated and encrypted datagrams over every path between the members.
//!
//! [`Codec`] decides what is sent and what is believed, without a socket; [`HeartbeatSocket`] carries it.
//!
//! # What is believed
//! A datagram is encrypted under a key of the sender's boot (the life of its manager), and its counter, which is
//! the nonce, must be new within that boot. That leaves whole recorded boots to be played back. So a boot that
//! is not the current one is only *noted*: our next heartbeat echoes it, and it becomes the current one, and
//! alive, when it echoes our own boot and a counter that we sent after noting it. Counters never repeat within a
//! boot, so no recording can do that. The boot that was current until then is forgotten for good.

mod socket;

pub use socket::{HeartbeatSocket, Received};

use crate::key::{self, Key};
use ring::aead::{Aad, LessSafeKey, Nonce, UnboundKey, AES_256_GCM};
use ring::hmac;
use std::io;
use tcpr_session::role::Epoch;

/// Version of the datagram. The number in it is the oldest version that can read it: a later version adds to the
/// end of the body, and raises the number only if it must.
pub const VERSION: u8 = 1;
/// Length of a heartbeat.
pub const DATAGRAM_LEN: usize = HEADER_LEN + BODY_LEN + TAG_LEN;

const MAGIC: [u8; 4] = *b"tcph";
/// Magic, version, member, boot, counter.
const HEADER_LEN: usize = 4 + 1 + 1 + 16 + 8;
/// Epoch, role, flags, position, the partner's boot and counter.
const BODY_LEN: usize = 9 + 1 + 1 + 8 + 16 + 8;
const TAG_LEN: usize = 16;
/// Longest datagram that is looked at.
const MAX_DATAGRAM: usize = 512;
/// Boots that are noted at a time: the partner's next one, and what somebody may play back.
const MAX_NOTED: usize = 4;

const FLAG_PAIRED: u8 = 1;
const FLAG_FULL_REPLICA: u8 = 2;
const FLAG_UNGUARDED: u8 = 4;

/// What a heartbeat says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeartbeatBody {
    /// The sender's epoch.
    pub epoch: Epoch,
    /// The sender's role, as a number of the role machine.
    pub role: u8,
    /// The sender is paired.
    pub paired: bool,
    /// The sender holds a full replica.
    pub full_replica: bool,
    /// Packets may go around the sender's queues: it is not fit to take over. An older version never says so.
    pub unguarded: bool,
    /// The sender's log position.
    pub position: u64,
    /// The boot of its partner that the sender answers, 0 if it heard of none. Filled in for the sender.
    pub partner_boot: u128,
    /// The highest counter that it heard of that boot. Filled in for the sender.
    pub partner_counter: u64,
}

/// A heartbeat that is authentic and new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// The sender.
    pub member: u8,
    /// The life of its manager.
    pub boot: u128,
    /// Number of the datagram within that boot.
    pub counter: u64,
    /// Whether this boot has proved that it is not a recording. If not, this is no sign of life.
    pub alive: bool,
    /// Whether this is the first heartbeat of that boot that counts as alive: the partner is new.
    pub first: bool,
    /// Whether none was heard that is newer: else what it says may be over.
    pub newest: bool,
    /// What it says.
    pub body: HeartbeatBody,
}

/// Why a datagram is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// Not a heartbeat, or of a length that none has.
    #[error("not a heartbeat")]
    Garbage,
    /// Of a version that we do not speak.
    #[error("a heartbeat of another protocol version")]
    Version,
    /// Our own, sent back, or of a member with our index.
    #[error("a heartbeat with our own member index")]
    Ourselves,
    /// It fails authentication: another key, another service, or a changed bit.
    #[error("a heartbeat that fails authentication: compare key and service name")]
    Forged,
    /// Its counter was seen, or is too old to know.
    #[error("a heartbeat that was seen before")]
    Replayed,
}

/// Datagrams that were dropped, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RejectedCounts {
    /// See [`Rejected::Garbage`].
    pub garbage: u64,
    /// See [`Rejected::Version`].
    pub version: u64,
    /// See [`Rejected::Ourselves`].
    pub ourselves: u64,
    /// See [`Rejected::Forged`].
    pub forged: u64,
    /// See [`Rejected::Replayed`].
    pub replayed: u64,
}

impl RejectedCounts {
    fn count(&mut self, rejected: Rejected) {
        *match rejected {
            Rejected::Garbage => &mut self.garbage,
            Rejected::Version => &mut self.version,
            Rejected::Ourselves => &mut self.ourselves,
            Rejected::Forged => &mut self.forged,
            Rejected::Replayed => &mut self.replayed,
        } += 1;
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.garbage + self.version + self.ourselves + self.forged + self.replayed
    }
}

/// Makes and judges heartbeats.
pub struct Codec {
    key: Key,
    service: String,
    member: u8,
    boot: u128,
    cipher: LessSafeKey,
    /// Counter of the next heartbeat; from 1, so that 0 can mean that none was heard.
    next: u64,
    current: Option<Partner>,
    noted: Vec<Partner>,
    rejected: RejectedCounts,
}

/// A boot of the partner.
struct Partner {
    boot: u128,
    cipher: LessSafeKey,
    seen: ReplayWindow,
    /// It must echo a counter of ours from here on to be alive.
    challenge: u64,
    /// Heard since our last heartbeat that answered it.
    unanswered: bool,
    /// Our counter when we last answered it.
    answered_at: u64,
}

impl Codec {
    /// The codec of one life of a manager, with a random boot id.
    pub fn new(key: Key, service: impl Into<String>, member: u8) -> io::Result<Self> {
        Ok(Self::with_boot(key, service, member, u128::from_le_bytes(key::random()?)))
    }

    /// As `new`, with this boot id, which must never have been used with this key.
    pub fn with_boot(key: Key, service: impl Into<String>, member: u8, boot: u128) -> Self {
        let service = service.into();
        let cipher = boot_cipher(&key, &service, member, boot);
        Codec {
            key,
            service,
            member,
            boot,
            cipher,
            next: 1,
            current: None,
            noted: Vec::with_capacity(MAX_NOTED),
            rejected: RejectedCounts::default(),
        }
    }

    /// Our own boot id.
    pub fn boot(&self) -> u128 {
        self.boot
    }

    /// The boot of the partner that counts as alive.
    pub fn partner_boot(&self) -> Option<u128> {
        self.current.as_ref().map(|partner| partner.boot)
    }

    /// What was dropped.
    pub fn rejected(&self) -> RejectedCounts {
        self.rejected
    }

    /// Begins a round of heartbeats, one for each path: fills in whom this round answers. That is, of the boots
    /// heard since their last answer, the one that has waited longest, so that neither a recording nor a partner
    /// that died keeps a new boot from its answer.
    pub fn start_round(&mut self, body: &HeartbeatBody) -> HeartbeatBody {
        let next = self.next;
        let all = self.current.iter_mut().chain(&mut self.noted);
        let waiting = all.filter(|partner| partner.unanswered).min_by_key(|partner| partner.answered_at);
        let (partner_boot, partner_counter) = match waiting {
            Some(partner) => {
                partner.unanswered = false;
                partner.answered_at = next;
                (partner.boot, partner.seen.highest)
            }
            None => self.current.as_ref().map_or((0, 0), |partner| (partner.boot, partner.seen.highest)),
        };
        HeartbeatBody { partner_boot, partner_counter, ..*body }
    }

    /// Makes a datagram of a body from `start_round`. Each path gets one of its own: a counter never repeats.
    pub fn seal(&mut self, body: &HeartbeatBody) -> [u8; DATAGRAM_LEN] {
        let counter = self.next;
        self.next += 1;
        let mut datagram = [0; DATAGRAM_LEN];
        datagram[..4].copy_from_slice(&MAGIC);
        datagram[4] = VERSION;
        datagram[5] = self.member;
        datagram[6..22].copy_from_slice(&self.boot.to_le_bytes());
        datagram[22..HEADER_LEN].copy_from_slice(&counter.to_le_bytes());
        datagram[HEADER_LEN..HEADER_LEN + BODY_LEN].copy_from_slice(&body.to_bytes());
        let (header, rest) = datagram.split_at_mut(HEADER_LEN);
        let (text, tag) = rest.split_at_mut(BODY_LEN);
        match self.cipher.seal_in_place_separate_tag(nonce(counter), Aad::from(header), text) {
            Ok(made) => tag.copy_from_slice(made.as_ref()),
            // Only texts of gigabytes fail. A clear one must not leave even so.
            Err(_) => datagram = [0; DATAGRAM_LEN],
        }
        datagram
    }

    /// Judges a datagram. What is dropped is counted, and changes nothing else.
    pub fn open(&mut self, datagram: &[u8]) -> Result<Heard, Rejected> {
        let heard = self.judge(datagram);
        if let Err(rejected) = heard {
            self.rejected.count(rejected);
        }
        heard
    }

    fn judge(&mut self, datagram: &[u8]) -> Result<Heard, Rejected> {
        if datagram.len() > MAX_DATAGRAM {
            return Err(Rejected::Garbage);
        }
        let (header, rest) = datagram.split_first_chunk::<HEADER_LEN>().ok_or(Rejected::Garbage)?;
        if header[..4] != MAGIC || rest.len() < BODY_LEN + TAG_LEN {
            return Err(Rejected::Garbage);
        }
        if !(1..=VERSION).contains(&header[4]) {
            return Err(Rejected::Version);
        }
        let member = header[5];
        let boot = u128::from_le_bytes(array(&header[6..22]));
        let counter = u64::from_le_bytes(array(&header[22..]));
        if member == self.member || boot == self.boot {
            return Err(Rejected::Ourselves);
        }

        let mut clear = [0; MAX_DATAGRAM];
        let clear = &mut clear[..rest.len()];
        clear.copy_from_slice(rest);
        let mut decrypt = |cipher: &LessSafeKey| {
            let opened = cipher.open_in_place(nonce(counter), Aad::from(header), clear);
            opened.map(drop).map_err(|_| Rejected::Forged)
        };
        // Nothing is kept of a boot before one of its datagrams is authentic.
        let noted = match (&self.current, self.noted.iter().position(|partner| partner.boot == boot)) {
            (Some(current), _) if current.boot == boot => {
                decrypt(&current.cipher)?;
                false
            }
            (_, Some(at)) => {
                decrypt(&self.noted[at].cipher)?;
                let partner = self.noted.remove(at);
                self.noted.push(partner);
                true
            }
            _ => {
                let cipher = boot_cipher(&self.key, &self.service, member, boot);
                decrypt(&cipher)?;
                self.note(boot, cipher);
                true
            }
        };
        let body = HeartbeatBody::from_bytes(clear.first_chunk().ok_or(Rejected::Garbage)?);

        let partner = if noted { self.noted.last_mut() } else { self.current.as_mut() };
        let partner = partner.ok_or(Rejected::Garbage)?;
        let newest = counter > partner.seen.highest;
        if !partner.seen.admit(counter) {
            return Err(Rejected::Replayed);
        }
        partner.unanswered = true;
        let echoed = partner.challenge..self.next;
        let first = noted && body.partner_boot == self.boot && echoed.contains(&body.partner_counter);
        if first {
            self.current = self.noted.pop();
        }
        Ok(Heard { member, boot, counter, alive: first || !noted, first, newest, body })
    }

    /// Notes a boot, in place of the one that has been silent longest.
    fn note(&mut self, boot: u128, cipher: LessSafeKey) {
        if self.noted.len() == MAX_NOTED {
            self.noted.remove(0);
        }
        self.noted.push(Partner {
            boot,
            cipher,
            seen: ReplayWindow::default(),
            challenge: self.next,
            unanswered: true,
            answered_at: 0,
        });
    }
}

impl HeartbeatBody {
    fn to_bytes(self) -> [u8; BODY_LEN] {
        let flags = [(self.paired, FLAG_PAIRED), (self.full_replica, FLAG_FULL_REPLICA), (self.unguarded, FLAG_UNGUARDED)];
        let flags = flags.iter().filter(|(set, _)| *set).fold(0, |all, (_, flag)| all | flag);
        let mut bytes = [0; BODY_LEN];
        bytes[..8].copy_from_slice(&self.epoch.number.to_le_bytes());
        bytes[8] = self.epoch.member;
        bytes[9] = self.role;
        bytes[10] = flags;
        bytes[11..19].copy_from_slice(&self.position.to_le_bytes());
        bytes[19..35].copy_from_slice(&self.partner_boot.to_le_bytes());
        bytes[35..].copy_from_slice(&self.partner_counter.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; BODY_LEN]) -> Self {
        HeartbeatBody {
            epoch: Epoch { number: u64::from_le_bytes(array(&bytes[..8])), member: bytes[8] },
            role: bytes[9],
            paired: bytes[10] & FLAG_PAIRED != 0,
            full_replica: bytes[10] & FLAG_FULL_REPLICA != 0,
            unguarded: bytes[10] & FLAG_UNGUARDED != 0,
            position: u64::from_le_bytes(array(&bytes[11..19])),
            partner_boot: u128::from_le_bytes(array(&bytes[19..35])),
            partner_counter: u64::from_le_bytes(array(&bytes[35..])),
        }
    }
}

/// Counters seen: the highest, and which of the 64 up to it.
#[derive(Debug, Clone, Copy, Default)]
struct ReplayWindow {
    highest: u64,
    /// Bit n: `highest - n` was seen.
    seen: u64,
}

impl ReplayWindow {
    /// Whether this counter is new; it is not any more.
    fn admit(&mut self, counter: u64) -> bool {
        if counter > self.highest {
            let ahead = counter - self.highest;
            self.seen = if ahead < 64 { self.seen << ahead } else { 0 } | 1;
            self.highest = counter;
            return true;
        }
        let behind = self.highest - counter;
        // 0 is no counter.
        if counter == 0 || behind >= 64 || self.seen & (1 << behind) != 0 {
            return false;
        }
        self.seen |= 1 << behind;
        true
    }
}

/// A key for each boot, so that counters can start anew without a nonce being used twice.
fn boot_cipher(key: &Key, service: &str, member: u8, boot: u128) -> LessSafeKey {
    let mut hmac = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key.bytes()));
    hmac.update(b"tcpr heartbeat\0");
    hmac.update(&(service.len() as u64).to_le_bytes());
    hmac.update(service.as_bytes());
    hmac.update(&[member]);
    hmac.update(&boot.to_le_bytes());
    let derived = UnboundKey::new(&AES_256_GCM, hmac.sign().as_ref());
    let Ok(derived) = derived else { unreachable!("an HMAC-SHA256 is as long as a key of AES-256") };
    LessSafeKey::new(derived)
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// A slice of exactly this length as an array.
fn array<const N: usize>(slice: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(slice);
    array
}

#[cfg(test)]
mod tests;
