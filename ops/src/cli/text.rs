//! What may stand on a terminal: text that can't move the cursor, hide itself, or turn the
//! direction in which the rest is read.
//!
//! Whoever can write a key can choose what an operator's terminal does when it is printed raw:
//! escape sequences rename windows, delete lines and, on some terminals, type; characters that turn
//! the direction of reading make one key look like another. So on a terminal they are shown as
//! `%XX`, in JSON as `\u` and digits, which is the same JSON. In a pipe bytes are what they are.

use std::fmt::Write;

/// Whether a character does something to a terminal, or to how others are read, instead of being
/// seen.
pub(super) fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

/// Bytes with every unseen character, and what is no text, as `%XX`; with `percent` a `%` too, so
/// that it can be read back.
pub(super) fn escaped(bytes: &[u8], percent: bool, keep: &[char]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if !keep.contains(&c) && (is_unseen(c) || (percent && c == '%')) {
                let mut buffer = [0; 4];
                c.encode_utf8(&mut buffer).bytes().for_each(|byte| push_escape(&mut out, byte));
            } else {
                out.push(c);
            }
        }
        chunk.invalid().iter().for_each(|&byte| push_escape(&mut out, byte));
    }
    out
}

fn push_escape(out: &mut String, byte: u8) {
    let _ = write!(out, "%{byte:02X}");
}

/// JSON that means the same, without unseen characters: they can stand only in its strings.
pub(super) fn escaped_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if is_unseen(c) {
            let mut buffer = [0; 2];
            for unit in c.encode_utf16(&mut buffer) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is known to do harm: escape sequences, C1 in its two bytes, bidirectional marks, tags.
    const HOSTILE: &str =
        "a\x1b]0;owned\x07b\u{9b}2Jc\u{202e}gpj.exe\u{2066}\u{200f}\u{7f}\u{e0041}";

    #[test]
    fn nothing_unseen_reaches_a_terminal_and_json_stays_the_same() {
        let shown = escaped(HOSTILE.as_bytes(), false, &[]);
        assert!(!shown.chars().any(is_unseen), "{shown:?}");
        assert!(shown.starts_with("a%1B]0;owned%07b%C2%9B2Jc%E2%80%AEgpj.exe"), "{shown}");
        assert_eq!(escaped("ä € 日本 😀 %\n".as_bytes(), false, &['\n']), "ä € 日本 😀 %\n");
        assert_eq!(escaped(b"a\xffb%", true, &[]), "a%FFb%25");
        let value = serde_json::json!({ "key": HOSTILE });
        let json = escaped_json(&value.to_string());
        assert!(!json.chars().any(is_unseen), "{json:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap(), value);
    }
}
