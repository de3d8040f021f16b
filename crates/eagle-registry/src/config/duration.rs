//! Durations in configuration files: `20s`, `500ms`, `5m`, or a number of seconds.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer, de};

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Seconds(f64),
    Text(String),
}

/// Reads a duration as people write it; `None` when it is not one.
pub fn parse(text: &str) -> Option<Duration> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit.trim() {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * factor).ok()
}

/// Shows a duration so that [`parse`] reads it.
pub fn format(duration: Duration) -> String {
    match duration.as_millis() {
        millis if millis % 1000 == 0 => format!("{}s", millis / 1000),
        millis => format!("{millis}ms"),
    }
}

/// For `#[serde(with)]`.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(*duration))
}

/// For `#[serde(with)]`.
///
/// # Errors
/// When it is not a duration.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let (text, duration) = match Written::deserialize(deserializer)? {
        Written::Seconds(seconds) => (seconds.to_string(), Duration::try_from_secs_f64(seconds).ok()),
        Written::Text(text) => {
            let duration = parse(&text);
            (text, duration)
        }
    };
    duration.ok_or_else(|| {
        de::Error::custom(format_args!("{text:?} is not a duration; write for instance 20s, 500ms or 5m"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_what_they_show() {
        for (text, millis) in
            [("20s", 20_000), ("500ms", 500), ("5m", 300_000), ("1.5s", 1500), ("3", 3000), ("1h", 3_600_000)]
        {
            let duration = parse(text).unwrap();
            assert_eq!(duration.as_millis(), millis);
            assert_eq!(parse(&format(duration)), Some(duration));
        }
        for bad in ["", "s", "-1s", "1 parsec", "1..2s", "99999999999999999999999h"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
