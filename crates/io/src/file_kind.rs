//! Files under a name that promises something else: what a download left in place of the real one.

/// What the first bytes of a file show it to be, in place of the safetensors or JSON that its name
/// promises, and what to do about it; none if they show nothing.
///
/// # Example
/// ```
/// use epiphyte_io::mistaken_file;
/// let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
/// assert!(mistaken_file(pointer).unwrap().contains("git lfs pull"));
/// assert_eq!(mistaken_file(br#"{"model_type": "bert"}"#), None);
/// ```
pub fn mistaken_file(bytes: &[u8]) -> Option<&'static str> {
    const LFS: &str = "it is a Git LFS pointer and not the file itself: run `git lfs pull` in its \
        repository, or download the file";
    const PAGE: &str = "it is a web page and not the file: download the file itself";
    const MESSAGE: &str = "it is a server's error message and not the file: download it again";
    const GGUF: &str = "it is a GGUF file under this name: give it one that ends with .gguf, and \
        pass its path as the model";
    const PICKLE: &str = "it is a PyTorch checkpoint under this name: load it in Python with \
        transformers and call save_pretrained, which writes safetensors";
    const HDF5: &str = "it is an HDF5 file, for TensorFlow: load it in Python with transformers \
        and call save_pretrained, which writes safetensors";
    const GZIP: &str = "it is compressed with gzip: decompress it";
    const BEGINNINGS: [(&[u8], &str); 11] = [
        (b"version https://git-lfs", LFS),
        (b"<!", PAGE),
        (b"<html", PAGE),
        (b"<?xml", PAGE),
        (b"Entry not found", MESSAGE),
        (b"Repository not found", MESSAGE),
        (b"Access to model", MESSAGE),
        (b"GGUF", GGUF),
        (b"PK\x03\x04", PICKLE),
        (b"\x89HDF", HDF5),
        (b"\x1f\x8b", GZIP),
    ];
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = text.trim_ascii_start();
    let begins = |start: &[u8]| {
        let beginning = text.get(..start.len());
        beginning.is_some_and(|it| it.eq_ignore_ascii_case(start))
    };
    let found = BEGINNINGS.iter().find(|(start, _)| begins(start));
    // A pickle of protocol 2 to 5. Eight bytes as a length, it would be over any header's limit.
    let is_pickle = matches!(bytes, [0x80, 2..=5, .., b'.']);
    let found = found.map(|&(_, kind)| kind);
    found.or(is_pickle.then_some(PICKLE))
}

#[cfg(test)]
mod tests {
    use super::mistaken_file;

    #[test]
    fn what_a_download_leaves_is_recognized() {
        let cases: [(&[u8], &str); 9] = [
            (
                b"version https://git-lfs.github.com/spec/v1\n",
                "git lfs pull",
            ),
            (b"\n  <!doctype html><html>", "web page"),
            (b"<HTML>", "web page"),
            (b"Entry not found", "error message"),
            (b"GGUF\x03\0\0\0", "GGUF"),
            (b"PK\x03\x04model/data.pkl", "PyTorch"),
            (b"\x80\x02}q\0.", "PyTorch"),
            (b"\x89HDF\r\n", "HDF5"),
            (b"\x1f\x8b\x08", "gzip"),
        ];
        for (bytes, words) in cases {
            let kind = mistaken_file(bytes).unwrap();
            assert!(kind.contains(words), "{kind}");
        }
    }

    #[test]
    fn files_of_the_promised_kind_are_left_alone() {
        let header = br#"{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#;
        let mut safetensors = (header.len() as u64).to_le_bytes().to_vec();
        safetensors.extend(header);
        let files: [&[u8]; 5] = [&safetensors, b"{}", b" [1]", b"", b"\xef\xbb\xbf{}"];
        for bytes in files {
            assert_eq!(mistaken_file(bytes), None);
        }
    }
}
