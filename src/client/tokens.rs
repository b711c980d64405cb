//! Commands for tokens.

use super::{MasterClient, Reply, Result};
use crate::wire::token::{AuthStatus, CreatedToken, TokenId, TokenList, TokenRequest, TokenView};
use reqwest::Method;

impl MasterClient {
    /// `POST /admin/tokens`. If the reply is lost the command fails, and the token that may have been created is of no
    /// use: its secret is lost.
    ///
    /// # Errors
    /// Invalid fields (422), any [`ClientError`](super::ClientError).
    pub async fn create_token(&self, request: &TokenRequest) -> Result<Reply<CreatedToken>> {
        self.fetch_json(self.new_command(Method::POST, "/admin/tokens").with_json(request)?).await
    }

    /// `GET /admin/tokens`.
    ///
    /// # Errors
    /// Any [`ClientError`](super::ClientError).
    pub async fn list_tokens(&self) -> Result<Reply<TokenList>> {
        self.fetch_json(self.new_query("/admin/tokens")).await
    }

    /// `DELETE /admin/tokens/{id}`: the token is refused from the next request on.
    ///
    /// # Errors
    /// A 404 problem for an unknown token, any [`ClientError`](super::ClientError).
    pub async fn revoke_token(&self, id: &TokenId) -> Result<Reply<TokenView>> {
        self.fetch_json(self.new_command(Method::DELETE, format!("/admin/tokens/{id}"))).await
    }

    /// `GET /auth/status`.
    ///
    /// # Errors
    /// A 401 problem without valid credentials, any [`ClientError`](super::ClientError).
    pub async fn fetch_auth_status(&self) -> Result<Reply<AuthStatus>> {
        self.fetch_json(self.new_query("/auth/status")).await
    }
}
