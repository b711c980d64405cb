//! What an agent's buffers may take.

use super::*;

#[test]
fn buffer_memory_is_per_worker_and_too_small_values_are_rejected() {
    let text = "master_url: http://m\nbuffer_memory: 64MiB\nworkers:\n  - worker_id: a\n    storage_paths: [/d]\n    \
                network: {control_plane_address: 10.0.0.1}\n  - worker_id: b\n    storage_paths: [/d]\n    \
                network: {control_plane_address: 10.0.0.2}\n    \
                buffer_memory: 4MiB\n    direct_io: true\n";
    let of = |id| agent(text, Some(id)).unwrap().config;
    assert_eq!((of("a").buffer_memory, of("a").direct_io), (64 << 20, false));
    assert_eq!((of("b").buffer_memory, of("b").direct_io), (4 << 20, true));
    let plain = text.replace("buffer_memory: 64MiB\n", "");
    let plain = agent(&plain, Some("a")).unwrap().config;
    assert_eq!(plain.buffer_memory, crate::config::agent::DEFAULT_BUFFER_MEMORY_BYTES);
    let wrong = text.replace(" 4MiB", " 3MiB").replace("true", "sometimes");
    assert_lines(
        &wrong,
        &agent(&wrong, Some("b")).unwrap_err().problems,
        &[
            "10:20: error: workers[1].buffer_memory: 3.0 MiB is too little: what is sent and what is received at a time must fit into half of it each — give at least 4.0 MiB",
            "11:16: error: workers[1].direct_io: expected `true` or `false`, found `sometimes`",
        ],
    );
}
