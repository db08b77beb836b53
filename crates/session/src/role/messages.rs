//! What the role machine is told, and what it says.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Now;

/// The generation of a mastership. Ordered by number, then member; a member only claims epochs that carry
/// its own id, so two members never hold the same one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch {
    /// Grows with every claim.
    pub number: u64,
    /// Index of the member that claimed it.
    pub member: u8,
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.number, self.member)
    }
}

/// What a member is. The numbers are those of the channel's `role` word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Role {
    /// Has just started and looks for its partner.
    Starting = 0,
    /// Stands by.
    Backup = 1,
    /// Owns the virtual IP and serves.
    Master = 2,
    /// A master that is, or was, cut off: it releases nothing.
    Fenced = 3,
}

/// What may leave for a peer now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// Nothing: not master, or fenced.
    Nothing,
    /// What the replica acknowledged in this epoch.
    Acknowledged,
    /// Everything: there is no replica that could take over.
    Freely,
}

/// The timings and identity of a member.
#[derive(Clone, Debug)]
pub struct RoleConfig {
    /// Index of this member.
    pub me: u8,
    /// False when only one member is configured.
    pub has_partner: bool,
    /// Index of the member that becomes master when both start together.
    pub preferred: u8,
    /// Interval of heartbeats.
    pub heartbeat: Duration,
    /// Heartbeats that may be missed in a row before the partner is suspected.
    pub misses: u32,
    /// How long a partner must be silent before a paired master goes on alone.
    pub solo_after: Duration,
    /// How long a starting member waits for its partner.
    pub start_wait: Duration,
    /// `durability = "async"`: a paired master releases without its replica until it has not been heard for as long as
    /// a suspicion takes. A broken connection is no proof then that it does not.
    pub asynchronous: bool,
}

impl RoleConfig {
    /// After so long a silence the partner is suspected.
    pub(super) fn suspicion(&self) -> Duration {
        self.heartbeat * self.misses
    }
}

/// What a member says of itself in every heartbeat and hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartnerView {
    /// Its role.
    pub role: Role,
    /// Master: the epoch it claimed. Backup: the epoch it follows. Starting: the highest it knows.
    pub epoch: Epoch,
    /// Master: the backup confirmed that it is paired in this epoch. For status only, it may be out of date.
    pub paired: bool,
    /// Backup: it holds a complete replica of this epoch. For status only, it may be out of date.
    pub full_replica: bool,
}

/// What the machine is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleInput {
    /// An authentic heartbeat from the partner, the newest so far, or a hello on the link.
    Heartbeat(PartnerView),
    /// That heartbeat was a datagram, and its sender had heard the one that we sent at this time.
    Echo(Now),
    /// The replication connection stands.
    LinkUp,
    /// It was lost. A connection that either member closed because of [`RoleAction::CloseLink`] is lost
    /// without `reset`.
    LinkDown {
        /// The partner's process ended, or its host refused the connection.
        reset: bool,
    },
    /// The partner's manager or its `tcpr run` said that its service ended: its replica is gone too.
    PartnerBye,
    /// `true`: a peer or a reachability target was heard just now, asked for or not. `false`: a probe found
    /// nobody, and nobody was heard since it was sent.
    Reach(bool),
    /// Link state of the service interface. Taken to be true until told.
    Carrier(bool),
    /// As master: the backup acknowledged the snapshot's end and every record since.
    ReplicaFull,
    /// As master: the backup stored that it is paired in this epoch.
    PairedAcked,
    /// As backup: the store is a complete snapshot, and the master said paired in this epoch.
    PairedIn(Epoch),
    /// As backup: the store is no full replica any more, for example because a new snapshot begins.
    StoreStale,
    /// As backup: the master hands over; its log is complete.
    Handover(Epoch),
    /// As master: the operator, or a stopping service, asks for a switchover.
    SwitchoverRequested,
    /// As master: the backup took over in this epoch.
    HandoverAcked(Epoch),
    /// As master: the partner, which was master until now, named the sessions for which it released anything alone.
    ToldAlone,
}

/// What the runtime must do, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleAction {
    /// Serve. Never again acknowledge a record of an epoch below this one.
    BecomeMaster {
        /// The epoch claimed.
        epoch: Epoch,
        /// Restore the sessions of the store; otherwise start with none.
        take_over: bool,
        /// The epoch that ends.
        old: Epoch,
    },
    /// Stand by and follow this epoch. What the store holds is not a replica of it.
    BecomeBackup {
        /// The epoch followed.
        epoch: Epoch,
    },
    /// Was master: remove the virtual IP, end all sessions silently, then stand by.
    Demote {
        /// The epoch followed from now on.
        epoch: Epoch,
    },
    /// Send the backup a snapshot and the log behind it. Releases stay free.
    StartPairing,
    /// From now on release only what the replica acknowledged in this epoch.
    HoldForReplica {
        /// This epoch.
        epoch: Epoch,
    },
    /// Tell the backup, in the log's order, that it is paired.
    SendPaired {
        /// This epoch.
        epoch: Epoch,
    },
    /// The replica is out of contact. Nothing changes in what may be released; for status and logs.
    Stall,
    /// The partner takes itself, or took itself until now, for the master, and may have told the network so: tell it
    /// better.
    DefendVip,
    /// The partner went on by itself from the epoch from which we did, and nobody can say any more for which sessions it
    /// released anything: tear all that are as old as that.
    TearShared,
    /// Name this epoch in heartbeats, at once. Releases go on to need the old epoch's acknowledgements.
    Announce {
        /// The epoch claimed.
        epoch: Epoch,
    },
    /// Send a heartbeat with this epoch, then release freely, and resume what a handover froze.
    GoSolo {
        /// The epoch claimed.
        epoch: Epoch,
        /// The partner may have taken the sessions over and served them while we were cut off (or since a
        /// handover), and nobody is left to say so. Keeping them risks mixing two histories of a stream.
        doubtful: bool,
    },
    /// Release nothing.
    Fence,
    /// Release again, by the rule that held before.
    Unfence,
    /// Find out whether anybody is in reach, and answer with [`RoleInput::Reach`]: `true` as soon as anybody
    /// answers, and at once when there is nothing to ask; `false` within the suspicion, and no later than half of
    /// what `solo_after` leaves beyond it. Asked once a heartbeat interval while the answer matters.
    ProbeReach,
    /// Freeze the application, drain the log, send the handover.
    StartHandover {
        /// The epoch that is handed over.
        epoch: Epoch,
    },
    /// Drop the replication connection, telling the partner so that it is not taken for a death. The machine
    /// considers it down already.
    CloseLink,
}
