#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::*;

/// As containerd hands it over: two interfaces on the host, one in the sandbox.
const INPUT: &str = r#"{
  "cniVersion": "VERSION", "name": "pods", "type": "portcullis-cni",
  "runDir": "/run/elsewhere", "timeoutSeconds": 7, "whenUnavailable": "allow",
  "prevResult": {"cniVersion": "VERSION", "z": 1.50, "a":  [12345678901234567890],
    "interfaces": [{"name": "cni0", "mac": "02:00:00:00:00:01"}, {"name": "veth1"},
      {"name": "eth0", "mac": "0a:58:0a:f4:00:05", "sandbox": "/var/run/netns/x"}],
    "ips": [{"version": "4", "interface": 2, "address": "10.244.0.5/24", "gateway": "10.244.0.1"},
      {"interface": 0, "address": "10.244.0.1/24"}, {"address": "fd00::5/64"}],
    "routes": [{"dst": "0.0.0.0/0"}]}
}"#;

fn conf(version: &str) -> Conf {
    Conf::read(&INPUT.replace("VERSION", version)).unwrap()
}

#[test]
fn every_version_that_is_spoken_is_read_and_others_are_refused() {
    for version in VERSIONS {
        let conf = conf(version);
        assert_eq!((conf.version.as_str(), conf.name.as_str()), (version, "pods"));
        assert_eq!(conf.run_dir, PathBuf::from("/run/elsewhere"));
        assert_eq!((conf.timeout, conf.when_unavailable), (Duration::from_secs(7), WhenUnavailable::Allow));
    }
    for version in ["0.1.0", "0.2.0", "0.3.0", "2.0.0", ""] {
        let error = Conf::read(&INPUT.replace("VERSION", version)).unwrap_err();
        assert_eq!(error.code, Code::IncompatibleVersion, "{version}");
    }
}

#[test]
fn the_result_before_keeps_its_bytes() {
    let conf = conf("1.0.0");
    let raw = conf.previous.as_ref().unwrap().get();
    assert!(raw.contains(r#""z": 1.50, "a":  [12345678901234567890]"#), "{raw}");
    assert!(INPUT.replace("VERSION", "1.0.0").contains(raw));
}

#[test]
fn host_interfaces_and_the_sandbox_s_addresses_are_told_apart() {
    let previous = conf("0.4.0").previous().unwrap();
    assert_eq!(previous.on_host().collect::<Vec<_>>(), ["cni0", "veth1"]);
    let addresses: Vec<IpAddr> = vec!["10.244.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
    assert_eq!(previous.addresses("eth0").unwrap(), addresses);
    // The one that names no interface is all that is left.
    assert_eq!(previous.addresses("net1").unwrap(), addresses[1..]);
}

#[test]
fn a_result_without_addresses_or_none_at_all_is_refused() {
    let read = |previous: &str| {
        Conf::read(&format!(r#"{{"cniVersion":"1.1.0","name":"n","prevResult":{previous}}}"#)).unwrap()
    };
    let empty = read(r#"{"interfaces":[]}"#).previous().unwrap();
    assert_eq!(empty.addresses("eth0").unwrap_err().code, Code::NotEnforceable);
    let garbled = read(r#"{"ips":[{"address":"ten"}]}"#).previous().unwrap();
    assert_eq!(garbled.addresses("eth0").unwrap_err().code, Code::Undecodable);
    assert_eq!(read("null").previous().unwrap_err().code, Code::InvalidConfiguration);
    assert_eq!(read("[1]").previous().unwrap_err().code, Code::Undecodable);
    let none = Conf::read(r#"{"cniVersion":"1.1.0","name":"n"}"#).unwrap();
    assert_eq!(none.previous().unwrap_err().code, Code::InvalidConfiguration);
}

#[test]
fn what_is_not_said_closes_and_what_cannot_be_read_fails() {
    let conf = Conf::read(r#"{"cniVersion":"1.0.0","name":"n","ipam":{},"runtimeConfig":{}}"#).unwrap();
    assert_eq!(conf.when_unavailable, WhenUnavailable::Deny);
    assert_eq!((conf.run_dir, conf.timeout), (PathBuf::from("/run/portcullis"), DEFAULT_TIMEOUT));
    for field in [
        r#""whenUnavailable":"Allow""#,
        r#""whenUnavailable":true"#,
        r#""timeoutSeconds":0"#,
        r#""timeoutSeconds":"10""#,
        r#""timeoutSeconds":121"#,
        r#""runDir":"run""#,
        r#""runDir":1"#,
    ] {
        let error = Conf::read(&format!(r#"{{"cniVersion":"1.0.0","name":"n",{field}}}"#)).unwrap_err();
        assert_eq!(error.code, Code::InvalidConfiguration, "{field}");
        assert!(!error.remedy.is_empty());
    }
    for text in ["", "[]", "{", r#"{"cniVersion":1}"#] {
        assert_eq!(Conf::read(text).unwrap_err().code, Code::Undecodable, "{text}");
    }
}

#[test]
fn pods_are_named_by_the_runtime() {
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=x;K8S_POD_UID=u";
    let pod = pod_name(args).unwrap();
    assert_eq!((pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_deref()), ("shop", "web-0", Some("u")));
    assert_eq!(pod_name("K8S_POD_NAMESPACE=a;K8S_POD_NAME=b").unwrap().uid, None);
    for args in ["", "K8S_POD_NAME=b", "K8S_POD_NAMESPACE=a;K8S_POD_NAME=", "K8S_POD_NAMESPACE"] {
        assert_eq!(pod_name(args).unwrap_err().code, Code::InvalidEnvironment, "{args}");
    }
}

#[test]
fn attachments_that_are_valid_are_read() {
    let text = r#"{"cniVersion":"1.1.0","name":"n",
        "cni.dev/valid-attachments":[{"containerID":"c1","ifname":"eth0"},{"containerID":"c2","ifname":"eth0"}]}"#;
    let valid = Conf::read(text).unwrap().valid.unwrap();
    assert_eq!(valid.iter().map(|one| one.container.as_str()).collect::<Vec<_>>(), ["c1", "c2"]);
}
