//! Configuration: the text of a file, and environment variables.

use std::ffi::OsString;

/// Lines that begin with `EAGLE_` are variables, the others are the file.
pub(crate) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (variables, lines): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with("EAGLE_"));
    let variables: Vec<(OsString, OsString)> = variables
        .iter()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
    match eagle::read_configuration(&lines.join("\n"), variables) {
        Ok(shown) => {
            // Secrets are not shown, so what is shown has others.
            let again = eagle::read_configuration(&shown, Vec::new());
            let plain = |text: &str| -> Vec<String> {
                text.lines().map(|line| line.split(" #").next().unwrap_or_default().trim_end().to_owned()).collect()
            };
            let again = again.unwrap_or_else(|error| panic!("what is shown cannot be read: {error}\n{shown}"));
            assert_eq!(plain(&again), plain(&shown));
        }
        Err(problem) => assert!(!problem.is_empty()),
    }
}
