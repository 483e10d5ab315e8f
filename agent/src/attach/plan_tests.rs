//! What a restart, an audit and a change of hook come down to.

use super::*;

const NOW: ProgramIds = ProgramIds { ingress: 101, egress: 102, out: 103 };
const BEFORE: ProgramIds = ProgramIds { ingress: 51, egress: 52, out: 53 };

fn slot(interface: u32, direction: Direction) -> Slot {
    Slot { interface, direction }
}

fn both(interface: u32, hook: Hook, ids: ProgramIds) -> [Observed; 2] {
    [Direction::Ingress, Direction::Egress].map(|direction| Observed {
        slot: slot(interface, direction),
        hook,
        state: State::Live { program: ids.of(Role::Pod, direction) },
    })
}

fn pods<const N: usize>(interfaces: [u32; N]) -> BTreeMap<u32, Role> {
    interfaces.into_iter().map(|interface| (interface, Role::Pod)).collect()
}

fn device(interface: u32) -> BTreeMap<u32, Role> {
    BTreeMap::from([(interface, Role::Device)])
}

fn dead(interface: u32, direction: Direction) -> Observed {
    Observed { slot: slot(interface, direction), hook: Hook::Tcx, state: State::Dead }
}

fn words(ops: &[AttachOp]) -> Vec<String> {
    ops.iter().map(ToString::to_string).collect()
}

/// What is attached after the steps, each of which must be possible when its turn comes.
fn carry_out(observed: &[Observed], ops: &[AttachOp], current: ProgramIds) -> Vec<Observed> {
    let mut world: Vec<Observed> = observed.to_vec();
    for op in ops {
        let at = |hook: Hook| move |found: &Observed| found.slot == op.slot() && found.hook == hook;
        match *op {
            AttachOp::Attach { slot, hook, role } => {
                assert!(!world.iter().any(at(hook)), "{op}: the place is taken");
                let program = current.of(role, slot.direction);
                world.push(Observed { slot, hook, state: State::Live { program } });
            }
            AttachOp::Replace { slot, hook, role } => {
                let found = world.iter_mut().find(|found| at(hook)(found)).expect("something to replace");
                found.state = State::Live { program: current.of(role, slot.direction) };
            }
            AttachOp::Detach { hook, why, .. } => {
                world.retain(|found| !at(hook)(found));
                let enforced = world.iter().any(|found| found.slot == op.slot());
                assert!(why != Why::OtherHook || enforced, "{op}: opens the pod");
            }
        }
    }
    world
}

#[test]
fn a_first_start_attaches_both_directions_in_order() {
    let ops = plan(Hook::Tcx, &pods([9, 4]), &[], NOW);
    assert_eq!(
        words(&ops),
        [
            "attach tcx interface 4 ingress",
            "attach tcx interface 4 egress",
            "attach tcx interface 9 ingress",
            "attach tcx interface 9 egress",
        ]
    );
}

#[test]
fn a_restart_replaces_and_never_detaches_what_is_wanted() {
    let observed = both(4, Hook::Clsact, BEFORE);
    let ops = plan(Hook::Clsact, &pods([4]), &observed, NOW);
    assert_eq!(words(&ops), ["replace clsact interface 4 ingress", "replace clsact interface 4 egress"]);
}

#[test]
fn an_audit_of_what_is_in_order_has_nothing_to_do() {
    let observed = both(4, Hook::Tcx, NOW);
    assert_eq!(plan(Hook::Tcx, &pods([4]), &observed, NOW), []);
}

#[test]
fn an_audit_attaches_again_what_vanished() {
    let [_, egress] = both(4, Hook::Clsact, NOW);
    let ops = plan(Hook::Clsact, &pods([4]), &[egress], NOW);
    assert_eq!(words(&ops), ["attach clsact interface 4 ingress"]);
}

#[test]
fn an_interface_that_is_not_wanted_is_let_go() {
    let observed = both(4, Hook::Tcx, NOW);
    let ops = plan(Hook::Tcx, &BTreeMap::new(), &observed, NOW);
    assert_eq!(words(&ops), ["detach tcx interface 4 ingress", "detach tcx interface 4 egress"]);
}

#[test]
fn a_dead_pin_goes_before_the_link_that_needs_its_name() {
    let observed = [dead(4, Direction::Egress)];
    let ops = plan(Hook::Tcx, &pods([4]), &observed, NOW);
    assert_eq!(
        words(&ops),
        [
            "remove dead tcx interface 4 egress",
            "attach tcx interface 4 ingress",
            "attach tcx interface 4 egress",
        ]
    );
}

#[test]
fn a_change_of_hook_attaches_the_new_before_the_old_goes() {
    for (old, new) in [(Hook::Tcx, Hook::Clsact), (Hook::Clsact, Hook::Tcx)] {
        let observed = both(4, old, BEFORE);
        let ops = plan(new, &pods([4]), &observed, NOW);
        assert_eq!(
            words(&ops),
            [
                format!("attach {new} interface 4 ingress"),
                format!("attach {new} interface 4 egress"),
                format!("detach {old} interface 4 ingress"),
                format!("detach {old} interface 4 egress"),
            ]
        );
    }
}

#[test]
fn every_mixture_converges_in_one_round_without_opening_a_pod() {
    let states =
        [None, Some(State::Dead), Some(State::Live { program: 1 }), Some(State::Live { program: 101 })];
    let all = states.iter().flat_map(|a| states.iter().map(move |b| (*a, *b)));
    for ((tcx, clsact), wanted, hook) in all.flat_map(|pair| {
        [true, false]
            .into_iter()
            .flat_map(move |wanted| [Hook::Tcx, Hook::Clsact].map(|hook| (pair, wanted, hook)))
    }) {
        let slot = slot(4, Direction::Ingress);
        let of = |hook, state: Option<State>| state.map(|state| Observed { slot, hook, state });
        let observed: Vec<_> = of(Hook::Tcx, tcx).into_iter().chain(of(Hook::Clsact, clsact)).collect();
        let desired = if wanted { pods([4]) } else { BTreeMap::new() };

        let after = carry_out(&observed, &plan(hook, &desired, &observed, NOW), NOW);

        assert_eq!(plan(hook, &desired, &after, NOW), [], "{observed:?} {desired:?} {hook}");
        assert_eq!(after.len(), if wanted { 2 } else { 0 });
    }
}

#[test]
fn a_device_has_one_program_and_a_pod_that_comes_there_takes_its_place() {
    let ops = plan(Hook::Tcx, &device(4), &[], NOW);
    assert_eq!(words(&ops), ["attach tcx interface 4 out"]);
    let attached = carry_out(&[], &ops, NOW);
    assert_eq!(plan(Hook::Tcx, &device(4), &attached, NOW), []);
    let ops = plan(Hook::Tcx, &pods([4]), &attached, NOW);
    assert_eq!(words(&ops), ["replace tcx interface 4 ingress", "attach tcx interface 4 egress"]);
    // And back, should it ever be no pod's.
    let ops = plan(Hook::Tcx, &device(4), &both(4, Hook::Tcx, NOW), NOW);
    assert_eq!(words(&ops), ["replace tcx interface 4 out", "detach tcx interface 4 egress"]);
}

#[test]
fn auto_takes_tcx_from_6_6() {
    for (release, hook) in [
        ("5.10.0-30-amd64", Hook::Clsact),
        ("6.1.0-26-cloud-amd64\n", Hook::Clsact),
        ("6.5.13", Hook::Clsact),
        ("6.6", Hook::Tcx),
        ("6.18.44-fc-v657", Hook::Tcx),
        ("6.12+deb13-amd64", Hook::Tcx),
        ("7.0-rc1", Hook::Tcx),
    ] {
        let kernel: KernelRelease = release.parse().unwrap();
        assert_eq!(HookChoice::Auto.resolve(kernel), Ok(hook), "{release}");
        assert_eq!(HookChoice::Clsact.resolve(kernel), Ok(Hook::Clsact));
    }
}

#[test]
fn tcx_on_an_old_kernel_is_an_error_that_says_what_to_do() {
    let kernel: KernelRelease = "5.15.0-118-generic".parse().unwrap();
    let error = HookChoice::Tcx.resolve(kernel).unwrap_err();
    assert_eq!(error.to_string(), "hook tcx needs kernel 6.6, this is 5.15: use hook auto or clsact");
}

#[test]
fn words_that_are_no_hook_and_no_release_are_refused() {
    assert_eq!("TCX".parse::<HookChoice>(), Err(HookError::Unknown("TCX".to_owned())));
    assert_eq!("tcx".parse(), Ok(HookChoice::Tcx));
    for release in ["", "linux", "6", "v6.6", "6.x"] {
        assert_eq!(release.parse::<KernelRelease>(), Err(HookError::Release(release.to_owned())));
    }
}
