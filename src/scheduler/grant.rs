//! The rights of an operator that is not an administrator.

use crate::wire::AbsPath;
use crate::wire::options::{Links, SyncOptions};
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::run_as::RunAs;
use crate::wire::token::{PathScope, Right};

/// See the [module](self).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grant {
    /// The paths of its syncs.
    pub scopes: Vec<PathScope>,
    /// The options that it may use besides the ordinary ones.
    pub may: Vec<Right>,
    /// The user as which agents act for what it submits.
    pub run_as: Option<RunAs>,
}

impl Grant {
    /// Whether a sync of these paths is visible.
    pub(super) fn contains(&self, source: &AbsPath, destination: &AbsPath) -> bool {
        self.scopes.iter().any(|scope| scope.contains(source, destination))
    }

    /// # Errors
    /// 403 `path_not_allowed`.
    pub(super) fn check_paths(
        &self,
        source: &AbsPath,
        destination: &AbsPath,
    ) -> Result<(), Problem> {
        if self.contains(source, destination) {
            return Ok(());
        }
        let scopes = self.scopes.iter().map(|scope| format!("{} to {}", scope.from, scope.to));
        let scopes = scopes.collect::<Vec<_>>().join(", ");
        let detail = format!(
            "the token does not allow syncs from {source} to {destination}; it allows: {scopes}"
        );
        Err(Problem::new(ProblemCode::PathNotAllowed, detail).with_hint(
            "use paths within these, or have an administrator create a token for others: ctl token create --scope FROM TO",
        ))
    }

    /// Checks that what makes more work for a sync makes it as the user of the token. A token without one may do it for
    /// each sync.
    ///
    /// # Errors
    /// 403 `run_as_differs`.
    pub(super) fn check_user(&self, of_sync: Option<&RunAs>) -> Result<(), Problem> {
        if self.run_as.is_none() || self.run_as.as_ref() == of_sync {
            return Ok(());
        }
        let text = |user: Option<&RunAs>| user.map_or("the agents".to_owned(), RunAs::to_string);
        let detail = format!(
            "the sync acts as {}, and the token as {}",
            text(of_sync),
            text(self.run_as.as_ref())
        );
        Err(Problem::new(ProblemCode::RunAsDiffers, detail)
            .with_hint("submit a sync of its own: ctl sync submit FROM TO"))
    }

    /// # Errors
    /// 403 `option_not_allowed`.
    pub(super) fn check_options(&self, options: &SyncOptions) -> Result<(), Problem> {
        let needed = [
            (options.delete.is_some(), Right::Delete, "delete"),
            (options.chown != Default::default(), Right::Chown, "chown"),
            (options.links == Links::Copy, Right::FollowLinks, "links: copy"),
        ];
        for (is_used, right, option) in needed {
            if is_used && !self.may.contains(&right) {
                let right = right.as_str();
                let detail = format!(
                    "the token has not the right `{right}`, which the option `{option}` needs"
                );
                return Err(Problem::new(ProblemCode::OptionNotAllowed, detail).with_hint(format!(
                    "leave the option out, or have an administrator create a token with it: ctl token create --may {right}"
                )));
            }
        }
        Ok(())
    }
}
