//! Time as the core knows it: an argument, never a question to a clock.

use std::time::Duration;

/// A moment, or a span, on the shell's monotonic clock.
pub type Time = Duration;
