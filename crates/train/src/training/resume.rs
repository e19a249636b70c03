//! Which checkpoint a run goes on with.

use std::path::Path;

use epiphyte_methods::Stage;

use crate::TrainError;
use crate::training::checkpoints::Checkpoints;
use crate::training::identity::Identity;
use crate::training::state::RunState;

/// The state of the newest checkpoint that `restore` can take. Those that are damaged are passed
/// over; none if there is no checkpoint.
///
/// # Errors
/// If none of several can be read, what is wrong with the newest; or what `restore` says of one
/// that is not damaged.
pub(crate) fn newest_state(
    checkpoints: &Checkpoints,
    restore: &mut dyn FnMut(&RunState, &Path) -> Result<(), TrainError>,
) -> Result<Option<RunState>, TrainError> {
    let mut first_error = None;
    for checkpoint in checkpoints.list()?.into_iter().rev() {
        let path = &checkpoint.path;
        let read = RunState::read(path, checkpoint.step);
        match read.and_then(|state| restore(&state, path).map(|()| state)) {
            Ok(state) => return Ok(Some(state)),
            Err(error @ TrainError::OtherRun { .. }) => return Err(error),
            Err(error) => {
                tracing::warn!("{error}: going on from an earlier checkpoint, if there is one");
                first_error.get_or_insert(error);
            }
        }
    }
    first_error.map_or(Ok(None), Err)
}

/// Checks that a saved state is one of this run, or that of its end before it got more steps.
/// `steps` are those that the run has now, in `stages`.
///
/// # Errors
/// [`TrainError::OtherRun`], which says what differs.
pub(crate) fn continues(
    state: &RunState,
    identity: &Identity,
    steps: u64,
    stages: &[Stage],
    path: &Path,
) -> Result<(), TrainError> {
    let mut differences = state.identity.differences(identity);
    let over = state.finished && state.step == state.total;
    let extends = over && steps > state.total && stages.len() == 1;
    if steps != state.total && !extends {
        differences.push(format!(
            "the run had {} steps and has {} (`epochs`, `max_steps`; more are possible after its end)",
            state.total, steps
        ));
    }
    match differences.is_empty() {
        true => Ok(()),
        false => Err(TrainError::OtherRun {
            path: path.to_owned(),
            differences,
        }),
    }
}
