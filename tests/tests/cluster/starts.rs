//! Pods that send from their first instruction under a policy that lets nothing out, while the primary plugin's
//! configuration is written anew. `PORTCULLIS_POD_STARTS=N` starts so many.

use portcullis_tests::cluster::scene::{DISCARD, Going, count, datagrams, idle, pod, policy, scripted};
use portcullis_tests::cluster::{Cluster, DEADLINE, items, text, until};
use serde_json::{Value, json};

const OURS: &str = "pc-starts";
/// In the gate.
const STARTS: usize = 12;
/// Pods that start at a time.
const AT_ONCE: usize = 12;

/// Writes the primary's configuration again and again: by renaming, in place, and by taking it away first. Says how
/// often.
const REWRITES: &str = r#"
cd /etc/cni/net.d || exit 1
f=$(ls | grep -E '\.(conf|conflist|json)$' | grep -v '^00-portcullis' | head -n 1)
old=$(cat "$f"); n=0
while read -r -t 0.4 stop; [ $? -gt 128 ]; do
  n=$((n + 1)); new=${old/\"mtu\": 1500/\"mtu\": $((1400 + n % 100))}
  case $((n % 3)) in
    0) printf '%s\n' "$new" > .rewritten && mv .rewritten "$f" ;;
    1) printf '%s\n' "$new" > "$f" ;;
    2) rm "$f"; sleep 0.2; printf '%s\n' "$new" > "$f" ;;
  esac
done
printf '%s\n' "$old" > "$f"
echo $n"#;

/// Sends datagrams and SYNs for two seconds, the first of them at once; ends well when it has.
fn sender(addresses: &[String]) -> String {
    let datagrams = datagrams(addresses);
    let one = |address: &String| format!("(exec 3<> /dev/tcp/{address}/{DISCARD}) &\n");
    let connections = addresses.iter().map(one).collect::<Vec<_>>().concat();
    format!(
        "exec 2>/dev/null\nfor i in {{1..60}}; do {datagrams} done\n{connections}\
         for i in {{1..20}}; do {datagrams} /bin/busybox sleep 0.1; done\n\
         kill -9 $(jobs -pr)\nexit 0\n"
    )
}

fn senders(nodes: &[String], label: &str, script: &str, numbers: std::ops::Range<usize>) -> Vec<Value> {
    let one = |number: usize| {
        let name = format!("{label}-{number}");
        let mut pod =
            pod(OURS, &name, &nodes[number % nodes.len()], &json!({"app": label}), &scripted(script));
        pod["spec"]["restartPolicy"] = json!("Never");
        pod
    };
    numbers.map(one).collect()
}

/// Starts pods, waits until all have sent what they send, and takes them away.
fn run(cluster: &Cluster, pods: &[Value]) {
    cluster.apply(pods).unwrap();
    let mut last = String::new();
    let ended = until(DEADLINE * 3, || {
        let listed = cluster.get(&["-n", OURS, "pods", "-l", "app!=listener"])?;
        let phases: Vec<String> = items(&listed).iter().map(|pod| text(pod, "/status/phase")).collect();
        assert!(!phases.iter().any(|phase| phase == "Failed"), "{listed}");
        last = format!("{phases:?}");
        Ok((phases.len() == pods.len() && phases.iter().all(|phase| phase == "Succeeded")).then_some(()))
    });
    let described = || cluster.kubectl(&["-n", OURS, "get", "events"]).unwrap_or_default();
    assert!(ended.unwrap().is_some(), "pods did not come to their end: {last}\n{}", described());
    cluster.kubectl(&["-n", OURS, "delete", "pods", "-l", "app!=listener", "--wait", "--now"]).unwrap();
}

#[test]
fn pods_that_send_from_their_first_instruction_reach_nobody() {
    let Some(cluster) = Cluster::of_environment() else { return };
    // given a listener, and a policy that lets senders send nothing
    cluster.install().unwrap();
    let nodes = cluster.nodes().unwrap();
    let deny = json!({"podSelector": {"matchLabels": {"app": "sender"}}, "policyTypes": ["Egress"]});
    let objects =
        [pod(OURS, "listener", &nodes[0], &json!({"app": "listener"}), &idle()), policy(OURS, "deny", &deny)];
    cluster.stage(OURS, &objects).unwrap();
    let script = sender(&cluster.addresses(OURS, "listener").unwrap());
    // Who is not denied is heard: the counters count, and the script sends.
    run(&cluster, &senders(&nodes, "free", &script, 0..nodes.len()));
    let heard = cluster.arrived(OURS, "listener").unwrap();
    assert!(heard >= 60 * nodes.len() as u64, "{heard}");
    // when
    let writers: Vec<Going> =
        nodes.iter().map(|node| cluster.going_on_node(node, REWRITES).unwrap()).collect();
    let starts = count("PORTCULLIS_POD_STARTS", STARTS);
    let mut started = 0;
    let mut leaked = Vec::new();
    while started < starts {
        let next = starts.min(started + AT_ONCE);
        let before = cluster.arrived(OURS, "listener").unwrap();
        run(&cluster, &senders(&nodes, "sender", &script, started..next));
        let more = cluster.arrived(OURS, "listener").unwrap() - before;
        if more > 0 {
            leaked.push((started..next, more));
        }
        started = next;
    }
    let rewrites: Vec<String> = writers.into_iter().map(|writer| writer.stop().unwrap()).collect();
    // then
    println!(
        "{started} starts, {heard} packets of who was not denied, rewrites of the configuration {rewrites:?}"
    );
    assert!(rewrites.iter().all(|count| count.trim().parse::<usize>().unwrap() > 3), "{rewrites:?}");
    assert!(leaked.is_empty(), "packets arrived: {leaked:?}");
    cluster.delete_namespaces(&[OURS]).unwrap();
}
