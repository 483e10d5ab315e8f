//! Columns of a matrix that are Services: what their backends' cells come to.

use portcullis_policy::answer::Party;
use portcullis_policy::frame::Traffic;

use super::{BLANK, Filler};
use crate::verbs::ask::AskError;
use crate::verbs::service::{Target, target};
use crate::world::World;

/// A cell of a Service of which some backends are allowed.
const SOME: char = '/';

/// The columns that were asked for, filled.
#[derive(Clone, Debug, Default)]
pub(super) struct Columns {
    /// `svc/NAMESPACE/NAME:PORT` each.
    pub(super) names: Vec<String>,
    /// By sender, a cell for each column; none where no column was asked for.
    pub(super) rows: Vec<String>,
}

/// A Service's port and its backends of the matrix's family.
struct Column<'a> {
    target: Target<'a>,
    backends: Vec<(Party, Traffic)>,
}

impl Filler<'_> {
    /// Fills the columns of these Services. They are the same at every port of the matrix, for a Service has its own.
    pub(super) fn columns(
        &self,
        world: &World,
        services: &[String],
        notes: &mut Vec<String>,
    ) -> Result<Columns, AskError> {
        let mut columns = Vec::new();
        for text in services {
            let Some(target) = target(&world.cluster, text, None, None)? else {
                return Err(AskError::BadService(text.clone()));
            };
            let (directory, family) = (self.answers.directory(), self.family.into());
            let (found, said) = target.backends(&world.cluster, directory, Some(family));
            notes.extend(said);
            let backends = found
                .iter()
                .map(|one| (self.answers.party_of(one.pod.as_ref(), one.address), target.traffic(one)));
            columns.push(Column { target, backends: backends.collect() });
        }
        if columns.is_empty() {
            return Ok(Columns::default());
        }
        let row = |from: &Party| {
            columns.iter().map(|column| self.service(from, column)).collect::<Result<String, AskError>>()
        };
        let rows = self.parties().iter().map(row).collect::<Result<_, _>>()?;
        Ok(Columns { names: columns.iter().map(|column| column.target.name()).collect(), rows })
    }

    fn service(&self, from: &Party, column: &Column<'_>) -> Result<char, AskError> {
        if !self.scope.touches(&self.key(from), column.target.key) {
            return Ok(BLANK);
        }
        let (mut allowed, mut denied, mut unknown) = (false, false, false);
        for (to, traffic) in &column.backends {
            match self.cell(from, to, *traffic)? {
                // A pod always reaches itself, through a Service too.
                '.' | '-' => allowed = true,
                'X' => denied = true,
                _ => unknown = true,
            }
        }
        Ok(match (allowed, denied, unknown) {
            (true, true, _) => SOME,
            (_, _, true) => '?',
            (true, false, false) => '.',
            (false, _, false) => 'X',
        })
    }
}
