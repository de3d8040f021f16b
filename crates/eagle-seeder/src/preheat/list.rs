//! Lists of images in files.

/// The images that a list names: one on a line, `#` begins a comment.
pub fn image_list(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_empty_lines_are_left_out() {
        assert_eq!(
            image_list("# all of them\r\ndebian:12\r\n\n  a.b/c@sha256:0 # why\n#x"),
            ["debian:12", "a.b/c@sha256:0"]
        );
        assert!(image_list("").is_empty());
    }
}
