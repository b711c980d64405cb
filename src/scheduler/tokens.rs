//! Operations on tokens of operators: create, list, revoke. The API gets a snapshot of them after each commit that changed
//! one.

use super::record_keys::META_KEY;
use super::token_table::{TokenRecord, TokenTable, token_key};
use super::views::timestamp;
use super::{Now, Reply, State};
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::token::{TokenId, TokenList, TokenView};
use std::sync::Arc;

/// More tokens are refused. Each request with a token looks it up; all of them are in memory.
const MAX_TOKENS: usize = 4_096;
/// Revoked and expired tokens are listed for this time, in milliseconds.
const ENDED_TOKEN_RETENTION_MS: i64 = 30 * 24 * 3600 * 1000;

/// Whether a token ended so long ago that it is not listed any more.
fn is_outdated(view: &TokenView, now: Now) -> bool {
    let end = [view.revoked_at, view.expires_at].into_iter().flatten().min();
    end.is_some_and(|end| {
        now.wall_ms.saturating_sub(end.as_millisecond()) > ENDED_TOKEN_RETENTION_MS
    })
}

impl State {
    /// The tokens at the last event.
    pub fn tokens(&self) -> Arc<TokenTable> {
        Arc::clone(&self.tokens)
    }

    pub(super) fn create_token(&mut self, record: TokenRecord, now: Now) -> Result<Reply, Problem> {
        let tokens = Arc::make_mut(&mut self.tokens);
        for id in tokens.remove_if(|view| is_outdated(view, now)) {
            self.outbox.write_record(token_key(&id));
        }
        if tokens.len() >= MAX_TOKENS {
            let detail = format!("there are {MAX_TOKENS} tokens, which is the limit");
            return Err(Problem::new(ProblemCode::TooManyTokens, detail).with_hint(
                "give tokens an expiry; those that ended are removed a month later (ctl token list)",
            ));
        }
        let view = record.view.clone();
        // Of a new store this is the first commit: the version of its records goes with it.
        self.outbox.write_record(META_KEY.to_owned());
        self.outbox.write_record(token_key(&view.id));
        tokens.insert(record);
        Ok(Reply::Token(Box::new(view)))
    }

    pub(super) fn list_tokens(&self) -> Reply {
        let mut tokens: Vec<TokenView> = self.tokens.views().cloned().collect();
        tokens.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Reply::Tokens(TokenList { tokens, join_tokens: self.agents.token_views() })
    }

    /// Revokes a token; one that is revoked already keeps its time.
    pub(super) fn revoke_token(&mut self, id: &TokenId, now: Now) -> Result<Reply, Problem> {
        let known = self.tokens.get(id).ok_or_else(|| {
            Problem::new(ProblemCode::TokenNotFound, format!("there is no token `{id}`"))
                .with_hint("list the tokens with: ctl token list")
        })?;
        if known.view.revoked_at.is_some() {
            return Ok(Reply::Token(Box::new(known.view.clone())));
        }
        let mut record = known.clone();
        record.view.revoked_at = Some(timestamp(now.wall_ms));
        let view = record.view.clone();
        Arc::make_mut(&mut self.tokens).insert(record);
        self.outbox.write_record(token_key(id));
        Ok(Reply::Token(Box::new(view)))
    }
}
