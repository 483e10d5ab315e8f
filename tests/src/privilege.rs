//! Tests that need root: they fail in CI without it, and say that they were skipped elsewhere.

/// True if the test can go on; prints `skipped: why` if not.
///
/// # Panics
///
/// In CI (`CI=true`) without root.
#[must_use]
pub fn is_root(what: &str) -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{what} needs root");
    println!("skipped: {what} needs root");
    false
}

/// A number from the environment, or the default.
#[must_use]
pub fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
