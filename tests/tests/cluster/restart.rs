//! Agents that are replaced, killed and evicted while connections are made: what is allowed goes on, what is denied
//! stays so. `PORTCULLIS_UPHEAVALS=N` goes on for so many rounds.

use portcullis_oracle::{Family, Traffic};
use portcullis_tests::cluster::probe::{Truth, agree};
use portcullis_tests::cluster::scene::{Going, count, datagrams, idle, pod, policy};
use portcullis_tests::cluster::{Cluster, DEADLINE, NAMESPACE, server, until};
use serde_json::{Value, json};

const OURS: &str = "pc-restart";
/// In the gate.
const UPHEAVALS: usize = 1;

/// A client's shell: one connection held over all, on which a request is made in each round; new connections that are
/// allowed, and attempts that are denied. It prints a line a round: the three outcomes. A line on its stdin ends it, as
/// does the end of that.
fn script(open: &str, closed: &str) -> String {
    format!(
        "exec 3<>/dev/tcp/{open}/80 || exit 1\n\
         while read -r -t 0.2 stop; [ $? -gt 128 ]; do\n\
           held=lost; new=lost; denied=dropped\n\
           printf 'GET /hostname HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' >&3\n\
           while read -r -t 10 -u 3 line; do line=${{line%$'\\r'}}; [ -z \"$line\" ] && break; \
             case $line in Content-Length:*) length=${{line#*: }};; HTTP/1.1\\ 200*) held=kept;; esac; done\n\
           read -r -N \"$length\" -t 10 -u 3 body\n\
           /bin/busybox timeout 10 /bin/bash -c 'exec 4<>/dev/tcp/{open}/80' 2>/dev/null && new=answered\n\
           /bin/busybox timeout 1 /bin/bash -c 'exec 4<>/dev/tcp/{closed}/80' 2>/dev/null && denied=answered\n\
           echo $held $new $denied\n\
         done\n"
    )
}

/// Sends datagrams, as fast as a shell does, to who lets nobody in; says how many.
fn knocker(closed: &[String]) -> String {
    let sends = datagrams(closed);
    format!(
        "n=0; while read -r -t 0.01 stop; [ $? -gt 128 ]; do {sends} n=$((n + 1)); done 2>/dev/null; echo $n"
    )
}

/// What goes on while agents end.
struct Load<'a> {
    cluster: &'a Cluster,
    clients: Vec<(String, Going)>,
    knockers: Vec<Going>,
    before: u64,
}

impl<'a> Load<'a> {
    /// A client on each node, a server that lets them in and one that does not.
    fn start(cluster: &'a Cluster) -> Self {
        let nodes = cluster.nodes().unwrap();
        let serving = json!([server("serve", 80, &json!([{"containerPort": 80}]))]);
        let open = json!({"podSelector": {"matchLabels": {"app": "open"}},
            "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": 80}]}]});
        let mut objects = vec![
            policy(OURS, "deny", &json!({"podSelector": {}, "policyTypes": ["Ingress"]})),
            policy(OURS, "open", &open),
            pod(OURS, "open", &nodes[0], &json!({"app": "open"}), &serving),
            pod(OURS, "closed", nodes.last().unwrap(), &json!({"app": "closed"}), &serving),
        ];
        let clients: Vec<String> = (0..nodes.len()).map(|n| format!("client-{n}")).collect();
        for (client, node) in clients.iter().zip(&nodes) {
            objects.push(pod(OURS, client, node, &json!({"app": "client"}), &idle()));
        }
        cluster.stage(OURS, &objects).unwrap();
        let truth = Truth::read(cluster).unwrap();
        let pods: Vec<String> = ["open", "closed"]
            .iter()
            .map(|pod| format!("{OURS}/{pod}"))
            .chain(clients.iter().map(|client| format!("{OURS}/{client}")))
            .collect();
        let probes: Vec<_> = truth
            .probes(&pods, &[Traffic::tcp(80)], Family::Ipv4)
            .into_iter()
            .filter(|probe| probe.from.contains("client") && !probe.to.contains("client"))
            .collect();
        agree(cluster, &truth, &probes).unwrap();
        let (open, closed) =
            (cluster.addresses(OURS, "open").unwrap(), cluster.addresses(OURS, "closed").unwrap());
        let before = cluster.arrived(OURS, "closed").unwrap();
        let going = |script: &str, client: &str| cluster.in_pod(OURS, client, script).unwrap();
        let script = script(&open[0], &closed[0]);
        Self {
            cluster,
            knockers: clients.iter().map(|client| going(&knocker(&closed), client)).collect(),
            clients: clients.iter().map(|client| (client.clone(), going(&script, client))).collect(),
            before,
        }
    }

    /// Nothing that is allowed was lost, and nothing arrived that is denied.
    fn end(self) {
        let knocks: Vec<String> =
            self.knockers.into_iter().map(|going| going.stop().unwrap().trim().to_owned()).collect();
        for (client, going) in self.clients {
            let said = going.stop().unwrap();
            let rounds = said.lines().count();
            let wrong: Vec<&str> = said.lines().filter(|line| *line != "kept answered dropped").collect();
            println!("{client}: {rounds} rounds");
            assert!(rounds >= 2, "{client} said {said}");
            assert!(wrong.is_empty(), "{client}: of {rounds} rounds these went wrong: {wrong:?}");
        }
        println!("datagrams of each client to who lets nobody in: {knocks:?}");
        assert!(knocks.iter().all(|count| count.parse::<u64>().unwrap() > 10), "{knocks:?}");
        // Their SYNs and datagrams are counted where they arrive.
        let arrived = self.cluster.arrived(OURS, "closed").unwrap() - self.before;
        assert_eq!(arrived, 0, "packets arrived at who lets nobody in");
        self.cluster.delete_namespaces(&[OURS]).unwrap();
    }
}

fn roll_out(cluster: &Cluster) {
    let before = cluster.agents().unwrap();
    cluster.kubectl(&["-n", NAMESPACE, "rollout", "restart", "daemonset/portcullis"]).unwrap();
    cluster.rolled_out().unwrap();
    let after = cluster.agents().unwrap();
    assert!(after.iter().all(|agent| !before.contains(agent)), "no agent was replaced: {before:?} {after:?}");
}

/// Kills each agent, and waits until it runs again.
fn kill(cluster: &Cluster) {
    for agent in cluster.agents().unwrap() {
        let restarts = || -> anyhow::Result<u64> {
            let pod = cluster.get(&["-n", NAMESPACE, "pod", &agent.pod])?;
            let count = pod.pointer("/status/containerStatuses/0/restartCount").and_then(Value::as_u64);
            Ok(count.unwrap_or_default())
        };
        let before = restarts().unwrap();
        cluster.kill_agent(&agent.node).unwrap();
        let again = until(DEADLINE, || Ok((restarts()? > before).then_some(()))).unwrap();
        assert!(again.is_some(), "{} was not started again", agent.pod);
    }
    cluster.rolled_out().unwrap();
}

/// Evicts each agent, and waits for the next.
fn evict(cluster: &Cluster) {
    for agent in cluster.agents().unwrap() {
        cluster.evict(&agent.pod).unwrap();
        let next = until(DEADLINE, || {
            let agents = cluster.agents()?;
            Ok((agents.iter().any(|other| other.node == agent.node) && !agents.contains(&agent))
                .then_some(()))
        });
        assert!(next.unwrap().is_some(), "nobody came after {}", agent.pod);
        cluster.rolled_out().unwrap();
    }
}

#[test]
fn a_rollout_under_load_loses_nothing_that_is_allowed_and_lets_nothing_through() {
    let Some(cluster) = Cluster::of_environment() else { return };
    cluster.install().unwrap();
    let load = Load::start(&cluster);
    // when the agents are replaced while the clients go on
    std::thread::sleep(std::time::Duration::from_secs(3));
    roll_out(&cluster);
    // then
    load.end();
}

#[test]
fn agents_that_are_killed_evicted_and_replaced_lose_nothing_and_let_nothing_through() {
    let Some(cluster) = Cluster::of_environment() else { return };
    cluster.install().unwrap();
    let rounds = count("PORTCULLIS_UPHEAVALS", UPHEAVALS);
    let load = Load::start(&cluster);
    for round in 0..rounds {
        // The kubelet lets a container that ends again and again wait: one kill a pod.
        kill(&cluster);
        evict(&cluster);
        println!("round {round}: killed and evicted");
        if round % 2 == 1 {
            kill(&cluster);
            roll_out(&cluster);
        }
    }
    println!("{rounds} rounds");
    load.end();
}
