//! What each verb's `--help` ends with: commands as somebody would type them.

use crate::verbs;

pub(super) const AGENT: &str = "\
Examples:
  portcullis agent --source manifests/
  portcullis agent --source manifests/ --hook clsact --node-name worker-1
  portcullis agent --source kube --node-name worker-1 --kubeconfig /etc/kubernetes/admin.conf
  portcullis agent --config /etc/portcullis/agent.yaml --print-config";

pub(super) const EXPLAIN: &str = "\
Examples:
  portcullis explain shop/web-0 shop/db-0 TCP/5432
  portcullis explain world shop/web-0 TCP/443 -o json
  portcullis explain shop/web-0 svc/shop/db:5432
  portcullis explain shop/web-0 svc/kube-system/kube-dns:53 UDP
  portcullis explain -n shop web-0 db-0 TCP/5432 --source manifests/";

pub(super) const MATRIX: &str = "\
Examples:
  portcullis matrix TCP/80 UDP/53
  portcullis matrix --source manifests/ -o json
  portcullis matrix TCP/80 --to svc/shop/db:5432 --to svc/kube-system/kube-dns:53/UDP
  portcullis matrix TCP/443 --kernel --family ipv6";

pub(super) const OBSERVE: &str = "\
Examples:
  portcullis observe --last 100
  portcullis observe -f --verdict deny --pod shop/web-0
  portcullis observe -f --policy HostPolicy/exporter
  portcullis observe -f -o json --count 100";

pub(super) const STATUS: &str = "\
Examples:
  portcullis status
  portcullis status -o json";

pub(super) const WAIT: &str = "\
Examples:
  portcullis wait policy shop/web-allow
  portcullis wait policy shop/web-allow --timeout 2m";

pub(super) const ENDPOINTS: &str = "\
Examples:
  portcullis endpoints
  portcullis endpoints -n shop -o json";

pub(super) const POLICIES: &str = "\
Examples:
  portcullis policies
  portcullis policies shop/web-allow
  portcullis policies HostPolicy/exporter
  portcullis policies lint manifests/";

pub(super) const PREFLIGHT: &str = "\
Examples:
  portcullis preflight
  portcullis preflight --mark-mask 0x3ffc
  portcullis preflight --hook tcx --bpffs /sys/fs/bpf -o json";

pub(super) const LINT: &str = "\
Examples:
  portcullis policies lint manifests/
  portcullis policies lint manifests/ -o json";

pub(super) const HOST_FIREWALL: &str = "\
Examples:
  portcullis host-firewall off
  portcullis host-firewall status -o json";

pub(super) const CLEANUP: &str = "\
Examples:
  portcullis cleanup
  portcullis cleanup --run-dir /run/portcullis --bpffs /sys/fs/bpf";

pub(super) const CNI: &str = "\
Examples:
  portcullis cni install --bin-dir /opt/cni/bin --conf-dir /etc/cni/net.d
  portcullis cni remove";

pub(super) const COMPLETIONS: &str = "\
Examples:
  portcullis completions bash > /usr/share/bash-completion/completions/portcullis
  portcullis completions zsh > /usr/share/zsh/site-functions/_portcullis";

pub(super) const MAN: &str = "\
Examples:
  portcullis man explain | man -l -
  portcullis man --out /usr/local/share/man/man1";

/// With every reason that a verdict can have.
pub(super) fn explain() -> String {
    format!("{EXPLAIN}\n\n{}", verbs::explain::reasons_help())
}
