//! `explain` for people: a line for each direction, below it the rules that did not decide, and last what would
//! turn the verdict.

use std::fmt::Write as _;

use portcullis_policy::convert::printable;

use super::{Agreement, Direction, Explained, ExplainedChange, ExplainedEnd, ExplainedRule};
use crate::output::Colour;

/// The most rules of one direction that are shown; JSON has all.
const RULES_SHOWN: usize = 40;

/// Where lines below a direction begin.
const INDENT: &str = "           ";

/// For people.
#[must_use]
pub fn table(explained: &Explained, colour: Colour) -> String {
    let end = |end: &ExplainedEnd| {
        let name = printable(&end.name);
        if name == end.address { name } else { format!("{name} ({})", end.address) }
    };
    let port = explained.port.map(|port| format!("/{port}")).unwrap_or_default();
    let shout = colour.paint(explained.verdict, explained.verdict.shout());
    let (from, to, protocol) = (end(&explained.from), end(&explained.to), &explained.protocol);
    let mut text = format!("{shout} {from} -> {to} {protocol}{port}\n");
    for end in [&explained.from, &explained.to].into_iter().filter(|end| end.source_binding.is_some()) {
        let _ = writeln!(
            text,
            "  note     {} may send from any address: its namespace is unbound",
            printable(&end.name)
        );
    }
    for (name, of) in [("egress", &explained.egress), ("ingress", &explained.ingress)] {
        text.push_str(&direction_line(name, of.as_ref(), colour));
        if let Some(direction) = of {
            for line in other_rules(name, direction) {
                let _ = writeln!(text, "{INDENT}{line}");
            }
        }
    }
    let _ = match explained.kernel {
        None => writeln!(text, "  kernel   -      not asked"),
        Some(verdict) => {
            let word = colour.paint(verdict, &format!("{:5}", verdict.name()));
            let agrees = match explained.agreement() {
                Agreement::Agrees => "(agrees)",
                Agreement::Disagrees => "(DISAGREES: the verdict above is not what packets meet)",
            };
            writeln!(text, "  kernel   {word}  {agrees}")
        }
    };
    text + &change_lines(&explained.change)
}

pub(super) fn direction_line(name: &str, direction: Option<&Direction>, colour: Colour) -> String {
    let Some(direction) = direction else {
        return format!("  {name:7}  -      this end is no pod\n");
    };
    let word = colour.paint(direction.verdict, &format!("{:5}", direction.verdict.name()));
    let mut line = format!("  {name:7}  {word}  {}", direction.reason);
    // Writing to a string cannot fail.
    let _ = match (&direction.policy, direction.rule, &direction.undeclared_namespace) {
        (Some(policy), Some(rule), _) => write!(line, "  by {} spec.{name}[{rule}]", policy.label()),
        (Some(policy), None, _) => {
            let more = direction.policies.len().saturating_sub(1);
            let others = if more > 0 { format!(" and {more} more") } else { String::new() };
            write!(line, "  by {}{others} (no rule allows it)", policy.label())
        }
        (None, _, Some(namespace)) => {
            write!(line, "  because no file declares namespace {}", printable(namespace))
        }
        (None, _, None) => Ok(()),
    };
    if direction.enforced == Some(false) {
        line.push_str("  (audit: the packet passes)");
    }
    if direction.kernel.is_some_and(|kernel| kernel != direction.verdict) {
        line.push_str("  BUT THE KERNEL SAYS OTHERWISE");
    }
    line + "\n"
}

/// A line for each rule beside the one that decided, which its direction's own line names.
pub(super) fn other_rules(name: &str, direction: &Direction) -> Vec<String> {
    let decided = |rule: &ExplainedRule| {
        Some(rule.rule) == direction.rule && Some(&rule.policy) == direction.policy.as_ref()
    };
    let others: Vec<&ExplainedRule> = direction.rules.iter().filter(|rule| !decided(rule)).collect();
    let line = |rule: &&ExplainedRule| {
        let why = match &rule.why {
            None => "matches too, and comes later".to_owned(),
            Some(why) => format!("{}: {}", why.kind, printable(&why.text)),
        };
        format!("{} spec.{name}[{}]  {why}", rule.policy.label(), rule.rule)
    };
    let mut lines: Vec<String> = others.iter().take(RULES_SHOWN).map(line).collect();
    if let Some(more) = others.len().checked_sub(RULES_SHOWN).filter(|more| *more > 0) {
        lines.push(format!("and {more} rules more: see explain -o json"));
    }
    lines
}

fn change_lines(change: &ExplainedChange) -> String {
    let verdict = change.verdict.name();
    let lines = change.edits.iter().map(|edit| &edit.text).chain(&change.text);
    let mut text = format!("  to {verdict}\n");
    for line in lines {
        let _ = writeln!(text, "{INDENT}{}", printable(line));
    }
    text
}

#[cfg(test)]
mod tests;
