//! The published examples of policies, each in a lab: everybody who can be asked says what was written down.
#![allow(missing_docs)]

use portcullis_lab::Hook;
use portcullis_tests::live::Live;
use portcullis_tests::live::agreement::Tally;
use portcullis_tests::live::expected::Seed;
use portcullis_tests::privilege::is_root;

/// All of them; a file beside them that is not here would not be tried.
const SEEDS: [&str; 9] = [
    "access-nginx",
    "allow-all-ingress",
    "cloud-metadata",
    "default-deny",
    "default-deny-egress",
    "netpol-demo",
    "project-snake",
    "project-snake-wrong",
    "role-db",
];

fn run(names: &[&str], hook: Hook) -> Tally {
    let mut tally = Tally::default();
    for name in names {
        let seed = Seed::load(name);
        let mut live: Option<Live> = None;
        for (number, step) in seed.steps.iter().enumerate() {
            let live = match &mut live {
                Some(live) => {
                    live.apply(&step.state());
                    live
                }
                none @ None => none.insert(Live::up(&step.state(), seed.outside(), hook)),
            };
            tally.add(
                &format!("{name} step {number} ({})", hook.name()),
                live.check_agreement(&step.expected),
            );
        }
    }
    tally
}

#[test]
fn every_example_of_the_seeds_is_enforced_explained_and_counted() {
    if !is_root("a lab") {
        return;
    }
    assert_eq!(Seed::names(), SEEDS.map(str::to_owned).into());
    let [tcx, clsact] = std::thread::scope(|scope| {
        let hooks = [(Hook::Tcx, 0), (Hook::Clsact, 1)];
        let workers = hooks.map(|(hook, part)| {
            let names: Vec<&str> = SEEDS.iter().skip(part).step_by(2).copied().collect();
            scope.spawn(move || run(&names, hook))
        });
        workers.map(|worker| worker.join().expect("a worker ends"))
    });
    let mut tally = tcx;
    tally.add("", clsact);
    println!(
        "{} flows, {} probed by real connections, {} counters moved, {} wrong",
        tally.flows,
        tally.probed,
        tally.counted,
        tally.wrong.len()
    );
    assert!(tally.wrong.is_empty(), "{}", tally.wrong.join("\n"));
}
