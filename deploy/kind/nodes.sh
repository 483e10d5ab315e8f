#!/bin/sh
# Gives the nodes of a kind cluster what nodes elsewhere have: a CNI that connects pods (ptp, with a route to each other
# node's pods, as kindnet makes them) and a bpf file system. Pods reach each other and the nodes, and no address beyond:
# nothing here translates theirs.
# usage: nodes.sh [CLUSTER]   (default: portcullis; safe to repeat)
set -eu
cluster=${1:-portcullis}
nodes=$(kind get nodes --name "$cluster")

of_node() {
    kubectl --context "kind-$cluster" get node "$1" -o "jsonpath=$2"
}

for node in $nodes; do
    docker exec "$node" sh -c 'mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf'
    pods=$(of_node "$node" '{.spec.podCIDR}')
    docker exec -i "$node" sh -c 'cat > /etc/cni/net.d/10-ptp.conflist' <<EOF
{"cniVersion": "1.0.0", "name": "ptp", "plugins": [
  {"type": "ptp", "ipMasq": false,
   "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam", "routes": [{"dst": "0.0.0.0/0"}],
            "ranges": [[{"subnet": "$pods"}]]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
EOF
    address=$(of_node "$node" '{.status.addresses[?(@.type=="InternalIP")].address}')
    for other in $nodes; do
        [ "$other" = "$node" ] || docker exec "$other" ip route replace "$pods" via "$address"
    done
    echo "$node: pods $pods by $address"
done
