//! Tests that assert a duration, or that count what the whole process does. Those that neighbours would disturb run
//! alone.

#[path = "../common/mod.rs"]
mod common;

mod allocations;
mod allocator;
mod fuzz;
mod generate;
mod overlap;
mod rehearsal;
#[cfg(unix)]
mod signals;

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

static TURNS: RwLock<()> = RwLock::new(());

/// Waits until no other test of this program runs, and keeps others from beginning.
fn alone() -> RwLockWriteGuard<'static, ()> {
    TURNS.write().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until no test runs that must run alone.
fn with_others() -> RwLockReadGuard<'static, ()> {
    TURNS.read().unwrap_or_else(PoisonError::into_inner)
}
