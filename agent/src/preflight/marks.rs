//! Whether rules of the node write our bits of the packet mark: where what pods send to virtual addresses bears who sent
//! it, until it is judged where it is delivered. Judges what [`rules`](crate::attach::rules) found, and follows it for a
//! running agent.

use std::fmt;
use std::time::Duration;

use portcullis_policy::convert::printable;
use portcullis_policy::model::{Problem, Severity};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::interval;

use super::{Check, State};
use crate::attach::rules::{Place, Which, Writer, Written, and_of_iptables_legacy, of_nf_tables};
use crate::bpf::programs::Symbols;
use crate::mark::MarkMask;

/// The check's name.
const NAME: &str = "mark";
/// How often a running agent looks again: who manages rules may start after it.
const AGAIN: Duration = Duration::from_mins(10);
/// How many rules a sentence names.
const NAMED: usize = 3;
/// Bits 14 and 15: with which kube-proxy marks what it masquerades, and older kubelets what they drop, unless told otherwise
/// (`iptablesMasqueradeBit` and `iptablesDropBit` of their configurations). Their rules may come after we look.
const KUBE_PROXY: u32 = 0xc000;

/// A rule that writes bits of ours, for programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Colliding {
    /// `ip`, `ip6`, `inet`, `arp`, `bridge`, `netdev`.
    pub family: String,
    /// Its table.
    pub table: String,
    /// Its chain.
    pub chain: String,
    /// Its handle, by which nft deletes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handle: Option<u64>,
    /// Its number, by which iptables-legacy deletes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<u32>,
    /// Every bit of the mark that it can change, in hexadecimal.
    pub bits: String,
    /// What writes them.
    pub by: String,
}

impl From<&Writer> for Colliding {
    fn from(writer: &Writer) -> Self {
        let Place { family, table, chain, which } = &writer.place;
        let (handle, number) = match which {
            Which::Handle(handle) => (Some(*handle), None),
            Which::Position(number) => (None, Some(*number)),
        };
        Self {
            family: family.clone(),
            table: printable(table),
            chain: printable(chain),
            handle,
            number,
            bits: format!("{:#010x}", writer.bits),
            by: printable(&writer.how.to_string()),
        }
    }
}

/// For a line of its own.
impl fmt::Display for Colliding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, table, chain, handle, number, bits, by } = self;
        write!(f, "{family} {table} {chain} ")?;
        match (handle, number) {
            (Some(handle), _) => write!(f, "{}", Which::Handle(*handle))?,
            (None, Some(number)) => write!(f, "{}", Which::Position(*number))?,
            (None, None) => f.write_str("rule")?,
        }
        write!(f, " writes {bits} ({by})")
    }
}

/// Reads the rules of the calling thread's network namespace.
#[must_use]
pub fn look(mask: MarkMask) -> Written {
    // Asking a kernel without nf_tables could load it.
    let found = match Symbols::read() {
        Ok(symbols) if symbols.has_nf_tables() => of_nf_tables(mask.bits()),
        Ok(_) => Written::default(),
        Err(error) => Written {
            unread: vec![format!("whether nf_tables is there: /proc/kallsyms: {error}")],
            ..Written::default()
        },
    };
    and_of_iptables_legacy(mask.bits(), found)
}

/// What was found means for our bits.
#[must_use]
pub fn judge(found: &Written, mask: MarkMask) -> Vec<Check> {
    let mut checks = Vec::new();
    let rules = counted(found.rules);
    if found.colliding > 0 {
        let finding = format!(
            "{} of {rules} can write bits of {mask}: egress to virtual addresses of Services that meets them is not judged \
             where it is delivered, or as another pod's; egress to addresses of pods is judged all the same",
            found.colliding
        );
        let rules = found.writers.iter().map(Colliding::from).collect();
        checks.push(Check { rules, ..Check::warning(NAME, finding, remedy(found.bits)) });
    } else if found.unread.is_empty() {
        checks.push(Check::ok(NAME, format!("no rule of the node writes {mask}: {rules} read")));
    }
    if !found.unread.is_empty() {
        let unread = found.unread.join("; ");
        let finding = format!(
            "whether all rules leave {mask} alone is not known: {rules} read, and not read: {unread}"
        );
        checks.push(Check::note(NAME, finding));
    }
    checks
}

fn counted(rules: u64) -> String {
    if rules == 1 { "1 rule".to_owned() } else { format!("{rules} rules") }
}

fn remedy(written: u32) -> String {
    let narrow = "let these rules keep the other bits (nft: meta mark set meta mark and MASK or VALUE; iptables: VALUE/MASK, \
                  --nfmask and --ctmask), or use --services=deny";
    match free(written) {
        Some(mask) => format!("use --mark-mask {mask}, which no rule here writes, or {narrow}"),
        None => format!("no 12 bits in a row are free: {narrow}"),
    }
}

/// A mask of which nothing is written, the nearest to the default; one that is free of kube-proxy's bits goes first.
fn free(written: u32) -> Option<MarkMask> {
    let distance = |mask: &MarkMask| mask.shift().abs_diff(MarkMask::default().shift());
    [written | KUBE_PROXY, written]
        .into_iter()
        .find_map(|taken| MarkMask::all().filter(|mask| mask.bits() & taken == 0).min_by_key(distance))
}

/// What a running agent says of it.
fn problems(found: &Written, mask: MarkMask) -> Vec<Problem> {
    let problem = |check: Check| {
        let severity = match check.state {
            State::Ok => return None,
            State::Note => Severity::Note,
            State::Warning | State::Failed => Severity::Warning,
        };
        let mut rules: Vec<String> = check.rules.iter().take(NAMED).map(ToString::to_string).collect();
        if check.rules.len() > NAMED {
            rules.push("`preflight` names the others".to_owned());
        }
        let told = [check.name, check.finding, rules.join("; "), check.remedy.unwrap_or_default()];
        let told: Vec<String> = told.into_iter().filter(|part| !part.is_empty()).collect();
        Some(Problem::of_node(severity, told.join(": ")))
    };
    judge(found, mask).into_iter().filter_map(problem).collect()
}

/// Looks beside the agent's own work, now and every ten minutes, and tells what is wrong.
#[must_use]
pub fn follow(mask: MarkMask) -> watch::Receiver<Vec<Problem>> {
    let (tell, told) = watch::channel(Vec::new());
    tokio::spawn(async move {
        let mut again = interval(AGAIN);
        while !tell.is_closed() {
            again.tick().await;
            let looked = tokio::task::spawn_blocking(move || problems(&look(mask), mask)).await;
            // One that was cut short by the agent's end has nobody to tell.
            if let Ok(problems) = looked {
                tell.send_replace(problems);
            }
        }
    });
    told
}

#[cfg(test)]
#[path = "marks_tests.rs"]
mod tests;
