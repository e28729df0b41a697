//! `Date`, from a clock that may be put right at any time.
//!
//! hyper keeps the text it made last until the clock has gone past that second, so after a clock
//! that was ahead by a day was set right, it goes on telling tomorrow. Here the text is made anew
//! whenever the second is another one, be it later or earlier.

use http::header::HeaderValue;
use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

thread_local! {
    /// The second that was shown last on this thread, and its text.
    static LAST: RefCell<(u64, HeaderValue)> = RefCell::new((0, text_of(0)));
}

/// What `Date` says now.
pub(super) fn now() -> HeaderValue {
    at(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

fn at(second: u64) -> HeaderValue {
    LAST.with_borrow_mut(|(last, text)| {
        if *last != second {
            (*last, *text) = (second, text_of(second));
        }
        text.clone()
    })
}

fn text_of(second: u64) -> HeaderValue {
    let time = UNIX_EPOCH + Duration::from_secs(second);
    HeaderValue::try_from(httpdate::fmt_http_date(time)).expect("a date is ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_goes_back_is_followed() {
        assert_eq!(at(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(at(784_111_777 + 86_400), "Mon, 07 Nov 1994 08:49:37 GMT");
        assert_eq!(at(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(at(0), "Thu, 01 Jan 1970 00:00:00 GMT");
    }
}
