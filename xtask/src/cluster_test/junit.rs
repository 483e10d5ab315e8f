//! The reports of the upstream suite: `JUnit`'s XML, as Ginkgo writes it. Only what we ask for is read.

/// How a spec ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Passed,
    Failed,
}

/// A spec that ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) ended: Ended,
    /// What it said, and why it failed.
    pub(crate) output: String,
}

/// Those that ran: a report holds the whole suite, and says of most that they were skipped.
pub(crate) fn specs(report: &str) -> Vec<Spec> {
    let mut specs = Vec::new();
    for piece in report.split("<testcase ").skip(1) {
        let Some((attributes, rest)) = piece.split_once('>') else { continue };
        let body = rest.split("</testcase>").next().unwrap_or_default();
        // `[It]` are specs; other nodes stand for what runs before and after all.
        let name = attribute(attributes, "name");
        let Some(name) = name.strip_prefix("[It] ") else { continue };
        let ended = match attribute(attributes, "status").as_str() {
            "passed" => Ended::Passed,
            "skipped" | "pending" => continue,
            // `failed`, `timedout`, `panicked`, `interrupted`, `aborted`, and what is not known.
            _ => Ended::Failed,
        };
        specs.push(Spec { name: name.to_owned(), ended, output: plain(body) });
    }
    specs
}

fn attribute(attributes: &str, name: &str) -> String {
    let begin = format!("{name}=\"");
    // At a word's beginning: `classname` ends in `name`.
    let value = attributes.match_indices(&begin).find_map(|(at, _)| {
        let first = at == 0 || attributes.get(..at).is_some_and(|before| before.ends_with(' '));
        first.then(|| attributes.get(at + begin.len()..))?
    });
    plain(value.and_then(|value| value.split('"').next()).unwrap_or_default())
}

/// The text that XML's entities stand for.
fn plain(text: &str) -> String {
    [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&#34;", "\""),
        ("&apos;", "'"),
        ("&#39;", "'"),
        ("&#xA;", "\n"),
        ("&amp;", "&"),
    ]
    .iter()
    .fold(text.to_owned(), |text, (entity, character)| text.replace(entity, character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_that_ran_are_read_with_what_they_said() {
        let report = r#"<?xml version="1.0"?><testsuites><testsuite name="e2e" tests="4">
            <testcase name="[SynchronizedBeforeSuite]" classname="e2e" status="passed" time="1"></testcase>
            <testcase name="[It] [sig-network] a &amp; b" classname="e2e" status="passed" time="1"><system-err>fine</system-err></testcase>
            <testcase name="[It] c" classname="e2e" status="failed" time="1"><failure message="x">run &#39;kubectl&#39;&#xA;at &lt;a&gt;</failure></testcase>
            <testcase name="[It] d" classname="e2e" status="skipped" time="0"><skipped></skipped></testcase>
            <testcase name="[It] e" classname="e2e" status="timedout" time="0"></testcase>
            </testsuite></testsuites>"#;
        let specs = specs(report);
        let names: Vec<(&str, Ended)> = specs.iter().map(|s| (s.name.as_str(), s.ended)).collect();
        assert_eq!(
            names,
            [("[sig-network] a & b", Ended::Passed), ("c", Ended::Failed), ("e", Ended::Failed)]
        );
        assert!(specs[1].output.contains("run 'kubectl'\nat <a>"));
    }
}
