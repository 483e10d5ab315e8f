//! Whether this machine can hold a lab, and the error that says what it lacks: exit 3 at the command line.

use std::fmt;
use std::path::Path;

/// The environment is not fit; the text names what to do.
#[derive(Debug)]
pub struct Unfit(pub String);

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unfit {}

/// Checks what every lab needs: root, and IPv6 in the kernel.
pub fn check() -> Result<(), Unfit> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Unfit("a lab makes network namespaces: run it as root (sudo)".into()));
    }
    if !Path::new("/proc/sys/net/ipv6").exists() {
        return Err(Unfit("the kernel has no IPv6: boot without `ipv6.disable=1`".into()));
    }
    Ok(())
}
