//! Configuration files of container runtimes, which people and other programs write and `eagle configure` edits.

use serde_json::Value;

/// What `eagle configure` puts in.
const MIRROR: &str = "http://127.0.0.1:43002";

/// The text as each kind of file. A file that was edited is one that has the mirror, and has it once.
pub(crate) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for (kind, edited) in eagle::edit_runtime_files(text) {
        let edited = match edited {
            Ok(edited) => edited,
            Err(problem) => {
                assert!(problem.len() <= 1000 + 10 * text.len(), "{kind}: {problem}");
                continue;
            }
        };
        if let Some(edited) = &edited {
            let again = eagle::edit_runtime_files(edited).into_iter().find(|again| again.0 == kind);
            assert_eq!(again, Some((kind, Ok(None))), "{kind} became\n{edited}");
        }
        if kind == "daemon.json" {
            daemon(text, edited.as_deref().unwrap_or(text));
        }
    }
}

/// docker finds the mirror, and everything else as it was.
fn daemon(before: &str, after: &str) {
    let read = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_else(|error| panic!("{error} in\n{text}"));
    let mut after = read(after);
    assert!(after["registry-mirrors"].as_array().is_some_and(|mirrors| {
        mirrors.iter().any(|mirror| mirror.as_str().is_some_and(|url| url.trim_end_matches('/') == MIRROR))
    }));
    if !before.trim().is_empty() {
        let mut before = read(before);
        for file in [&mut before, &mut after] {
            file.as_object_mut().map(|keys| keys.remove("registry-mirrors"));
        }
        assert_eq!(before, after);
    }
}
