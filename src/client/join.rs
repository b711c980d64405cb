//! Joins and renewals of agents, and what operators do with their tokens and certificates.

use super::{MasterClient, Reply, Result};
use crate::wire::WorkerId;
use crate::wire::join::{
    CreatedJoinToken, IssuedCertificate, JoinRequest, JoinTokenRequest, JoinTokenView,
    RevokeWorkerReply,
};
use crate::wire::token::TokenId;
use reqwest::Method;

impl MasterClient {
    /// `POST /join`: the first certificate of an agent. The same agent may repeat it.
    ///
    /// # Errors
    /// 401 and 403 problems for a token that is not valid (any more), any [`ClientError`](super::ClientError).
    pub async fn join(&self, request: &JoinRequest) -> Result<IssuedCertificate> {
        self.fetch_value(self.new_request(Method::POST, "/join").with_json(request)?).await
    }

    /// `POST /renew`: the next certificate for the key of the one that the connection presents.
    ///
    /// # Errors
    /// Any [`ClientError`](super::ClientError).
    pub async fn renew_certificate(&self) -> Result<IssuedCertificate> {
        self.fetch_value(self.new_request(Method::POST, "/renew")).await
    }

    /// `POST /admin/join-tokens`. If the reply is lost the command fails, and the token that may have been created is of
    /// no use: its secret is lost.
    ///
    /// # Errors
    /// Invalid fields (422), 409 for a master without TLS, any [`ClientError`](super::ClientError).
    pub async fn create_join_token(
        &self,
        request: &JoinTokenRequest,
    ) -> Result<Reply<CreatedJoinToken>> {
        let command = self.new_command(Method::POST, "/admin/join-tokens");
        self.fetch_json(command.with_json(request)?).await
    }

    /// `DELETE /admin/join-tokens/{id}`.
    ///
    /// # Errors
    /// A 404 problem for an unknown token, any [`ClientError`](super::ClientError).
    pub async fn revoke_join_token(&self, id: &TokenId) -> Result<Reply<JoinTokenView>> {
        let path = format!("/admin/join-tokens/{id}");
        self.fetch_json(self.new_command(Method::DELETE, path)).await
    }

    /// `POST /workers/{id}/revoke`: the certificate of a worker is refused from the next request on.
    ///
    /// # Errors
    /// A 404 problem for an unknown worker, 409 for one without a certificate, any
    /// [`ClientError`](super::ClientError).
    pub async fn revoke_worker(&self, worker: &WorkerId) -> Result<Reply<RevokeWorkerReply>> {
        let path = format!("/workers/{worker}/revoke");
        self.fetch_json(self.new_command(Method::POST, path)).await
    }
}
