//! Generates and judges clusters, and says how long it took: `soak [CLUSTERS] [FIRST-SEED]`.

use std::collections::BTreeMap;
use std::time::Instant;

use portcullis_oracle::{World, generate};

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|argument| argument.parse::<u64>().ok());
    let clusters = arguments.next().unwrap_or(10_000);
    let first = arguments.next().unwrap_or(0);

    let start = Instant::now();
    let mut reasons: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut cells = [0_u64; 3];
    for seed in first..first + clusters {
        let cluster = generate::cluster(seed);
        let world = World::new(&cluster.manifests);
        for probe in &cluster.probes {
            if let Some(pair) = world.pod_to_pod(&probe.from, &probe.to, probe.traffic, probe.family) {
                *reasons.entry(pair.egress.reason.name()).or_default() += 1;
                *reasons.entry(pair.ingress.reason.name()).or_default() += 1;
            }
        }
        for probe in &cluster.external_probes {
            if let Some(verdict) = world.judge(&probe.pod, probe.direction, probe.remote, probe.traffic) {
                *reasons.entry(verdict.reason.name()).or_default() += 1;
            }
        }
        for family in [portcullis_oracle::Family::Ipv4, portcullis_oracle::Family::Ipv6] {
            for traffic in &cluster.traffics {
                for cell in world.matrix(*traffic, family).iter().flat_map(|row| row.chars()) {
                    let [allowed, denied, own] = &mut cells;
                    match cell {
                        '.' => *allowed += 1,
                        'X' => *denied += 1,
                        _ => *own += 1,
                    }
                }
            }
        }
    }
    let [allowed, denied, own] = cells;
    println!("{clusters} clusters in {:.1} s", start.elapsed().as_secs_f64());
    println!("matrix cells: {allowed} allowed, {denied} denied, {own} self");
    println!("reasons of probes: {reasons:?}");
}
