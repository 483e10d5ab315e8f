//! From facts to checks. Pure.

use super::Check;
use super::facts::{BPF, Bpffs, Facts, NET_ADMIN, PERFMON, SYS_ADMIN, SYS_RESOURCE, Seccomp};
use super::neighbours::{NODE_LOCAL_DNS, Neighbours};
use crate::attach::foreign::{Foreign, Place};
use crate::attach::trial::Trial;
use crate::attach::{Hook, HookChoice, KernelRelease};
use crate::bpf::programs::{Calls, Redirect, TailCalls};

/// What the agent needs of the node.
#[must_use]
pub fn node(facts: &Facts, choice: HookChoice) -> Vec<Check> {
    vec![
        kernel(facts),
        btf(facts),
        bpffs(facts),
        cgroup2(facts),
        capabilities(facts),
        syscall(facts),
        programs(facts),
        hook(facts, choice),
    ]
}

fn kernel(facts: &Facts) -> Check {
    let needed = KernelRelease::MINIMUM;
    match &facts.release {
        Ok(release) if *release >= needed => Check::ok("kernel", format!("{release} ({needed} is needed)")),
        Ok(release) => {
            Check::failed("kernel", format!("{release}, and {needed} is needed"), "boot a newer kernel")
        }
        Err(why) => Check::failed("kernel", format!("its release cannot be read: {why}"), "mount /proc"),
    }
}

fn btf(facts: &Facts) -> Check {
    match &facts.btf {
        Ok(()) => Check::ok("btf", "the kernel shows its types"),
        // The programs bring types of their own; it is the dumps of maps that want the kernel's support.
        Err(why) => Check::warning(
            "btf",
            format!("{why}: maps may not dump in words"),
            "use a kernel that was built with CONFIG_DEBUG_INFO_BTF",
        ),
    }
}

fn bpffs(facts: &Facts) -> Check {
    let (path, found) = &facts.bpffs;
    let path = path.display();
    match found {
        Bpffs::Writable => Check::ok("bpffs", format!("{path} is one, and pins can be made in it")),
        Bpffs::Other => Check::failed(
            "bpffs",
            format!("{path} is another file system"),
            format!("mount one: mount -t bpf bpf {path}"),
        ),
        Bpffs::Unreadable(why) => Check::failed(
            "bpffs",
            format!("{path}: {why}"),
            "name a mounted bpffs with --bpffs, or mount one: mount -t bpf bpf /sys/fs/bpf",
        ),
        Bpffs::ReadOnly(why) => Check::failed(
            "bpffs",
            format!("no directory can be made in {path}: {why}"),
            "run as root, or mount it writable",
        ),
    }
}

fn cgroup2(facts: &Facts) -> Check {
    match &facts.cgroup2 {
        Some(path) => Check::ok("cgroup2", format!("mounted at {}", path.display())),
        None => Check::note("cgroup2", "not mounted; nothing of this version needs it"),
    }
}

fn capabilities(facts: &Facts) -> Check {
    let mut missing = Vec::new();
    for (capability, name) in [(BPF, "BPF"), (PERFMON, "PERFMON")] {
        if !facts.has(capability) && !facts.has(SYS_ADMIN) {
            missing.push(name);
        }
    }
    if !facts.has(NET_ADMIN) {
        missing.push("NET_ADMIN");
    }
    // Before, maps count against RLIMIT_MEMLOCK, which has to be raised.
    let counts_memory = facts.release.as_ref().is_ok_and(|release| *release < KernelRelease::MEMCG);
    if counts_memory && !facts.has(SYS_RESOURCE) {
        missing.push("SYS_RESOURCE");
    }
    if missing.is_empty() {
        let more = if facts.has(SYS_ADMIN) {
            ""
        } else {
            "; without SYS_ADMIN the names of other programs cannot be read"
        };
        return Check::ok("capabilities", format!("BPF, NET_ADMIN and PERFMON are there{more}"));
    }
    Check::failed(
        "capabilities",
        format!("{} missing", missing.join(", ")),
        "run as root, or add them to the container's securityContext.capabilities.add",
    )
}

fn syscall(facts: &Facts) -> Check {
    match (&facts.callable, facts.seccomp) {
        (Ok(()), Seccomp::Off) => Check::ok("seccomp", "no filter; bpf(2) can be called"),
        (Ok(()), Seccomp::Filter) => Check::ok("seccomp", "a filter, which lets bpf(2) pass"),
        (Err(why), Seccomp::Filter) => Check::failed(
            "seccomp",
            format!("bpf(2): {why}; this process runs under a seccomp filter"),
            "allow bpf in the seccomp profile, or run with seccompProfile Unconfined",
        ),
        (Err(why), Seccomp::Off) => Check::failed(
            "seccomp",
            format!("bpf(2): {why}, though no seccomp filter is in the way"),
            "run as root, on a kernel that was built with CONFIG_BPF_SYSCALL",
        ),
    }
}

fn programs(facts: &Facts) -> Check {
    match &facts.load {
        Ok(()) => Check::ok("programs", "maps were made, and the verifier accepts the programs"),
        Err(why) => Check::failed(
            "programs",
            why.clone(),
            "mend what failed above; if nothing did, report this with the kernel's release",
        ),
    }
}

fn hook(facts: &Facts, choice: HookChoice) -> Check {
    let name = "hook";
    let resolved = match &facts.release {
        Ok(release) => choice.resolve(*release).map_err(|error| error.to_string()),
        Err(why) => Err(format!("the kernel's release cannot be read: {why}")),
    };
    let hook = match resolved {
        Ok(hook) => hook,
        Err(why) => return Check::failed(name, why, "use --hook auto or --hook clsact"),
    };
    let (wanted, other, remedy) = match hook {
        Hook::Tcx => (&facts.tcx, &facts.clsact, "use --hook clsact"),
        Hook::Clsact => {
            (&facts.clsact, &facts.tcx, "use a kernel with CONFIG_NET_CLS_BPF and CONFIG_NET_CLS_ACT")
        }
    };
    let also = match (hook, other) {
        (Hook::Tcx, Trial::Works) => "; clsact works too",
        (Hook::Clsact, Trial::Works) => "; tcx works too",
        (_, Trial::Fails(_) | Trial::Untried(_)) => "",
    };
    match wanted {
        Trial::Works => Check::ok(name, format!("{hook}: a program can be attached{also}")),
        Trial::Fails(why) => Check::failed(name, format!("{hook}: {why}"), remedy),
        Trial::Untried(why) => {
            Check::note(name, format!("{hook}, by the kernel's release; not tried: {why}"))
        }
    }
}

/// Who else is on the node. What is `Failed` here lets packets past our programs.
#[must_use]
pub fn neighbours(found: &Neighbours, hook: Hook) -> Vec<Check> {
    let mut checks: Vec<Check> = found.foreign.iter().map(|one| program(found, one, hook)).collect();
    if checks.is_empty() {
        checks.push(Check::ok("foreign", "no program or filter of others on this namespace's interfaces"));
    }
    for (engine, clues) in &found.engines {
        let clues: Vec<&str> = clues.iter().map(String::as_str).collect();
        checks.push(Check::warning(
            "engines",
            format!("{engine} seems to enforce here ({})", clues.join(", ")),
            "both enforce, and a packet has to pass both: what one denies the other does not allow",
        ));
    }
    if let Some(clue) = &found.node_local_dns {
        checks.push(Check::warning(
            "dns",
            format!("NodeLocal DNSCache is here ({clue})"),
            format!(
                "give pods with isolated egress a rule to ipBlock {NODE_LOCAL_DNS}/32 on UDP and TCP port 53: a rule \
                 to the DNS pods does not cover it"
            ),
        ));
    }
    checks
}

/// What a program of somebody else means for us.
fn program(found: &Neighbours, one: &Foreign, hook: Hook) -> Check {
    let name = "foreign";
    let what = describe(found, one);
    let engine = found.engine_of(one);
    let around = "packets can reach a pod without passing our programs";
    let calls = one.program.and_then(|id| found.programs.get(&id)).map(|program| &program.calls);
    let (redirects, blind) = match calls {
        Some(Calls::Read { redirects, tail_calls: TailCalls::None }) => (Some(redirects), None),
        Some(Calls::Read { redirects, tail_calls: TailCalls::Some }) => {
            (Some(redirects), Some("it goes on in other programs, which are not looked into".to_owned()))
        }
        Some(Calls::Unreadable(why)) => (None, Some(format!("what it calls cannot be read: {why}"))),
        None => (None, None),
    };
    let calls_any = |wanted: &[Redirect]| {
        redirects
            .into_iter()
            .flatten()
            .find(|redirect| wanted.contains(redirect))
            .map(|redirect| redirect.function())
    };
    if let Some(function) = calls_any(&[Redirect::Peer]) {
        return Check::failed(name, format!("{what} calls {function}: {around}"), remedy(engine));
    }
    if let (Some(engine), Some(why)) = (engine, &blind) {
        return Check::failed(
            name,
            format!("{what} is {engine}'s by its name, which may redirect around us: {around} ({why})"),
            remedy(Some(engine)),
        );
    }
    // Without rights a program has no name, and must be taken for the worst that is known to be here.
    let suspect = if found.name_of(one).is_none() { found.suspect() } else { None };
    if let (Some(engine), Some(why)) = (suspect, &blind) {
        return Check::failed(
            name,
            format!(
                "{what} may be {engine}'s, which is on this node and may redirect around us: {around} ({why})"
            ),
            remedy(Some(engine)),
        );
    }
    if let Some(function) = calls_any(&[Redirect::Xdp]) {
        return Check::warning(
            name,
            format!("{what} calls {function}: {around} where it redirects to a pod's device"),
            "make sure that it does not, or take it off",
        );
    }
    if hook == Hook::Clsact && matches!(one.place, Place::TcxIngress | Place::TcxEgress) {
        return Check::warning(
            name,
            format!("{what} runs before clsact filters, and what it accepts or redirects never reaches ours"),
            "use --hook tcx, which attaches ahead of it",
        );
    }
    if let Some(function) = calls_any(&[Redirect::Plain, Redirect::Neigh, Redirect::Clone]) {
        return Check::warning(
            name,
            format!("{what} calls {function}: what it redirects is judged only where it arrives"),
            "make sure that it sends nothing into a pod's device at ingress",
        );
    }
    match blind {
        Some(why) => Check::warning(
            name,
            format!("{what} may redirect: {why}"),
            "make sure that it does not call bpf_redirect_peer",
        ),
        None => Check::note(name, what),
    }
}

fn describe(found: &Neighbours, one: &Foreign) -> String {
    let called = found.name_of(one);
    let subject = match (one.program, called) {
        (Some(id), Some(called)) => format!("program {called} (id {id})"),
        (Some(id), None) => format!("program id {id}"),
        (None, Some(called)) => format!("filter {called}"),
        (None, None) => "a filter".to_owned(),
    };
    format!("{subject} at {} of {}", one.place.name(), one.interface)
}

fn remedy(engine: Option<&str>) -> String {
    let how = match engine {
        Some("Cilium") => "set Cilium's bpf.hostLegacyRouting=true",
        Some("Calico") => "set Calico's bpfRedirectToPeer to Disabled, or turn its eBPF dataplane off",
        Some(_) | None => "take it off, or turn its redirects off",
    };
    format!("{how}; `agent --force` starts all the same")
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
