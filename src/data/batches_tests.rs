//! Tests of batches of one rank and of several: their order, positions and errors.

use super::*;

fn sources() -> Vec<TokenSource> {
    let shard = |i: u16| TokenSource::from_tokens(format!("shard {i}"), (i * 1000..i * 1000 + 300 - 40 * i).collect());
    (0..3).map(shard).collect()
}

fn config(ranks: usize, shuffle: Option<u32>) -> LoaderConfig {
    LoaderConfig { ranks, ..LoaderConfig::new(2, 4, 65_536, shuffle) }
}

fn next(source: &mut dyn BatchSource) -> (Vec<u32>, Vec<u32>) {
    let batch = source.next_batch().unwrap();
    (batch.inputs().to_vec(), batch.targets().to_vec())
}

#[test]
fn the_ranks_streams_come_in_turn() {
    for shuffle in [None, Some(42)] {
        for ranks in [1, 2, 8] {
            let mut batches = Batches::new(sources(), config(ranks, shuffle)).unwrap();
            let one = |rank| Loader::new(sources(), LoaderConfig { rank, ..config(ranks, shuffle) }).unwrap();
            let mut loaders: Vec<Loader> = (0..ranks).map(one).collect();
            assert_eq!(batches.batches_per_epoch(), loaders[0].batches_per_epoch() * ranks);
            for i in 0..3 * batches.batches_per_epoch() {
                assert_eq!(next(&mut batches), next(&mut loaders[i % ranks]), "batch {i} of {ranks} ranks");
            }
        }
    }
}

/// Skipping the batches of other ranks moves the position exactly as reading them does.
#[test]
fn batches_of_others_are_empty_and_move_the_place_alike() {
    for own in [0..1, 1..3, 0..3] {
        let open = || Batches::with_consecutive(sources(), config(3, Some(42)), 2).unwrap();
        let (mut all, mut some) = (open(), open());
        some.read_ranks(own.clone()).unwrap();
        for i in 0..3 * all.batches_per_epoch() {
            let (want, got) = (next(&mut all), next(&mut some));
            let is_own = own.contains(&(i / 2 % 3));
            assert_eq!(got, if is_own { want } else { (vec![], vec![]) }, "batch {i} of {own:?}");
            assert_eq!(some.state(), all.state(), "batch {i} of {own:?}");
        }
        let state = all.state();
        next(&mut some);
        some.restore(state).unwrap();
        assert_eq!(some.state(), all.state());
    }
}

#[test]
fn a_rank_hands_out_some_batches_in_a_row() {
    let (ranks, in_a_row) = (3, 2);
    let open = || Batches::with_consecutive(sources(), config(ranks, Some(42)), in_a_row).unwrap();
    let one = |rank| Loader::new(sources(), LoaderConfig { rank, ..config(ranks, Some(42)) }).unwrap();
    let (mut batches, mut loaders): (Batches, Vec<Loader>) = (open(), (0..ranks).map(one).collect());
    for i in 0..4 * ranks * in_a_row {
        // a state in the middle of a row too
        let mut restored = open();
        restored.restore(batches.state()).unwrap();
        let want = next(&mut loaders[i / in_a_row % ranks]);
        assert_eq!([next(&mut batches), next(&mut restored)], [want.clone(), want], "batch {i}");
        assert_eq!(restored.state(), batches.state());
    }
    let mut broken = batches.state();
    broken.taken = in_a_row;
    assert!(matches!(batches.restore(broken), Err(Error::Data(_))));
}

/// Compares the FNV-1a of inputs and targets in turn with that of llm.c's own loader, for the same shards and 2,000
/// batches.
#[test]
fn batches_are_those_of_llmcs_loader() {
    let shard = |(s, n): (usize, usize)| {
        let ids = (0..n).map(|i| ((i * 7919 + s * 104_729 + i * i % 4099) % 50_257) as u16);
        TokenSource::from_tokens(format!("shard {s}"), ids.collect())
    };
    let sources: Vec<TokenSource> =
        [20_000, 12_345, 16_385, 9_000, 31_111].into_iter().enumerate().map(shard).collect();
    for (ranks, expected) in [(8, 0x7807_35d0_5af5_23ce_u64), (1, 0x50af_a5d9_7e4f_8da6)] {
        let config = LoaderConfig { ranks, ..LoaderConfig::new(2, 64, 50_257, Some(42)) };
        let mut batches = Batches::new(sources.clone(), config).unwrap();
        let mut hash = 1_469_598_103_934_665_603_u64;
        for _ in 0..2000 {
            let batch = batches.next_batch().unwrap();
            for (&input, &target) in batch.inputs().iter().zip(batch.targets()) {
                for id in [input, target] {
                    hash = (hash ^ u64::from(id)).wrapping_mul(1_099_511_628_211);
                }
            }
        }
        assert_eq!(hash, expected, "{ranks} ranks");
    }
}

#[test]
fn a_state_is_that_of_the_batches_handed_out() {
    let mut batches = Batches::new(sources(), config(2, Some(42))).unwrap();
    let mut restored = Batches::new(sources(), config(2, Some(42))).unwrap();
    for _ in 0..90 {
        let state = batches.state();
        restored.restore(serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap()).unwrap();
        assert_eq!(restored.state(), state);
        assert_eq!(next(&mut restored), next(&mut batches));
    }
}

#[test]
fn a_state_that_does_not_fit_changes_nothing() {
    let mut batches = Batches::new(sources(), config(2, Some(42))).unwrap();
    for _ in 0..5 {
        next(&mut batches);
    }
    let mut other = Batches::new(sources(), config(2, Some(42))).unwrap();
    other.restore(batches.state()).unwrap();
    let mut broken = batches.state();
    broken.ranks[1].shard = 7;
    assert!(matches!(batches.restore(broken), Err(Error::Data(_))));
    let mut broken = batches.state();
    broken.ranks.pop();
    assert!(matches!(batches.restore(broken), Err(Error::Data(_))));
    assert_eq!(batches.state(), other.state());
    for _ in 0..50 {
        assert_eq!(next(&mut batches), next(&mut other));
    }
}

#[test]
fn batches_are_read_before_they_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.bin");
    crate::data::write_shard(&path, &[7; 1000]).unwrap();
    let mut batches = Batches::new(vec![TokenSource::open(&path).unwrap()], config(1, None)).unwrap();
    // the file may change once the first batch has arrived: some other batches have been read by then
    next(&mut batches);
    std::thread::sleep(std::time::Duration::from_millis(200));
    std::fs::write(&path, b"cut short").unwrap();
    for _ in 0..AHEAD[0] {
        next(&mut batches);
    }
}

#[test]
fn an_error_comes_in_its_turn_and_stays() {
    let mut tokens = vec![1; 100];
    tokens[30] = 9;
    let source = TokenSource::from_tokens("memory", tokens);
    let mut batches = Batches::new(vec![source], LoaderConfig { vocab: 9, ..config(1, None) }).unwrap();
    for _ in 0..3 {
        next(&mut batches);
    }
    for _ in 0..2 {
        let state = batches.state();
        let error = batches.next_batch().unwrap_err();
        assert!(error.to_string().contains("token 30 is outside the vocabulary"), "{error}");
        assert_eq!(batches.state(), state);
    }
}
