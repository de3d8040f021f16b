//! Numbers and names as people read them.

/// Longest name that is shown; more does not fit beside anything.
const MOST: usize = 64;

/// Longest line that is shown of what somebody says; the reason stands at its beginning.
const MOST_OF_LINE: usize = 300;

/// A name from elsewhere, without what a terminal would obey or what would turn its line around.
pub(crate) fn clean(name: &str) -> String {
    name.chars().take(MOST).map(harmless).collect()
}

/// What somebody says, in the same way.
pub(crate) fn clean_line(text: &str) -> String {
    text.chars().take(MOST_OF_LINE).map(harmless).collect()
}

fn harmless(c: char) -> char {
    // Marks of direction and characters without width: they make one text look like another.
    let hidden = matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}');
    if c.is_control() || hidden { '·' } else { c }
}

/// The beginning of a digest, or the two ends of an identity.
pub(crate) fn short(name: &str) -> String {
    let name = clean(name);
    if let Some((_, hex)) = name.split_once(':') {
        return hex.chars().take(12).collect();
    }
    let count = name.chars().count();
    if count <= 14 {
        return name;
    }
    let (head, tail): (String, String) = (name.chars().take(6).collect(), name.chars().skip(count - 7).collect());
    format!("{head}…{tail}")
}

/// Bytes, by thousands.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1_000 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64 / 1_000.0, 0);
    // From here on it would be written as 1000.0.
    while value >= 999.95 && unit < UNITS.len() - 1 {
        value /= 1_000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Bytes per second; nothing moves as a dash.
pub(crate) fn rate(bytes_per_second: u64) -> String {
    if bytes_per_second == 0 { "-".to_owned() } else { format!("{}/s", bytes(bytes_per_second)) }
}

/// A time.
pub(crate) fn time(seconds: f64) -> String {
    match seconds {
        _ if !seconds.is_finite() || seconds < 0.0 => "-".to_owned(),
        _ if seconds < 120.0 => format!("{seconds:.0} s"),
        _ if seconds < 7_200.0 => format!("{:.0} min", seconds / 60.0),
        _ if seconds < 172_800.0 => format!("{:.0} h", seconds / 3_600.0),
        _ => format!("{:.0} d", seconds / 86_400.0),
    }
}

/// A share as per cent, never 100 before it is whole.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.0} %", (share.clamp(0.0, 1.0) * 100.0).floor())
}

/// A share as a bar of so many characters.
pub(crate) fn bar(share: f64, width: usize) -> String {
    let full = (0..width).filter(|cell| share * width as f64 >= (*cell as f64) + 1.0).count();
    format!("{}{}", "█".repeat(full), "░".repeat(width - full))
}

/// Region and zone, as far as they are known.
pub(crate) fn zone(region: Option<&String>, zone: Option<&String>) -> String {
    place([region, zone, None])
}

/// Labels from the widest to the narrowest, as far as they are known.
pub(crate) fn place(labels: [Option<&String>; 3]) -> String {
    let labels: Vec<String> = labels.into_iter().flatten().map(|label| clean(label)).collect();
    if labels.is_empty() { "-".to_owned() } else { labels.join("/") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_well_at_any_size() {
        for (value, shown) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (999_949, "999.9 kB"),
            (999_960, "1.0 MB"),
            (52_428_800, "52.4 MB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(bytes(value), shown);
        }
        assert_eq!((rate(0), rate(5)), ("-".to_owned(), "5 B/s".to_owned()));
        assert_eq!((percent(0.999), percent(1.0)), ("99 %".into(), "100 %".into()));
        assert_eq!(
            (bar(0.5, 4), bar(2.0, 2), bar(-1.0, 2), bar(f64::NAN, 1)),
            ("██░░".into(), "██".into(), "░░".into(), "░".into())
        );
        assert_eq!(
            (time(3.2), time(600.0), time(f64::NAN), time(1e30).is_empty()),
            ("3 s".into(), "10 min".into(), "-".into(), false)
        );
    }

    #[test]
    fn names_cannot_command_a_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\r\n\u{202e}c\u{9b}"), "a·[2Jb···c·");
        assert_eq!(clean(&"x".repeat(1_000)).len(), MOST);
        assert_eq!(clean_line(&"x\n".repeat(1_000)), "x·".repeat(MOST_OF_LINE / 2));
        assert_eq!(short("sha256:0123456789abcdef0123"), "0123456789ab");
        assert_eq!(short("12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo"), "12D3Ko…SCVe2Xo");
        assert_eq!(short("node1"), "node1");
    }
}
