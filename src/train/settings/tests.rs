//! Tests of precedence, of `config.toml` round trips, and of the settings that a run may be resumed with.

use std::collections::BTreeMap;

use std::fs;

use super::layers::{Layers, Merged, Origin};
use super::*;
use crate::data::ModelTokenizer;

/// A small model on a text.
const RECIPE: &str = "[data]\ntext = [\"a.txt\"]\ntokenizer = \"bytes\"\n[model]\nlayers = 1\nheads = 2\nchannels = 32\n\
                      [training]\nbatch = 2\ncontext = 16\nsteps = 300\nlr = 1e-3\n[run]\nval_every = 2\n";

type Change<'a> = &'a dyn Fn(&mut Settings);

fn settings(recipe: &str) -> Settings {
    toml::from_str::<Recipe>(&recipe.replace('_', "-")).unwrap().resolve(resolve::InitWeights::Random).unwrap()
}

/// Merges a recipe, `--set` and flags.
fn merged(recipe: &str, sets: &[&str], flags: &Recipe) -> Result<Merged> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.toml");
    fs::write(&path, recipe).unwrap();
    let mut layers = Layers::default();
    layers.file(&path)?;
    sets.iter().try_for_each(|set| layers.set(set))?;
    layers.flags(flags)?;
    layers.merge()
}

#[test]
fn a_stronger_source_wins_and_each_value_knows_its_own() {
    let mut flags = Recipe::default();
    flags.training.batch = Some(Batch::Count(4));
    let merged = merged(RECIPE, &["lr=2e-3", "batch=3", "training.no_shuffle=true"], &flags).unwrap();
    let t = &merged.recipe.training;
    assert_eq!((t.lr, t.batch, t.steps), (Some(2e-3), Some(Batch::Count(4)), Some(300)));
    assert_eq!(merged.recipe.data.no_shuffle, Some(true));
    assert_eq!(merged.origins["batch"], Origin::Flag);
    assert_eq!(merged.origins["lr"].to_string(), "--set lr");
    assert!(matches!(&merged.origins["val-every"], Origin::File(place) if place.ends_with("r.toml:14")));
    assert!(merged.notices.is_empty());
}

#[test]
fn a_weaker_value_gives_way_and_one_source_may_not_contradict_itself() {
    let mut flags = Recipe::default();
    flags.model.model = Some("d12".into());
    let found = merged(RECIPE, &[], &flags).unwrap();
    assert_eq!((found.recipe.model.layers, found.notices.len()), (None, 3));
    assert!(found.notices[0].ends_with("r.toml:5: layers is overridden by --model"), "{:?}", found.notices);
    for (recipe, sets, place, what) in [
        ("[model]\nmodel = \"d12\"\nlayers = 1\nheads = 1\nchannels = 8\n", &[][..], "model", "contradicts"),
        ("layers = 1\nheads = 1\n", &[], "layers", "needs --channels"),
        ("hellaswag-every = 3\n", &[], "hellaswag-every", "needs --hellaswag"),
        ("", &["val=x"], "--set val", "needs --data"),
    ] {
        let error = merged(recipe, sets, &Recipe::default()).unwrap_err();
        assert!(matches!(error, Error::Usage(_)), "{error}");
        assert!(error.fault().place.ends_with(place) && error.fault().what.contains(what), "{error}");
    }
    let taken = merged("hellaswag = \"q\"\nhellaswag-every = 3\n", &["hellaswag="], &Recipe::default()).unwrap();
    assert_eq!((taken.recipe.run.hellaswag_every, taken.notices.len()), (None, 1));
}

#[test]
fn batches_of_a_validation_win_over_tokens_of_a_weaker_source() {
    let recipe = "val-limit = 64\ntext = []\ndata = \"a\"\n";
    let mut flags = Recipe::default();
    flags.run.val_steps = Some(1);
    let found = merged(recipe, &[], &flags).unwrap();
    assert_eq!((found.recipe.run.val_limit, found.recipe.run.val_steps), (None, Some(1)));
    let found = merged(&format!("{recipe}val-steps = 1\n"), &[], &Recipe::default()).unwrap();
    assert_eq!(found.recipe.run.val_limit, Some(64));
    assert_eq!(merged("", &["text=[\"a\", \"b\"]"], &Recipe::default()).unwrap().recipe.data.text.len(), 2);
    let error = merged("", &["keep=18446744073709551616"], &Recipe::default()).unwrap_err();
    assert!(error.fault().place == "--set keep", "{error}");
}

#[test]
fn a_wrong_key_or_value_is_named_with_its_line() {
    for (recipe, line, what) in [
        ("\nwramup = 3\n", 2, "unknown key `wramup`"),
        ("[trainin]\nlr = 1\n", 1, "unknown table `trainin`"),
        ("[run]\nrestart = true\n", 2, "unknown key `restart`"),
        ("lr = 1\n\nlr = = 3\n", 3, "is not TOML"),
        ("lr = 1e-3\n[training]\nlr = 1e-4\n", 3, "duplicate key `lr`"),
        ("batch = \"many\"\n", 1, "`batch`: `many`, expected a number or auto"),
        ("batch = [1, 2]\n", 1, "`batch`: a string or a number"),
        ("steps = 1.5\n", 1, "`steps`: `1.5`, expected a whole number"),
        ("no-shuffle = 1\n", 1, "`no-shuffle`: invalid type: integer `1`, expected a boolean"),
        ("schedule = \"cosin\"\n", 1, "expected one of cosine, linear, constant, wsd"),
    ] {
        let error = merged(recipe, &[], &Recipe::default()).unwrap_err();
        let Fault { place, what: found, .. } = error.fault();
        assert!(place.ends_with(&format!("r.toml:{line}")) && found.contains(what), "{recipe}: {error}");
    }
    for (set, place, what) in [
        ("lr", "--set", "`lr` has no `=`"),
        ("rl=3", "--set rl", "unknown key `rl`"),
        ("checked=yes", "--set checked", "`yes`, expected true or false"),
        ("batch=x", "--set batch", "expected a number or auto"),
    ] {
        let error = merged("", &[set], &Recipe::default()).unwrap_err();
        assert!(error.fault().place == place && error.to_string().contains(what), "{error}");
    }
}

#[test]
fn restart_is_no_key_and_a_run_that_has_it_resumes() {
    let wrong = |recipe: &str, sets: &[&str], place: &str| {
        let error = merged(recipe, sets, &Recipe::default()).unwrap_err();
        let fault = error.fault();
        assert!(error.exit_code() == 2 && fault.place.ends_with(place), "{error}");
        assert_eq!([fault.what.as_str(), &fault.expected], ["unknown key `restart`", "a setting"]);
        assert_eq!(fault.advice, "try --restart on the command line");
    };
    wrong("[run]\nrestart = true\n", &[], "r.toml:2");
    wrong("run.restart = false\n", &[], "r.toml:1");
    wrong("", &["restart=true"], "--set restart");
    wrong("", &["run.restart="], "--set run.restart");
    let file = RunFile::new(&settings(RECIPE), None);
    let text = file.to_toml().unwrap();
    assert!(!text.contains("restart"), "{text}");
    let with = text.replace("[run]\n", "[run]\nrestart = true\n");
    assert_ne!(with, text);
    assert_eq!(RunFile::parse(&with, Path::new("run")).unwrap(), file);
    wrong(&with, &[], &format!("r.toml:{}", with.lines().position(|line| line == "restart = true").unwrap() + 1));
}

#[test]
fn settings_are_the_same_after_their_file_is_read_as_a_run_and_as_a_recipe() {
    let shards = "data = \"a_*.bin\"\nval = \"b.bin\"\nemulate-ranks = 2\nvocab = 300\nlayers = 2\nheads = 2\n\
                  channels = 32\nbatch = 2\ncontext = 64\nprecision = \"f16\"\nrecompute = \"block\"\nskip-loss-z = 2.5\n\
                  checkpoint-every = \"10m\"\nmemory = \"24GiB\"\npeak-tflops = 312\nprice-per-hour = 1.5\n\
                  hellaswag = \"q.jsonl\"\nsteps = 9\neps = 1e-7\nseed = 4294967295";
    let merge = |text: &str| {
        merged(text, &[], &Recipe::default()).unwrap().recipe.resolve(resolve::InitWeights::Random).unwrap()
    };
    for recipe in [RECIPE, shards, "steps = 7", "model = \"d12\"\ntext = \"a b.txt\"\nsteps = 3\nlr = 3.0000001e-4"] {
        let settings = merge(recipe);
        let file = RunFile::new(&settings, Some("abc".into()));
        let text = file.to_toml().unwrap();
        assert_eq!(RunFile::parse(&text, Path::new("run")).unwrap(), file, "{text}");
        assert_eq!(merge(&text), settings.with_absolute_paths(), "{text}");
    }
    // the initial weights are gone; the shape comes from the run's facts
    let known = resolve::KnownWeights {
        place: "weights".into(),
        shape: Config::new(64, 300, 2, 2, 32).unwrap(),
        tokenizer: ModelTokenizer::Known(Tokenizer::Bytes),
    };
    let recipe: Recipe =
        toml::from_str("[model]\ninit = \"gone\"\n[data]\ntext = [\"a\"]\n[training]\nsteps = 2").unwrap();
    let file = RunFile::new(&recipe.resolve(resolve::InitWeights::Weights(known)).unwrap(), None);
    assert_eq!(RunFile::parse(&file.to_toml().unwrap(), Path::new("run")).unwrap().settings, file.settings);
    assert!(matches!(RunFile::parse("[record]\nlayers = 1\n", Path::new("run")), Err(Error::Usage(_))));
}

#[test]
fn files_of_earlier_versions_are_read() {
    let old = "[model]\npositions = 16\nvocab = 257\nlayers = 1\nheads = 2\nchannels = 32\n\n[data]\ntext = [\"a.txt\"]\n\
               tokenizer = \"bytes\"\nshuffle = true\n\n[train]\nbatch = 2\ncontext = 16\ntokens_per_step = 32\nsteps = 300\n\
               schedule = \"cosine\"\nlr = 0.001\nwarmup = 0\nfinal_lr_frac = 0.0\nweight_decay = 0.1\nclip = 1.0\n\
               beta1 = 0.9\nbeta2 = 0.95\neps = 1e-8\nskip_loss_z = 0.0\nskip_norm_z = 0.0\nprecision = \"f32\"\n\
               seed = 42\nval_every = 2\nval_rows = 4\n\n[run]\nsample_every = 0\ncheckpoint_every = \"250\"\nkeep = 2\n\
               keep_every = 0\nrecompute = \"none\"\non_disk_full = \"pause\"\nfinished = true\nadapter = \"llvmpipe\"\n";
    let RunFile { settings: found, record } = RunFile::parse(old, Path::new("run")).unwrap();
    let mut expected = settings(RECIPE);
    expected.run.val_rows = Some(4);
    assert_eq!(found, expected);
    assert!(record.finished && record.adapter.as_deref() == Some("llvmpipe") && record.data.is_none());
    // stories, and settings that such a version did not have
    let stories = old.replace("text = [\"a.txt\"]", "stories_bytes = 2097152").replace("keep = 2\n", "keep = 0\n");
    let stories = stories.replace("checkpoint_every = \"250\"", "checkpoint_every = \"\"");
    let found = RunFile::parse(&stories, Path::new("run")).unwrap().settings;
    assert_eq!(found.data.source, Source::Stories);
    assert_eq!((found.run.checkpoint_every, found.run.keep.newest), (Interval::Steps(250), 2));
}

#[test]
fn only_what_moved_a_past_loss_must_be_equal() {
    let there = settings(RECIPE);
    let keys = |change: &dyn Fn(&mut Settings), reached| -> Vec<&str> {
        let mut here = there.clone();
        change(&mut here);
        differences(&there, &here, reached).iter().map(|difference| difference.key).collect()
    };
    assert!(keys(&|_| (), 100).is_empty());
    let free: [Change; 6] = [
        &|s| s.train.steps = 600,
        &|s| (s.run.val_every, s.run.sample_every) = (7, 9),
        &|s| s.run.val_rows = Some(3),
        &|s| (s.run.checkpoint_every, s.run.keep) = (Interval::Minutes(1.0), Keep { newest: 9, every: 3 }),
        &|s| s.data.source = Source::Text(vec!["/elsewhere/a.txt".into()]),
        &|s| (s.run.device, s.train.recompute) = (Some("1".into()), Recompute::Block),
    ];
    for (i, change) in free.into_iter().enumerate() {
        assert_eq!(keys(change, 100), [""; 0], "change {i}");
    }
    let fixed: [(Change, &str); 11] = [
        (&|s| s.train.lr = 2e-3, "lr"),
        (&|s| s.train.warmup = 5, "warmup"),
        (&|s| s.train.schedule = Shape::Linear, "schedule"),
        (&|s| s.train.batch = 1, "batch"),
        (&|s| s.train.seed = 1, "seed"),
        (&|s| s.train.clip = 0.5, "clip"),
        (&|s| s.train.precision = Elem::F16, "precision"),
        (&|s| s.train.wire = Wire::Bf16, "wire"),
        (&|s| s.data.shuffle = false, "no-shuffle"),
        (&|s| s.data.ranks = 2, "emulate-ranks"),
        (&|s| s.model.shape.layers = 2, "layers"),
    ];
    for (change, key) in &fixed {
        assert_eq!(keys(change, 100), [*key]);
    }
    // later rates may differ: the decay of wsd has not begun
    let wsd = Settings { train: TrainSettings { schedule: Shape::Wsd, ..there.train.clone() }, ..there.clone() };
    let lower = Settings { train: TrainSettings { final_lr_frac: 0.5, ..wsd.train.clone() }, ..wsd.clone() };
    assert!(differences(&wsd, &lower, 240).is_empty());
    assert_eq!(differences(&wsd, &lower, 242)[0].key, "final-lr-frac");
    // an extended run: its first steps had the rates of the shorter one
    let saved = Schedule { steps: 20, ..wsd.schedule() };
    let recorded = compare::recorded(&wsd);
    let found = |seed: u32, here: &Settings, reached: usize| -> Vec<&str> {
        let found = compare::saved_differences(&saved, seed, &recorded, here, reached);
        found.iter().map(|difference| difference.key).collect()
    };
    assert_eq!(found(42, &wsd, 20), [""; 0]);
    assert_eq!(found(42, &lower, 16), [""; 0]);
    assert!(found(42, &lower, 20).contains(&"final-lr-frac"));
    assert_eq!(found(7, &wsd, 20), ["seed"]);
    // a configuration that was edited by hand is compared with the checkpoint
    for (change, key) in fixed.iter().skip(3).filter(|(_, key)| *key != "seed") {
        let mut here = wsd.clone();
        change(&mut here);
        assert_eq!(found(42, &here, 20), [*key]);
    }
    // a checkpoint of an earlier version records only the seed
    assert!(compare::saved_differences(&saved, 42, &BTreeMap::new(), &wsd, 20).is_empty());
    assert_eq!(
        differences(&there, &Settings { train: TrainSettings { seed: 7, ..there.train.clone() }, ..there.clone() }, 1)
            [0],
        Difference { key: "seed", there: "42".into(), here: "7".into() }
    );
}
