//! Replies that are too long to be held: what became of each file of a sync, and the digests.

use super::{Answer, ClientError, MAX_HOPS, MasterClient, explain, printable, refusal};
use crate::wire::RequestId;
use crate::wire::options::FileState;
use bytes::{Bytes, BytesMut};
use reqwest::Url;
use reqwest::header::{LOCATION, RETRY_AFTER};
use std::time::Duration;

/// A longer refusal is no problem document.
const MAX_REFUSAL: usize = 1 << 20;

/// A reply that is taken piece by piece.
#[derive(Debug)]
pub struct Body {
    response: reqwest::Response,
    url: String,
    /// Without any bytes for so long it is given up.
    patience: Duration,
}

impl Body {
    /// The next piece, `None` at the end.
    ///
    /// # Errors
    /// The connection broke, or brought nothing for too long.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        let broken =
            |why: String| ClientError::Unreachable { tried: vec![(self.url.clone(), why)] };
        match tokio::time::timeout(self.patience, self.response.chunk()).await {
            Ok(Ok(piece)) => Ok(piece),
            Ok(Err(e)) => Err(broken(explain(&e, self.patience))),
            Err(_) => Err(broken(format!("nothing came for {} s", self.patience.as_secs_f32()))),
        }
    }
}

impl MasterClient {
    /// `GET /sync/{id}/files?state=`: a `FileRecord` a line, as JSON. No states: all of them.
    ///
    /// # Errors
    /// A problem for an unknown sync and for one without records, any [`ClientError`].
    pub async fn files(&self, id: &RequestId, states: &[FileState]) -> Result<Body, ClientError> {
        let words = states.iter().filter_map(|state| serde_json::to_value(state).ok());
        let words: Vec<String> =
            words.filter_map(|word| word.as_str().map(str::to_owned)).collect();
        let query = if words.is_empty() { String::new() } else { "?state=".to_owned() };
        self.body(&format!("/sync/{id}/files{query}{}", words.join(","))).await
    }

    /// `GET /sync/{id}/manifest`: the digest of each file, as `b3sum` writes it.
    ///
    /// # Errors
    /// A problem for an unknown sync and for one without digests, any [`ClientError`].
    pub async fn digests(&self, id: &RequestId) -> Result<Body, ClientError> {
        self.body(&format!("/sync/{id}/manifest")).await
    }

    /// Asks one master after the other until one answers.
    async fn body(&self, target: &str) -> Result<Body, ClientError> {
        let mut tried = Vec::new();
        let mut busy = None;
        for base in self.order() {
            match self.open(format!("{base}{target}")).await {
                Ok(body) if (200..300).contains(&body.response.status().as_u16()) => {
                    return Ok(body);
                }
                Ok(body) if matches!(body.response.status().as_u16(), 502..=504) => {
                    busy = Some(body);
                }
                Ok(body) => return Err(body.refusal().await?),
                Err(why) => {
                    self.forget(&base);
                    tried.push((base, why));
                }
            }
        }
        match busy {
            Some(body) => Err(body.refusal().await?),
            None => Err(ClientError::Unreachable { tried }),
        }
    }

    /// The reply of one master, or of the one that it sends us on to. `Err` is why there is none.
    async fn open(&self, mut url: String) -> Result<Body, String> {
        let patience = self.options.request_timeout;
        for _ in 0..=MAX_HOPS {
            let response = match tokio::time::timeout(patience, self.http.get(&url).send()).await {
                Ok(Ok(response)) => response,
                Ok(Err(e)) => return Err(explain(&e, patience)),
                Err(_) => return Err(format!("no reply within {} s", patience.as_secs_f32())),
            };
            let on = response.headers().get(LOCATION).and_then(|v| v.to_str().ok());
            match (on, response.status().as_u16()) {
                (Some(on), 307 | 308) => {
                    let next = Url::parse(&url).and_then(|here| here.join(on));
                    url =
                        next.map_err(|e| format!("sent us on to `{}`: {e}", printable(on)))?.into();
                }
                _ => return Ok(Body { response, url, patience }),
            }
        }
        Err(format!("sent us on {MAX_HOPS} times without an answer"))
    }
}

impl Body {
    /// The error of a reply that is not 2xx.
    async fn refusal(mut self) -> Result<ClientError, ClientError> {
        let status = self.response.status().as_u16();
        let retry_after = self.response.headers().get(RETRY_AFTER);
        let retry_after = retry_after.and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
        let mut body = BytesMut::new();
        while let Some(piece) = self.chunk().await? {
            body.extend_from_slice(&piece);
            if body.len() > MAX_REFUSAL {
                body.clear();
                break;
            }
        }
        Ok(refusal(Answer {
            url: self.url,
            status,
            retry_after: retry_after.map(Duration::from_secs),
            location: None,
            body: body.freeze(),
            repeated: false,
        }))
    }
}
