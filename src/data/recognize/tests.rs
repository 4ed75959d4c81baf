use std::path::Path;

use super::*;

fn judged(name: &str, bytes: &[u8]) -> (Result<Format, Foreign>, Option<&'static str>) {
    judge(bytes, Packing::Plain, &Claim::of(Path::new(name)))
}

fn format(name: &str, bytes: &[u8]) -> Format {
    judged(name, bytes).0.unwrap_or_else(|foreign| panic!("{name} is {foreign}"))
}

#[test]
fn bytes_win_over_names() {
    let line = b"{\"text\":\"a\"}\n";
    for (name, bytes, expected) in [
        ("a.txt", &b"text"[..], Format::Text),
        ("a", b"text", Format::Text),
        ("a.bin", b"text", Format::Text),
        ("a.jsonl", b"text", Format::Lines),
        ("a.json", line, Format::Lines),
        ("data", line, Format::Lines),
        ("data.0", line, Format::Lines),
        ("a.jsonl", b"PAR1....", Format::Parquet),
        ("train-00000-of-00001", b"PAR1....", Format::Parquet),
        ("a.csv", b"PAR1....", Format::Parquet),
        ("a.tex", b"{\\bf a}\nb", Format::Text),
        ("a.wiki", b"[[Category:A]]\n[{b}]", Format::Text),
        ("a.jsonl", b"{\"text\":\"a\"}\n\0\0\0\0", Format::Lines),
        ("a.md", b"BM, MZ and RIFF", Format::Text),
        ("empty.txt", b"", Format::Text),
    ] {
        assert_eq!(format(name, bytes), expected, "{name}");
    }
}

#[test]
fn json_lines_in_a_text_file_are_doubted() {
    let (content, doubt) = judged("a.txt", b"{\"text\":\"a\"}\n{\"text\":\"b\"}\n");
    assert!(content == Ok(Format::Text) && doubt.unwrap().contains("rename it to .jsonl"));
    let (content, doubt) = judged("a.jsonl.gz", b"{\"text\":\"a\"}\n");
    assert!(content == Ok(Format::Lines) && doubt.unwrap().contains("is not packed"));
    assert_eq!(judged("a.txt", b"text").1, None);
}

#[test]
fn other_kinds_are_refused_with_what_to_do() {
    let mut tar = vec![0; 1024];
    tar[..5].copy_from_slice(b"a.txt");
    let sum: u32 = tar.iter().map(|&byte| u32::from(byte)).sum::<u32>() + 8 * 32;
    let mut old_tar = tar.clone();
    old_tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar[257..263].copy_from_slice(b"ustar\0");
    let ids: Vec<u8> = [50_256_u16, 464, 11, 13, 262, 318].repeat(9).iter().flat_map(|id| id.to_le_bytes()).collect();
    let utf16: Vec<u8> = "wide text".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (name, bytes, what, advice) in [
        ("x.zip", &b"PK\x03\x04\x14\0"[..], "a zip archive", "unpacking"),
        ("x.txt", b"7z\xbc\xaf\x27\x1c\0\x04", "an archive", "unpacking"),
        ("x.rar", b"Rar!\x1a\x07\x01\0", "an archive", "unpacking"),
        ("x.tar", &tar, "a tar archive", "tar -xf"),
        ("x.tar", &old_tar, "a tar archive", "tar -xf"),
        ("x.lz4", b"\x04\x22\x4d\x18\x64\x40", "packed by lz4", "lz4 -d"),
        ("x.lzma", b"\x5d\0\0\x80\0\xff\xff", "packed in an unsupported format", "unpacking"),
        ("x.arrow", b"ARROW1\0\0\xff\xff\xff\xff", "an Arrow file", "to_parquet"),
        ("x.arrow", b"\xff\xff\xff\xff\xa8\0\0\0", "an Arrow file", "to_parquet"),
        ("x.npy", b"\x93NUMPY\x01\0v\0{'descr'", "a NumPy array", "--data-format npy"),
        ("x.csv", b"id,text\n1,a\n", "a table of comma", "to_parquet"),
        ("x.tsv", b"id\ttext\n", "a table of comma", "to_parquet"),
        ("x.avro", b"Obj\x01\x04\x16avro.schema\0", "a table in an unsupported format", "Parquet"),
        ("x.orc", b"ORC\0\x08", "a table in an unsupported format", "Parquet"),
        ("x.h5", b"\x89HDF\r\n\x1a\n\0", "a table in an unsupported format", "Parquet"),
        ("x.db", b"SQLite format 3\0\x10", "a database", "Parquet"),
        ("x.pdf", b"%PDF-1.7\n%\xe2\xe3", "a document", ".txt"),
        ("x.png", b"\x89PNG\r\n\x1a\n\0\0", "an image", "text"),
        ("x.webp", b"RIFF\x10\0\0\0WEBP", "an image", "text"),
        ("x.pkl", b"\x80\x04\x95\x10\0", "a pickle", "JSON Lines"),
        ("wgpt", b"\x7fELF\x02\x01\x01\0", "a program", "text"),
        ("x.exe", b"MZ\x90\0\x03\0", "a program", "text"),
        ("x.gguf", b"GGUF\x03\0\0\0", "weights", "--init"),
        ("x.safetensors", b"\x40\0\0\0\0\0\0\0{\"a\":", "weights", "--init"),
        ("x.bin", &crate::data::tokens::header(9), "a token shard", "train --data FILE"),
        ("train.bin", &ids, "binary data", "--data-format u16"),
        ("x.txt", b"\xff\xfea\0", "UTF-16", "iconv -f UTF-16 -t UTF-8"),
        ("x.txt", &utf16, "UTF-16", "iconv"),
        ("x.jsonl", b"\xfe\xff\0{\0\"", "UTF-16", "iconv"),
        ("x.txt", b"\xff\xfe\0\0a\0\0\0", "UTF-32", "iconv"),
        ("x.txt", b"\xcf\xf0\xe8\xe2\xe5\xf2", "mostly not UTF-8", "iconv"),
        (
            "x.parquet",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n",
            "a Git LFS pointer",
            "git lfs pull",
        ),
        ("x.parquet", b"<html>not found</html>", "not Parquet", "downloaded whole"),
        ("x.parquet", b"", "empty", "copied whole"),
        ("x.jsonl.gz", b"", "empty", "copied whole"),
        ("x.json", b"[{\"text\":\"a\"},\n{\"text\":\"b\"}]", "one JSON array", "jq -c '.[]'"),
        ("x", b" [\n {\"text\":\"a\"}]", "one JSON array", "jq"),
        ("x.json", b"{\n  \"text\": \"a\"\n}\n", "over several lines", "jq -c ."),
    ] {
        let (content, doubt) = judged(name, bytes);
        let foreign = content.expect_err(name);
        let error = foreign.refused(name).to_string();
        assert!(foreign.what.contains(what) && foreign.advice.contains(advice), "{name}: {error}");
        assert!(doubt.is_none() && !error.contains('\n'), "{error}");
    }
}

#[test]
fn contents_of_packed_files_are_named() {
    let judged = |bytes: &[u8]| judge(bytes, Packing::Gzip, &Claim::of(Path::new("x.gz"))).0;
    let said = |bytes: &[u8]| judged(bytes).expect_err("refused").refused("x.gz").to_string();
    assert!(said(b"PAR1..").contains("is Parquet inside gzip"));
    assert!(said(b"\x1f\x8b\x08").contains("is packed a second time"));
    let mut tar = [0; 600];
    tar[257..262].copy_from_slice(b"ustar");
    assert!(said(&tar).contains("is a tar archive inside gzip"));
    assert_eq!(judged(b"text"), Ok(Format::Text));
    assert_eq!(judged(b"{\"text\":\"a\"}\n"), Ok(Format::Lines));
    assert_eq!(judged(b""), Ok(Format::Text));
}
