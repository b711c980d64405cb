//! The routes of the API: each reads its request, asks the owner, and writes the answer.

use super::answer::{Answer, Fault, file, json, octets, ok, stream};
use super::body::{self, Budget, Held};
use super::params::{self, Named, Params};
use super::{HttpLimits, documents, guard};
use crate::master::handle::Handle;
use crate::master::listing::{Lines, Wanted};
use crate::scheduler::{IdempotencyKey, Select};
use crate::util::checksum;
use crate::util::repeated_warnings::warn_ratelimited;
use crate::wire::ids::worker_routes::{HEARTBEAT, RESULT};
use crate::wire::leader::ReadinessStatus;
use crate::wire::options::FileState;
use crate::wire::problem::Problem;
use crate::wire::sync::{RetryRequest, SubmitReply, SyncState};
use crate::wire::task::ScanPage;

use crate::wire::{AssignmentId, RequestId, SyncNo, WorkerId};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{LINK, LOCATION};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::json as object;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio_util::sync::CancellationToken;

/// The `page_token` with which a list goes on.
static NEXT_TOKEN: HeaderName = HeaderName::from_static("x-next-token");

/// What every route has at hand.
#[derive(Clone)]
pub(super) struct App {
    pub(super) handle: Handle,
    pub(super) limits: Arc<HttpLimits>,
    pub(super) budget: Budget,
    /// Cancelled when the server stops: polls end early.
    pub(super) stopping: CancellationToken,
}

impl App {
    async fn body(&self, request: Request, limit: usize) -> Result<Held, Problem> {
        let (head, body) = request.into_parts();
        let read = body::read(&head.headers, body, limit, &self.limits, &self.budget).await;
        read.inspect_err(|problem| {
            if problem.code == checksum::CORRUPTED_CODE {
                let (method, path) = (&head.method, head.uri.path());
                let what = "a request was damaged on the way; the client is asked to send it again";
                warn_ratelimited!(what, %method, path, "{what}");
            }
        })
    }
}

/// All routes, at the root and below `/v1`.
pub(super) fn router(app: App) -> Router {
    let api = Router::new()
        .route("/sync", post(submit).get(list))
        .route("/sync/{id}", get(progress).patch(change).delete(delete))
        .route("/sync/{id}/cancel", post(cancel))
        .route("/sync/{id}/retry", post(retry))
        .route("/sync/{id}/pause", post(pause))
        .route("/sync/{id}/resume", post(resume))
        .route("/sync/{id}/reassign", post(reassign))
        .route("/sync/{id}/files", get(files))
        .route("/sync/{id}/manifest", get(digests))
        .route("/workers", get(workers))
        .route(&format!("/workers/{HEARTBEAT}"), post(heartbeat))
        .route(&format!("/workers/{RESULT}"), post(result))
        .route("/workers/{id}", get(worker).delete(forget))
        .route("/workers/{id}/requests", get(worker_requests))
        .route("/workers/{id}/drain", post(drain))
        .route("/workers/{id}/undrain", post(undrain))
        .route("/workers/{id}/assignment", post(poll))
        .route("/workers/{id}/assignments/{assignment}/manifest", get(manifest))
        .route("/workers/{id}/assignments/{assignment}/page", post(page))
        .route("/admin/reconcile", post(reconcile))
        .route("/admin/confirm-clock", post(confirm_clock))
        .route("/admin/backup", get(backup))
        .route("/healthz", get(healthz))
        .route("/livez", get(healthz))
        .route("/readyz", get(readyz))
        .route("/version", get(version))
        .method_not_allowed_fallback(wrong_method);
    let api = Router::new().merge(api.clone()).nest("/v1", api);
    let advertised = app.limits.advertise_url.as_deref().and_then(guard::Advertised::of);
    let api = match &app.limits.secret {
        Some(secret) => Router::new().nest(&format!("/{secret}"), api),
        None => api,
    };
    api.fallback(unknown)
        .layer(from_fn_with_state(app.clone(), leader_only))
        .layer(from_fn_with_state(advertised, guard::every))
        .with_state(app)
}

/// What every master answers by itself; all else is for the one that leads.
const OF_EACH: [&str; 4] = ["/healthz", "/livez", "/readyz", "/version"];

/// Sends requests on to the master that leads, before anything of them is read.
async fn leader_only(State(app): State<App>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if OF_EACH.contains(&path.strip_prefix("/v1").unwrap_or(path)) {
        return next.run(request).await;
    }
    let Some(problem) = app.handle.elsewhere() else { return next.run(request).await };
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    let leader = problem.leader.as_ref().and_then(|leader| leader.url.as_ref());
    let location = leader.map(|url| format!("{url}{target}"));
    let mut response = Fault(problem).into_response();
    if let Some(location) = location.and_then(|l| HeaderValue::from_str(&l).ok()) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

async fn submit(State(app): State<App>, request: Request) -> Answer {
    let key = idempotency_key(request.headers())?;
    let body = app.body(request, app.limits.submit_bytes.load(Ordering::Relaxed)).await?;
    let idempotency = key.map(|key| IdempotencyKey { key, body: blake3::hash(&body.bytes).into() });
    let chunk = app.limits.default_chunk_mb.load(Ordering::Relaxed);
    let read = move |bytes: &[u8]| documents::sync_request(bytes, chunk);
    let (request, list) = body::decode(body, read).await?;
    let submitted = app.handle.submit_checked(request, list, idempotency).await?;
    Ok(accepted(submitted, ""))
}

/// The 202 of a new sync. Its URL is relative to the URL of the request, from which `to_root` leads to the
/// root of the API: a proxy may serve the API below a path that the master is not informed of.
fn accepted(mut submitted: SubmitReply, to_root: &str) -> Response {
    submitted.status_url.insert_str(0, to_root);
    let mut response = json(StatusCode::ACCEPTED, &submitted);
    if let Ok(location) = HeaderValue::from_str(&submitted.status_url) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut keys = headers.get_all("idempotency-key").iter();
    let key = match (keys.next(), keys.next()) {
        (None, _) => return Ok(None),
        (Some(key), None) => key.to_str().ok().filter(|k| guard::is_token(k)),
        (Some(_), Some(_)) => None,
    };
    key.map(|k| Some(k.to_owned())).ok_or_else(|| {
        params::bad("Idempotency-Key must be one value of 1 to 128 visible ASCII characters")
    })
}

async fn list(State(app): State<App>, uri: Uri) -> Answer {
    let params = Params::of(&uri, &["state", "limit", "page_token", "id_prefix"])?;
    let words = params.get("state").into_iter().flat_map(|text| text.split(','));
    let states = words
        .map(|word| word.trim().parse::<SyncState>())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|rule| params::bad(format!("state: each {rule}")))?;
    let limit = params.number("limit")?;
    let before = match params.get("page_token") {
        None => None,
        Some(token) => Some(
            token
                .parse()
                .map(SyncNo)
                .map_err(|_| params::bad("page_token was not given by this master"))?,
        ),
    };
    let id_prefix = params.get("id_prefix").map(str::parse::<RequestId>).transpose();
    let id_prefix = id_prefix.map_err(|rule| params::bad(format!("id_prefix {rule}")))?;
    let select = Select { states, before, id_prefix, limit };
    let selected = app.handle.list(select.clone()).await?;
    let mut response = ok(&selected.syncs);
    if let Some(next) = selected.next {
        more(response.headers_mut(), &select, next);
    }
    Ok(response)
}

/// Says where a list goes on: as a token, and as a URL for those who follow links (RFC 8288).
fn more(headers: &mut HeaderMap, select: &Select, next: SyncNo) {
    let mut query = format!("page_token={next}");
    if let Some(limit) = select.limit {
        query.push_str(&format!("&limit={limit}"));
    }
    if !select.states.is_empty() {
        let words: Vec<&str> = select.states.iter().map(|state| state.as_str()).collect();
        query.push_str(&format!("&state={}", words.join(",")));
    }
    if let Some(prefix) = &select.id_prefix {
        query.push_str(&format!("&id_prefix={prefix}"));
    }
    headers.insert(NEXT_TOKEN.clone(), HeaderValue::from(next.0));
    if let Ok(link) = HeaderValue::from_str(&format!("<?{query}>; rel=\"next\"")) {
        headers.insert(LINK, link);
    }
}

async fn progress(State(app): State<App>, Named(id): Named<RequestId>) -> Answer {
    Ok(ok(&app.handle.progress(id).await?))
}

async fn change(State(app): State<App>, Named(id): Named<RequestId>, request: Request) -> Answer {
    let body = app.body(request, app.limits.body_bytes).await?;
    let change = body::decode(body, documents::sync_change).await?;
    Ok(ok(&app.handle.change(id, change).await?))
}

async fn delete(State(app): State<App>, Named(id): Named<RequestId>) -> Answer {
    let mut deleted = object!({"status": "deleted"});
    if app.handle.delete(id).await? {
        deleted["cancelled"] = true.into();
    }
    Ok(ok(&deleted))
}

async fn cancel(State(app): State<App>, Named(id): Named<RequestId>) -> Answer {
    Ok(ok(&app.handle.cancel(id).await?))
}

async fn retry(State(app): State<App>, Named(id): Named<RequestId>, request: Request) -> Answer {
    let key = idempotency_key(request.headers())?;
    let body = app.body(request, app.limits.body_bytes).await?;
    // The same body about another sync is another request.
    let about = [id.as_str().as_bytes(), b"\0", &body.bytes].concat();
    let idempotency = key.map(|key| IdempotencyKey { key, body: blake3::hash(&about).into() });
    let RetryRequest { request_id, failed_only } =
        body::decode(body, documents::retry_request).await?;
    let submitted = app.handle.retry(id, (request_id, failed_only), idempotency).await?;
    Ok(accepted(submitted, "../../"))
}

async fn pause(State(app): State<App>, Named(id): Named<RequestId>) -> Answer {
    Ok(ok(&app.handle.pause(id, true).await?))
}

async fn resume(State(app): State<App>, Named(id): Named<RequestId>) -> Answer {
    Ok(ok(&app.handle.pause(id, false).await?))
}

async fn reassign(State(app): State<App>, Named(id): Named<RequestId>, request: Request) -> Answer {
    let body = app.body(request, app.limits.body_bytes).await?;
    let reassign = body::decode(body, documents::reassign).await?;
    Ok(ok(&app.handle.reassign(id, reassign.worker_id).await?))
}

async fn files(State(app): State<App>, Named(id): Named<RequestId>, uri: Uri) -> Answer {
    let params = Params::of(&uri, &["state"])?;
    let words = params.get("state").into_iter().flat_map(|text| text.split(','));
    let states = words
        .map(|word| serde_json::from_value::<FileState>(word.trim().into()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| params::bad("state: each must be one of done, skipped, failed, deleted"))?;
    let pieces = app.handle.listing(id, Wanted::Records(states)).await?;
    Ok(stream("application/x-ndjson", pieces))
}

async fn digests(State(app): State<App>, Named(id): Named<RequestId>, uri: Uri) -> Answer {
    let lines = match Params::of(&uri, &["lines"])?.get("lines") {
        None | Some("readable") => Lines::Readable,
        Some("others") => Lines::Others,
        Some(_) => return Err(params::bad("lines must be readable or others").into()),
    };
    Ok(stream("text/plain", app.handle.listing(id, Wanted::Digests(lines)).await?))
}

async fn heartbeat(State(app): State<App>, request: Request) -> Answer {
    let body = app.body(request, app.limits.heartbeat_bytes).await?;
    let heartbeat = body::decode(body, documents::heartbeat).await?;
    Ok(ok(&app.handle.heartbeat(heartbeat).await?))
}

async fn workers(State(app): State<App>, uri: Uri) -> Answer {
    let params = Params::of(&uri, &["status"])?;
    let mut list = match params.get("status") {
        None => return Ok(ok(&app.handle.workers().await?)),
        Some("active" | "inactive") => app.handle.workers().await?,
        Some(_) => return Err(params::bad("status must be active or inactive").into()),
    };
    if params.get("status") == Some("active") {
        list.inactive.clear();
    } else {
        list.active.clear();
    }
    Ok(ok(&list))
}

async fn worker(State(app): State<App>, Named(worker): Named<WorkerId>) -> Answer {
    Ok(ok(&app.handle.worker(worker).await?))
}

async fn worker_requests(State(app): State<App>, Named(worker): Named<WorkerId>) -> Answer {
    Ok(ok(&app.handle.worker_requests(worker).await?))
}

async fn drain(State(app): State<App>, Named(worker): Named<WorkerId>, request: Request) -> Answer {
    let body = app.body(request, app.limits.body_bytes).await?;
    let order = body::decode(body, documents::drain_order).await?;
    Ok(ok(&app.handle.drain(worker, Some(order)).await?))
}

async fn undrain(State(app): State<App>, Named(worker): Named<WorkerId>) -> Answer {
    Ok(ok(&app.handle.drain(worker, None).await?))
}

async fn forget(State(app): State<App>, Named(worker): Named<WorkerId>) -> Answer {
    Ok(ok(&app.handle.forget(worker).await?))
}

async fn poll(
    State(app): State<App>,
    Named(worker): Named<WorkerId>,
    uri: Uri,
    request: Request,
) -> Answer {
    let params = Params::of(&uri, &["wait", "poll_id", "incarnation"])?;
    let wait = params.duration("wait")?.unwrap_or(app.limits.poll_wait).min(app.limits.max_wait);
    let (poll_id, incarnation) = (params.token("poll_id")?, params.token("incarnation")?);
    // A poll says all in its URL. A body is read all the same: only behind it does the server see
    // that the client goes away, which withdraws the poll.
    drop(app.body(request, app.limits.body_bytes).await?);
    let answer = app.handle.poll(worker, incarnation, poll_id, wait);
    let assignment = tokio::select! {
        assignment = answer => assignment?,
        () = app.stopping.cancelled() => None,
    };
    Ok(ok(&assignment))
}

/// The worker and the assignment of a URL.
type Lease = Named<(WorkerId, AssignmentId)>;

async fn manifest(State(app): State<App>, Named((worker, assignment)): Lease) -> Answer {
    Ok(octets(app.handle.manifest(worker, assignment).await?))
}

async fn page(
    State(app): State<App>,
    Named((worker, assignment)): Lease,
    request: Request,
) -> Answer {
    let body = app.body(request, app.limits.page_bytes).await?;
    let page: ScanPage = body::decode(body, super::json::typed).await?;
    Ok(ok(&app.handle.page(worker, assignment, page).await?))
}

async fn result(State(app): State<App>, request: Request) -> Answer {
    let body = app.body(request, app.limits.result_bytes).await?;
    let result = body::decode(body, documents::result).await?;
    Ok(ok(&app.handle.result(result).await?))
}

async fn reconcile(State(app): State<App>) -> Answer {
    Ok(ok(&app.handle.reconcile().await?))
}

async fn confirm_clock(State(app): State<App>) -> Answer {
    Ok(ok(&app.handle.confirm_clock().await?))
}

async fn backup(State(app): State<App>) -> Answer {
    Ok(file(app.handle.backup().await?))
}

async fn healthz() -> Answer {
    Ok(ok(&object!({"status": "ok"})))
}

async fn readyz(State(app): State<App>, uri: Uri) -> Answer {
    let params = Params::of(&uri, &["verbose"])?;
    if params.get("verbose").is_none() {
        return match app.handle.refusal() {
            Some(problem) => Err(problem.into()),
            None => {
                let readiness = app.handle.readiness();
                let mut told = object!({"status": readiness.status});
                // Requests are answered, but not all of them as they should be.
                if let Some(problem) = readiness.store.problem {
                    told["problem"] = problem.into();
                }
                Ok(ok(&told))
            }
        };
    }
    let readiness = app.handle.readiness();
    let status = match readiness.status {
        ReadinessStatus::Ready | ReadinessStatus::Following => StatusCode::OK,
        ReadinessStatus::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    };
    Ok(json(status, &readiness))
}

async fn version() -> Answer {
    Ok(ok(
        &object!({"name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION"), "api": "v1"}),
    ))
}

async fn unknown() -> Fault {
    let detail = "there is nothing at this path";
    Fault(
        Problem::new(404, "Not Found", "no_such_route", detail)
            .with_hint("the paths are /sync, /sync/{id}, /workers, /workers/{id}, /healthz, /livez, /readyz, /version"),
    )
}

async fn wrong_method(method: Method) -> Fault {
    let detail = format!("{method} is not possible here; see the Allow header");
    Fault(Problem::new(405, "Method Not Allowed", "wrong_method", detail))
}
