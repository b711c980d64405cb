//! The routes of the API. Each reads its request, sends it to the state actor, and writes the response.

use super::access::App;
use super::api_state::{ApiState, MAX_BODY_BYTES};
use super::body;
use super::params::{self, InPath, PathId, QueryParams};
use super::response::{
    ProblemResponse, RouteResult, backup_response, binary_response, json_response,
    method_not_allowed, ok_json, stream_response,
};
use super::{access, audit_records, join_routes, middleware, request_documents, token_routes};
use crate::master::file_records::{DigestLines, FileRecordQuery};
use crate::master::requests::{
    CancelSync, ChangeSync, ConfirmClock, DeleteSync, DrainWorker, ForgetWorker, GetStorage,
    GetSync, GetWorker, ListStorages, ListSyncs, ListWorkerSyncs, ListWorkers, PauseSync, PostPage,
    PostResult, ReassignTasks, Reconcile, Request, ResumeSync, RotateTicketKey, SendHeartbeat,
    SubmitSync,
};
use crate::master::validation_errors::ValidationErrors;
use crate::scheduler::{IdempotencyKey, SyncQuery};
use crate::util::ip_network::IpNetwork;
use crate::wire::entry_report::FileState;
use crate::wire::ids::worker_routes::{HEARTBEAT, RESULT};
use crate::wire::leader::ReadinessStatus;
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::sync::{SubmitReply, SyncState};
use crate::wire::task::ScanPage;
use crate::wire::worker::WorkerHeartbeat;
use crate::wire::{AssignmentId, RequestId, SyncNo, WorkerId};
use axum::Router;
use axum::extract::{Request as HttpRequest, State};
use axum::http::header::{LINK, LOCATION};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, delete, get, on, post};
use serde::Serialize;
use serde_json::json as object;
use std::net::IpAddr;
use std::time::Duration;

/// The limit for a scan page, which contains manifests.
const MAX_PAGE_BYTES: usize = 32 << 20;
/// The limit for a result, which may contain a manifest to retry and the outcome of each file.
const MAX_RESULT_BYTES: usize = 32 << 20;
/// The limit for a heartbeat, which lists all assignments of the worker.
const MAX_HEARTBEAT_BYTES: usize = 4 << 20;
/// The wait of a poll without the parameter `wait` (that of the predecessor).
const DEFAULT_POLL_WAIT: Duration = Duration::from_secs(1);

/// The `page_token` of the next page.
static NEXT_TOKEN_HEADER: HeaderName = HeaderName::from_static("x-next-token");

/// Each path with its handlers. A path may stand twice, with different methods.
pub(super) fn routes() -> Vec<(String, MethodRouter<ApiState>)> {
    vec![
        ("/sync".into(), post(submit_sync).get(list_syncs)),
        (
            "/sync/{id}".into(),
            by_id(MethodFilter::GET, |id| GetSync { id }).patch(change_sync).delete(delete_sync),
        ),
        ("/sync/{id}/cancel".into(), by_id(MethodFilter::POST, |id| CancelSync { id })),
        ("/sync/{id}/retry".into(), post(retry_sync)),
        ("/sync/{id}/pause".into(), by_id(MethodFilter::POST, |id| PauseSync { id })),
        ("/sync/{id}/resume".into(), by_id(MethodFilter::POST, |id| ResumeSync { id })),
        ("/sync/{id}/reassign".into(), post(reassign_tasks)),
        ("/sync/{id}/files".into(), get(get_file_records)),
        ("/sync/{id}/manifest".into(), get(get_digests)),
        ("/workers".into(), get(list_workers)),
        (format!("/workers/{HEARTBEAT}"), post(post_heartbeat)),
        (format!("/workers/{RESULT}"), post(post_result)),
        ("/workers/{id}".into(), by_id(MethodFilter::GET, |id| GetWorker { id })),
        ("/workers/{id}".into(), by_id(MethodFilter::DELETE, |id| ForgetWorker { id })),
        ("/workers/{id}/requests".into(), by_id(MethodFilter::GET, |id| ListWorkerSyncs { id })),
        ("/workers/{id}/drain".into(), post(drain_worker)),
        ("/workers/{id}/undrain".into(), post(undrain_worker)),
        ("/workers/{id}/revoke".into(), post(join_routes::revoke_worker)),
        ("/workers/{id}/assignment".into(), post(poll_assignment)),
        ("/workers/{id}/assignments/{assignment}/manifest".into(), get(get_manifest)),
        ("/workers/{id}/assignments/{assignment}/page".into(), post(post_page)),
        ("/storages".into(), get(list_storages)),
        ("/storages/{id}".into(), by_id(MethodFilter::GET, |id| GetStorage { id })),
        ("/admin/reconcile".into(), post(reconcile_records)),
        ("/admin/confirm-clock".into(), post(confirm_clock)),
        ("/admin/rotate-ticket-key".into(), post(rotate_ticket_key)),
        ("/admin/ca".into(), get(join_routes::get_authority)),
        ("/admin/rotate-ca".into(), post(join_routes::rotate_authority)),
        ("/admin/rotate-ca/finish".into(), post(join_routes::finish_rotation)),
        ("/admin/backup".into(), get(get_backup)),
        ("/admin/tokens".into(), get(token_routes::list_tokens).post(token_routes::create_token)),
        ("/admin/tokens/{id}".into(), delete(token_routes::revoke_token)),
        ("/admin/join-tokens".into(), post(join_routes::create_join_token)),
        ("/admin/join-tokens/{id}".into(), delete(join_routes::revoke_join_token)),
        ("/join".into(), post(join_routes::join)),
        ("/renew".into(), post(join_routes::renew)),
        ("/auth/status".into(), get(token_routes::auth_status)),
        ("/healthz".into(), get(healthz)),
        ("/livez".into(), get(healthz)),
        ("/readyz".into(), get(readyz)),
        ("/version".into(), get(version)),
    ]
}

/// All routes, at the root and below `/v1`.
pub(super) fn router(app: ApiState) -> Router {
    let add = |api: Router<ApiState>, (path, handlers): (String, _)| api.route(&path, handlers);
    let api = routes()
        .into_iter()
        .fold(Router::new(), add)
        .method_not_allowed_fallback(method_not_allowed);
    // Innermost, so that it has the route of the request.
    let api = api.layer(from_fn_with_state(app.clone(), access::authorize));
    let api = Router::new().merge(api.clone()).nest("/v1", api);
    let names = middleware::HostNames::of(&app.limits);
    let api = match &app.limits.path_secret {
        Some(secret) => Router::new().nest(&format!("/{secret}"), api),
        None => api,
    };
    api.fallback(route_not_found)
        .layer(from_fn_with_state(app.clone(), redirect_to_leader))
        .layer(from_fn_with_state(names, middleware::guard_request))
        .layer(from_fn_with_state(app.handle.audit.clone(), audit_records::record_request))
        .with_state(app)
}

/// Other paths are served by the leader.
const PATHS_SERVED_BY_FOLLOWERS: [&str; 4] = ["/healthz", "/livez", "/readyz", "/version"];

/// Redirects requests to the leader before their body is read.
async fn redirect_to_leader(
    State(app): State<ApiState>,
    request: HttpRequest,
    next: Next,
) -> Response {
    let path = request.uri().path();
    if PATHS_SERVED_BY_FOLLOWERS.contains(&path.strip_prefix("/v1").unwrap_or(path)) {
        return next.run(request).await;
    }
    let Err(problem) = app.handle.leader_channel() else { return next.run(request).await };
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    let leader = problem.leader.as_ref().and_then(|leader| leader.url.as_ref());
    let location = leader.map(|url| format!("{url}{target}"));
    let mut response = ProblemResponse(problem).into_response();
    if let Some(location) = location.and_then(|l| HeaderValue::from_str(&l).ok()) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

/// The route of a request with the id in the path as its only parameter.
fn by_id<I, R>(method: MethodFilter, to_request: fn(I) -> R) -> MethodRouter<ApiState>
where
    I: InPath + 'static,
    R: Request<Reply: Serialize + Send> + Send + 'static,
{
    on(method, async move |App(app): App, PathId(id): PathId<I>| -> RouteResult {
        Ok(ok_json(&app.handle.send(to_request(id)).await?))
    })
}

async fn submit_sync(App(app): App, request: HttpRequest) -> RouteResult {
    let key = idempotency_key(request.headers())?;
    let max_bytes = app.limits.config.borrow().limits.max_file_list_bytes;
    let limit = usize::try_from(max_bytes).unwrap_or(usize::MAX);
    let body = app.read_request_body(request, limit).await?;
    let idempotency = key.map(|key| IdempotencyKey { key, body: blake3::hash(&body.bytes).into() });
    let chunk = app.limits.config.borrow().defaults.chunk_size_mb;
    let read = move |value| request_documents::read_sync_request(value, chunk);
    let request =
        body::decode_body(body, move |bytes| request_documents::parse(bytes, read)).await?;
    let submitted = app.handle.submit(SubmitSync { idempotency, ..request }).await?;
    Ok(accepted_response(submitted, ""))
}

/// The 202 for a new sync. The URL of the sync is relative to that of the request, because a proxy may serve the API
/// below a path that the master does not know. `to_root` is the relative path to the root of the API.
fn accepted_response(mut submitted: SubmitReply, to_root: &str) -> Response {
    submitted.status_url.insert_str(0, to_root);
    let mut response = json_response(StatusCode::ACCEPTED, &submitted);
    if let Ok(location) = HeaderValue::from_str(&submitted.status_url) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut keys = headers.get_all("idempotency-key").iter();
    let key = match (keys.next(), keys.next()) {
        (None, _) => return Ok(None),
        (Some(key), None) => key.to_str().ok().filter(|k| middleware::is_token(k)),
        (Some(_), Some(_)) => None,
    };
    key.map(|k| Some(k.to_owned())).ok_or_else(|| {
        params::invalid_parameter(
            "Idempotency-Key must be one value of 1 to 128 visible ASCII characters",
        )
    })
}

async fn list_syncs(App(app): App, uri: Uri) -> RouteResult {
    let params = QueryParams::parse(&uri, &["state", "limit", "page_token", "id_prefix"])?;
    let names = params.get("state").into_iter().flat_map(|text| text.split(','));
    let states = names
        .map(|name| name.trim().parse::<SyncState>())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|rule| params::invalid_parameter(format!("state: each {rule}")))?;
    let limit = params.number("limit")?;
    let before =
        match params.get("page_token") {
            None => None,
            Some(token) => Some(token.parse().map(SyncNo).map_err(|_| {
                params::invalid_parameter("page_token was not given by this master")
            })?),
        };
    let id_prefix = params.get("id_prefix").map(str::parse::<RequestId>).transpose();
    let id_prefix =
        id_prefix.map_err(|rule| params::invalid_parameter(format!("id_prefix {rule}")))?;
    let query = SyncQuery { states, before, id_prefix, limit, grant: None };
    let page = app.handle.send(ListSyncs { query: query.clone() }).await?;
    let mut response = ok_json(&page.syncs);
    if let Some(next) = page.next {
        add_next_page_headers(response.headers_mut(), &query, next);
    }
    Ok(response)
}

/// Adds the address of the next page, as a token and as a link (RFC 8288).
fn add_next_page_headers(headers: &mut HeaderMap, query: &SyncQuery, next: SyncNo) {
    let mut link = format!("<?page_token={next}");
    if let Some(limit) = query.limit {
        link.push_str(&format!("&limit={limit}"));
    }
    if !query.states.is_empty() {
        let states: Vec<&str> = query.states.iter().map(|state| state.as_str()).collect();
        link.push_str(&format!("&state={}", states.join(",")));
    }
    if let Some(prefix) = &query.id_prefix {
        link.push_str(&format!("&id_prefix={prefix}"));
    }
    link.push_str(">; rel=\"next\"");
    headers.insert(NEXT_TOKEN_HEADER.clone(), HeaderValue::from(next.0));
    if let Ok(link) = HeaderValue::from_str(&link) {
        headers.insert(LINK, link);
    }
}

async fn change_sync(
    App(app): App,
    PathId(id): PathId<RequestId>,
    request: HttpRequest,
) -> RouteResult {
    let read = request_documents::read_sync_change;
    let change = app.read_document(request, MAX_BODY_BYTES, read).await?;
    Ok(ok_json(&app.handle.send(ChangeSync { id, change }).await?))
}

async fn delete_sync(App(app): App, PathId(id): PathId<RequestId>) -> RouteResult {
    let mut reply = object!({"status": "deleted"});
    if app.handle.send(DeleteSync { id }).await? {
        reply["cancelled"] = true.into();
    }
    Ok(ok_json(&reply))
}

async fn retry_sync(
    App(app): App,
    PathId(id): PathId<RequestId>,
    request: HttpRequest,
) -> RouteResult {
    let key = idempotency_key(request.headers())?;
    let body = app.read_request_body(request, MAX_BODY_BYTES).await?;
    // The same body for another sync is another request.
    let identity = [id.as_str().as_bytes(), b"\0", &body.bytes].concat();
    let idempotency = key.map(|key| IdempotencyKey { key, body: blake3::hash(&identity).into() });
    let read = |bytes: &[u8]| {
        request_documents::parse_optional(bytes, request_documents::read_retry_request)
    };
    let retry = body::decode_body(body, read).await?;
    let submitted = app.handle.retry(id, retry, idempotency).await?;
    Ok(accepted_response(submitted, "../../"))
}

async fn reassign_tasks(
    App(app): App,
    PathId(id): PathId<RequestId>,
    request: HttpRequest,
) -> RouteResult {
    let read = request_documents::read_reassign;
    let reassign = app.read_document(request, MAX_BODY_BYTES, read).await?;
    Ok(ok_json(&app.handle.send(ReassignTasks { id, worker: reassign.worker_id }).await?))
}

async fn get_file_records(App(app): App, PathId(id): PathId<RequestId>, uri: Uri) -> RouteResult {
    let params = QueryParams::parse(&uri, &["state"])?;
    let names = params.get("state").into_iter().flat_map(|text| text.split(','));
    let states = names
        .map(|name| serde_json::from_value::<FileState>(name.trim().into()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| {
            params::invalid_parameter("state: each must be one of done, skipped, failed, deleted")
        })?;
    let chunks = app.handle.stream_file_records(id, FileRecordQuery::Records(states)).await?;
    Ok(stream_response("application/x-ndjson", chunks))
}

async fn get_digests(App(app): App, PathId(id): PathId<RequestId>, uri: Uri) -> RouteResult {
    let lines = match QueryParams::parse(&uri, &["lines"])?.get("lines") {
        None | Some("readable") => DigestLines::Checkable,
        Some("others") => DigestLines::Uncheckable,
        Some(_) => return Err(params::invalid_parameter("lines must be readable or others").into()),
    };
    let chunks = app.handle.stream_file_records(id, FileRecordQuery::Digests(lines)).await?;
    Ok(stream_response("text/plain", chunks))
}

async fn post_heartbeat(App(app): App, request: HttpRequest) -> RouteResult {
    let networks = app.limits.config.borrow().allowed_networks.clone();
    let read = move |value| {
        let heartbeat = request_documents::read_heartbeat(value)?;
        check_networks(&heartbeat, &networks)?;
        Ok(heartbeat)
    };
    let heartbeat = app.read_document(request, MAX_HEARTBEAT_BYTES, read).await?;
    Ok(ok_json(&app.handle.send(SendHeartbeat { heartbeat }).await?))
}

/// Refuses endpoints outside of `networks`, unless there are none.
fn check_networks(
    heartbeat: &WorkerHeartbeat,
    networks: &[IpNetwork],
) -> Result<(), ValidationErrors> {
    let mut errors = ValidationErrors::default();
    for (index, endpoint) in heartbeat.data_plane_endpoints.iter().enumerate() {
        let is_allowed = |address: IpAddr| networks.iter().any(|network| network.contains(address));
        if !networks.is_empty() && !endpoint.address.parse().is_ok_and(is_allowed) {
            let address = &endpoint.address;
            errors.push(
                &format!("/data_plane_endpoints/{index}"),
                format!("{address} is in none of the `allowed_networks` of the master's file"),
            );
        }
    }
    errors.into_result(())
}

async fn list_workers(App(app): App, uri: Uri) -> RouteResult {
    let params = QueryParams::parse(&uri, &["status"])?;
    let status = params.get("status");
    if status.is_some_and(|status| !["active", "inactive"].contains(&status)) {
        return Err(params::invalid_parameter("status must be active or inactive").into());
    }
    let mut list = app.handle.send(ListWorkers {}).await?;
    match status {
        None => {}
        Some("active") => list.inactive.clear(),
        Some(_) => list.active.clear(),
    }
    Ok(ok_json(&list))
}

async fn list_storages(App(app): App) -> RouteResult {
    Ok(ok_json(&app.handle.send(ListStorages {}).await?))
}

async fn drain_worker(
    App(app): App,
    PathId(worker): PathId<WorkerId>,
    request: HttpRequest,
) -> RouteResult {
    let body = app.read_request_body(request, MAX_BODY_BYTES).await?;
    let read = |bytes: &[u8]| {
        request_documents::parse_optional(bytes, request_documents::read_drain_request)
    };
    let order = Some(body::decode_body(body, read).await?);
    Ok(ok_json(&app.handle.send(DrainWorker { worker, order }).await?))
}

async fn undrain_worker(App(app): App, PathId(worker): PathId<WorkerId>) -> RouteResult {
    Ok(ok_json(&app.handle.send(DrainWorker { worker, order: None }).await?))
}

async fn poll_assignment(
    App(app): App,
    PathId(worker): PathId<WorkerId>,
    uri: Uri,
    request: HttpRequest,
) -> RouteResult {
    let params = QueryParams::parse(&uri, &["wait", "poll_id", "incarnation"])?;
    let wait = params.duration("wait")?.unwrap_or(DEFAULT_POLL_WAIT).min(app.limits.max_poll_wait);
    let (poll_id, incarnation) = (params.token("poll_id")?, params.token("incarnation")?);
    // All parameters are in the URL. The body is read all the same: the server detects only after it that the client
    // disconnects, which withdraws the poll.
    drop(app.read_request_body(request, MAX_BODY_BYTES).await?);
    let poll = app.handle.poll(worker, incarnation, poll_id, wait);
    let assignment = tokio::select! {
        assignment = poll => assignment?,
        () = app.stopping.cancelled() => None,
    };
    Ok(ok_json(&assignment))
}

/// The worker and the assignment of a URL.
type AssignmentPath = PathId<(WorkerId, AssignmentId)>;

async fn get_manifest(App(app): App, PathId((worker, assignment)): AssignmentPath) -> RouteResult {
    Ok(binary_response(app.handle.manifest(worker, assignment).await?))
}

async fn post_page(
    App(app): App,
    PathId((worker, assignment)): AssignmentPath,
    request: HttpRequest,
) -> RouteResult {
    let body = app.read_request_body(request, MAX_PAGE_BYTES).await?;
    let page: ScanPage = body::decode_body(body, super::json::parse_typed).await?;
    Ok(ok_json(&app.handle.send(PostPage { worker, assignment, page }).await?))
}

async fn post_result(App(app): App, request: HttpRequest) -> RouteResult {
    let read = request_documents::read_result;
    let result = app.read_document(request, MAX_RESULT_BYTES, read).await?;
    Ok(ok_json(&app.handle.send(PostResult { result }).await?))
}

async fn reconcile_records(App(app): App) -> RouteResult {
    Ok(ok_json(&app.handle.send(Reconcile {}).await?))
}

async fn confirm_clock(App(app): App) -> RouteResult {
    Ok(ok_json(&app.handle.send(ConfirmClock {}).await?))
}

async fn rotate_ticket_key(App(app): App) -> RouteResult {
    Ok(ok_json(&app.handle.send(RotateTicketKey {}).await?))
}

async fn get_backup(App(app): App) -> RouteResult {
    Ok(backup_response(app.handle.backup().await?))
}

async fn healthz() -> RouteResult {
    Ok(ok_json(&object!({"status": "ok"})))
}

async fn readyz(App(app): App, uri: Uri) -> RouteResult {
    let params = QueryParams::parse(&uri, &["verbose"])?;
    if params.get("verbose").is_none() {
        return match app.handle.refusal() {
            Some(problem) => Err(problem.into()),
            None => {
                let readiness = app.handle.readiness();
                let mut reply = object!({"status": readiness.status});
                // The master is ready, but does not accept new syncs.
                if let Some(problem) = readiness.store.problem {
                    reply["problem"] = problem.into();
                }
                Ok(ok_json(&reply))
            }
        };
    }
    let readiness = app.handle.readiness();
    let status = match readiness.status {
        ReadinessStatus::Ready | ReadinessStatus::Following => StatusCode::OK,
        ReadinessStatus::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    };
    Ok(json_response(status, &readiness))
}

async fn version() -> RouteResult {
    Ok(ok_json(
        &object!({"name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION"), "api": "v1"}),
    ))
}

async fn route_not_found() -> ProblemResponse {
    let detail = "there is no route with this path";
    ProblemResponse(
        Problem::new(ProblemCode::RouteNotFound, detail)
            .with_hint("the paths are /sync, /sync/{id}, /workers, /workers/{id}, /storages, /storages/{id}, /healthz, /livez, /readyz, /version"),
    )
}
