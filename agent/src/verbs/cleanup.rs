//! `cleanup`: takes every program, link, map and pin of ours away, and says what it took.

use std::path::Path;

use nix::unistd::geteuid;
use portcullis_policy::convert::printable;

use super::Failure;
use crate::daemon::{self, Taken};
use crate::output::{self, Exit};

/// Takes and tells.
pub fn cleanup(run_dir: &Path, bpffs: &Path) -> Result<Exit, Failure> {
    if !geteuid().is_root() {
        return Err(Failure::Cleanup("taking programs away needs root".to_owned()));
    }
    let taken = daemon::cleanup(run_dir, bpffs).map_err(|error| Failure::Cleanup(format!("{error:#}")))?;
    output::print(&report(&taken)).map_err(Failure::Output)?;
    for what in &taken.failed {
        output::error(printable(what));
    }
    Ok(exit(&taken))
}

fn exit(taken: &Taken) -> Exit {
    if taken.failed.is_empty() { Exit::Fine } else { Exit::Unfit }
}

fn report(taken: &Taken) -> String {
    if taken.taken.is_empty() && taken.failed.is_empty() {
        return "nothing of ours found\n".to_owned();
    }
    taken.taken.iter().fold(String::new(), |text, what| text + "took " + &printable(what) + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_is_listed() {
        let taken = Taken { taken: vec!["map rules".to_owned(), "link a".to_owned()], failed: Vec::new() };
        assert_eq!(report(&taken), "took map rules\ntook link a\n");
        assert_eq!(exit(&taken), Exit::Fine);
    }

    #[test]
    fn nothing_and_a_failure_are_told_apart() {
        let nothing = Taken { taken: Vec::new(), failed: Vec::new() };
        assert_eq!(report(&nothing), "nothing of ours found\n");
        let failed = Taken { taken: Vec::new(), failed: vec!["map rules: busy".to_owned()] };
        assert_eq!(report(&failed), "");
        assert_eq!(exit(&failed), Exit::Unfit);
    }
}
