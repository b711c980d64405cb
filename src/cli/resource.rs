//! Commands on several syncs or workers: ids are resolved, the command is applied to one after the other.

use super::args::OutputFormat;
use super::error::{CliError, Result};
use super::exit::Exit;
use super::flag_names::name_flags;
use super::{Context, console};
use crate::client::{ClientError, MasterClient};
use crate::wire::token::TokenId;
use crate::wire::{RequestId, WorkerId};
use bytes::Bytes;

/// The id of a sync or of a worker.
pub(super) trait NamedResource: std::fmt::Display + Sized {
    /// The command that shows its state, without `ctl`.
    fn status_command(&self) -> String;

    /// The only id that begins with this one; `None` if there is none, or if prefixes are not allowed.
    ///
    /// # Errors
    /// Several ids begin with it, or no master can be reached.
    async fn resolve_prefix(&self, _: &MasterClient) -> Result<Option<Self>, ClientError> {
        Ok(None)
    }
}

impl NamedResource for RequestId {
    fn status_command(&self) -> String {
        format!("sync status {self}")
    }

    async fn resolve_prefix(&self, client: &MasterClient) -> Result<Option<Self>, ClientError> {
        client.resolve_id_prefix(self).await
    }
}

impl NamedResource for TokenId {
    fn status_command(&self) -> String {
        "token list".to_owned()
    }
}

impl NamedResource for WorkerId {
    fn status_command(&self) -> String {
        format!("workers show {self}")
    }
}

/// Applies `action` to `id`, or, if the master does not find exactly this id, to the only id that begins with it. The
/// exact id is tried first by the action itself, so that the id of a sync that has just been deleted is not taken for
/// the prefix of another one.
///
/// # Errors
/// Those of the action; several ids begin with `id`.
pub(super) async fn with_resolved_id<T: NamedResource, R>(
    client: &MasterClient,
    id: &T,
    action: impl AsyncFn(&T) -> Result<R, ClientError>,
) -> Result<R, ClientError> {
    match action(id).await {
        Err(e) if e.is_not_found() => match id.resolve_prefix(client).await? {
            Some(id) => action(&id).await,
            None => Err(e),
        },
        done => done,
    }
}

/// The whole id of the sync with this id or prefix.
///
/// # Errors
/// There is none, or more than one; any other [`ClientError`].
pub(super) async fn resolve_id(
    client: &MasterClient,
    id: &RequestId,
) -> Result<RequestId, ClientError> {
    let found =
        with_resolved_id(client, id, async |id: &RequestId| client.get_sync(id).await).await?;
    Ok(found.value.request_id)
}

/// Applies `action` to one id after the other and passes the results to `on_result`. After a failure the others are
/// still tried, unless no master can be reached: then the remaining ids are printed. The exit code is the most severe
/// one.
///
/// # Errors
/// The failure of a single id, or that of `on_result`.
pub(super) async fn try_each<T: NamedResource, R>(
    ctx: &Context,
    client: &MasterClient,
    ids: &[T],
    action: impl AsyncFn(&T) -> Result<R, ClientError>,
    mut on_result: impl FnMut(R) -> Result<()>,
) -> Result<Exit> {
    let single = ids.len() == 1;
    let mut exit = Exit::Ok;
    for (index, id) in ids.iter().enumerate() {
        let e = match with_resolved_id(client, id, &action).await {
            Ok(result) => {
                on_result(result)?;
                continue;
            }
            Err(e) => e,
        };
        let (is_unreachable, is_unconfirmed) = (e.is_unreachable(), e.is_unconfirmed());
        let mut error = CliError::from(name_flags(e)).with_subject(id, single);
        if is_unconfirmed {
            let status = id.status_command();
            error = error.with_hint(format!("see its state: {} {status}", ctx.ctl_command));
        }
        if single {
            return Err(error);
        }
        exit = exit.max(error.exit);
        console::print_note(&error.render());
        if is_unreachable {
            let remaining: Vec<String> = ids[index + 1..].iter().map(T::to_string).collect();
            if !remaining.is_empty() {
                console::print_note(&format!("not tried: {}", remaining.join(" ")));
            }
            break;
        }
    }
    Ok(exit)
}

/// Applies a command that changes something to one id after the other, as [`try_each`], and prints the text (table) or
/// the documents (json) of the results.
///
/// # Errors
/// As [`try_each`].
pub(super) async fn for_each_resource<T: NamedResource>(
    ctx: &Context,
    ids: Vec<T>,
    action: impl AsyncFn(&MasterClient, &T) -> Result<Option<(String, Bytes)>, ClientError>,
) -> Result<Exit> {
    let client = ctx.new_client()?;
    let mut bodies = Vec::new();
    let act = async |id: &T| action(&client, id).await;
    let exit = try_each(ctx, &client, &ids, act, |result| {
        let Some((text, body)) = result else { return Ok(()) };
        bodies.push(body);
        match ctx.global.is_text() {
            true => console::write_data(text.as_bytes()),
            false => Ok(()),
        }
    })
    .await?;
    if ctx.global.output == OutputFormat::Json {
        console::write_data(&join_documents(&bodies, ids.len() == 1))?;
    }
    Ok(exit)
}

/// A single document unchanged, several as an array.
pub(super) fn join_documents(bodies: &[Bytes], single: bool) -> Vec<u8> {
    if single {
        return bodies.concat();
    }
    [&b"["[..], &bodies.join(&b","[..]), b"]"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_documents_become_an_array_and_one_stays_itself() {
        let bodies =
            |texts: &[&'static str]| texts.iter().map(|t| Bytes::from(*t)).collect::<Vec<_>>();
        assert_eq!(join_documents(&bodies(&["{}", "1"]), false), b"[{},1]");
        assert_eq!(join_documents(&[], false), b"[]");
        assert_eq!(join_documents(&bodies(&["{ \"a\" : 1}"]), true), b"{ \"a\" : 1}");
    }
}
