//! How two members find out that they share key, service and protocol, as bytes in and bytes out.
//!
//! ```text
//! dialer   -> offer   "tcpr", versions, tag of the service | Noise message 1 (psk, e)
//! listener -> answer  "tcpr", versions, verdict            | Noise message 2 (e, ee), payload: versions
//! dialer   -> confirm an empty Noise transport message
//! ```
//! The clear part exists to give errors a name; it decides nothing, since the dialer's goes into the prologue
//! and the listener's is repeated under encryption. Message 1 can be a recording, so the listener counts the
//! connection as the partner's only after `confirm`, which needs the fresh keys. The listener does no public
//! key operation for whoever does not know the key.

use crate::key::Key;
use ring::digest;
use snow::{Builder, HandshakeState, TransportState};
use std::ops::RangeInclusive;
use std::time::Duration;

/// The replication protocol that this code speaks; it accepts those before, too. Version 2 has `Alone`, and a snapshot that
/// comes in steps, with the log between them.
pub const PROTOCOL: u16 = 6;
/// The first that has records of what made the application connect.
pub const CAUSES: u16 = 2;
/// The first that has records of the options that the application sets, and says what is wrong with a program.
pub const OPTIONS: u16 = 3;
/// The version since which there are the trace of a hot standby and what is said of it.
pub const TRACE: u16 = 4;
/// The first that has records of the application's data.
pub const DATA: u16 = 5;
/// The version since which the program of a hot standby may come as a snapshot.
pub const PROGRAM_SNAPSHOT: u16 = 6;
/// The oldest protocol that it speaks.
const OLDEST: u16 = 1;

/// Length of the authentication tag of every Noise message.
pub(crate) const TAG_LEN: usize = 16;
/// Length of an offer.
pub(crate) const OFFER_LEN: usize = CLEAR_LEN + 32 + TAG_LEN;
/// Length of an answer that accepts; one that refuses has [`CLEAR_LEN`].
pub(crate) const ANSWER_LEN: usize = CLEAR_LEN + 32 + VERSIONS_LEN + TAG_LEN;
/// Length of the clear part of offer and answer.
pub(crate) const CLEAR_LEN: usize = 16;

const PATTERN: &str = "Noise_NNpsk0_25519_AESGCM_SHA256";
const MAGIC: [u8; 4] = *b"tcpr";
const VERSIONS_LEN: usize = 4;

/// What both members must agree on, and the limits of a link.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// Name of the service.
    pub service: String,
    /// The pre-shared key.
    pub key: Key,
    /// Protocol versions that are accepted.
    pub versions: RangeInclusive<u16>,
    /// Bytes that may wait to be sent before `send` fails of anything but records.
    pub send_limit: usize,
    /// Unacknowledged data older than this ends a connection, and so does a window that is closed for as long. Heartbeats
    /// find a dead partner much sooner; this one ends a connection whose retransmission timer has backed off on a path that
    /// works again.
    pub user_timeout: Duration,
}

impl LinkConfig {
    /// The configuration of this version of the code.
    pub fn new(service: impl Into<String>, key: Key) -> Self {
        let service = service.into();
        LinkConfig { service, key, versions: OLDEST..=PROTOCOL, send_limit: 64 << 20, user_timeout: Duration::from_secs(3) }
    }

    fn service_tag(&self) -> [u8; 8] {
        let mut digest = digest::Context::new(&digest::SHA256);
        digest.update(b"tcpr service");
        digest.update(self.service.as_bytes());
        let mut tag = [0; 8];
        tag.copy_from_slice(&digest.finish().as_ref()[..8]);
        tag
    }

    fn builder<'a>(&'a self, prologue: &'a [u8]) -> Result<Builder<'a>, snow::Error> {
        Builder::new(PATTERN.parse()?).psk(0, self.key.bytes())?.prologue(prologue)
    }

    /// "tcpr replication", the service, and the dialer's versions: nobody in between can lower them unseen.
    fn prologue(&self, versions: [u8; VERSIONS_LEN]) -> Vec<u8> {
        let mut prologue = b"tcpr replication\0".to_vec();
        prologue.extend_from_slice(self.service.as_bytes());
        prologue.push(0);
        prologue.extend_from_slice(&versions);
        prologue
    }

    fn versions_on_wire(&self) -> [u8; VERSIONS_LEN] {
        let mut bytes = [0; VERSIONS_LEN];
        bytes[..2].copy_from_slice(&self.versions.end().to_le_bytes());
        bytes[2..].copy_from_slice(&self.versions.start().to_le_bytes());
        bytes
    }

    /// The version to speak with a partner that speaks these: the highest common one.
    fn common_version(&self, theirs: [u8; VERSIONS_LEN]) -> Result<u16, Fault> {
        let highest = u16::from_le_bytes([theirs[0], theirs[1]]);
        let lowest = u16::from_le_bytes([theirs[2], theirs[3]]);
        let version = highest.min(*self.versions.end());
        if version < lowest.max(*self.versions.start()) {
            return Err(Fault::Version { theirs: highest, ours: *self.versions.end() });
        }
        Ok(version)
    }
}

/// Why two ends do not come together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The other end does not speak this protocol at all.
    #[error("the other end does not speak the tcpr replication protocol")]
    NotTcpr,
    /// No common protocol version.
    #[error("no common protocol version: the partner speaks up to {theirs}, we speak up to {ours}")]
    Version {
        /// The other end's newest.
        theirs: u16,
        /// Ours.
        ours: u16,
    },
    /// The other end serves another service.
    #[error("the other end serves another service; compare service.name")]
    Service,
    /// The other end has another key.
    #[error("the other end has another key; compare replication.key_file")]
    Key,
    /// The random generator or the Noise library failed.
    #[error("the handshake failed in our own cryptography")]
    Internal,
}

/// Verdicts in the clear part of an answer.
mod verdict {
    pub const WELCOME: u8 = 0;
    pub const VERSION: u8 = 1;
    pub const SERVICE: u8 = 2;
    pub const KEY: u8 = 3;
    pub const INTERNAL: u8 = 4;
}

/// Both ends' keys and the version agreed on.
pub(crate) struct Agreed {
    pub transport: TransportState,
    pub version: u16,
}

/// The dialer's first step.
pub(crate) fn offer(config: &LinkConfig) -> Result<(HandshakeState, [u8; OFFER_LEN]), Fault> {
    let versions = config.versions_on_wire();
    let prologue = config.prologue(versions);
    let mut noise = config.builder(&prologue).and_then(Builder::build_initiator).map_err(internal)?;
    let mut offer = [0; OFFER_LEN];
    offer[..4].copy_from_slice(&MAGIC);
    offer[4..8].copy_from_slice(&versions);
    offer[8..CLEAR_LEN].copy_from_slice(&config.service_tag());
    noise.write_message(&[], &mut offer[CLEAR_LEN..]).map_err(internal)?;
    Ok((noise, offer))
}

/// Why a dialer is turned away, and the answer that tells it.
type Refusal = (Fault, Option<[u8; CLEAR_LEN]>);

/// The listener's step. A refusal comes with the answer that tells the dialer why.
pub(crate) fn answer(config: &LinkConfig, offer: &[u8; OFFER_LEN]) -> Result<(Agreed, [u8; ANSWER_LEN]), Refusal> {
    let refuse = |fault| (fault, refusal(config, fault));
    if !may_be_tcpr(offer) {
        return Err(refuse(Fault::NotTcpr));
    }
    let theirs = [offer[4], offer[5], offer[6], offer[7]];
    let version = config.common_version(theirs).map_err(refuse)?;
    if offer[8..CLEAR_LEN] != config.service_tag() {
        return Err(refuse(Fault::Service));
    }
    let prologue = config.prologue(theirs);
    let mut noise = config.builder(&prologue).and_then(Builder::build_responder).map_err(|e| refuse(internal(e)))?;
    noise.read_message(&offer[CLEAR_LEN..], &mut [0; TAG_LEN]).map_err(|_| refuse(Fault::Key))?;
    let mut answer = [0; ANSWER_LEN];
    answer[..CLEAR_LEN].copy_from_slice(&clear_answer(config, verdict::WELCOME));
    noise.write_message(&config.versions_on_wire(), &mut answer[CLEAR_LEN..]).map_err(|e| refuse(internal(e)))?;
    let transport = noise.into_transport_mode().map_err(|e| refuse(internal(e)))?;
    Ok((Agreed { transport, version }, answer))
}

/// The dialer's last step, with what has arrived so far; `None` if more must arrive.
pub(crate) fn finish(config: &LinkConfig, noise: &mut Option<HandshakeState>, arrived: &[u8]) -> Result<Option<Agreed>, Fault> {
    if !may_be_tcpr(arrived) {
        return Err(Fault::NotTcpr);
    }
    let Some(clear) = arrived.first_chunk::<CLEAR_LEN>() else { return Ok(None) };
    let theirs = [clear[4], clear[5], clear[6], clear[7]];
    match clear[8] {
        verdict::WELCOME => {}
        verdict::VERSION => {
            let highest = u16::from_le_bytes([clear[4], clear[5]]);
            return Err(Fault::Version { theirs: highest, ours: *config.versions.end() });
        }
        verdict::SERVICE => return Err(Fault::Service),
        verdict::KEY => return Err(Fault::Key),
        verdict::INTERNAL => return Err(Fault::Internal),
        _ => return Err(Fault::NotTcpr),
    }
    let Some(answer) = arrived.first_chunk::<ANSWER_LEN>() else { return Ok(None) };
    let mut noise = noise.take().ok_or(Fault::Internal)?;
    // The tag's length more than is needed: some ciphers then decrypt in place.
    let mut payload = [0; VERSIONS_LEN + 2 * TAG_LEN];
    let length = noise.read_message(&answer[CLEAR_LEN..], &mut payload).map_err(|_| Fault::Key)?;
    if payload[..length] != theirs {
        return Err(Fault::NotTcpr);
    }
    let version = config.common_version(theirs)?;
    let transport = noise.into_transport_mode().map_err(internal)?;
    Ok(Some(Agreed { transport, version }))
}

/// Whether these first bytes can still become an offer or answer.
pub(crate) fn may_be_tcpr(arrived: &[u8]) -> bool {
    let length = arrived.len().min(MAGIC.len());
    arrived[..length] == MAGIC[..length]
}

fn clear_answer(config: &LinkConfig, verdict: u8) -> [u8; CLEAR_LEN] {
    let mut clear = [0; CLEAR_LEN];
    clear[..4].copy_from_slice(&MAGIC);
    clear[4..8].copy_from_slice(&config.versions_on_wire());
    clear[8] = verdict;
    clear
}

fn refusal(config: &LinkConfig, fault: Fault) -> Option<[u8; CLEAR_LEN]> {
    let verdict = match fault {
        // Nothing is said to whoever does not speak the protocol.
        Fault::NotTcpr => return None,
        Fault::Version { .. } => verdict::VERSION,
        Fault::Service => verdict::SERVICE,
        Fault::Key => verdict::KEY,
        Fault::Internal => verdict::INTERNAL,
    };
    Some(clear_answer(config, verdict))
}

fn internal(_: snow::Error) -> Fault {
    Fault::Internal
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(service: &str, key: u8, versions: RangeInclusive<u16>) -> LinkConfig {
        LinkConfig { versions, ..LinkConfig::new(service, Key::new([key; 32])) }
    }

    fn meet(dialer: &LinkConfig, listener: &LinkConfig) -> (Result<u16, Fault>, Result<u16, Fault>) {
        let (noise, offer) = offer(dialer).unwrap();
        let mut noise = Some(noise);
        match answer(listener, &offer) {
            Ok((theirs, answer)) => {
                assert!(matches!(finish(dialer, &mut noise, &answer[..ANSWER_LEN - 1]), Ok(None)));
                let ours = finish(dialer, &mut noise, &answer).map(|a| a.unwrap().version);
                (ours, Ok(theirs.version))
            }
            Err((fault, clear)) => (finish(dialer, &mut noise, &clear.unwrap()).map(|_| unreachable!()), Err(fault)),
        }
    }

    #[test]
    fn both_ends_name_what_is_different() {
        let base = config("chat", 1, 0..=1);
        assert_eq!(meet(&base, &base), (Ok(1), Ok(1)));
        assert_eq!(meet(&base, &config("chat", 2, 0..=1)), (Err(Fault::Key), Err(Fault::Key)));
        assert_eq!(meet(&base, &config("mail", 1, 0..=1)), (Err(Fault::Service), Err(Fault::Service)));
    }

    #[test]
    fn neighbouring_versions_understand_each_other() {
        let [one, two, three] = [0..=1, 1..=2, 2..=3].map(|versions| config("chat", 1, versions));
        assert_eq!(meet(&one, &two), (Ok(1), Ok(1)));
        assert_eq!(meet(&three, &two), (Ok(2), Ok(2)));
        let (dialer, listener) = meet(&one, &three);
        assert_eq!(dialer, Err(Fault::Version { theirs: 3, ours: 1 }));
        assert_eq!(listener, Err(Fault::Version { theirs: 1, ours: 3 }));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// A flipped bit anywhere in the handshake is seen by somebody before a link is established.
        #[test]
        fn flipped_bits_are_refused(bit in 0..OFFER_LEN * 8, answer_bit in 0..ANSWER_LEN * 8) {
            let config = config("chat", 1, 0..=1);
            let (noise, offer) = offer(&config).unwrap();
            let mut flipped = offer;
            flipped[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(answer(&config, &flipped).is_err());

            let (_, mut answer) = answer(&config, &offer).unwrap();
            answer[answer_bit / 8] ^= 1 << (answer_bit % 8);
            let finished = finish(&config, &mut Some(noise), &answer);
            // The rest of the clear part is reserved: whatever it says, it changes nothing.
            let reserved = (9..CLEAR_LEN).contains(&(answer_bit / 8));
            prop_assert_eq!(matches!(finished, Ok(Some(_))), reserved);
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100), magic in any::<bool>()) {
            let config = config("chat", 1, 0..=1);
            let mut bytes = bytes;
            if magic && bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&MAGIC);
            }
            let (noise, _) = offer(&config).unwrap();
            prop_assert!(!matches!(finish(&config, &mut Some(noise), &bytes), Ok(Some(_))));
            if let Some(offer) = bytes.first_chunk() {
                prop_assert!(answer(&config, offer).is_err());
            }
        }
    }
}
