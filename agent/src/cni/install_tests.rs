#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use super::*;
use crate::cni::conflist::tests::settings;
use crate::scratch::Scratch;

fn primary(name: &str) -> String {
    format!(r#"{{"cniVersion":"1.0.0","name":"{name}","plugins":[{{"type":"bridge"}}]}}"#)
}

/// The network's name in our configuration.
fn ours(dir: &Path) -> Option<String> {
    let text = fs::read_to_string(dir.join(CONFLIST)).ok()?;
    Some(serde_json::from_str::<Value>(&text).unwrap()["name"].as_str().unwrap().to_owned())
}

fn follows(name: &str) -> Followed {
    Followed::Primary { name: name.to_owned(), earlier: None }
}

#[test]
fn ours_comes_changes_and_goes_with_the_primary_s() {
    let dir = Scratch::new();
    let dir = dir.path();
    assert_eq!(sync(dir, &settings(), Without::Go).unwrap(), Followed::Nobody);
    assert_eq!(ours(dir), None);
    fs::write(dir.join("10-a.conflist"), primary("a")).unwrap();
    assert_eq!(sync(dir, &settings(), Without::Go).unwrap(), follows("10-a.conflist"));
    assert_eq!(ours(dir).as_deref(), Some("a"));
    // Never our own, though it sorts first.
    assert_eq!(sync(dir, &settings(), Without::Go).unwrap(), follows("10-a.conflist"));
    fs::write(dir.join("10-a.conflist"), primary("b")).unwrap();
    sync(dir, &settings(), Without::Go).unwrap();
    assert_eq!(ours(dir).as_deref(), Some("b"));
    // The first by name, of the kinds that runtimes read.
    fs::write(dir.join("05-c.conf"), r#"{"cniVersion":"1.0.0","name":"c","type":"ptp"}"#).unwrap();
    fs::write(dir.join("01-d.conflist.bak"), primary("d")).unwrap();
    fs::write(dir.join(".04-e.conflist"), primary("e")).unwrap();
    assert_eq!(sync(dir, &settings(), Without::Go).unwrap(), follows("05-c.conf"));
    assert_eq!(ours(dir).as_deref(), Some("c"));
    fs::remove_file(dir.join("05-c.conf")).unwrap();
    fs::remove_file(dir.join("10-a.conflist")).unwrap();
    // It may be back in a moment, and without ours pods would start without us then.
    assert_eq!(sync(dir, &settings(), Without::Stay).unwrap(), Followed::Alone);
    assert_eq!(ours(dir).as_deref(), Some("c"));
    assert_eq!(sync(dir, &settings(), Without::Go).unwrap(), Followed::Nobody);
    assert_eq!(ours(dir), None);
    assert_eq!(sync(dir, &settings(), Without::Stay).unwrap(), Followed::Nobody);
}

#[test]
fn a_broken_primary_leaves_ours_as_it_was_and_nobody_else_is_followed() {
    let dir = Scratch::new();
    let dir = dir.path();
    fs::write(dir.join("10-a.conflist"), primary("a")).unwrap();
    fs::write(dir.join("99-other.conflist"), primary("other")).unwrap();
    sync(dir, &settings(), Without::Go).unwrap();
    fs::write(dir.join("10-a.conflist"), &primary("b")[..40]).unwrap();
    let error = sync(dir, &settings(), Without::Go).unwrap_err().to_string();
    assert!(error.contains("10-a.conflist") && error.contains("mend"), "{error}");
    assert_eq!(ours(dir).as_deref(), Some("a"));
    fs::write(dir.join("10-a.conflist"), primary("b")).unwrap();
    sync(dir, &settings(), Without::Go).unwrap();
    assert_eq!(ours(dir).as_deref(), Some("b"));
}

#[test]
fn one_that_sorts_before_ours_is_told() {
    let dir = Scratch::new();
    fs::write(dir.path().join("00-multus.conf"), r#"{"cniVersion":"1.0.0","name":"m","type":"multus"}"#)
        .unwrap();
    let name = "00-multus.conf".to_owned();
    let earlier = Some(name.clone());
    assert_eq!(sync(dir.path(), &settings(), Without::Go).unwrap(), Followed::Primary { name, earlier });
}

#[test]
fn chained_by_hand_ours_goes() {
    let dir = Scratch::new();
    let dir = dir.path();
    fs::write(dir.join("10-a.conflist"), primary("a")).unwrap();
    sync(dir, &settings(), Without::Go).unwrap();
    let by_hand =
        r#"{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"bridge"},{"type":"portcullis-cni"}]}"#;
    fs::write(dir.join("10-a.conflist"), by_hand).unwrap();
    assert_eq!(sync(dir, &settings(), Without::Go).unwrap(), Followed::ByHand("10-a.conflist".to_owned()));
    assert_eq!(ours(dir), None);
}

#[test]
fn a_link_that_leads_nowhere_is_an_error_and_no_endless_search() {
    let dir = Scratch::new();
    std::os::unix::fs::symlink("/nowhere/at/all", dir.path().join("10-a.conflist")).unwrap();
    let error = sync(dir.path(), &settings(), Without::Go).unwrap_err().to_string();
    assert!(error.contains("10-a.conflist"), "{error}");
}

#[test]
fn the_binary_is_copied_whole_and_everything_is_taken_away_again() {
    let (bin, conf, from) = (Scratch::new(), Scratch::new(), Scratch::new());
    let plugin = from.path().join("built");
    fs::write(&plugin, "first").unwrap();
    let path = install_binary(&plugin, bin.path()).unwrap();
    fs::write(&plugin, "second").unwrap();
    // What an earlier attempt left beside is no hindrance.
    fs::write(bin.path().join(".portcullis-cni.portcullis.new"), "half").unwrap();
    assert_eq!(install_binary(&plugin, bin.path()).unwrap(), path);
    assert_eq!(fs::read_to_string(&path).unwrap(), "second");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(fs::read_dir(bin.path()).unwrap().count(), 1, "nothing is left beside");
    fs::write(conf.path().join("10-a.conflist"), primary("a")).unwrap();
    sync(conf.path(), &settings(), Without::Go).unwrap();
    let taken = remove(bin.path(), conf.path()).unwrap();
    assert_eq!(taken, [conf.path().join(CONFLIST), path]);
    assert_eq!(names(conf.path()).unwrap(), ["10-a.conflist"]);
    assert_eq!(remove(bin.path(), conf.path()).unwrap(), Vec::<PathBuf>::new());
}

#[test]
fn errors_name_the_file_and_a_remedy() {
    let nowhere = Path::new("/nowhere/at/all");
    let error = sync(nowhere, &settings(), Without::Go).unwrap_err().to_string();
    assert!(error.contains("/nowhere/at/all") && error.contains("--conf-dir"), "{error}");
    let error = install_binary(&nowhere.join("plugin"), Path::new("/")).unwrap_err().to_string();
    assert!(error.contains("/nowhere/at/all/plugin") && error.contains("--plugin"), "{error}");
    let error = install_binary(Path::new("/proc/self/status"), nowhere).unwrap_err().to_string();
    assert!(error.contains("portcullis-cni") && error.contains("--bin-dir"), "{error}");
}
