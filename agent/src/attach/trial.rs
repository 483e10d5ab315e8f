//! Whether a hook can be used here: a program is attached to the loopback device of a network namespace that is made
//! for this and goes with its thread. No interface of the caller's is touched.

use std::thread;

use aya::programs::SchedClassifier;
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, TcAttachType};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use portcullis_common::event::Direction;

use super::plan::{Hook, Role, Slot};
use super::{chain, clsact};

/// The loopback device: the first of every network namespace.
const LOOPBACK: (u32, &str) = (1, "lo");

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trial {
    /// The program could be attached.
    Works,
    /// It could not, and why.
    Fails(String),
    /// It could not be tried, and why.
    Untried(String),
}

/// Tries a hook with a loaded program. Making a network namespace needs `CAP_SYS_ADMIN`.
pub fn trial(hook: Hook, program: &mut SchedClassifier) -> Trial {
    let tried = thread::scope(|scope| {
        let worker = thread::Builder::new().spawn_scoped(scope, || inside(hook, program));
        worker.map(thread::ScopedJoinHandle::join)
    });
    match tried {
        Ok(Ok(trial)) => trial,
        Ok(Err(_)) => Trial::Untried("the thread that tried ended early".to_owned()),
        Err(error) => Trial::Untried(error.to_string()),
    }
}

fn inside(hook: Hook, program: &mut SchedClassifier) -> Trial {
    match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => {}
        Err(Errno::EPERM) => {
            return Trial::Untried("making a network namespace needs CAP_SYS_ADMIN".to_owned());
        }
        Err(error) => return Trial::Untried(format!("making a network namespace: {error}")),
    }
    let done = match hook {
        Hook::Tcx => {
            let order = TcAttachOptions::TcxOrder(LinkOrder::first());
            let attached = program.attach_with_options(LOOPBACK.1, TcAttachType::Ingress, order);
            // Given up here: the link must not outlive the namespace.
            attached.and_then(|id| program.detach(id)).map_err(|error| chain(&error))
        }
        Hook::Clsact => {
            let slot = Slot { interface: LOOPBACK.0, direction: Direction::Egress };
            clsact::attach(slot, Role::Pod, program).map_err(|error| chain(&error))
        }
    };
    match done {
        Ok(()) => Trial::Works,
        Err(why) => Trial::Fails(why),
    }
}
