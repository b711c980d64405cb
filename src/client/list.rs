//! `GET /sync`, in pages: a reply stays small, however many syncs a master remembers.

use super::url_text::with_query;
use super::{ClientError, MasterClient, Reply, Result, parse_reply};
use crate::wire::RequestId;
use crate::wire::ids::MIN_ID_PREFIX_CHARS;
use crate::wire::sync::{SyncProgress, SyncState};
use bytes::BytesMut;

const SYNCS_PER_PAGE: usize = 500;

impl MasterClient {
    /// `GET /sync`: the syncs in one of `states` (all, if there are none), newest first, at most `limit`. The body is
    /// that of a single reply.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn list_syncs(
        &self,
        states: &[SyncState],
        limit: Option<usize>,
    ) -> Result<Reply<Vec<SyncProgress>>> {
        let states = states.iter().map(|state| state.as_str()).collect::<Vec<_>>().join(",");
        let states = Some(states.as_str()).filter(|names| !names.is_empty());
        let mut all = Vec::new();
        let mut body = BytesMut::from(&b"["[..]);
        let mut token: Option<String> = None;
        loop {
            let size = limit.map_or(SYNCS_PER_PAGE, |max| SYNCS_PER_PAGE.min(max - all.len()));
            let (size, token_arg) = (size.to_string(), token.as_deref());
            let query = [("state", states), ("limit", Some(&*size)), ("page_token", token_arg)];
            let mut reply =
                self.send_with_failover(self.new_query(with_query("/sync", &query))).await?;
            let next = reply.next_page_token.take();
            let page: Reply<Vec<SyncProgress>> = parse_reply(reply)?;
            if !all.is_empty() && !page.is_empty() {
                body.extend_from_slice(b",");
            }
            body.extend_from_slice(array_elements(&page.body));
            all.extend(page.value);
            token = next.filter(|_| limit.is_none_or(|max| all.len() < max));
            if token.is_none() {
                body.extend_from_slice(b"]");
                return Ok(Reply { value: all, body: body.freeze() });
            }
        }
    }

    /// The only id of a sync that begins with `prefix`, which has at least `MIN_ID_PREFIX_CHARS` characters; `None` if
    /// there is none, or if `prefix` is an id itself.
    ///
    /// # Errors
    /// [`ClientError::AmbiguousId`], any other [`ClientError`].
    pub async fn resolve_id_prefix(&self, prefix: &RequestId) -> Result<Option<RequestId>> {
        if prefix.as_str().len() < MIN_ID_PREFIX_CHARS {
            return Ok(None);
        }
        let target = with_query("/sync?limit=20", &[("id_prefix", Some(prefix.as_str()))]);
        let found: Vec<SyncProgress> = self.fetch_value(self.new_query(target)).await?;
        let mut ids: Vec<RequestId> = found.into_iter().map(|sync| sync.request_id).collect();
        if ids.contains(prefix) {
            return Ok(None);
        }
        // An id that an operator chose is never completed.
        ids.retain(RequestId::is_generated);
        if ids.len() < 2 {
            return Ok(ids.pop());
        }
        ids.sort();
        Err(ClientError::AmbiguousId { prefix: prefix.clone(), ids })
    }
}

/// The elements of a JSON array, without its brackets.
fn array_elements(array: &[u8]) -> &[u8] {
    let text = array.trim_ascii();
    text.strip_prefix(b"[").and_then(|text| text.strip_suffix(b"]")).unwrap_or(text).trim_ascii()
}
