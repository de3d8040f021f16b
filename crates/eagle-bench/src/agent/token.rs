//! The token that a controller and its agents share.

use std::{fs::File, io::Read as _, path::Path};

use anyhow::{Context as _, Result, ensure};
use eagle_registry::Secret;
use http::{HeaderMap, header};

/// Where the token may be besides a file.
pub(crate) const VARIABLE: &str = "EAGLE_BENCH_TOKEN";
/// Shorter ones can be guessed.
const SHORTEST: usize = 16;
/// Longer ones are another file, given by mistake.
const LONGEST: u64 = 4096;

/// The token of this file or else of the environment, if there is one.
///
/// # Errors
/// When the file cannot be read, or holds no token.
pub(crate) fn read(file: Option<&Path>) -> Result<Option<Secret>> {
    let (text, from) = match file {
        Some(path) => {
            let what = || format!("--token-file: {} cannot be read", path.display());
            // With room for all from the first: a text that grows moves, and leaves what it was behind.
            let mut text = String::with_capacity(usize::try_from(2 * LONGEST)?);
            File::open(path).with_context(what)?.take(LONGEST + 1).read_to_string(&mut text).with_context(what)?;
            (Secret::new(text), format!("--token-file: {}", path.display()))
        }
        None => match std::env::var(VARIABLE) {
            Ok(text) => (Secret::new(text), VARIABLE.to_owned()),
            Err(std::env::VarError::NotPresent) => return Ok(None),
            Err(error) => return Err(error).context(VARIABLE),
        },
    };
    let token = text.expose().trim();
    let fits = (SHORTEST..=usize::try_from(LONGEST)?).contains(&token.len());
    ensure!(
        fits && token.bytes().all(|byte| byte.is_ascii_graphic()),
        "{from}: a token has from {SHORTEST} to {LONGEST} letters, digits and signs, without spaces; `openssl rand -hex 32` makes one"
    );
    Ok(Some(Secret::new(token)))
}

/// Whether `Authorization` brings this token, once. How long it takes tells the token's length at most.
pub(crate) fn is_brought(headers: &HeaderMap, token: &Secret) -> bool {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let brought = value.to_str().ok().and_then(|value| value.split_once(' '));
    brought
        .is_some_and(|(scheme, brought)| scheme.eq_ignore_ascii_case("bearer") && Secret::new(brought.trim()) == *token)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_file_holds_one_token() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        let of = |text: &[u8]| {
            std::fs::write(&file, text).unwrap();
            read(Some(&file))
        };
        assert_eq!(of(b"0123456789abcdef\n").unwrap().unwrap().expose(), "0123456789abcdef");
        for bad in [&b""[..], b"0123456789abcde\n", b"0123456789 abcdef", &[b'x'; 5000], b"\xff\xff0123456789abcdef"] {
            let error = format!("{:#}", of(bad).unwrap_err());
            assert!(error.contains("token") && !error.contains("0123"), "{error}");
        }
        assert!(read(Some(Path::new("/nowhere/token"))).is_err());
    }

    #[test]
    fn only_the_token_itself_is_let_in() {
        let token = Secret::new("0123456789abcdef");
        let brought = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            }
            is_brought(&headers, &token)
        };
        assert!(brought(&["Bearer 0123456789abcdef"]) && brought(&["bearer 0123456789abcdef"]));
        for bad in ["", "Bearer", "Bearer ", "0123456789abcdef", "Bearer 0123456789abcde", "Basic 0123456789abcdef"] {
            assert!(!brought(&[bad]), "{bad}");
        }
        assert!(!brought(&[]) && !brought(&["Bearer 0123456789abcdef", "Bearer 0123456789abcdef"]));
    }
}
