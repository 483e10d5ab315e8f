//! What nodes filter by today, as rule sets for the same policies: so many, each of which lets one peer reach the
//! server's port and the client reach one peer; one in the middle is about the other pod. Established connections are
//! accepted by the first rule. The node has these two pods only, which favours rule sets that find a pod by going
//! through all.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::pods::{CLIENT, SERVER};

/// The port that policies allow.
pub(crate) const PORT: u16 = 7_000;
/// The port that they do not.
pub(crate) const CLOSED: u16 = 7_001;
/// Peers that are nobody: `10.3.0.0/16`.
const NOBODY: u32 = 0x0a03_0000;

/// Peers of so many policies; the one in the middle is this pod.
pub(crate) fn peers(policies: u32, this: Ipv4Addr) -> Vec<Ipv4Addr> {
    let peer = |number| if number == policies / 2 { this } else { Ipv4Addr::from(NOBODY + number) };
    (0..policies).map(peer).collect()
}

/// In the shape of kube-router's: a chain for each pod that asks a chain for each policy until one has set the mark.
/// Its sets of addresses are of one address each here, so they are addresses.
pub(crate) fn iptables(policies: u32) -> String {
    let mut chains = String::new();
    let mut rules = String::from(
        "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         -A FORWARD -m conntrack --ctstate INVALID -j DROP\n",
    );
    for (pod, own, other, own_side, peer_side) in
        [("CLIENT", CLIENT, SERVER, "-s", "-d"), ("SERVER", SERVER, CLIENT, "-d", "-s")]
    {
        let _ = writeln!(chains, ":POD-{pod} - [0:0]");
        let _ = writeln!(rules, "-A FORWARD {own_side} {own}/32 -j POD-{pod}");
        for (number, peer) in peers(policies, other).into_iter().enumerate() {
            let _ = writeln!(chains, ":{pod}-POLICY-{number} - [0:0]");
            let _ = writeln!(rules, "-A POD-{pod} -m mark ! --mark 0x10000/0x10000 -j {pod}-POLICY-{number}");
            let _ = writeln!(
                rules,
                "-A {pod}-POLICY-{number} {peer_side} {peer}/32 -p tcp -m tcp --dport {PORT} \
                 -j MARK --set-xmark 0x10000/0x10000"
            );
        }
        let _ = writeln!(rules, "-A POD-{pod} -m mark ! --mark 0x10000/0x10000 -j DROP");
        let _ = writeln!(rules, "-A POD-{pod} -j MARK --set-xmark 0x0/0x10000");
    }
    format!(
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n{chains}{rules}COMMIT\n"
    )
}

/// What takes them away.
pub(crate) const NO_IPTABLES: &str =
    "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n";

/// As sets can do it: the pod by a verdict map, peer and port by one set for each pod.
pub(crate) fn nftables(policies: u32) -> String {
    let elements = |this| {
        let pairs: Vec<String> =
            peers(policies, this).iter().map(|peer| format!("{peer} . {PORT}")).collect();
        pairs.join(", ")
    };
    format!(
        "table ip bench {{
            set to_server {{ type ipv4_addr . inet_service; elements = {{ {} }}; }}
            set from_client {{ type ipv4_addr . inet_service; elements = {{ {} }}; }}
            map pods_from {{ type ipv4_addr : verdict; elements = {{ {CLIENT} : jump of_client }}; }}
            map pods_to {{ type ipv4_addr : verdict; elements = {{ {SERVER} : jump of_server }}; }}
            chain of_client {{ ip daddr . tcp dport @from_client return; drop; }}
            chain of_server {{ ip saddr . tcp dport @to_server return; drop; }}
            chain forward {{
                type filter hook forward priority filter; policy accept;
                ct state established,related accept
                ct state invalid drop
                ip saddr vmap @pods_from
                ip daddr vmap @pods_to
            }}
        }}\n",
        elements(CLIENT),
        elements(SERVER),
    )
}

/// What takes them away.
pub(crate) const NO_NFTABLES: &str = "delete table ip bench\n";

/// The first of these programs that is there.
pub(crate) fn program(names: &[&'static str]) -> Option<&'static str> {
    let is_there = |name: &&&str| {
        let started =
            Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        started.is_ok_and(|status| status.success())
    };
    names.iter().find(is_there).copied()
}

/// Feeds a program that takes rules, in the calling thread's namespace.
pub(crate) fn feed(program: &str, arguments: &[&str], rules: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {program}"))?;
    // A broken pipe is the program's failure, which its exit status tells better.
    if let Some(mut stdin) = child.stdin.take() {
        drop(stdin.write_all(rules.as_bytes()));
    }
    let output = child.wait_with_output().with_context(|| format!("waiting for {program}"))?;
    if !output.status.success() {
        bail!("{program} refuses the rules: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_policy_of_all_is_about_the_other_pod() {
        for policies in [1, 2, 100] {
            let found = peers(policies, CLIENT);
            assert_eq!(found.len(), policies as usize);
            assert_eq!(found.iter().filter(|peer| **peer == CLIENT).count(), 1);
        }
    }

    #[test]
    fn each_policy_has_a_chain_for_each_pod() {
        let rules = iptables(7);
        assert_eq!(rules.lines().filter(|line| line.contains("--dport 7000")).count(), 14);
        assert_eq!(rules.lines().filter(|line| line.starts_with(":CLIENT-POLICY")).count(), 7);
    }
}
