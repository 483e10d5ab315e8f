//! The bytes of an image of one layer, by the OCI image specification. Pure: it reads and writes no file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Not compressed: the layer's digest is then the digest of its content, whatever a compressor's version is.
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// What containerd takes for the image's name when it imports an archive.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A file of the image.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Where, without a slash at its beginning.
    pub(crate) path: &'static str,
    pub(crate) mode: u32,
    pub(crate) content: Vec<u8>,
}

/// What an image says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Meta {
    /// As Go spells it.
    pub(crate) arch: String,
    /// With its tag.
    pub(crate) name: String,
    pub(crate) tag: String,
    pub(crate) entrypoint: String,
    /// RFC 3339.
    pub(crate) created: Option<String>,
    pub(crate) labels: Vec<(String, String)>,
}

/// An image.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// By their path in the layout.
    files: BTreeMap<String, Vec<u8>>,
    digest: String,
}

impl Image {
    pub(crate) fn new(entries: &[Entry], meta: &Meta) -> Result<Self> {
        let mut files = BTreeMap::new();
        let layer = blob(&mut files, layer(entries)?);
        let config = blob(&mut files, serde_json::to_vec(&config(meta, &layer.digest))?);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(CONFIG),
            "layers": [layer.descriptor(LAYER)],
        });
        let manifest = blob(&mut files, serde_json::to_vec(&manifest)?);
        let mut described = manifest.descriptor(MANIFEST);
        if let Some(fields) = described.as_object_mut() {
            let annotations = json!({CONTAINERD_NAME: meta.name, REF_NAME: meta.tag});
            fields.insert("annotations".to_owned(), annotations);
            let platform = json!({"architecture": meta.arch, "os": "linux"});
            fields.insert("platform".to_owned(), platform);
        }
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [described]});
        files.insert("index.json".to_owned(), serde_json::to_vec(&index)?);
        files.insert("oci-layout".to_owned(), LAYOUT.as_bytes().to_vec());
        // What `docker load` reads, and older tools that know no index.
        let docker = json!([{"Config": config.path(), "RepoTags": [meta.name], "Layers": [layer.path()]}]);
        files.insert("manifest.json".to_owned(), serde_json::to_vec(&docker)?);
        Ok(Self { files, digest: manifest.digest })
    }

    /// The digest of the manifest, by which registries and nodes know the image.
    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }

    /// The layout's files by their paths.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.files.iter().map(|(path, content)| (path.as_str(), content.as_slice()))
    }

    /// The layout as one file.
    pub(crate) fn archive(&self) -> Result<Vec<u8>> {
        let files = self.files.iter().map(|(path, content)| (path.as_str(), 0o644, content.as_slice()));
        archive(files)
    }
}

/// What is named by its digest.
struct Blob {
    digest: String,
    size: usize,
}

impl Blob {
    fn path(&self) -> String {
        format!("blobs/{}", self.digest.replace(':', "/"))
    }

    fn descriptor(&self, media: &str) -> Value {
        json!({"mediaType": media, "digest": self.digest, "size": self.size})
    }
}

fn blob(files: &mut BTreeMap<String, Vec<u8>>, content: Vec<u8>) -> Blob {
    let blob = Blob { digest: digest(&content), size: content.len() };
    files.insert(blob.path(), content);
    blob
}

fn digest(content: &[u8]) -> String {
    Sha256::digest(content).iter().fold("sha256:".to_owned(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn config(meta: &Meta, layer: &str) -> Value {
    let labels: BTreeMap<_, _> = meta.labels.iter().cloned().collect();
    let mut config = json!({
        "architecture": meta.arch,
        "os": "linux",
        "config": {
            "Entrypoint": [meta.entrypoint],
            // For `kubectl exec ... -- portcullis status`.
            "Env": ["PATH=/usr/bin"],
            "Labels": labels,
        },
        "rootfs": {"type": "layers", "diff_ids": [layer]},
    });
    if let (Some(fields), Some(created)) = (config.as_object_mut(), &meta.created) {
        fields.insert("created".to_owned(), json!(created));
        let step = json!([{"created": created, "created_by": "cargo xtask image"}]);
        fields.insert("history".to_owned(), step);
    }
    config
}

fn layer(entries: &[Entry]) -> Result<Vec<u8>> {
    archive(entries.iter().map(|entry| (entry.path, entry.mode, entry.content.as_slice())))
}

/// A tar of files and the directories that they lie in, all root's and of no time.
fn archive<'a>(files: impl Iterator<Item = (&'a str, u32, &'a [u8])>) -> Result<Vec<u8>> {
    let mut builder = Builder::new(Vec::new());
    let mut made = BTreeSet::new();
    for (path, mode, content) in files {
        for (end, _) in path.match_indices('/') {
            let dir = path.get(..=end).unwrap_or_default();
            if made.insert(dir.to_owned()) {
                append(&mut builder, dir, EntryType::Directory, 0o755, &[])?;
            }
        }
        append(&mut builder, path, EntryType::Regular, mode, content)?;
    }
    builder.into_inner().context("closing an archive")
}

fn append(
    builder: &mut Builder<Vec<u8>>,
    path: &str,
    kind: EntryType,
    mode: u32,
    content: &[u8],
) -> Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(u64::try_from(content.len())?);
    builder.append_data(&mut header, path, content).with_context(|| format!("archiving {path}"))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn image() -> Image {
        let entries = [
            Entry { path: "usr/bin/portcullis", mode: 0o755, content: vec![7; 1000] },
            Entry { path: "usr/share/doc/sbom", mode: 0o644, content: b"{}".to_vec() },
        ];
        let meta = Meta {
            arch: "amd64".to_owned(),
            name: "localhost/portcullis:1.2.3".to_owned(),
            tag: "1.2.3".to_owned(),
            entrypoint: "/usr/bin/portcullis".to_owned(),
            created: Some("2026-01-02T03:04:05Z".to_owned()),
            labels: vec![("org.opencontainers.image.version".to_owned(), "1.2.3".to_owned())],
        };
        Image::new(&entries, &meta).unwrap()
    }

    fn unpacked(archive: &[u8]) -> BTreeMap<String, (u32, u64, Vec<u8>)> {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_string_lossy().into_owned();
            let (mode, time) = (entry.header().mode().unwrap(), entry.header().mtime().unwrap());
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            assert!(files.insert(name, (mode, time, content)).is_none(), "a path twice");
        }
        files
    }

    fn json(files: &BTreeMap<String, (u32, u64, Vec<u8>)>, path: &str) -> Value {
        serde_json::from_slice(&files[path].2).unwrap()
    }

    fn path_of(descriptor: &Value) -> String {
        format!("blobs/{}", descriptor["digest"].as_str().unwrap().replace(':', "/"))
    }

    #[test]
    fn every_descriptor_names_a_blob_by_its_size_and_digest() {
        // given
        let files = unpacked(&image().archive().unwrap());
        // when followed from the index
        let index = json(&files, "index.json");
        let manifest_at = &index["manifests"][0];
        let manifest = json(&files, &path_of(manifest_at));
        let layer_at = &manifest["layers"][0];
        for descriptor in [manifest_at, &manifest["config"], layer_at] {
            let content = &files[&path_of(descriptor)].2;
            // then
            assert_eq!(descriptor["digest"], digest(content).as_str());
            assert_eq!(descriptor["size"], content.len());
        }
        let config = json(&files, &path_of(&manifest["config"]));
        assert_eq!(config["rootfs"]["diff_ids"][0], layer_at["digest"]);
        assert_eq!(config["config"]["Labels"]["org.opencontainers.image.version"], "1.2.3");
        assert_eq!(config["config"]["Entrypoint"][0], "/usr/bin/portcullis");
        assert_eq!(manifest_at["annotations"][CONTAINERD_NAME], "localhost/portcullis:1.2.3");
        assert_eq!(manifest_at["annotations"][REF_NAME], "1.2.3");
        assert_eq!(manifest_at["digest"], image().digest());
        let layer = unpacked(&files[&path_of(layer_at)].2);
        let names: Vec<&str> = layer.keys().map(String::as_str).collect();
        let parents = ["usr/", "usr/bin/", "usr/bin/portcullis", "usr/share/", "usr/share/doc/"];
        assert_eq!(names[..5], parents);
        assert_eq!(layer["usr/bin/portcullis"], (0o755, 0, vec![7; 1000]));
    }

    #[test]
    fn the_same_content_is_the_same_bytes() {
        assert_eq!(image().archive().unwrap(), image().archive().unwrap());
        assert_eq!(
            digest(b"abc"),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "the example of FIPS 180-2"
        );
    }

    #[test]
    fn docker_s_list_names_the_same_blobs() {
        let files = unpacked(&image().archive().unwrap());
        let docker = json(&files, "manifest.json");
        assert!(files.contains_key(docker[0]["Config"].as_str().unwrap()));
        assert!(files.contains_key(docker[0]["Layers"][0].as_str().unwrap()));
        assert_eq!(docker[0]["RepoTags"][0], "localhost/portcullis:1.2.3");
    }
}
