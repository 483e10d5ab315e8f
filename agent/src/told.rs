//! What the CNI plugin told of interfaces: whose each is, and its addresses. Known before the API server shows them
//! (`status.podIPs` come when the plugin has answered), kept over restarts, and believed until the source shows
//! addresses or the interface goes. Owns that memory; asks no kernel.
//!
//! An interface that was told of is closed until its pod is known, whoever else's address seems to be behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use portcullis_policy::model::{AddressesFrom, Cluster, ObjectKey, Pod};
use serde::{Deserialize, Serialize};

use crate::api::cni::{Attachment, Made};
use crate::attach::Mac;

/// Tells one life of the kernel from another: interface indices mean nothing in the next.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// An interface that was told of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// What the plugin said.
    pub made: Made,
    /// When, in seconds since the Unix epoch.
    pub since: i64,
}

impl Told {
    /// The pod.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(self.made.namespace.clone(), self.made.pod.clone())
    }

    /// Whether a pod of that name is the one that is meant: an earlier one of the same name has another UID.
    fn means(&self, key: &ObjectKey, pod: &Pod) -> bool {
        let same = |uid: &String| *uid == pod.uid || pod.static_uid.as_ref() == Some(uid);
        // Files need not say a UID; then the name is all there is.
        let unsaid = pod.uid == format!("manifest:{key}");
        pod.is_live() && pod.has_own_network() && (unsaid || self.made.uid.as_ref().is_none_or(same))
    }
}

/// What the file holds.
#[derive(Default, Serialize, Deserialize)]
struct Kept {
    boot: String,
    told: Vec<Told>,
}

/// A host-side interface that leads to a pod, as was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its index.
    pub interface: u32,
    /// Its name then.
    pub name: String,
    /// The pod's hardware address.
    pub station: Option<Mac>,
}

/// Which interfaces are whose, as was told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// Of pods that are known.
    pub of: BTreeMap<ObjectKey, Port>,
    /// Of pods that are not, and those that a newer one of the same pod took the place of.
    pub closed: BTreeMap<u32, String>,
}

impl Ports {
    /// All interfaces that were told of, with their names.
    pub fn all(&self) -> impl Iterator<Item = (u32, &str)> {
        let known = self.of.values().map(|port| (port.interface, port.name.as_str()));
        known.chain(self.closed.iter().map(|(interface, name)| (*interface, name.as_str())))
    }
}

/// Remembers what was told.
#[derive(Debug)]
pub struct Memory {
    path: PathBuf,
    boot: String,
    /// Oldest first.
    told: Vec<Told>,
    /// What was made of which objects last.
    over: Option<(Arc<Cluster>, Arc<Cluster>)>,
}

impl Memory {
    /// With what an earlier agent was told.
    #[must_use]
    pub fn open(path: PathBuf) -> Self {
        let boot = fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned();
        let kept = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice::<Kept>(&bytes).unwrap_or_else(|error| {
                tracing::error!(
                    "{}: {error}: interfaces of pods that show no address yet stay closed until they do",
                    path.display()
                );
                Kept::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Kept::default(),
            Err(error) => {
                tracing::error!("{}: {error}: make it readable and restart the agent", path.display());
                Kept::default()
            }
        };
        let told = if kept.boot == boot { kept.told } else { Vec::new() };
        Self { path, boot, told, over: None }
    }

    /// What was told, oldest first.
    #[must_use]
    pub fn told(&self) -> &[Told] {
        &self.told
    }

    /// What was told of an interface of a container.
    #[must_use]
    pub fn of(&self, attachment: &Attachment) -> Option<&Told> {
        self.told.iter().find(|one| one.made.attachment == *attachment)
    }

    /// Takes what is told now, at this time. An error means that a restart would forget it.
    pub fn take(&mut self, made: Made, since: i64) -> io::Result<()> {
        if self.told.iter().any(|one| one.made == made) {
            // Asked again, by a plugin whose agent was replaced.
            return self.keep();
        }
        self.told
            .retain(|one| one.made.attachment != made.attachment && one.made.interface != made.interface);
        self.told.push(Told { made, since });
        self.over = None;
        self.keep()
    }

    /// Forgets what is not wanted any more; true if there was some.
    pub fn retain(&mut self, wanted: impl FnMut(&Told) -> bool) -> bool {
        let before = self.told.len();
        self.told.retain(wanted);
        if self.told.len() == before {
            return false;
        }
        self.over = None;
        if let Err(error) = self.keep() {
            // What it says too much is of interfaces that are gone.
            tracing::warn!("{}: {error}", self.path.display());
        }
        true
    }

    fn keep(&self) -> io::Result<()> {
        let kept = Kept { boot: self.boot.clone(), told: self.told.clone() };
        let beside = self.path.with_extension("new");
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(&serde_json::to_vec(&kept)?)?;
        drop(file);
        fs::rename(&beside, &self.path)
    }

    /// The newest of what was told of each pod that is known.
    fn known<'a>(&'a self, cluster: &Cluster) -> BTreeMap<ObjectKey, &'a Told> {
        let mut known = BTreeMap::new();
        for told in &self.told {
            let key = told.key();
            if cluster.pods.get(&key).is_some_and(|pod| told.means(&key, pod)) {
                known.insert(key, told);
            }
        }
        known
    }

    /// Which interfaces are whose.
    #[must_use]
    pub fn ports(&self, cluster: &Cluster) -> Ports {
        let known = self.known(cluster);
        let open: BTreeSet<u32> = known.values().map(|told| told.made.interface).collect();
        let port =
            |made: &Made| Port { interface: made.interface, name: made.name.clone(), station: made.station };
        Ports {
            of: known.iter().map(|(key, told)| (key.clone(), port(&told.made))).collect(),
            closed: self
                .told
                .iter()
                .filter(|told| !open.contains(&told.made.interface))
                .map(|told| (told.made.interface, told.made.name.clone()))
                .collect(),
        }
    }

    /// The objects, where pods that show no address have those that were told. The same objects give the same result,
    /// by pointer, until something else is told.
    #[must_use]
    pub fn over(&mut self, cluster: &Arc<Cluster>) -> Arc<Cluster> {
        if let Some((of, made)) = &self.over
            && Arc::ptr_eq(of, cluster)
        {
            return Arc::clone(made);
        }
        let made = self.overlaid(cluster);
        self.over = Some((Arc::clone(cluster), Arc::clone(&made)));
        made
    }

    fn overlaid(&self, cluster: &Arc<Cluster>) -> Arc<Cluster> {
        let mut told = self.known(cluster);
        let shows_none = |pod: &Pod| pod.addresses.is_empty() || pod.addresses_from == AddressesFrom::MadeUp;
        told.retain(|key, _| cluster.pods.get(key).is_some_and(shows_none));
        if told.is_empty() {
            return Arc::clone(cluster);
        }
        let mut cluster = Cluster::clone(cluster);
        for (key, told) in told {
            if let Some(pod) = cluster.pods.get_mut(&key) {
                pod.addresses.clone_from(&told.made.addresses);
                pod.addresses_from = AddressesFrom::Status;
                // Whoever else shows the address had it before (S50).
                pod.start_time = pod.start_time.max(Some(told.since));
            }
        }
        Arc::new(cluster)
    }

    /// Where it is kept.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
#[path = "told_tests.rs"]
mod tests;
