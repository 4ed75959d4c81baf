//! Tests of paths, patterns, folders and names of token files: the files that they find, and the errors if they find
//! none.

use super::*;
use crate::data::tokens::write_shard;

/// Returns a folder with shards of these names. The length of each shard is its position in the list, from 1.
fn shards(names: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (i, name) in names.iter().enumerate() {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        write_shard(path, &vec![0; i + 1]).unwrap();
    }
    dir
}

fn fault(result: Result<Vec<PathBuf>>) -> Fault {
    match result {
        Err(Error::Data(fault)) => *fault,
        other => panic!("expected a data error, got {other:?}"),
    }
}

/// Returns the files of a part, relative to `dir`.
fn found(dir: &Path, given: &[&str], part: Part) -> Result<Vec<String>> {
    let given: Vec<PathBuf> = given.iter().map(|path| dir.join(path)).collect();
    let files = find(&given, part, TokenFormat::Shard)?;
    Ok(files.iter().map(|file| file.strip_prefix(dir).unwrap().to_str().unwrap().to_owned()).collect())
}

fn trains(dir: &Path, given: &[&str]) -> Vec<String> {
    found(dir, given, Part::Train).unwrap()
}

#[test]
fn files_come_sorted_and_a_list_is_as_good_as_its_pattern() {
    let dir = shards(&["t_2.bin", "t_10.bin", "t_1.bin", "c.txt"]);
    let sorted = ["t_1.bin", "t_10.bin", "t_2.bin"];
    assert_eq!(trains(dir.path(), &["*.bin"]), sorted);
    assert_eq!(trains(dir.path(), &["t_2.bin", "t_10.bin", "t_1.bin"]), sorted);
    let open = open(&[dir.path().join("t_[12].bin")], Part::Train, TokenFormat::Shard).unwrap();
    assert_eq!(open.iter().map(TokenSource::len).collect::<Vec<_>>(), [3, 1]);
}

#[test]
fn a_path_with_brackets_that_is_there_is_no_pattern() {
    let dir = shards(&["My Data [v2]/train é_000.bin", "My Data [v2]/train 1.bin", "x[1].bin", "x1.bin", "a/v/b.bin"]);
    let dir = dir.path();
    let both = ["My Data [v2]/train 1.bin", "My Data [v2]/train é_000.bin"];
    for pattern in ["My Data [v2]/train*.bin", "My Data [[]v2]/train*.bin", "My*/*", "M? Data [v2]/*.bin"] {
        assert_eq!(trains(dir, &[pattern]), both, "{pattern}");
    }
    assert_eq!(trains(dir, &["My Data [v2]/train é_000.bin"]), both[1..]);
    assert_eq!(trains(dir, &["x[1].bin"]), ["x[1].bin"]);
    assert_eq!(trains(dir, &["x[[]1].bin"]), ["x[1].bin"]);
    assert_eq!(trains(dir, &["x[1].b*"]), ["x1.bin"]);
    assert_eq!(trains(dir, &["x[12].bin"]), ["x1.bin"]);
    assert_eq!(trains(dir, &["**/b.bin"]), ["a/v/b.bin"]);
    assert_eq!(trains(dir, &["a/../a/./v/*.bin"])[0].rsplit('/').next(), Some("b.bin"));
    assert_eq!(fault(find(&[dir.join("*.none")], Part::Train, TokenFormat::Shard)).what, "no file matches");
    assert!(fault(find(&[dir.join("a***")], Part::Train, TokenFormat::Shard)).what.starts_with("not a file pattern"));
}

#[test]
fn of_a_folder_come_the_files_of_the_part() {
    let dir = shards(&["x_train_000001.bin", "x_val_000000.bin", "x_train_000002.bin"]);
    assert_eq!(trains(dir.path(), &[""]), ["x_train_000001.bin", "x_train_000002.bin"]);
    assert_eq!(found(dir.path(), &[""], Part::Validation).unwrap(), ["x_val_000000.bin"]);
    assert_eq!(found(dir.path(), &[""], Part::All).unwrap().len(), 3);
    let of = |names: &[&str], part| {
        let dir = shards(names);
        fault(find(&[dir.path().to_owned()], part, TokenFormat::Shard)).to_string()
    };
    let two = of(&["a_train_1.bin", "b_train_1.bin"], Part::Train);
    assert!(two.contains("the folder has several data sets, expected one, got `a_`, `b_`; try"), "{two}");
    let none = of(&["a.bin", "b.bin"], Part::Validation);
    assert!(none.contains("expected NAME_val_*.bin, got 2 other .bin files; try '"), "{none}");
    let datasets = of(&["data-00000-of-00001.arrow"], Part::Train);
    assert!(datasets.contains("to_parquet"), "{datasets}");
    assert!(of(&["state.json", "x_train_1.bin"], Part::Train).contains("to_parquet"));
}

#[test]
fn a_file_given_twice_or_a_dangling_link_is_named() {
    let dir = shards(&["a.bin", "b.bin"]);
    let dir = dir.path();
    for given in [&["*.bin", "b.bin"][..], &["a.bin", "a.bin"], &["a.bin", "./a.bin"]] {
        let error = found(dir, given, Part::Train).unwrap_err().to_string();
        assert!(error.contains("is given twice"), "{given:?}: {error}");
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("gone.bin", dir.join("c.bin")).unwrap();
        for given in ["*.bin", "c.bin"] {
            let error = found(dir, &[given], Part::Train).unwrap_err().to_string();
            assert!(error.contains("c.bin: is a dangling link") && error.ends_with("a link to gone.bin"), "{error}");
        }
        fs::remove_file(dir.join("c.bin")).unwrap();
        std::os::unix::fs::symlink("a.bin", dir.join("c.bin")).unwrap();
        assert!(found(dir, &["*.bin"], Part::Train).unwrap_err().to_string().contains("c.bin: is given twice"));
    }
}

#[test]
fn patterns_that_a_shell_expands_are_named() {
    for (path, advice) in [
        ("~/nothing/*.bin", "try it without quotes, or the whole path"),
        ("/nowhere/train_{0,1}.bin", "try it without quotes, or * ? [ ]"),
        ("/nowhere/a.bin,/nowhere/b.bin", "try spaces between files, or a pattern"),
        ("/nowhere/a.bin", "try `wgpt data prepare`"),
        ("finweb10B", "the nearest names are fineweb10B, fineweb100B"),
        ("fineweb10b:2", "the nearest names are fineweb10B"),
        ("nothing", "`wgpt data fetch --help` lists the names"),
    ] {
        let fault = fault(find(&[path.into()], Part::Train, TokenFormat::Shard));
        assert!(fault.place == path && fault.advice.starts_with(advice), "{fault}");
    }
}

#[test]
fn a_file_or_folder_of_a_sets_name_wins() {
    let dir = shards(&["fineweb10B/x_train_1.bin"]);
    let here = dir.path().join("fineweb10B");
    assert_eq!(find(std::slice::from_ref(&here), Part::Train, TokenFormat::Shard).unwrap().len(), 1);
    assert_eq!(absolute("fineweb10B".as_ref()), Path::new("fineweb10B"));
    assert_eq!(absolute("fineweb10B:2".as_ref()), Path::new("fineweb10B:2"));
    assert!(absolute("other*.bin".as_ref()).is_absolute() && absolute(&here) == here);
}

#[cfg(unix)]
#[test]
fn a_folder_whose_name_is_no_text_is_read() {
    use std::os::unix::ffi::OsStrExt as _;
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join(OsStr::from_bytes(b"caf\xe9 [1]"));
    fs::create_dir(&folder).unwrap();
    let file = folder.join(OsStr::from_bytes(b"\xe9_train_1.bin"));
    write_shard(&file, &[1, 2]).unwrap();
    for given in [&folder.join("*.bin"), &folder.join("*_train_*"), &file, &folder] {
        assert_eq!(
            find(std::slice::from_ref(given), Part::Train, TokenFormat::Shard).unwrap(),
            std::slice::from_ref(&file)
        );
    }
}

#[test]
fn a_pattern_of_any_depth_ends_in_an_error() {
    let dir = shards(&["a_train_1.bin"]);
    for folder in ["../", "**/", "*/", "./a/"] {
        let pattern = PathBuf::from(folder.repeat(100_000) + "*");
        let fault = fault(find(&[dir.path().join(pattern)], Part::Train, TokenFormat::Shard));
        assert_eq!(fault.what, "the pattern has too many folders", "{folder}");
        assert!(fault.place.len() < 100 && fault.expected == "at most 256", "{fault:?}");
    }
}
