//! The oracle against the truth matrices of the Cyclonus simulator: not one cell may differ.

use portcullis_oracle::{Protocol, Traffic, World, cyclonus};

#[test]
fn every_cell_of_every_step_agrees() {
    // Given all steps of both families
    let steps = cyclonus::load().unwrap();
    assert_eq!(steps.len(), 141, "steps in the file");
    let mut cells = 0;
    let mut wrong = Vec::new();

    for step in &steps {
        // When the oracle judges all pods
        let world = World::new(&step.manifests);
        assert_eq!(world.order(step.family), step.order, "case {} step {}", step.id, step.step);
        for ((protocol, port), expected) in &step.expected {
            let traffic = Traffic::To(Protocol::parse(protocol).unwrap(), *port);
            let rows = world.matrix(traffic, step.family);
            for (from, (row, expected)) in rows.iter().zip(expected).enumerate() {
                assert_eq!(row.len(), expected.len());
                for (to, (cell, expected)) in row.chars().zip(expected.chars()).enumerate() {
                    if from == to {
                        assert_eq!((cell, expected), ('-', '-'));
                        continue;
                    }
                    cells += 1;
                    if cell != expected {
                        wrong.push(format!(
                            "{:?} case {} step {} ({}): {} to {} {traffic}: {cell}, expected {expected}",
                            step.family,
                            step.id,
                            step.step,
                            step.description,
                            step.order[from],
                            step.order[to],
                        ));
                    }
                }
            }
        }
    }
    // Then each cell is the simulator's
    assert!(cells > 50_000, "only {cells} cells");
    assert!(wrong.is_empty(), "{} of {cells} cells differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_missing_file_names_its_path() {
    let error = cyclonus::load_from(std::path::Path::new("/nonexistent/cases.json")).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/cases.json"), "{error}");
}
