//! The boot id of the kernel.

use std::sync::LazyLock;

/// No process survives its kernel.
static BOOT_ID: LazyLock<Option<String>> = LazyLock::new(|| {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
});

/// The random id of the current boot of the kernel; equal for all processes (and containers) of a
/// host. `None` if `/proc` is not readable.
pub fn boot_id() -> Option<&'static str> {
    BOOT_ID.as_deref()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_id_is_stable() {
        let id = boot_id().unwrap();
        assert_eq!(id.len(), 36, "{id}");
        assert_eq!(boot_id(), Some(id));
    }
}
