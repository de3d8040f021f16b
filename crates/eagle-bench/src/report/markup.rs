//! A check of pages, for tests: elements that begin and end in order, and nothing that would be loaded or run.

/// Elements without an end (HTML, section 13.1.2).
const VOID: [&str; 4] = ["meta", "br", "hr", "img"];
/// Elements that load or run something.
const FORBIDDEN: [&str; 8] = ["script", "img", "link", "iframe", "object", "embed", "image", "use"];

/// What is wrong with a page, if anything.
pub(crate) fn check(text: &str) -> Result<(), String> {
    let mut rest = text.strip_prefix("<!DOCTYPE html>").ok_or("no document type")?;
    let mut open: Vec<&str> = Vec::new();
    while let Some(start) = rest.find('<') {
        let end = rest[start..].find('>').ok_or("a tag has no end")? + start;
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            if open.pop() != Some(name) {
                return Err(format!("</{name}> ends what is not open"));
            }
            continue;
        }
        let name = tag.split(' ').next().unwrap_or_default();
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(format!("<{tag}> is no element"));
        }
        if FORBIDDEN.contains(&name) {
            return Err(format!("<{tag}> loads or runs something"));
        }
        attributes(&tag[name.len()..])?;
        if name == "style" {
            let end = rest.find("</style>").ok_or("the style has no end")?;
            if ["url(", "@import"].iter().any(|loaded| rest[..end].contains(loaded)) {
                return Err("the style loads something".to_owned());
            }
        }
        if !VOID.contains(&name) {
            open.push(name);
        }
    }
    if open.is_empty() { Ok(()) } else { Err(format!("{open:?} have no end")) }
}

fn attributes(mut text: &str) -> Result<(), String> {
    loop {
        text = text.trim_start();
        if text.is_empty() {
            return Ok(());
        }
        let (name, value) = text.split_once("=\"").ok_or_else(|| format!("an attribute without a value: {text}"))?;
        let (value, after) = value.split_once('"').ok_or_else(|| format!("{name} has no end"))?;
        let event = name.starts_with("on");
        let loads = matches!(name, "src" | "srcset" | "data" | "poster" | "style")
            || name.ends_with("href") && !value.starts_with('#');
        if event || loads {
            return Err(format!("{name}=\"{value}\" loads or runs something"));
        }
        text = after;
    }
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn faults_are_found() {
        let page = |body: &str| check(&format!("<!DOCTYPE html><html><meta charset=\"utf-8\">{body}</html>"));
        page("<p class=\"a\">text &lt;</p><a href=\"#b\">x</a><svg><path d=\"M0 0\"></path></svg>").unwrap();
        for bad in [
            "<p>",
            "</p>",
            "<p><b></p></b>",
            "<script></script>",
            "<a href=\"http://x\">x</a>",
            "<p onload=\"x\"></p>",
            "a < b",
            "<style>a{background:url(x)}</style>",
            "<img src=\"x\">",
            "<p class=x></p>",
        ] {
            assert!(page(bad).is_err(), "{bad}");
        }
        assert!(check("<html></html>").is_err());
    }
}
