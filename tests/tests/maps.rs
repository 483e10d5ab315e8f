//! docs/maps.md against the maps of a running agent: which there are, what they are, and what they hold for the
//! manifests in tests/data/maps. `PORTCULLIS_BLESS=1` rewrites the dumps.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::time::Duration;

use portcullis_agent::bpf::Pins;
use portcullis_agent::bpf::load::{Purpose, load};
use portcullis_agent::bpf::shape::shapes;
use portcullis_common::event::{Direction, Outcome, Reason, VERDICT_CELLS, verdict_cell};
use portcullis_lab::{AgentSpec, Hook, Lab, LabOptions};
use portcullis_policy::model::ObjectKey;
use portcullis_policy::sizes::{Sizes, Table};
use portcullis_tests::dump::{Show, Value, bpftool, bpftool_json, entries};
use portcullis_tests::lifecycle::{PATIENCE, agent};
use portcullis_tests::privilege::is_root;

/// So small that whole arrays can be dumped.
const SIZES: &str = "endpoints=4,rulesets=12,rules=48,rows=48,port-ranges=48,peer-rows=48,peers=64,prefixes=64,\
                     counters=16,events=65536";
const FLOWS: &str = "16";
/// Cells of `verdicts` that this traffic alone counts in: `rule`, `not-isolated`, `isolated` and `flow`.
const VERDICTS: [u32; 5] = [
    verdict_cell(Direction::Ingress, Outcome::Allow, Reason::Rule),
    verdict_cell(Direction::Egress, Outcome::Allow, Reason::NotIsolated),
    verdict_cell(Direction::Ingress, Outcome::Deny, Reason::Isolated),
    verdict_cell(Direction::Ingress, Outcome::Allow, Reason::Flow),
    verdict_cell(Direction::Egress, Outcome::Allow, Reason::Flow),
];

/// A row of a table in the document.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Listed {
    kind: String,
    key: String,
    value: String,
    entries: String,
    option: String,
}

struct Document {
    path: PathBuf,
    text: String,
}

impl Document {
    fn open() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/maps.md");
        let text = fs::read_to_string(&path).unwrap();
        Self { path, text }
    }

    /// Rows of the table whose head starts so, by name of the map.
    fn table(&self, head: &str) -> BTreeMap<String, Listed> {
        let rows = self.text.lines().skip_while(|line| !line.starts_with(head)).skip(2);
        let cells = |line: &str| -> Vec<String> {
            line.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect()
        };
        rows.take_while(|line| line.starts_with('|'))
            .map(|line| {
                let cells = cells(line);
                let [name, kind, key, value, entries, option, ..] = &cells[..] else {
                    panic!("the document's row {line} has too few cells")
                };
                // A link's text.
                let name = name.trim_start_matches('[').split(']').next().unwrap().to_owned();
                let [kind, key, value, option] = [kind, key, value, option].map(Clone::clone);
                // It grows with the reasons.
                let entries = entries.replace("VERDICT_CELLS", &VERDICT_CELLS.to_string());
                (name, Listed { kind, key, value, entries, option })
            })
            .collect()
    }

    /// Compares the block behind a mark with what it should be, or rewrites it.
    fn block(&mut self, mark: &str, lines: &[String], wrong: &mut Vec<String>) {
        let mark = format!("<!-- {mark} -->");
        let after =
            self.text.find(&mark).unwrap_or_else(|| panic!("docs/maps.md has no {mark}")) + mark.len();
        let fence = after + self.text[after..].find("```").unwrap();
        let start = fence + self.text[fence..].find('\n').unwrap() + 1;
        let end = start + self.text[start..].find("```").unwrap();
        let wanted: String = lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
        if self.text[start..end] != wanted {
            if std::env::var_os("PORTCULLIS_BLESS").is_none() {
                wrong.push(format!("{mark} shows\n{}but the dump is\n{wanted}", &self.text[start..end]));
            }
            self.text.replace_range(start..end, &wanted);
        }
    }
}

fn example() -> (Lab, Sizes) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/maps");
    let cluster = portcullis_lab::source::read(&source, &[]).unwrap().cluster;
    let mut lab = Lab::up(&cluster, LabOptions::default()).unwrap();
    let arguments = ["--map-size", SIZES, "--flows-per-endpoint", FLOWS].map(Into::into).to_vec();
    lab.start_agent(&AgentSpec { binary: agent(), source, hook: Hook::Auto, arguments }).unwrap();
    lab.wait_applied(1, PATIENCE).unwrap();
    (lab, SIZES.split(',').map(|size| size.parse().unwrap()).collect())
}

/// One datagram from a port of a pod to the web pod; with its answer where one is to come.
fn send(lab: &Lab, from: &str, address: &str, has_answer: bool) {
    let pod = lab.pod(&ObjectKey::new("shop", from)).unwrap();
    pod.run(|| {
        let socket = UdpSocket::bind(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket.send_to(b"hello", "10.44.0.3:5000").unwrap();
        if has_answer {
            socket.recv(&mut [0; 100]).expect("the web pod answers");
        }
    })
    .unwrap();
}

/// Name of the type of a map's keys or values, and its bytes.
fn type_of(map: &[&str], what: &str) -> String {
    let arguments: Vec<&str> = ["btf", "dump", "map"].iter().chain(map).chain(&[what]).copied().collect();
    let text = bpftool(&arguments);
    let name = text.split('\'').nth(1).unwrap_or_else(|| panic!("{map:?} {what}: {text}"));
    // Aya's generic key of a trie.
    name.split("_3C_").next().unwrap().to_owned()
}

/// What a loaded map is, in the words of the document; `entries` as the agent was told.
fn described(map: &[&str]) -> (String, Listed) {
    let arguments: Vec<&str> = ["map", "show"].iter().chain(map).copied().collect();
    let info = bpftool_json(&arguments);
    let number = |field: &str| info.get(field).and_then(Value::number).unwrap();
    let text = |field: &str| match info.get(field) {
        Some(Value::Text(text)) => text.clone(),
        other => panic!("{map:?} {field}: {other:?}"),
    };
    let typed = |what: &str, bytes: u64| match text("type").as_str() {
        "ringbuf" => "-".to_owned(),
        // The kernel keeps no types of these.
        "array_of_maps" => format!("{} {bytes}", if what == "key" { "u32" } else { "map id" }),
        _ => format!("{} {bytes}", type_of(map, what)),
    };
    let listed = Listed {
        kind: text("type").replace('_', " "),
        key: typed("key", number("bytes_key")),
        value: typed("value", number("bytes_value")),
        entries: number("max_entries").to_string(),
        option: String::new(),
    };
    (text("name"), listed)
}

/// The ids of an array's inner maps, by slot.
fn inner(path: &str) -> BTreeMap<u64, String> {
    let byte = |value: &Value| match value {
        Value::Text(hex) => u8::from_str_radix(hex.trim_start_matches("0x"), 16).unwrap(),
        other @ (Value::Number(_) | Value::Bool(_) | Value::List(_) | Value::Fields(_)) => {
            panic!("{other:?}")
        }
    };
    let number = |value: &Value| {
        let bytes: Vec<u8> = value.list().iter().map(byte).collect();
        u32::from_ne_bytes(bytes.try_into().unwrap())
    };
    bpftool_json(&["map", "dump", "pinned", path])
        .list()
        .iter()
        .map(|entry| {
            let (key, value) = (entry.get("key").unwrap(), entry.get("value").unwrap());
            (u64::from(number(key)), number(value).to_string())
        })
        .collect()
}

#[test]
fn the_document_lists_the_maps_as_they_are_and_its_dumps_are_theirs() {
    if !is_root("a lab") {
        return;
    }
    let mut document = Document::open();
    let mut wrong = Vec::new();
    let (lab, sizes) = example();
    send(&lab, "client", "10.44.0.1:40000", true);
    send(&lab, "other", "10.44.0.2:40001", false);
    let maps = Pins::new(lab.bpffs()).maps();
    let pin = |name: &str| maps.join(name).display().to_string();

    // Which there are, and what they are.
    let mut listed = document.table("| map | type | key | value | entries |");
    let pinned: BTreeSet<String> =
        fs::read_dir(&maps).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let inner_maps = BTreeMap::from([
        ("peers_in", (inner(&pin("peers")), Table::Peers)),
        ("prefixes_in", (inner(&pin("prefixes")), Table::Prefixes)),
        ("flows_in", (inner(&pin("flows")), Table::Endpoints)),
    ]);
    let there: BTreeSet<String> =
        pinned.iter().cloned().chain(inner_maps.keys().map(|name| (*name).to_owned())).collect();
    assert_eq!(listed.keys().cloned().collect::<BTreeSet<_>>(), there, "the document's table and the pins");
    let (usual, chosen) = (shapes(&Sizes::default()), shapes(&sizes));
    assert_eq!(usual.iter().map(|s| s.name.to_owned()).collect::<BTreeSet<_>>(), pinned, "shapes and pins");
    for (usual, chosen) in usual.iter().zip(&chosen) {
        let (name, mut found) = described(&["pinned", &pin(usual.name)]);
        assert_eq!(name, usual.name);
        assert_eq!(found.entries, chosen.entries.to_string(), "{name}: entries as --map-size says");
        found.entries = usual.entries.to_string();
        found.option = usual.table.map_or("-", Table::name).to_owned();
        assert_eq!(listed.remove(&name), Some(found), "{name}");
    }
    for (name, (ids, table)) in &inner_maps {
        let (found_name, mut found) = described(&["id", ids.values().next().unwrap()]);
        assert_eq!(found_name, *name);
        (found.entries, found.option) = if *table == Table::Endpoints {
            assert_eq!(found.entries, FLOWS);
            (portcullis_common::wire::FIRST_FLOWS.to_string(), "--flows-per-endpoint".to_owned())
        } else {
            assert_eq!(found.entries, sizes.of(*table).to_string());
            (table.default_size().to_string(), table.name().to_owned())
        };
        assert_eq!(listed.remove(*name), Some(found), "{name}");
    }
    let own: BTreeSet<String> = {
        let object = load(Purpose::Ask, None, &sizes).unwrap();
        object.maps().map(|(name, _)| name.to_owned()).filter(|name| !pinned.contains(name)).collect()
    };
    let told: BTreeSet<String> = {
        let section = document.text.split("## Each load's own").nth(1).expect("the document has the section");
        section
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(told, own, "each load's own maps");

    // What they hold.
    let ifaces = bpftool_json(&["map", "dump", "pinned", &pin("ifaces")]);
    let slots: BTreeMap<u64, u64> = ifaces
        .list()
        .iter()
        .filter_map(|entry| {
            let word = entry.get("formatted")?.get("value")?;
            Some((word.get("ifindex")?.number()?, word.get("slot")?.number()?))
        })
        .collect();
    assert_eq!(slots.len(), 3, "three pods");
    let show = Show { slots, ..Show::default() };
    for shape in &usual {
        let show = match shape.name {
            "ifaces" => Show { key_is_interface: true, sorted: true, all: true, ..show.clone() },
            "iface_index" => Show { key_is_interface: true, sorted: true, ..show.clone() },
            "peer_rows" | "counter_names" => Show { sorted: true, all: true, ..show.clone() },
            "verdicts" => Show { keys: VERDICTS.map(u64::from).to_vec(), ..show.clone() },
            "peers" | "prefixes" | "flows" | "flows_before" | "events" => continue,
            _ => show.clone(),
        };
        document.block(shape.name, &entries(&["pinned", &pin(shape.name)], &show), &mut wrong);
    }
    let sorted = Show { sorted: true, all: true, ..show };
    for (name, slot) in [("peers_in", 0), ("prefixes_in", 0), ("flows_in", 2)] {
        let id = &inner_maps[name].0[&slot];
        document.block(name, &entries(&["id", id], &sorted), &mut wrong);
    }
    for name in ["peers", "prefixes", "flows", "flows_before"] {
        let text = bpftool(&["map", "dump", "pinned", &pin(name)]);
        let named = |line: &str| {
            line.split_once("value: ")
                .map_or_else(|| line.to_owned(), |(key, _)| format!("{key}value: ID ID ID ID"))
        };
        document.block(name, &text.lines().map(named).collect::<Vec<_>>(), &mut wrong);
    }
    if std::env::var_os("PORTCULLIS_BLESS").is_some() {
        fs::write(&document.path, &document.text).unwrap();
    }
    assert!(wrong.is_empty(), "run with PORTCULLIS_BLESS=1 if the dumps are right:\n{}", wrong.join("\n"));
}
