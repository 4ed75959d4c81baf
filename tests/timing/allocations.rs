//! Batches travel from a shard to the trainer in the same few blocks of memory, which are filled again and again. The
//! test runs alone, because it counts the allocations of the whole process.

use std::collections::BTreeSet;
use std::time::Duration;

use wgpt::data::{BatchSource, Batches, LoaderConfig, TokenSource, write_shard};

use super::allocator::allocations;

#[test]
fn batches_are_read_widened_and_sorted_in_memory_that_is_there() {
    const TAKEN: usize = 600;
    let _turn = super::alone();
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("x.bin");
    // no epoch ends here: at its end the next order is allocated
    let tokens: Vec<u16> = (0..400_000_u32).map(|i| (i * i % 1009) as u16).collect();
    write_shard(&path, &tokens).expect("written");
    let config = LoaderConfig { ranks: 2, ..LoaderConfig::new(4, 32, 1009, Some(42)) };
    let mut batches = Batches::new(vec![TokenSource::open(&path).expect("a shard")], config).expect("batches");
    batches.next_batch().expect("a batch");
    // until the thread is as far ahead as it goes
    let mut before = 0;
    while std::mem::replace(&mut before, allocations()) != allocations() {
        std::thread::sleep(Duration::from_millis(200));
    }
    let mut blocks = Vec::with_capacity(TAKEN);
    let before = allocations();
    for _ in 0..TAKEN {
        blocks.push(batches.next_batch().expect("a batch").bytes().as_ptr());
    }
    let made = allocations() - before;
    // a thread that waits for the first time allocates for waiting
    assert!(made < TAKEN / 20, "{made} allocations while {TAKEN} batches were taken");
    let blocks: BTreeSet<*const u8> = blocks.into_iter().collect();
    assert!(blocks.len() <= 258, "{} blocks, expected 256 that wait, one made and one lent", blocks.len());
}
