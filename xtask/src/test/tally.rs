//! What a test binary says, counted.
//!
//! libtest's closing lines give the numbers. A test that cannot run on this machine prints a line
//! `skipped: why` and passes; it counts as skipped, not as passed. libtest shows what passing tests print only
//! when asked (`--show-output`), in a section that is of no interest otherwise and is not shown on.

use std::fmt;
use std::ops::AddAssign;

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Tally {
    pub(crate) const PASSED: Self = Self { passed: 1, failed: 0, skipped: 0 };
    pub(crate) const FAILED: Self = Self { passed: 0, failed: 1, skipped: 0 };
    pub(crate) const SKIPPED: Self = Self { passed: 0, failed: 0, skipped: 1 };
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// The closing line of `cargo xtask test`.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// What to do with a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Show {
    /// As it is.
    Line,
    /// Not at all.
    Nothing,
    /// This instead.
    Skip(String),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Section {
    /// Anything that is not in one of the others.
    #[default]
    Outside,
    /// What passing tests printed: the test, and whether it said that it was skipped.
    Successes { test: String, skipped: bool },
    /// What failing tests printed.
    Failures,
}

/// Reads the output of one `cargo test`, which may hold that of several binaries.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    tally: Tally,
    failures: Vec<String>,
    section: Section,
    /// Skips since the last closing line, to be taken off its passes.
    skips: u64,
    /// A binary has begun and not closed.
    open: bool,
    results: u64,
}

impl Reader {
    /// Takes a line without its end.
    pub(crate) fn line(&mut self, line: &str) -> Show {
        if line.starts_with("running ") && (line.ends_with(" tests") || line.ends_with(" test")) {
            self.lost_binary();
            self.open = true;
            self.section = Section::Outside;
            return Show::Line;
        }
        if let Some(counts) = line.strip_prefix("test result: ").and_then(counts) {
            self.close(counts);
            return Show::Line;
        }
        match line {
            "successes:" => {
                self.section = Section::Successes { test: String::new(), skipped: false };
                return Show::Nothing;
            }
            "failures:" => {
                self.section = Section::Failures;
                return Show::Line;
            }
            _ => {}
        }
        match &mut self.section {
            Section::Failures => Show::Line,
            Section::Successes { test, skipped } => {
                if let Some(name) = line.strip_prefix("---- ").and_then(|l| l.strip_suffix(" stdout ----")) {
                    name.clone_into(test);
                    *skipped = false;
                } else if let Some(why) = line.strip_prefix("skipped: ").filter(|_| !*skipped) {
                    *skipped = true;
                    self.skips += 1;
                    return Show::Skip(format!("skipped: {test}: {why}"));
                }
                Show::Nothing
            }
            Section::Outside => {
                if let Some(test) = line.strip_prefix("test ").and_then(|l| l.strip_suffix(" ... FAILED")) {
                    self.failures.push(test.to_owned());
                }
                if line.starts_with("skipped: ") {
                    self.skips += 1;
                }
                Show::Line
            }
        }
    }

    fn close(&mut self, counts: Tally) {
        let skips = self.skips.min(counts.passed);
        self.tally +=
            Tally { passed: counts.passed - skips, failed: counts.failed, skipped: counts.skipped + skips };
        self.skips = 0;
        self.open = false;
        self.results += 1;
        self.section = Section::Outside;
    }

    /// A binary that began and never closed was killed or aborted.
    fn lost_binary(&mut self) {
        if self.open {
            self.tally += Tally::FAILED;
            self.failures.push("a test binary that ended before its result".into());
            self.open = false;
        }
    }

    /// The sum, given how the program ended, and the names of what failed.
    pub(crate) fn finish(mut self, success: bool) -> (Tally, Vec<String>) {
        self.lost_binary();
        if !success && self.tally.failed == 0 {
            self.tally += Tally::FAILED;
            self.failures.push("it did not build, or ended badly".into());
        }
        if success && self.results == 0 {
            self.tally += Tally::PASSED;
        }
        (self.tally, self.failures)
    }
}

/// `ok. 3 passed; 0 failed; 1 ignored; ...`: what is ignored is skipped.
fn counts(text: &str) -> Option<Tally> {
    let (_, list) = text.split_once(". ")?;
    let mut tally = Tally::default();
    for part in list.split(';') {
        let mut words = part.split_whitespace();
        let (Some(number), Some(what)) = (words.next(), words.next()) else {
            continue;
        };
        match what {
            "passed" => tally.passed = number.parse().ok()?,
            "failed" => tally.failed = number.parse().ok()?,
            "ignored" => tally.skipped = number.parse().ok()?,
            _ => {}
        }
    }
    Some(tally)
}

/// A line such as `vmtest: 3 passed, 0 failed` (`, 1 skipped` may follow), whatever the word before it.
pub(crate) fn plain(line: &str, word: &str) -> Option<Tally> {
    let list = line.trim().strip_prefix(word)?.strip_prefix(": ")?;
    let mut parts = list.split(", ");
    let mut number = |what: &str| parts.next()?.strip_suffix(what)?.trim_end().parse::<u64>().ok();
    let (passed, failed) = (number("passed")?, number("failed")?);
    let skipped = number("skipped").unwrap_or(0);
    Some(Tally { passed, failed, skipped })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, success: bool) -> (Tally, Vec<String>, Vec<String>) {
        let mut reader = Reader::default();
        let mut shown = Vec::new();
        for line in text.lines() {
            match reader.line(line) {
                Show::Line => shown.push(line.to_owned()),
                Show::Skip(other) => shown.push(other),
                Show::Nothing => {}
            }
        }
        let (tally, failures) = reader.finish(success);
        (tally, failures, shown)
    }

    const TWO_BINARIES: &str = "
running 3 tests
test a ... ok
test b ... ok
test c ... ignored

successes:

---- a stdout ----
skipped: no root here
skipped: said twice

---- b stdout ----
successes are nice

successes:
    a
    b

test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s

running 1 test
test d ... FAILED

failures:

---- d stdout ----
skipped: not really, it failed

failures:
    d

test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn skips_are_taken_off_the_passes_once_a_test() {
        let (tally, failures, shown) = read(TWO_BINARIES, false);
        assert_eq!(tally, Tally { passed: 1, failed: 1, skipped: 2 });
        assert_eq!(failures, ["d"]);
        assert!(shown.contains(&"skipped: a: no root here".to_owned()));
        assert!(!shown.iter().any(|l| l.contains("nice")), "what passing tests print is left out");
        assert!(shown.iter().any(|l| l.contains("not really")), "what failing tests print is shown");
    }

    #[test]
    fn a_build_that_fails_is_one_failure() {
        assert_eq!(read("", false).0, Tally::FAILED);
    }

    #[test]
    fn a_binary_that_dies_is_a_failure_even_beside_others() {
        let text = "running 2 tests\ntest a ... ok\nrunning 1 test\ntest b ... FAILED\n\
                    test result: FAILED. 0 passed; 1 failed; 0 ignored\n";
        assert_eq!(read(text, false).0, Tally { passed: 0, failed: 2, skipped: 0 });
    }

    #[test]
    fn a_program_that_prints_no_result_is_one_pass() {
        assert_eq!(read("all is well\n", true).0, Tally::PASSED);
    }

    #[test]
    fn no_tests_at_all_are_none() {
        assert_eq!(
            read("running 0 tests\ntest result: ok. 0 passed; 0 failed; 0 ignored\n", true).0,
            Tally::default()
        );
    }

    #[test]
    fn plain_lines_are_read() {
        let read = |line| plain(line, "vmtest");
        assert_eq!(read("vmtest: 3 passed, 1 failed"), Some(Tally { passed: 3, failed: 1, skipped: 0 }));
        assert_eq!(
            read("vmtest: 3 passed, 0 failed, 2 skipped"),
            Some(Tally { passed: 3, failed: 0, skipped: 2 })
        );
        assert_eq!(read("vmtest: loading"), None);
        assert_eq!(read("3 passed, 1 failed"), None);
    }

    #[test]
    fn the_closing_line_is_what_ci_reads() {
        assert_eq!(Tally { passed: 3, failed: 0, skipped: 1 }.to_string(), "3 passed, 0 failed, 1 skipped");
    }
}
