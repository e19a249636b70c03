//! Checkpoints in one file and in shards, and every way in which they can be broken.

use std::fs;
use std::path::Path;

use epiphyte_io::HeaderProblem;
use epiphyte_io::safetensors_file::{TensorToWrite, write_safetensors};
use epiphyte_models::ModelError;
use epiphyte_models::checkpoint::Checkpoint;
use epiphyte_models::error::TensorProblems;
use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::Dtype;
use tempfile::TempDir;

/// A tensor to be written, owned.
pub(crate) struct Owned {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// An F32 tensor whose elements count up from `first`.
pub(crate) fn f32s(name: &str, shape: &[usize], first: f32) -> Owned {
    let count: usize = shape.iter().product();
    Owned {
        name: name.to_owned(),
        dtype: Dtype::F32,
        shape: shape.to_owned(),
        bytes: (0..count)
            .flat_map(|i| (first + i as f32).to_le_bytes())
            .collect(),
    }
}

pub(crate) fn write(path: &Path, tensors: &[Owned]) {
    let tensors: Vec<_> = tensors
        .iter()
        .map(|it| TensorToWrite {
            name: &it.name,
            dtype: it.dtype,
            shape: &it.shape,
            bytes: &it.bytes,
        })
        .collect();
    write_safetensors(path, &tensors, &[("format", "pt")]).unwrap();
}

pub(crate) fn single(tensors: &[Owned]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("model.safetensors"), tensors);
    dir
}

/// `a` and `b` in two shards under an index with this `weight_map`.
fn sharded(weight_map: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("one.safetensors"), &[f32s("a", &[2], 1.0)]);
    write(&dir.path().join("two.safetensors"), &[f32s("b", &[3], 3.0)]);
    let index = format!(r#"{{"metadata": {{"total_size": 20}}, "weight_map": {weight_map}}}"#);
    fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    dir
}

fn open_error(dir: &TempDir) -> ModelError {
    Checkpoint::open(dir.path()).unwrap_err()
}

pub(crate) fn tensor_problems(error: ModelError) -> TensorProblems {
    match error {
        ModelError::Tensors(problems) => *problems,
        other => panic!("another error: {other:?}"),
    }
}

#[test]
fn one_file_and_shards_give_the_same_tensors_and_the_same_hash() {
    let whole = single(&[f32s("b", &[3], 3.0), f32s("a", &[2], 1.0)]);
    let parts = sharded(r#"{"a": "one.safetensors", "b": "two.safetensors"}"#);
    let whole = Checkpoint::open(whole.path()).unwrap();
    let parts = Checkpoint::open(parts.path()).unwrap();
    for checkpoint in [&whole, &parts] {
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(checkpoint.to_f32("a", &[2]).unwrap(), [1.0, 2.0]);
        assert_eq!(checkpoint.to_f32("b", &[3]).unwrap(), [3.0, 4.0, 5.0]);
        assert_eq!(checkpoint.metadata()["format"], "pt");
        assert_eq!((checkpoint.len(), checkpoint.total_bytes()), (2, 20));
    }
    assert_eq!(whole.content_hash(), parts.content_hash());
}

/// The test runs itself as a process that reads a file which has become shorter.
#[cfg(unix)]
#[test]
fn a_file_that_is_truncated_while_it_is_read_is_named() {
    const DIRECTORY: &str = "EPIPHYTE_TEST_TRUNCATED";
    let length = [100_000];
    if let Some(dir) = std::env::var_os(DIRECTORY) {
        epiphyte_models::report_truncated_files();
        let checkpoint = Checkpoint::open(Path::new(&dir)).unwrap();
        let file = Path::new(&dir).join("model.safetensors");
        let file = fs::File::options().write(true).open(file).unwrap();
        file.set_len(100).unwrap();
        let values = checkpoint.to_f32("a", &length);
        panic!("read {} values", values.unwrap().len());
    }
    let dir = single(&[f32s("a", &length, 0.0)]);
    let name = "checkpoint::a_file_that_is_truncated_while_it_is_read_is_named";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(DIRECTORY, dir.path())
        .output()
        .unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(
        errors.contains("model.safetensors` became shorter"),
        "{errors}"
    );
}

/// Python, written from the definition in `Checkpoint::content_hash`:
/// ```python
/// import hashlib, struct
/// def u64(n): return struct.pack("<Q", n)
/// def sized(b): return u64(len(b)) + b
/// h = hashlib.sha256(b"epiphyte-tensors-v1")
/// for name, values in [(b"a", [1, 2]), (b"b", [3, 4, 5])]:
///     h.update(sized(name) + sized(b"F32") + u64(1) + u64(len(values)))
///     h.update(sized(struct.pack(f"<{len(values)}f", *values)))
/// print(h.hexdigest())
/// ```
#[test]
fn content_hash_is_the_one_that_its_documentation_defines() {
    let dir = single(&[f32s("a", &[2], 1.0), f32s("b", &[3], 3.0)]);
    assert_eq!(
        Checkpoint::open(dir.path()).unwrap().content_hash(),
        "a8689a4c7c5a30fa4903c7c70fdf2b08293c122fdbbbf440271b6837c099e71a"
    );
}

#[test]
fn content_hash_sees_names_shapes_types_and_values() {
    let hash = |tensor: Owned| {
        let dir = single(&[tensor]);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        checkpoint.content_hash().to_owned()
    };
    let as_integers = Owned {
        dtype: Dtype::I32,
        ..f32s("a", &[2, 3], 0.0)
    };
    let hashes = [
        hash(f32s("a", &[2, 3], 0.0)),
        hash(f32s("b", &[2, 3], 0.0)),
        hash(f32s("a", &[3, 2], 0.0)),
        hash(f32s("a", &[6], 0.0)),
        hash(f32s("a", &[2, 3], 1.0)),
        hash(as_integers),
    ];
    for (i, hash) in hashes.iter().enumerate() {
        assert!(!hashes[..i].contains(hash), "{i}");
    }
}

#[test]
fn every_float_type_is_converted() {
    let values = [1.0f64, -0.5, 3.140625, 1e-3, 65504.0];
    let expect = |dtype, bytes: Vec<u8>, expected: Vec<f32>| {
        let tensor = Owned {
            name: "w".into(),
            dtype,
            shape: vec![5],
            bytes,
        };
        let dir = single(&[tensor]);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(checkpoint.to_f32("w", &[5]).unwrap(), expected, "{dtype}");
        let rounded: Vec<_> = expected.iter().map(|&x| bf16::from_f32(x)).collect();
        assert_eq!(checkpoint.to_bf16("w", &[5]).unwrap(), rounded, "{dtype}");
    };
    let single: Vec<f32> = values.iter().map(|&x| x as f32).collect();
    let bytes = |each: &dyn Fn(f64) -> Vec<u8>| values.iter().flat_map(|&x| each(x)).collect();
    expect(
        Dtype::F64,
        bytes(&|x| x.to_le_bytes().into()),
        single.clone(),
    );
    expect(
        Dtype::F32,
        bytes(&|x| (x as f32).to_le_bytes().into()),
        single,
    );
    expect(
        Dtype::F16,
        bytes(&|x| f16::from_f64(x).to_le_bytes().into()),
        values.map(|x| f16::from_f64(x).to_f32()).into(),
    );
    expect(
        Dtype::BF16,
        bytes(&|x| bf16::from_f64(x).to_le_bytes().into()),
        values.map(|x| bf16::from_f64(x).to_f32()).into(),
    );
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let integers = Owned {
        name: "ids".into(),
        dtype: Dtype::I64,
        shape: vec![1],
        bytes: vec![0; 8],
    };
    let dir = single(&[f32s("w", &[2, 3], 0.0), integers]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();

    let error = checkpoint.to_f32("v", &[1]).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("loaded 0 of 1 tensors; missing: `v`"),
        "{error}"
    );
    assert_eq!(tensor_problems(error).missing, ["v"]);

    let error = checkpoint.to_bf16("w", &[3, 2]).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("wrong shape: `w` (expected [3, 2], found [2, 3])"),
        "{error}"
    );

    let error = checkpoint.to_f32("ids", &[1]).unwrap_err();
    assert!(error.to_string().ends_with("`ids` (I64)"), "{error}");
    assert_eq!(tensor_problems(error).wrong_dtype[0].found, Dtype::I64);
}

#[test]
fn absent_directories_and_files_say_where_they_belong() {
    let dir = tempfile::tempdir().unwrap();
    let absent = dir.path().join("bert-base-uncased");
    let error = Checkpoint::open(&absent).unwrap_err();
    assert!(
        matches!(&error, ModelError::MissingDirectory { dir } if *dir == absent),
        "{error:?}"
    );
    let ModelError::MissingFile { path, advice } = open_error(&dir) else {
        panic!("another error")
    };
    assert_eq!(path, dir.path().join("model.safetensors"));
    assert!(advice.contains("place the model's weights there"));
}

#[test]
fn damaged_files_are_refused_by_name() {
    let good = single(&[f32s("a", &[2], 1.0), f32s("b", &[3], 3.0)]);
    let path = good.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let problem = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        match open_error(&good) {
            ModelError::Header { path: p, problem } if p == path => *problem,
            other => panic!("another error: {other:?}"),
        }
    };
    assert_eq!(problem(b""), HeaderProblem::TooShort { length: 0 });
    assert_eq!(problem(&bytes[..5]), HeaderProblem::TooShort { length: 5 });
    assert!(matches!(
        problem(&bytes[..40]),
        HeaderProblem::PastEnd { length: 40, .. }
    ));
    // A download that was cut off in the data names the tensor that it cut.
    let cut = problem(&bytes[..bytes.len() - 1]);
    assert!(
        matches!(&cut, HeaderProblem::OutOfRange { tensor, end: 20, available: 19 } if tensor == "b"),
        "{cut:?}"
    );
    let mut oversized = bytes.clone();
    oversized[..8].copy_from_slice(&100_000_001u64.to_le_bytes());
    assert!(matches!(
        problem(&oversized),
        HeaderProblem::TooLarge {
            declared: 100_000_001,
            ..
        }
    ));
    let mut shifted = bytes;
    let digit = shifted
        .windows(4)
        .position(|window| window == b"[0,8")
        .unwrap()
        + 1;
    shifted[digit] = b'4';
    assert!(matches!(problem(&shifted), HeaderProblem::Offsets { .. }));
}

#[test]
fn a_directory_in_place_of_the_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("model.safetensors")).unwrap();
    let error = open_error(&dir);
    assert!(
        matches!(error, ModelError::Io { .. } | ModelError::Header { .. }),
        "{error:?}"
    );
}

#[test]
fn shards_and_index_have_to_agree() {
    let dir = sharded(r#"{"a": "one.safetensors", "b": "three.safetensors"}"#);
    match open_error(&dir) {
        ModelError::MissingShard {
            path,
            tensors: 1,
            example,
        } => {
            assert_eq!(path, dir.path().join("three.safetensors"));
            assert_eq!(example, "b");
        }
        other => panic!("another error: {other:?}"),
    }

    let dir =
        sharded(r#"{"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}"#);
    match open_error(&dir) {
        ModelError::NotInShard { path, tensor } => {
            assert_eq!(path, dir.path().join("two.safetensors"));
            assert_eq!(tensor, "c");
        }
        other => panic!("another error: {other:?}"),
    }

    for outside in [
        "../one.safetensors",
        "/one.safetensors",
        "x/one.safetensors",
        ".",
        "",
        "one.safetensors/",
    ] {
        let dir = sharded(&format!(r#"{{"a": "{outside}"}}"#));
        let error = open_error(&dir);
        assert!(
            matches!(&error, ModelError::ShardName { shard, .. } if shard == outside),
            "{error:?}"
        );
    }
}

#[test]
fn where_shards_overlap_the_index_decides_or_it_is_an_error() {
    let copy = |dir: &TempDir| {
        let both = [f32s("a", &[2], 100.0), f32s("b", &[3], 3.0)];
        write(&dir.path().join("two.safetensors"), &both);
    };
    let dir = sharded(r#"{"a": "one.safetensors", "b": "two.safetensors"}"#);
    copy(&dir);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.to_f32("a", &[2]).unwrap(), [1.0, 2.0]);

    // Neither shard is named for `x`, and both have it.
    let dir = sharded(r#"{"a": "one.safetensors", "b": "two.safetensors"}"#);
    for (file, name) in [("one.safetensors", "a"), ("two.safetensors", "b")] {
        let tensors = [f32s(name, &[2], 0.0), f32s("x", &[1], 0.0)];
        write(&dir.path().join(file), &tensors);
    }
    let error = open_error(&dir);
    assert!(
        matches!(&error, ModelError::TensorInTwoShards { tensor, .. } if tensor == "x"),
        "{error:?}"
    );
}

#[test]
fn broken_indexes_are_named() {
    let index = |content: &[u8]| {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("model.safetensors.index.json"), content).unwrap();
        open_error(&dir)
    };
    assert!(matches!(
        index(b"{\"weight_map\": \xff}"),
        ModelError::NotUtf8 { offset: 15, .. }
    ));
    assert!(matches!(index(b""), ModelError::Json { .. }));
    assert!(matches!(
        index(b"{\n\n  \"weight_map\": }"),
        ModelError::Json { line: 3, .. }
    ));
    for content in [
        &b"{}"[..],
        b"{\"weight_map\": {\"a\": 1}}",
        b"{\"weight_map\": null}",
    ] {
        let error = index(content);
        assert!(
            matches!(&error, ModelError::InvalidConfig { key, .. } if key == "weight_map"),
            "{error:?}"
        );
    }
}

/// The map stays on the old content while the file is replaced by our own writer.
#[test]
fn an_open_checkpoint_outlives_its_replacement() {
    let dir = single(&[f32s("a", &[2], 1.0)]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    write(
        &dir.path().join("model.safetensors"),
        &[f32s("a", &[1], 9.0)],
    );
    assert_eq!(checkpoint.to_f32("a", &[2]).unwrap(), [1.0, 2.0]);
    let replaced = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(replaced.to_f32("a", &[1]).unwrap(), [9.0]);
}

#[test]
fn written_files_are_those_of_crate_safetensors() {
    let tensors = [
        f32s("b", &[3], 0.0),
        f32s("a", &[0, 7], 0.0),
        Owned {
            name: "ids".into(),
            dtype: Dtype::I64,
            shape: vec![],
            bytes: vec![7; 8],
        },
        Owned {
            name: "\"é\"".into(),
            dtype: Dtype::BF16,
            shape: vec![1, 2],
            bytes: vec![1, 2, 3, 4],
        },
    ];
    let dir = single(&tensors);
    let views = tensors.iter().map(|it| {
        let view = safetensors::tensor::TensorView::new(it.dtype, it.shape.clone(), &it.bytes);
        (it.name.clone(), view.unwrap())
    });
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    assert_eq!(
        fs::read(dir.path().join("model.safetensors")).unwrap(),
        safetensors::serialize(views, Some(metadata)).unwrap()
    );
}

proptest! {
    #[test]
    fn random_files_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("model.safetensors"), &bytes).unwrap();
        let _ = Checkpoint::open(dir.path());
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("model.safetensors.index.json"), &bytes).unwrap();
        prop_assert!(Checkpoint::open(dir.path()).is_err());
    }

    #[test]
    fn damaged_files_open_or_are_refused(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let dir = single(&[f32s("a", &[2], 1.0), f32s("b", &[1, 3], 3.0)]);
        let path = dir.path().join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        fs::write(&path, &bytes).unwrap();
        if let Ok(checkpoint) = Checkpoint::open(dir.path()) {
            for name in checkpoint.names() {
                let view = checkpoint.tensor(name).unwrap();
                let _ = checkpoint.to_f32(name, view.shape);
            }
            checkpoint.content_hash();
        }
    }
}
