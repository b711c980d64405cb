//! Sends the requests of thousands of simulated agents to a real master over HTTP, and prints throughput and latencies.
//!
//! The agents use the HTTP client and the wire types of the crate, and report work that they did not do.
//! `scripts/bench-master.sh` starts the master and this program. All requests go to the given URL, and the program ends
//! after its last measurement.
//!
//! - `agents`: the simulated agents
//! - `tree`: the simulated source
//! - `meter`: latencies, CPU and memory

mod agents;
mod meter;
mod tree;

use agents::{AgentRole, Fleet};
use anyhow::{Context as _, bail};
use clap::Parser;
use longhaul::wire::RequestId;
use longhaul::wire::sync::{SyncProgress, SyncState};
use meter::{Process, ResourceUsage};
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tree::Tree;

const LIST_ROUNDS: usize = 11;
const PROGRESS_POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Simulated agents against a master.
#[derive(Debug, Parser)]
struct Args {
    /// The master, on this host
    #[arg(long)]
    url: String,
    /// Its process, for memory and CPU
    #[arg(long)]
    master_pid: u32,
    /// The process of its store, if it is a separate one
    #[arg(long)]
    store_pid: Option<u32>,
    /// Registered workers
    #[arg(long, default_value_t = 10_000)]
    workers: usize,
    /// How many of them serve the source or the destination of the sync, half each
    #[arg(long, default_value_t = 200)]
    members: usize,
    /// Concurrent polls of each worker
    #[arg(long, default_value_t = 1)]
    slots: usize,
    /// Ended syncs; the list of all is requested, whole and in pages
    #[arg(long, default_value_t = 0)]
    ended: usize,
    /// Filter rules of the sync
    #[arg(long, default_value_t = 0)]
    rules: usize,
    /// Entries of the sync
    #[arg(long, default_value_t = 10_000_000)]
    entries: u64,
    /// Entries in a batch: 64 files of 1 MiB with the default chunk size
    #[arg(long, default_value_t = 64)]
    batch: u64,
    /// Seconds of heartbeats and waiting polls only
    #[arg(long, default_value_t = 20)]
    idle: u64,
    /// Small syncs, one after the other, each of which gets one of the waiting polls
    #[arg(long, default_value_t = 30)]
    wakes: u32,
    /// Seconds after which the sync is aborted; the results until then are printed
    #[arg(long, default_value_t = 300)]
    seconds: u64,
    /// Passed by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let url = args.url.clone();
    let host = url.strip_prefix("http://").unwrap_or(&url);
    if !["127.0.0.1:", "[::1]:", "localhost:"].iter().any(|local| host.starts_with(local)) {
        bail!("{url} is not on this host: this would overload another master");
    }
    // Each waiting poll has a connection.
    longhaul::util::rlimits::raise_open_files_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let result = runtime.block_on(run(args));
    // Thousands of polls still wait.
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

async fn run(args: Args) -> anyhow::Result<()> {
    let master = Process::new(args.master_pid);
    let store = args.store_pid.map(Process::new);
    let tree = Tree::new(args.entries, args.batch);
    let fleet = Fleet::new(&args.url, args.workers, args.members, args.slots, tree)?;

    println!(
        "workers {}, of them in the sync {}, slots {}",
        args.workers, args.members, args.slots
    );
    let begin = Instant::now();
    let before = master.usage()?;
    fleet.register().await?;
    let took = begin.elapsed().as_secs_f64();
    println!("\nregistration: {:.0} a second", args.workers as f64 / took);
    print_cost(&master, &store, before)?;
    fleet.start_polling()?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    fleet.meters.clear();

    if args.idle > 0 {
        let (begin, before) = (Instant::now(), master.usage()?);
        tokio::time::sleep(Duration::from_secs(args.idle)).await;
        println!("\nheartbeats and waiting polls only, {} s", args.idle);
        fleet.meters.print(begin.elapsed());
        print_cost(&master, &store, before)?;
        fleet.meters.clear();
    }
    if args.wakes > 0 {
        let (begin, before) = (Instant::now(), master.usage()?);
        for n in 0..args.wakes {
            let id: RequestId = format!("wake-{n}").parse()?;
            fleet.record_submit(&id);
            submit_sync(&fleet, &id, 0).await?;
            wait_for_end(&fleet, &id, Duration::from_secs(60)).await?;
        }
        println!("\n{} syncs of one batch, one after the other", args.wakes);
        fleet.meters.print(begin.elapsed());
        print_cost(&master, &store, before)?;
        fleet.meters.clear();
    }
    if args.ended > 0 {
        measure_lists(&fleet, args.ended).await?;
        fleet.meters.clear();
    }
    if args.entries > 0 {
        run_large_sync(&args, &fleet, &master, &store).await?;
    }
    Ok(())
}

async fn run_large_sync(
    args: &Args,
    fleet: &Arc<Fleet>,
    master: &Process,
    store: &Option<Process>,
) -> anyhow::Result<()> {
    let (begin, before) = (Instant::now(), master.usage()?);
    let id: RequestId = "work".parse()?;
    submit_sync(fleet, &id, args.rules).await?;
    let end = wait_for_end(fleet, &id, Duration::from_secs(args.seconds)).await?;
    let took = begin.elapsed();
    println!(
        "\nsync of {} entries in batches of {}: {} after {:.1} s, {} entries done",
        args.entries,
        args.batch,
        end.state.as_str(),
        took.as_secs_f64(),
        end.files_done
    );
    fleet.meters.print(took);
    print_cost(master, store, before)?;
    if end.state == SyncState::Failed {
        bail!("the sync failed: {:?} {:?}", end.reason, end.error_counts);
    }
    Ok(())
}

/// Measures lists of many ended syncs.
async fn measure_lists(fleet: &Fleet, ended: usize) -> anyhow::Result<()> {
    for n in 0..ended {
        let id: RequestId = format!("ended-{n}").parse()?;
        submit_sync(fleet, &id, 0).await?;
        fleet.client.cancel_sync(&id).await.with_context(|| format!("cancel {id}"))?;
    }
    println!("\nlists of {ended} ended syncs");
    for (name, limit) in [("whole, in pages", None), ("the newest 20", Some(20))] {
        let mut took = Vec::new();
        let mut bytes = 0;
        for _ in 0..LIST_ROUNDS {
            let start = Instant::now();
            bytes = fleet.client.list_syncs(&[], limit).await?.body.len();
            took.push(start.elapsed());
        }
        took.sort_unstable();
        println!(
            "  {name}: {} KiB, median {:.2} ms",
            bytes >> 10,
            took[LIST_ROUNDS / 2].as_secs_f64() * 1e3
        );
    }
    Ok(())
}

async fn submit_sync(fleet: &Fleet, id: &RequestId, rules: usize) -> anyhow::Result<()> {
    let mut request = json!({
        "request_id": id,
        "source_path": AgentRole::Source.storage_path(),
        "destination_path": AgentRole::Destination.storage_path(),
    });
    if rules > 0 {
        let rule = |n| format!("/projects/some-group/run-{n:05}/scratch/**/*.tmp");
        request["options"] = json!({"filter": {"rules": (0..rules).map(rule).collect::<Vec<_>>()}});
    }
    fleet.client.submit(&request, None).await.with_context(|| format!("submit {id}"))?;
    Ok(())
}

async fn wait_for_end(
    fleet: &Fleet,
    id: &RequestId,
    timeout: Duration,
) -> anyhow::Result<SyncProgress> {
    let begin = Instant::now();
    loop {
        let start = Instant::now();
        let progress = fleet.client.get_sync(id).await?.value;
        fleet.meters.progress.record(start.elapsed());
        if progress.state.is_final() || begin.elapsed() > timeout {
            return Ok(progress);
        }
        tokio::time::sleep(PROGRESS_POLL_INTERVAL).await;
    }
}

fn print_cost(
    master: &Process,
    store: &Option<Process>,
    before: ResourceUsage,
) -> anyhow::Result<()> {
    let now = master.usage()?;
    println!(
        "  master: {:.1} s of CPU, {} MiB now, {} MiB at most",
        now.cpu_seconds - before.cpu_seconds,
        now.rss_bytes >> 20,
        now.peak_rss_bytes >> 20
    );
    if let Some(store) = store {
        let store = store.usage()?;
        println!(
            "  store: {} MiB now, {} MiB at most",
            store.rss_bytes >> 20,
            store.peak_rss_bytes >> 20
        );
    }
    println!(
        "  this load: {:.1} s of CPU in all",
        Process::new(std::process::id()).usage()?.cpu_seconds
    );
    Ok(())
}
