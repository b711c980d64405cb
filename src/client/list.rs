//! `GET /sync`, in pages: what one answer holds stays small, however many syncs a master remembers.

use super::{ClientError, MasterClient, RawReply, Reply, parse_reply};
use crate::wire::RequestId;
use crate::wire::ids::MIN_ID_PREFIX_CHARS;
use crate::wire::sync::{SyncProgress, SyncState};
use bytes::{Bytes, BytesMut};
use reqwest::Method;

/// Syncs that are asked for at a time.
const SYNCS_PER_PAGE: usize = 500;

impl MasterClient {
    /// `GET /sync`: the syncs in one of `states` (all, where none is named), newest first, at most
    /// `limit`. The body is as if they had come in one answer.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn list_syncs(
        &self,
        states: &[SyncState],
        limit: Option<usize>,
    ) -> Result<Reply<Vec<SyncProgress>>, ClientError> {
        let mut all = Vec::new();
        let mut body = BytesMut::new();
        let mut token = None;
        loop {
            let room = limit.map_or(SYNCS_PER_PAGE, |most| SYNCS_PER_PAGE.min(most - all.len()));
            let (page, next) = self.fetch_list_page(states, Some(room), token.as_deref()).await?;
            let full = page.value.len() >= room && limit != Some(all.len() + page.value.len());
            if full && next.is_none() && token.is_none() {
                // So answers an older master, which knows no tokens: there may be more.
                return Ok(self.fetch_list_page(states, limit, None).await?.0);
            }
            if !page.value.is_empty() {
                body.extend_from_slice(if all.is_empty() { b"[" } else { b"," });
                body.extend_from_slice(array_elements(&page.body));
            }
            all.extend(page.value);
            token = next.filter(|_| limit.is_none_or(|most| all.len() < most));
            if token.is_none() {
                body.extend_from_slice(if all.is_empty() { b"[]" } else { b"]" });
                return Ok(Reply { value: all, body: body.freeze() });
            }
        }
    }

    /// The only id of a sync that begins with `prefix`, of at least `MIN_ID_PREFIX` characters; `None`
    /// where there is none, or where `prefix` is an id itself.
    ///
    /// # Errors
    /// [`ClientError::AmbiguousId`], any other [`ClientError`].
    pub async fn resolve_id_prefix(
        &self,
        prefix: &RequestId,
    ) -> Result<Option<RequestId>, ClientError> {
        if prefix.as_str().len() < MIN_ID_PREFIX_CHARS {
            return Ok(None);
        }
        let target = format!("/sync?id_prefix={}&limit=20", super::percent_encode(prefix.as_str()));
        let found: Reply<Vec<SyncProgress>> =
            parse_reply(self.send_with_failover(self.new_request(Method::GET, &target)).await?)?;
        let mut ids: Vec<RequestId> = found.value.into_iter().map(|sync| sync.request_id).collect();
        if ids.contains(prefix) {
            return Ok(None);
        }
        // A name that somebody gave is never taken for the beginning of another one.
        ids.retain(RequestId::is_generated);
        if ids.len() < 2 {
            return Ok(ids.pop());
        }
        ids.sort();
        Err(ClientError::AmbiguousId { prefix: prefix.clone(), ids })
    }

    /// One page, and the token of the next.
    async fn fetch_list_page(
        &self,
        states: &[SyncState],
        limit: Option<usize>,
        token: Option<&str>,
    ) -> Result<(Reply<Vec<SyncProgress>>, Option<String>), ClientError> {
        let states: Vec<&str> = states.iter().map(|state| state.as_str()).collect();
        let states = Some(states.join(",")).filter(|words| !words.is_empty());
        let mut target = "/sync".to_owned();
        for (key, value) in [
            ("state", states),
            ("limit", limit.map(|limit| limit.to_string())),
            ("page_token", token.map(super::percent_encode)),
        ] {
            if let Some(value) = value {
                let sign = if target.contains('?') { '&' } else { '?' };
                target.push_str(&format!("{sign}{key}={value}"));
            }
        }
        let answer: RawReply =
            self.send_with_failover(self.new_request(Method::GET, &target)).await?;
        let next = answer.next_page_token.clone();
        Ok((parse_reply(answer)?, next))
    }
}

/// The elements of a JSON array, without its brackets.
fn array_elements(array: &Bytes) -> &[u8] {
    let text = array.trim_ascii();
    text.strip_prefix(b"[").and_then(|text| text.strip_suffix(b"]")).unwrap_or(text).trim_ascii()
}
