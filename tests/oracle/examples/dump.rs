//! Prints the manifests of a generated cluster: `--example dump -- SEED`.
#![allow(clippy::expect_used, reason = "a developer's tool")]

fn main() {
    let seed = std::env::args().nth(1).and_then(|text| text.parse().ok()).expect("a seed");
    for manifest in &portcullis_oracle::generate::cluster(seed).manifests {
        println!("{manifest}");
    }
}
