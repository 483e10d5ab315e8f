//! Keeps our configuration in step with the primary's for as long as the agent runs: some primary plugins write theirs
//! anew at every start, or change it. A thread of its own: what it does is no concern of enforcement.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use notify::RecursiveMode;
use portcullis_policy::model::{Problem, Severity};

use super::conflist::Settings;
use super::install::{CONFLIST, Followed, Without, sync};
use crate::changes;

/// How often the directory is looked at where no event tells of a change: it may have come after the watch.
const PERIOD: Duration = Duration::from_secs(5);
/// How long a file that changes may be written to before it is read.
const QUIET: Duration = Duration::from_millis(50);

/// How long ours stays without the primary's. Who takes a file away to write it anew is back within moments, and pods that
/// start before ours was back, too, would start without us.
const ABSENCE: Duration = Duration::from_secs(5);

/// What is wrong with the configuration that is followed.
#[derive(Clone, Debug, Default)]
pub struct Following(Arc<Mutex<Vec<Problem>>>);

impl Following {
    /// What is wrong now.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, problems: Vec<Problem>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = problems;
    }
}

/// Follows the primary's configuration in a directory until the process ends. The first look is over when it returns.
#[must_use]
pub fn follow(conf_dir: PathBuf, settings: Settings) -> Following {
    let following = Following::default();
    let (send, receive) = channel();
    let otherwise = format!("every {} s", PERIOD.as_secs());
    changes::follow(&conf_dir, RecursiveMode::NonRecursive, &otherwise, move || {
        // Nobody listens any more when the process ends.
        let _ = send.send(());
    });
    let mut follower =
        Follower { conf_dir, settings, following: following.clone(), last: None, alone_since: None };
    follower.look();
    let started = thread::Builder::new().name("cni".to_owned()).spawn(move || {
        loop {
            wait(&receive);
            follower.look();
        }
    });
    if let Err(error) = started {
        following.set(vec![problem(
            Severity::Error,
            Path::new(CONFLIST),
            format!("is not followed ({error}): restart the agent"),
        )]);
    }
    following
}

/// Until something changed, or it is time to look. Changes that come close together are one.
fn wait(changed: &Receiver<()>) {
    match changed.recv_timeout(PERIOD) {
        Ok(()) => {
            thread::sleep(QUIET);
            while changed.try_recv().is_ok() {}
        }
        Err(RecvTimeoutError::Timeout) => {}
        // Without a watch the periodic look is all there is.
        Err(RecvTimeoutError::Disconnected) => thread::sleep(PERIOD),
    }
}

struct Follower {
    conf_dir: PathBuf,
    settings: Settings,
    following: Following,
    last: Option<Followed>,
    alone_since: Option<Instant>,
}

impl Follower {
    /// One look. What came out is logged where it is another than last time.
    fn look(&mut self) {
        let waited = self.alone_since.is_some_and(|since| since.elapsed() >= ABSENCE);
        let without = if waited { Without::Go } else { Without::Stay };
        match sync(&self.conf_dir, &self.settings, without) {
            Ok(followed) => {
                self.alone_since =
                    (followed == Followed::Alone).then(|| self.alone_since.unwrap_or_else(Instant::now));
                self.following.set(problems(&self.conf_dir, &followed));
                if self.last.as_ref() != Some(&followed) {
                    tracing::info!("{}", told(&self.conf_dir, &followed));
                }
                self.last = Some(followed);
            }
            // What it is about is in its text.
            Err(error) => {
                self.following.set(vec![problem(Severity::Error, &self.conf_dir, error.to_string())]);
            }
        }
    }
}

/// For people.
#[must_use]
pub fn told(conf_dir: &Path, followed: &Followed) -> String {
    let ours = conf_dir.join(CONFLIST);
    let ours = ours.display();
    match followed {
        Followed::Primary { name, .. } => format!("{ours} follows {name}"),
        Followed::ByHand(name) => format!("{name} chains portcullis-cni itself: there is no {ours}"),
        Followed::Alone => format!("the primary plugin's configuration is gone; {ours} waits for it"),
        Followed::Nobody => {
            format!("no primary plugin has a configuration in {}: there is no {ours}", conf_dir.display())
        }
    }
}

fn problems(conf_dir: &Path, followed: &Followed) -> Vec<Problem> {
    match followed {
        Followed::Primary { earlier: Some(earlier), .. } => vec![problem(
            Severity::Error,
            &conf_dir.join(earlier),
            format!("sorts before {CONFLIST}, so runtimes use it and pods start without us: rename it"),
        )],
        Followed::Nobody => vec![problem(
            Severity::Warning,
            conf_dir,
            "no primary plugin has a configuration here, so no pod starts: install one, or mend --cni-conf-dir"
                .to_owned(),
        )],
        Followed::Primary { earlier: None, .. } | Followed::ByHand(_) | Followed::Alone => Vec::new(),
    }
}

fn problem(severity: Severity, path: &Path, message: String) -> Problem {
    Problem {
        severity,
        object: format!("CNI configuration {}", path.display()),
        field: String::new(),
        message,
        location: None,
    }
}
