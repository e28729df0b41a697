//! The terminal: where data, messages and input go and come from. In tests all three are buffers.
//!
//! **Invariant.** What goes to a terminal, data or message, holds no character that would do
//! something there ([`text`]); what goes anywhere else is what it is, byte for byte.

use super::failure::Failure;
use super::text;
use comfy_table::{ContentArrangement, Table, presets};
use std::io::{self, BufRead, BufWriter, IsTerminal, Write};

/// On a terminal with fewer columns than this, a table's cells are not folded: they would be one
/// letter wide.
const COLUMNS_MIN: u16 = 40;

/// Standard output, standard error and standard input of one command.
pub(super) struct Console {
    /// Where data goes.
    out: Box<dyn Write + Send>,
    /// Where messages go.
    err: Box<dyn Write + Send>,
    /// Where data comes from, until somebody takes it.
    input: Option<Box<dyn BufRead + Send>>,
    /// Whether data goes to a person.
    pub(super) out_is_terminal: bool,
    /// Whether messages go to a person, who likes to see progress.
    pub(super) err_is_terminal: bool,
    /// Whether everything printed is JSON.
    pub(super) json: bool,
    /// Whether a terminal was shown something else than the bytes that came.
    pub(super) hidden: bool,
}

impl Console {
    /// That of the process.
    pub(super) fn terminal() -> Self {
        Self {
            out: Box::new(BufWriter::new(io::stdout())),
            err: Box::new(io::stderr()),
            input: Some(Box::new(io::BufReader::new(io::stdin()))),
            out_is_terminal: io::stdout().is_terminal(),
            err_is_terminal: io::stderr().is_terminal(),
            json: false,
            hidden: false,
        }
    }

    /// One that is no terminal, made of these.
    #[cfg(test)]
    pub(super) fn of(
        out: Box<dyn Write + Send>,
        err: Box<dyn Write + Send>,
        input: Box<dyn BufRead + Send>,
    ) -> Self {
        Self {
            out,
            err,
            input: Some(input),
            out_is_terminal: false,
            err_is_terminal: false,
            json: false,
            hidden: false,
        }
    }

    /// Prints bytes: on a terminal what can be seen of them, otherwise as they are.
    pub(super) fn data(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        if !self.out_is_terminal {
            return self.out.write_all(bytes).map_err(Failure::Output);
        }
        let shown = text::escaped(bytes, false, &['\n', '\t']);
        if shown.as_bytes() != bytes {
            self.hidden = true;
        }
        self.out.write_all(shown.as_bytes()).map_err(Failure::Output)
    }

    /// Prints a line of data.
    pub(super) fn line(&mut self, line: &str) -> Result<(), Failure> {
        self.data(line.as_bytes())?;
        self.data(b"\n")
    }

    /// Prints a JSON value on a line of its own.
    pub(super) fn value(&mut self, value: &serde_json::Value) -> Result<(), Failure> {
        self.json_line(value.to_string().as_bytes())
    }

    /// Prints a line of JSON as it came; on a terminal it is the same JSON, written so that nothing
    /// happens there.
    pub(super) fn json_line(&mut self, json: &[u8]) -> Result<(), Failure> {
        match std::str::from_utf8(json) {
            Ok(json) if self.out_is_terminal => self.line(&text::escaped_json(json)),
            _ => {
                self.data(json)?;
                self.data(b"\n")
            }
        }
    }

    /// Prints a table: a row of names, then the others.
    pub(super) fn table(&mut self, names: &[&str], rows: Vec<Vec<String>>) -> Result<(), Failure> {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_header(names.to_vec());
        // Some terminals don't say how wide they are, or say 0.
        if self.out_is_terminal && table.width().is_some_and(|columns| columns >= COLUMNS_MIN) {
            table.set_content_arrangement(ContentArrangement::Dynamic);
        }
        for row in rows {
            table.add_row(row);
        }
        for line in table.to_string().lines() {
            // The empty border and the padding of the last column are of no use to anybody.
            self.line(line.strip_prefix(' ').unwrap_or(line).trim_end())?;
        }
        Ok(())
    }

    /// Says something that is not data. Where that fails there is nobody left to tell.
    pub(super) fn say(&mut self, message: &str) {
        let _ = if !self.err_is_terminal {
            writeln!(self.err, "{message}")
        } else if self.json {
            writeln!(self.err, "{}", text::escaped_json(message))
        } else {
            writeln!(self.err, "{}", text::escaped(message.as_bytes(), false, &['\n', '\t']))
        };
    }

    /// Takes standard input. Only one reader can have it.
    pub(super) fn take_input(&mut self) -> Result<Box<dyn BufRead + Send>, Failure> {
        self.input
            .take()
            .ok_or_else(|| Failure::Usage("standard input can be read only once".into()))
    }

    /// Hands on what is buffered.
    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        self.out.flush().map_err(Failure::Output)
    }
}
