//! What the verbs print on standard output.
//!
//! `println!` panics when the reader is gone, as in `llmagentos init | head -1`. A reader that wants no more is no
//! failure of ours, and what a verb does must not end half done for it; so it is only not told the rest.

use std::io::{ErrorKind, Write};

/// Prints a line, as `println!` does.
macro_rules! say {
    ($($arguments:tt)*) => {
        $crate::cli::output::write(format_args!("{}\n", format_args!($($arguments)*)))
    };
}
pub(crate) use say;

/// Prints without a line's end.
///
/// Anything but a closed reader (a full disk behind `>`) ends the program: its output would be cut without a word.
pub fn write(text: std::fmt::Arguments) {
    let mut output = std::io::stdout().lock();
    match output.write_fmt(text).and_then(|()| output.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            eprintln!(
                "error: write to standard output: {error}; make room where it goes, and run this again"
            );
            std::process::exit(1);
        }
        _ => {}
    }
}
