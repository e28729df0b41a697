//! What the core counts; the shell reads it for metrics.

/// What happened so far, and how things stand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Writes asked of this node, those that were refused included.
    pub commands: u64,
    /// Log entries proposed.
    pub proposals: u64,
    /// Elections that a replica here has called.
    pub elections: u64,
    /// Elections that a replica here has won.
    pub elections_won: u64,
    /// Read contexts sent.
    pub read_contexts: u64,
    /// Reads that those contexts carried.
    pub context_reads: u64,
    /// Reads served by a lease.
    pub lease_reads: u64,
    /// Lease reads that went through a quorum, because there was no lease.
    pub lease_reads_refused: u64,
    /// Messages from peers that were refused before `step`.
    pub messages_refused: u64,
    /// Shards led here.
    pub leaders: u64,
    /// Replicas held here.
    pub replicas: u64,
    /// Replicas that were quarantined.
    pub quarantined: u64,
    /// Committed entries that are not yet applied, over all replicas.
    pub apply_lag: u64,
    /// Bytes of log bodies in memory.
    pub cache_bytes: u64,
}
