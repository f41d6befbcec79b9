//! Phases of a start, with their times, for whoever watches.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// What the last line of a good start begins with; `up` waits for it.
pub const READY: &str = "ready in ";

/// Prints each phase as it ends. Clones are the same.
#[derive(Clone)]
pub struct Progress(Arc<Mutex<Inner>>);

struct Inner {
    start: Instant,
    last: Instant,
    out: Option<Box<dyn Write + Send>>,
}

impl Progress {
    /// Starts the clock. Phases go to standard output.
    pub fn new() -> Progress {
        let now = Instant::now();
        Progress(Arc::new(Mutex::new(Inner { start: now, last: now, out: Some(Box::new(std::io::stdout())) })))
    }

    /// A phase has ended; it began when the one before ended.
    pub fn done(&self, phase: &str) {
        let mut inner = self.0.lock();
        let now = Instant::now();
        let took = now - inner.last;
        inner.last = now;
        inner.say(&line(phase, took));
    }

    /// Everything has ended well. Returns the whole time; nothing more is printed.
    pub fn ready(&self) -> Duration {
        let mut inner = self.0.lock();
        let took = inner.start.elapsed();
        inner.say(&format!("{READY}{:.2} s", took.as_secs_f64()));
        inner.out = None;
        took
    }
}

impl Inner {
    fn say(&mut self, line: &str) {
        if let Some(out) = &mut self.out {
            // Whoever watched may have left; the start goes on.
            let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        }
    }
}

fn line(phase: &str, took: Duration) -> String {
    format!("  ✓ {phase:<28} {:>6.0} ms", took.as_secs_f64() * 1000.0)
}

/// A spinner with the phase that is under way, on a terminal; nothing elsewhere.
pub fn spinner(message: &str) -> Option<indicatif::ProgressBar> {
    if !std::io::stderr().is_terminal() {
        return None;
    }
    let bar = indicatif::ProgressBar::new_spinner();
    bar.set_message(message.to_string());
    bar.enable_steady_tick(Duration::from_millis(80));
    Some(bar)
}
