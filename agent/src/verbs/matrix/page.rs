//! `matrix -o html`: one page that needs nothing else, with the explanation of every cell. All text of the cluster
//! goes into it as JSON, and from there into text nodes only.

use portcullis_policy::convert::printable;
use serde::{Deserialize, Serialize};

use super::explained::{Explanations, MAX_EXPLAINED, explained};
use super::{Matrix, prepare};
use crate::verbs::ask::{AskError, MatrixRequest, Reply};
use crate::world::{AskKernel, World};

/// The page around the data; [`PLACE`] stands where the data goes.
const TEMPLATE: &str = include_str!("page.html");

/// Where the data goes.
const PLACE: &str = "@DATA@";

/// What a page shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// One for each protocol and port, all of one order.
    pub matrices: Vec<Matrix>,
    /// Of their cells.
    pub explanations: Explanations,
}

/// The data of the page, as its script reads it.
#[derive(Serialize)]
struct Data<'a> {
    order: Vec<String>,
    family: &'static str,
    ports: Vec<String>,
    rows: Vec<&'a [String]>,
    services: Vec<String>,
    service_rows: &'a [String],
    explanations: &'a Explanations,
    bound: usize,
}

/// Answers.
pub fn page(
    world: &World,
    kernel: Option<&dyn AskKernel>,
    request: &MatrixRequest,
) -> Result<Reply<Page>, AskError> {
    let (mut filler, ports, mut notes) = prepare(world, kernel, request)?;
    if !filler.hosts.is_empty() {
        filler.hosts.clear();
        notes.push("the page shows no hosts: ask for a table or JSON".to_owned());
    }
    let explanations = explained(&filler, &ports, &world.problems, MAX_EXPLAINED);
    let matrices =
        ports.into_iter().map(|traffic| filler.matrix(traffic)).collect::<Result<_, AskError>>()?;
    Ok(Reply { result: Page { matrices, explanations }, notes })
}

/// The page itself.
pub fn html(page: &Page) -> std::io::Result<String> {
    let first = page.matrices.first();
    let title = |matrix: &Matrix| match matrix.port {
        Some(port) => format!("{}/{port}", matrix.protocol),
        None => matrix.protocol.clone(),
    };
    let printed = |names: &[String]| names.iter().map(|name| printable(name)).collect();
    let data = Data {
        order: first.map(|matrix| printed(&matrix.order)).unwrap_or_default(),
        family: first.map_or("", |matrix| matrix.family.name()),
        ports: page.matrices.iter().map(title).collect(),
        rows: page.matrices.iter().map(|matrix| matrix.rows.as_slice()).collect(),
        services: first.map(|matrix| printed(&matrix.services)).unwrap_or_default(),
        service_rows: first.map_or(&[], |matrix| matrix.service_rows.as_slice()),
        explanations: &page.explanations,
        bound: MAX_EXPLAINED,
    };
    let json = serde_json::to_string(&data)?;
    Ok(TEMPLATE.replacen(PLACE, &escaped(&json), 1))
}

/// JSON that cannot end the element that it stands in, nor begin another: these three occur in strings only.
fn escaped(json: &str) -> String {
    json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

#[cfg(test)]
mod tests;
