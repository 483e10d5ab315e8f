//! Which interface of the node leads to a container's: the other end of its veth pair. What the primary plugin says
//! is held against what the kernel says.

use std::fs::File;
use std::io;
use std::path::Path;
use std::thread;

use nix::sched::{CloneFlags, setns};

use super::conf::Previous;
use super::error::{CniError, Code};
use crate::attach::discover::{link, link_named};
use crate::attach::{Interface, Mac};

/// The host-side interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSide {
    /// Its index.
    pub interface: u32,
    /// Its name.
    pub name: String,
    /// The hardware address of the other end, the pod's.
    pub station: Option<Mac>,
}

/// Finds the host side of an interface in a network namespace: among the interfaces that the primary plugin says it
/// made on the host, else by what the kernel says is the other end.
pub fn host_side(previous: &Previous, netns: &Path, ifname: &str) -> Result<HostSide, CniError> {
    let inside = in_netns(netns, || link_named(ifname)).map_err(|error| {
        CniError::new(
            Code::InputOutput,
            format!("{ifname} in {}: {error}", netns.display()),
            "look at what the plugin before portcullis-cni made there",
        )
    })?;
    let named: Vec<Interface> = previous.on_host().filter_map(|name| link_named(name).ok()).collect();
    let by_kernel = inside.peer.as_ref().and_then(|peer| link(peer.index).ok());
    let found = choose(&inside, &named, by_kernel.as_ref());
    found
        .map(|host| HostSide { interface: host.index, name: host.name.clone(), station: inside.mac })
        .ok_or_else(|| {
            CniError::new(
                Code::NotEnforceable,
                format!(
                    "{ifname} in {} has no other end on the node ({})",
                    netns.display(),
                    inside.kind.as_deref().unwrap_or("no virtual device")
                ),
                "portcullis enforces at the node's end of veth pairs: use a primary plugin that makes them \
                 (bridge, ptp, kindnet, flannel)",
            )
        })
}

/// The end on the host, of what the primary plugin named or else of what the kernel calls the other end. Both ends have
/// to name each other.
fn choose<'a>(
    inside: &Interface,
    named: &'a [Interface],
    by_kernel: Option<&'a Interface>,
) -> Option<&'a Interface> {
    let other_end = inside.peer.as_ref()?.index;
    let is_it = |host: &&Interface| {
        host.index == other_end
            && host.is_veth()
            && host.peer.as_ref().is_some_and(|peer| peer.index == inside.index)
    };
    named.iter().find(is_it).or_else(|| by_kernel.filter(is_it))
}

/// Does something in a network namespace, on a thread that ends there.
fn in_netns<T: Send>(netns: &Path, what: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let file = File::open(netns)?;
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            setns(&file, CloneFlags::CLONE_NEWNET)?;
            what()
        });
        worker.join().unwrap_or_else(|_| Err(io::Error::other("the thread that looked there failed")))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::attach::{Lead, Peer};

    fn device(index: u32, kind: &str, peer: u32) -> Interface {
        Interface {
            index,
            name: format!("dev{index}"),
            mac: None,
            arphrd: 1,
            kind: Some(kind.to_owned()),
            master: None,
            peer: (peer > 0).then_some(Peer { index: peer, namespace: Some(0) }),
            lead: Lead::Route,
            station: None,
        }
    }

    #[test]
    fn of_a_bridge_and_a_veth_the_veth_is_chosen() {
        let inside = device(2, "veth", 40);
        let named = [device(11, "bridge", 0), device(40, "veth", 2)];
        assert_eq!(choose(&inside, &named, None).unwrap().index, 40);
    }

    #[test]
    fn what_the_primary_names_wrongly_the_kernel_knows() {
        let inside = device(2, "veth", 40);
        // Another pod's: its other end has the same index, in another namespace.
        let named = [device(41, "veth", 2)];
        let right = device(40, "veth", 2);
        assert_eq!(choose(&inside, &named, Some(&right)).unwrap().index, 40);
        assert_eq!(choose(&inside, &[], Some(&right)).unwrap().index, 40);
    }

    #[test]
    fn what_is_no_pair_with_the_node_has_no_host_side() {
        assert_eq!(choose(&device(2, "macvlan", 0), &[device(40, "veth", 2)], None), None);
        // Both in pods: what has the other end's index here is somebody else's.
        assert_eq!(choose(&device(2, "veth", 40), &[], Some(&device(40, "veth", 7))), None);
        assert_eq!(choose(&device(2, "veth", 40), &[], Some(&device(40, "bridge", 0))), None);
    }
}
