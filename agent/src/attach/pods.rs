//! Which cgroups of the node are whose: finds the one below which the kubelet puts pods, and in it each pod's, by the UID in its
//! name. Layouts of both of the kubelet's drivers (`pkg/kubelet/cm/cgroup_manager_linux.go` of Kubernetes): cgroupfs
//! (`kubepods/burstable/podUID`) and systemd (`kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_I_D.slice`), of
//! any class of service. Reads directories only.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// How deep below the node's root the pods' cgroup is looked for: in a node that is a container there is the runtime's, too.
const DEPTH: u32 = 4;
/// Cgroups that are looked at to find it.
const MOST_LOOKED_AT: usize = 16_384;
/// What the kubelet calls it, and how it ends where systemd has to name what it lies in.
const CGROUPFS: &str = "kubepods";
const SYSTEMD: &str = "kubepods.slice";
/// Between the class and the UID.
const POD: &str = "pod";

/// The cgroups of pods on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodCgroups {
    /// The one below which they are; 0: there is none.
    pub root: u64,
    /// By the UID that the kubelet knows the pod by, lower case.
    pub pods: BTreeMap<String, u64>,
    /// The directories in which pods' appear.
    pub directories: Vec<PathBuf>,
}

impl PodCgroups {
    /// Looks below a directory of cgroup2. A cgroup that goes meanwhile is left out.
    pub fn look(root: &Path) -> io::Result<Self> {
        let Some(top) = find(root)? else {
            return Ok(Self::default());
        };
        let mut found = Self { root: number(&top)?, ..Self::default() };
        found.within(&top)?;
        for class in children(&top)?.into_iter().filter(|dir| uid_of(dir).is_none()) {
            found.within(&class)?;
        }
        found.directories.sort();
        Ok(found)
    }

    fn within(&mut self, dir: &Path) -> io::Result<()> {
        for child in children(dir)? {
            if let (Some(uid), Ok(cgroup)) = (uid_of(&child), number(&child)) {
                self.pods.insert(uid, cgroup);
            }
        }
        self.directories.push(dir.to_owned());
        Ok(())
    }
}

/// The pods' cgroup, the uppermost, of several the first by name.
fn find(root: &Path) -> io::Result<Option<PathBuf>> {
    let mut level = vec![root.to_owned()];
    let mut left = MOST_LOOKED_AT;
    for _ in 0..DEPTH {
        let mut next = Vec::new();
        for dir in &level {
            next.extend(children(dir)?.into_iter().take(left));
            left = MOST_LOOKED_AT.saturating_sub(next.len());
        }
        if let Some(found) = next.iter().find(|dir| is_pods(dir)) {
            return Ok(Some(found.clone()));
        }
        level = next;
    }
    Ok(None)
}

fn is_pods(dir: &Path) -> bool {
    dir.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
        name == CGROUPFS
            || name == SYSTEMD
            || name.strip_suffix(SYSTEMD).is_some_and(|head| head.ends_with('-'))
    })
}

/// Directories in one, by name; of one that is gone none.
fn children(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    Ok(found)
}

/// A cgroup's number in the kernel is that of its directory.
fn number(dir: &Path) -> io::Result<u64> {
    Ok(fs::metadata(dir)?.ino())
}

/// The UID in the name of a pod's cgroup. systemd's names separate levels by dashes, so the UID has underscores there.
fn uid_of(dir: &Path) -> Option<String> {
    let name = dir.file_name()?.to_str()?;
    let uid = match name.strip_suffix(".slice") {
        Some(slice) => slice.rsplit_once('-')?.1.strip_prefix(POD)?.replace('_', "-"),
        None => name.strip_prefix(POD)?.to_owned(),
    };
    let is_uid = uid.len() >= 8 && uid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    is_uid.then(|| uid.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f3a9c1e-1111-4222-8333-0123456789ab";

    #[test]
    fn both_drivers_name_pods_by_their_uid() {
        let of = |name: &str| uid_of(Path::new(name));
        assert_eq!(of("/x/pod0f3a9c1e-1111-4222-8333-0123456789ab").as_deref(), Some(UID));
        let slice = "kubepods-burstable-pod0f3a9c1e_1111_4222_8333_0123456789ab.slice";
        assert_eq!(of(slice).as_deref(), Some(UID));
        assert_eq!(of("kubepods-pod0f3a9c1e_1111_4222_8333_0123456789ab.slice").as_deref(), Some(UID));
        let nested = "kubelet-kubepods-besteffort-pod0f3a9c1e_1111_4222_8333_0123456789ab.slice";
        assert_eq!(of(nested).as_deref(), Some(UID));
        // A static pod's is the hash of its file.
        assert_eq!(
            of("kubepods-podd41d8cd98f00b204e9800998ecf8427e.slice").as_deref(),
            Some("d41d8cd98f00b204e9800998ecf8427e")
        );
        for other in
            ["kubepods.slice", "kubepods-burstable.slice", "burstable", "podman", "pods", "system.slice"]
        {
            assert_eq!(of(other), None, "{other}");
        }
    }

    const OTHER: &str = "dddddddd-1111-4222-8333-0123456789ab";
    const THIRD: &str = "eeeeeeee-1111-4222-8333-0123456789ab";

    #[test]
    fn the_layout_of_systemd_is_read_wherever_it_lies() {
        for (below, pods) in [
            ("", "kubepods"),
            // cgroup2 beside version 1, where the agent looks into `unified` alone.
            ("unified", "kubepods"),
            // A node that is a container (kind).
            ("", "kubelet.slice/kubelet-kubepods"),
        ] {
            let dir = crate::scratch::Scratch::new();
            let make = |path: &str| fs::create_dir_all(dir.path().join(path)).unwrap();
            let root = dir.path().join(below);
            make("memory/kubepods/burstable/podffffffff-1111-4222-8333-0123456789ab");
            fs::create_dir_all(root.join("system.slice/kubelet.service")).unwrap();
            let name = pods.rsplit('/').next().unwrap();
            let slice = |class: &str, uid: &str| {
                let uid = uid.replace('-', "_");
                match class {
                    "" => format!("{pods}.slice/{name}-pod{uid}.slice"),
                    class => format!("{pods}.slice/{name}-{class}.slice/{name}-{class}-pod{uid}.slice"),
                }
            };
            let all = [("burstable", UID), ("besteffort", OTHER), ("", THIRD)];
            for (class, uid) in all {
                fs::create_dir_all(root.join(slice(class, uid)).join("cri-containerd-c.scope")).unwrap();
            }
            if below.is_empty() {
                // Version 1 is mounted beside cgroup2, never in it.
                fs::remove_dir_all(dir.path().join("memory")).unwrap();
            }
            let found = PodCgroups::look(&root).unwrap();
            assert_eq!(found.root, number(&root.join(format!("{pods}.slice"))).unwrap(), "{below} {pods}");
            let expected: BTreeMap<String, u64> = all
                .map(|(class, uid)| (uid.to_owned(), number(&root.join(slice(class, uid))).unwrap()))
                .into();
            assert_eq!(found.pods, expected, "{below} {pods}");
            assert_eq!(found.directories.len(), 3, "{:?}", found.directories);
        }
    }

    #[test]
    fn the_layout_of_cgroupfs_is_read() {
        let dir = crate::scratch::Scratch::new();
        let make = |path: &str| fs::create_dir_all(dir.path().join(path)).unwrap();
        make("system.slice/kubelet.service");
        assert_eq!(PodCgroups::look(dir.path()).unwrap(), PodCgroups::default());
        make(&format!("a/kubepods/burstable/pod{UID}/container"));
        make(&format!("a/kubepods/pod{OTHER}"));
        let found = PodCgroups::look(dir.path()).unwrap();
        assert_eq!(found.root, number(&dir.path().join("a/kubepods")).unwrap());
        let names: Vec<&str> = found.pods.keys().map(String::as_str).collect();
        assert_eq!(names, [UID, OTHER]);
        assert_eq!(found.directories.len(), 2);
    }
}
