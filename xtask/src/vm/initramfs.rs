//! The initramfs: busybox, the modules a test needs in the order in which they load, one program with its
//! libraries and data, and an `init` that mounts, loads, runs the program and switches the machine off.
//!
//! The libraries are this machine's, so that the program is the one of every other test: one that is linked
//! statically would compile all that it depends on a second time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};

use super::kernel::Kernel;
use crate::sh::{self, Unfit};

/// clsact and its filter, and the pods' interfaces. What they depend on is found.
const MODULES: [&str; 3] = ["sch_ingress", "cls_bpf", "veth"];

/// Services through IPVS, as kube-proxy makes them. A kernel may have none: the test says so.
/// `crc32c_generic` is what `libcrc32c`, on which connection tracking depends, looks for when it is loaded.
const WHERE_THERE: [&str; 6] = ["dummy", "crc32c_generic", "nf_conntrack", "nf_nat", "ip_vs", "ip_vs_rr"];

/// What goes in.
pub(crate) struct Content<'a> {
    /// The program, run as `/program`.
    pub(crate) program: &'a Path,
    /// Files, which keep their names, at the root.
    pub(crate) data: &'a [PathBuf],
    /// The program's arguments: plain words.
    pub(crate) arguments: &'a [String],
}

/// Writes the archive for a kernel below `dir`, and returns its path. Not compressed: without KVM unpacking
/// costs more than reading.
pub(crate) fn write(kernel: &Kernel, content: &Content<'_>, dir: &Path) -> Result<PathBuf> {
    let tree = dir.join(format!("initramfs-{}", kernel.release));
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("removing {}", tree.display()))?;
    }
    for sub in ["bin", "modules", "proc", "sys", "dev", "tmp", "run", "etc"] {
        let path = tree.join(sub);
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
    }
    let busybox = sh::find("busybox").ok_or_else(|| Unfit("no busybox: `cargo xtask setup vm`".into()))?;
    copy(&busybox, &tree.join("bin/busybox"))?;
    put_program(content.program, &tree)?;
    for file in content.data {
        let name = file.file_name().with_context(|| format!("{} is no file", file.display()))?;
        copy(file, &tree.join(name))?;
    }
    let modules = put_modules(&kernel.modules, &tree.join("modules"))?;
    let init = tree.join("init");
    fs::write(&init, init_script(&modules, content.arguments)).context("writing init")?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).context("making init executable")?;

    let archive = dir.join(format!("initramfs-{}.cpio", kernel.release));
    let mut pack = sh::command("sh");
    pack.args(["-c", "find . -print0 | cpio --null --create --format=newc --quiet > \"$0\""]).arg(&archive);
    sh::output(pack.current_dir(&tree))?;
    Ok(archive)
}

/// The program without its debug information, and the libraries that its loader looks for where they are here.
fn put_program(program: &Path, tree: &Path) -> Result<()> {
    let copied = tree.join("program");
    copy(program, &copied)?;
    if let Some(strip) = sh::find("strip") {
        sh::output(sh::command(strip).arg("--strip-debug").arg(&copied))?;
    }
    // Fails for a static program, which needs none.
    let libraries = sh::output(sh::command("ldd").arg(program)).unwrap_or_default();
    for library in libraries.lines().filter_map(library) {
        let to = tree.join(library.strip_prefix("/").unwrap_or(library));
        let dir = to.parent().unwrap_or(tree);
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        copy(library, &to)?;
    }
    Ok(())
}

/// The path in a line of ldd: `name => PATH (address)`, or `PATH (address)` for the loader.
fn library(line: &str) -> Option<&Path> {
    let path = line.split_once("=>").map_or(line, |(_, path)| path);
    path.split_whitespace().next().filter(|p| p.starts_with('/')).map(Path::new)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).with_context(|| format!("copying {} to {}", from.display(), to.display()))
}

/// The line before the program's output; the kernel's own is not a test's.
pub(crate) const BEGIN: &str = "==== program";

/// Before the modules, and after them.
const MOUNTS: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin RUST_BACKTRACE=1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t bpf bpf /sys/fs/bpf || echo 'no bpffs'
mount -t cgroup2 cgroup2 /sys/fs/cgroup || echo 'no cgroup v2'
ulimit -l unlimited
ip link set lo up
";
const GREETING: &str = "up() { cut -d' ' -f1 /proc/uptime; }
echo \"kernel $(uname -r), up $(up) s, modules: $(cut -d' ' -f1 /proc/modules | tr '\\n' ' ')\"
";
const END: &str = "echo \"==== ended with $?, up $(up) s\"
poweroff -f
";

fn init_script(modules: &[String], arguments: &[String]) -> String {
    let load = |module: &String| format!("insmod /modules/{module}.ko || echo 'no module {module}'\n");
    let loads: String = modules.iter().map(load).collect();
    let program = format!("echo '{BEGIN}'\n/program {} </dev/null\n", arguments.join(" "));
    [MOUNTS, &loads, GREETING, &program, END].concat()
}

/// Puts the modules and all they depend on into `to`, decompressed; returns their names in loading order.
fn put_modules(from: &Path, to: &Path) -> Result<Vec<String>> {
    let mut files = BTreeMap::new();
    index(from, &mut files).with_context(|| format!("reading {}", from.display()))?;
    let builtin = fs::read_to_string(from.join("modules.builtin")).unwrap_or_default();
    let mut loader = Loader { files, builtin: builtin_names(&builtin), to, order: Vec::new() };
    for module in MODULES {
        loader.put(module)?;
    }
    for module in WHERE_THERE {
        if loader.files.contains_key(module) {
            loader.put(module)?;
        }
    }
    Ok(loader.order)
}

struct Loader<'a> {
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
    to: &'a Path,
    order: Vec<String>,
}

impl Loader<'_> {
    fn put(&mut self, module: &str) -> Result<()> {
        let module = plain(module);
        if self.builtin.contains(&module) || self.order.contains(&module) {
            return Ok(());
        }
        let Some(file) = self.files.get(&module) else {
            bail!("this kernel has no module {module}, nor has it built in");
        };
        let bytes = decompressed(file)?;
        let depends = depends(&bytes).ok_or_else(|| anyhow!("{} says no dependencies", file.display()))?;
        for needed in depends.split(',').filter(|d| !d.is_empty()) {
            self.put(needed)?;
        }
        let path = self.to.join(format!("{module}.ko"));
        fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
        self.order.push(module);
        Ok(())
    }
}

/// Modules by their names.
fn index(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            index(&path, files)?;
        } else if let Some(name) = path.file_name().and_then(|n| n.to_str()).and_then(module_name) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// `sch_ingress` of `sch_ingress.ko` or `sch_ingress.ko.xz`.
fn module_name(file: &str) -> Option<String> {
    let (name, kind) = file.split_once(".ko")?;
    matches!(kind, "" | ".xz" | ".zst" | ".gz").then(|| plain(name))
}

/// File names have dashes where the kernel's names have underscores.
fn plain(module: &str) -> String {
    module.replace('-', "_")
}

fn builtin_names(list: &str) -> BTreeSet<String> {
    list.lines().filter_map(|l| l.rsplit('/').next()).filter_map(module_name).collect()
}

fn decompressed(file: &Path) -> Result<Vec<u8>> {
    let program = match file.extension().and_then(|e| e.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        Some(_) | None => return fs::read(file).with_context(|| format!("reading {}", file.display())),
    };
    let out = sh::command(program).arg("-dc").arg(file).output();
    let out = out.with_context(|| format!("starting {program}"))?;
    if !out.status.success() {
        bail!("{program} cannot read {}", file.display());
    }
    Ok(out.stdout)
}

/// The value of `depends=` in a module's `.modinfo`, a section of strings that end in zero.
fn depends(module: &[u8]) -> Option<String> {
    let key = b"\0depends=";
    let start = module.windows(key.len()).position(|w| w == key)? + key.len();
    let rest = module.get(start..)?;
    let end = rest.iter().position(|b| *b == 0)?;
    String::from_utf8(rest.get(..end)?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_modinfo() {
        let module = b"\x7fELF..\0license=GPL\0depends=libcrc32c,nf-x\0name=y\0";
        assert_eq!(depends(module).as_deref(), Some("libcrc32c,nf-x"));
        assert_eq!(depends(b"\0depends=\0").as_deref(), Some(""));
        assert_eq!(depends(b"nothing"), None);
    }

    #[test]
    fn names_of_modules_are_the_kernel_s() {
        assert_eq!(module_name("sch-ingress.ko.xz").as_deref(), Some("sch_ingress"));
        assert_eq!(module_name("veth.ko").as_deref(), Some("veth"));
        assert_eq!(module_name("modules.order"), None);
        assert!(builtin_names("kernel/net/core/x-y.ko\n").contains("x_y"));
    }

    #[test]
    fn libraries_are_read_from_ldd() {
        let at = |line| library(line).map(|p| p.display().to_string());
        assert_eq!(at("\tlibc.so.6 => /lib/x/libc.so.6 (0x00007f)").as_deref(), Some("/lib/x/libc.so.6"));
        assert_eq!(at("\t/lib64/ld-linux.so.2 (0x00007f)").as_deref(), Some("/lib64/ld-linux.so.2"));
        assert_eq!(at("\tlinux-vdso.so.1 (0x00007f)"), None);
        assert_eq!(at("\tlibgone.so => not found"), None);
        assert_eq!(at("\tstatically linked"), None);
    }

    #[test]
    fn init_loads_in_order_and_ends_the_machine() {
        let script = init_script(&["a".into(), "b".into()], &["/cases.json".into()]);
        let at = |text: &str| script.find(text).unwrap();
        assert!(at("insmod /modules/a.ko") < at("insmod /modules/b.ko"));
        assert!(at(BEGIN) < at("/program /cases.json"));
        assert!(script.ends_with("poweroff -f\n"));
    }
}
