//! The pages of the book, and what a person types of them.
//!
//! A block of commands begins with a language, as every fence does, and a mark behind it, which pages do not show: ```` ```sh run=NAME ````
//! is run by the scenario of that name, ```` ```console needs=WHAT ```` needs something that the tests have not. `docs/development.md`
//! lists the marks.
//!
//! The programs' own crates include this file in their tests, where each holds the pages to its command line.

#[cfg(test)]
pub(crate) mod command_line;

use std::{collections::BTreeMap, fs, io, path::Path};

/// Pages outside `docs/` that link into it and are linked from it.
const OTHERS: [&str; 3] = ["README.md", "charts/eagle/README.md", "benches/README.md"];
/// Languages of blocks that hold commands: `console` with prompts and what is answered, the others as a shell reads them.
const OF_SHELLS: [&str; 4] = ["console", "sh", "bash", "shell"];

/// Every page with its text, by its path from the root.
///
/// # Errors
/// A page that cannot be read.
pub(crate) fn pages(root: &Path) -> io::Result<BTreeMap<String, String>> {
    let mut paths: Vec<String> = OTHERS.map(str::to_owned).to_vec();
    for entry in fs::read_dir(root.join("docs"))? {
        let name = entry?.file_name();
        paths.push(format!("docs/{}", name.to_string_lossy()));
    }
    paths.retain(|path| path.ends_with(".md"));
    let read = |path: String| Ok((path.clone(), fs::read_to_string(root.join(path))?));
    paths.into_iter().map(read).collect()
}

/// What stands between two fences of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Block {
    /// Path of the page from the root.
    pub(crate) page: String,
    /// Line of the opening fence, from 1.
    pub(crate) line: usize,
    pub(crate) language: String,
    /// The words behind the language.
    pub(crate) marks: Vec<String>,
    pub(crate) text: String,
}

/// A line that is typed, and the machine that its prompt names, if any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Typed<'a> {
    pub(crate) machine: &'a str,
    pub(crate) text: &'a str,
}

impl Block {
    /// Whether it holds commands.
    pub(crate) fn is_of_shell(&self) -> bool {
        OF_SHELLS.contains(&self.language.as_str())
    }

    /// What the mark of this name says.
    pub(crate) fn mark(&self, name: &str) -> Option<&str> {
        self.marks.iter().find_map(|mark| mark.strip_prefix(name)?.strip_prefix('='))
    }

    /// What is typed of it. Where lines have prompts, the others are answers.
    pub(crate) fn typed(&self) -> Vec<Typed<'_>> {
        let lines = || self.text.lines().filter(|line| !line.trim().is_empty());
        let prompted: Vec<Typed<'_>> = lines().filter_map(after_prompt).collect();
        if self.language == "console" && !prompted.is_empty() {
            return prompted;
        }
        lines().map(|text| Typed { machine: "", text }).collect()
    }

    /// What is typed, as a script.
    pub(crate) fn script(&self) -> String {
        self.typed().iter().map(|typed| format!("{}\n", typed.text)).collect()
    }

    /// Where it is, for an error.
    pub(crate) fn place(&self) -> String {
        format!("{}:{}", self.page, self.line)
    }
}

/// A line after its prompt: `$ `, `# ` (of root), or the first after the name of a machine.
fn after_prompt(line: &str) -> Option<Typed<'_>> {
    if let Some(text) = line.strip_prefix("# ") {
        return Some(Typed { machine: "", text });
    }
    let (machine, text) = line.split_once("$ ")?;
    machine.chars().all(|c| c.is_ascii_alphanumeric() || c == '-').then(|| Typed { machine, text: text.trim_start() })
}

/// The blocks of a page.
pub(crate) fn blocks(page: &str, text: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut is_open = false;
    for (index, line) in text.lines().enumerate() {
        if let Some(words) = line.trim_start().strip_prefix("```") {
            is_open = !is_open;
            if is_open {
                let mut words = words.split_whitespace().map(str::to_owned);
                blocks.push(Block {
                    page: page.to_owned(),
                    line: index + 1,
                    language: words.next().unwrap_or_default(),
                    marks: words.collect(),
                    text: String::new(),
                });
            }
        } else if is_open && let Some(block) = blocks.last_mut() {
            block.text.push_str(line);
            block.text.push('\n');
        }
    }
    blocks
}

/// The lines of a page that are no code.
#[cfg(test)]
pub(crate) fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        is_code ^= fence;
        !is_code && !fence
    })
}

/// The blocks of all pages that this scenario runs, by the order of the pages' names.
///
/// # Errors
/// A page that cannot be read.
pub(crate) fn run_by(root: &Path, scenario: &str) -> io::Result<Vec<Block>> {
    let pages = pages(root)?;
    let blocks = pages.iter().flat_map(|(page, text)| blocks(page, text));
    Ok(blocks.filter(|block| block.is_of_shell() && block.mark("run") == Some(scenario)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_is_told_from_what_is_answered() {
        let page = "```console run=a needs=b\n$ one # two\nthree\nnode-1$  four\n# five\n```\n```sh\n# six\nseven\n```\n```\n$ x\n```\n";
        let found = blocks("p.md", page);
        assert_eq!(found.len(), 3);
        assert_eq!((found[0].mark("run"), found[0].mark("needs"), found[0].mark("ne")), (Some("a"), Some("b"), None));
        let typed =
            [("", "one # two"), ("node-1", "four"), ("", "five")].map(|(machine, text)| Typed { machine, text });
        assert_eq!(found[0].typed(), typed);
        assert_eq!(found[1].script(), "# six\nseven\n");
        assert_eq!((found[1].place().as_str(), found[2].is_of_shell()), ("p.md:7", false));
    }
}
