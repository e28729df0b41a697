//! What to do about a node that can't come back, in the words that every complaint about one ends
//! with.
//!
//! One place, so that no message advises what this version can't do: the set of nodes is fixed when
//! a cluster is made.

/// What is left where a node's directory can't be had back as it was when the node ran last.
pub const NO_WAY_BACK: &str = "where that can't be had, leave this node down: the others go on as \
                               long as they are a quorum; to be whole again, export from them, \
                               make a new cluster and import (docs/operations.md, \"A node that \
                               can't come back\")";
