//! `GET /sync`, in pages: what one answer holds stays small, however many syncs a master remembers.

use super::{Answer, ClientError, MasterClient, Reply, read};
use crate::wire::RequestId;
use crate::wire::ids::MIN_ID_PREFIX_CHARS;
use crate::wire::sync::{SyncProgress, SyncState};
use bytes::{Bytes, BytesMut};
use reqwest::Method;

/// Syncs that are asked for at a time.
const PAGE: usize = 500;

impl MasterClient {
    /// `GET /sync`: the syncs in one of `states` (all, where none is named), newest first, at most
    /// `limit`. The body is as if they had come in one answer.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn list(
        &self,
        states: &[SyncState],
        limit: Option<usize>,
    ) -> Result<Reply<Vec<SyncProgress>>, ClientError> {
        let mut all = Vec::new();
        let mut body = BytesMut::new();
        let mut token = None;
        loop {
            let room = limit.map_or(PAGE, |most| PAGE.min(most - all.len()));
            let (page, next) = self.page_of_list(states, Some(room), token.as_deref()).await?;
            let full = page.value.len() >= room && limit != Some(all.len() + page.value.len());
            if full && next.is_none() && token.is_none() {
                // So answers an older master, which knows no tokens: there may be more.
                return Ok(self.page_of_list(states, limit, None).await?.0);
            }
            if !page.value.is_empty() {
                body.extend_from_slice(if all.is_empty() { b"[" } else { b"," });
                body.extend_from_slice(inside(&page.body));
            }
            all.extend(page.value);
            token = next.filter(|_| limit.is_none_or(|most| all.len() < most));
            if token.is_none() {
                body.extend_from_slice(if all.is_empty() { b"[]" } else { b"]" });
                return Ok(Reply { value: all, body: body.freeze() });
            }
        }
    }

    /// The only id of a sync that begins with `prefix`, of at least [`MIN_ID_PREFIX_CHARS`] characters; `None`
    /// where there is none, or where `prefix` is an id itself.
    ///
    /// # Errors
    /// [`ClientError::Ambiguous`], any other [`ClientError`].
    pub async fn complete_id(&self, prefix: &RequestId) -> Result<Option<RequestId>, ClientError> {
        if prefix.as_str().len() < MIN_ID_PREFIX_CHARS {
            return Ok(None);
        }
        let target = format!("/sync?id_prefix={}&limit=20", super::encode(prefix.as_str()));
        let found: Reply<Vec<SyncProgress>> =
            read(self.exchange(self.request(Method::GET, &target)).await?)?;
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
        Err(ClientError::Ambiguous { prefix: prefix.clone(), ids })
    }

    /// One page, and the token of the next.
    async fn page_of_list(
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
            ("page_token", token.map(super::encode)),
        ] {
            if let Some(value) = value {
                let sign = if target.contains('?') { '&' } else { '?' };
                target.push_str(&format!("{sign}{key}={value}"));
            }
        }
        let answer: Answer = self.exchange(self.request(Method::GET, &target)).await?;
        let next = answer.next.clone();
        Ok((read(answer)?, next))
    }
}

/// The elements of a JSON array, without its brackets.
fn inside(array: &Bytes) -> &[u8] {
    let text = array.trim_ascii();
    text.strip_prefix(b"[").and_then(|text| text.strip_suffix(b"]")).unwrap_or(text).trim_ascii()
}
