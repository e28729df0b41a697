//! Known mistakes, to show that the tests would notice them. Without the feature `mutation` none
//! can be switched on, and every question about one is the constant `false`; releases are built
//! without it.
//!
//! One process makes at most one mistake, from its start to its end. Which test catches which, and
//! how soon, is a table in `docs/simulation.md`.

use strum::{EnumIter, EnumString, IntoStaticStr, VariantNames};

/// A mistake. Its name is that of its variant, in lower case and with dashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "kebab-case")]
#[repr(u8)]
pub enum Mutation {
    /// Every read of a node's life is confirmed under one context.
    ReusedReadContext = 1,
    /// A lease that was once held is held for ever, until the leader hears that it is none.
    LeaseWithoutClock,
    /// Writes to the log are reported durable, and are not.
    SkippedFsync,
    /// A command takes effect although the shard's range changed since it was proposed.
    EpochUnchecked,
    /// A removed replica leaves no trace that a restart would find.
    TombstoneForgotten,
    /// Data and applied index are written one after the other.
    AppliedApart,
    /// A write that was proposed, and may yet be applied, is called *not applied* when its time is
    /// up.
    UnknownAsFailure,
    /// A follower answers before what it answers for is durable.
    EarlyAnswers,
    /// A vote is not written down.
    VoteForgotten,
    /// A read looks before what it was promised to see is applied.
    ReadBeforeApplied,
    /// A leader goes on trusting its lease while it hands over.
    LeaseKeptInTransfer,
    /// A proposal that was refused by another leader is proposed again by itself.
    ProposedTwice,
    /// A stale read is answered while a snapshot is being installed.
    ReadDuringInstall,
    /// Contexts that no quorum has confirmed within a heartbeat interval are called lost, the
    /// youngest too.
    YoungContextsDropped,
    /// What a leader says is as fresh as the moment at which it arrives.
    AgeByArrival,
    /// A replica is fresh as soon as it hears what is committed, before it has applied it.
    AgeBeforeApplied,
    /// A follower stands by its leader as long as raft-rs knows of one.
    PromiseByLeaderId,
    /// A node that has just started stands by nobody.
    PromiseForgotten,
    /// Entries that go to one follower go in one message, however many they are.
    AppendsUncut,
    /// Whoever leads a joint group leaves it so.
    JointKept,
    /// raft-rs does not hear of the changes of members that were taken.
    RaftUntold,
    /// A change that was applied late is made on top of a snapshot that holds it.
    LateChangeMade,
}

impl Mutation {
    /// Whether it was switched on.
    #[cfg(not(feature = "mutation"))]
    #[inline(always)]
    pub const fn is_on(self) -> bool {
        false
    }

    /// Whether it was switched on.
    #[cfg(feature = "mutation")]
    pub fn is_on(self) -> bool {
        switch::ON.load(std::sync::atomic::Ordering::Relaxed) == self as u8
    }

    /// Switches it on, for the rest of the process's life.
    #[cfg(feature = "mutation")]
    pub fn switch_on(self) {
        switch::ON.store(self as u8, std::sync::atomic::Ordering::Relaxed);
    }
}

#[cfg(feature = "mutation")]
mod switch {
    //! Which mistake is on; 0 for none.
    pub(super) static ON: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use strum::IntoEnumIterator as _;

    #[test]
    fn mistakes_have_names_and_are_off() {
        for mutation in Mutation::iter() {
            let name: &str = mutation.into();
            assert_eq!(name.parse(), Ok(mutation));
            assert!(!mutation.is_on(), "{name} is on");
        }
        assert_eq!(<&str>::from(Mutation::AppendsUncut), "appends-uncut");
        assert!("no-such-mistake".parse::<Mutation>().is_err());
    }
}
