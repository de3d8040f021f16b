//! Whether the pages call a program as its command line really is.

use std::path::Path;

use clap::Command;

use super::{blocks, pages, prose};

/// Every call of a program in the pages, in its help's examples and between backticks that its command line would not take.
///
/// `program` is how pages call it: `eagle`, `eagle-bench` or `cargo xtask`. In blocks and examples a call is parsed as if it had been
/// typed; between backticks, where names stand for values (`eagle cache rm NAME...`), subcommands and flags have to be there.
pub(crate) fn check(root: &Path, program: &str, command: &Command) -> Checked {
    let mut checked = Checked::default();
    let mut command = command.clone();
    // Global flags are known to subcommands from then on.
    command.build();
    for (page, text) in pages(root).unwrap() {
        for block in blocks(&page, &text).iter().filter(|block| block.is_of_shell()) {
            checked.script(&block.place(), &block.script(), program, &command);
        }
        let prose = prose(&text).collect::<Vec<_>>().join("\n");
        for span in prose.split('`').skip(1).step_by(2) {
            let words: Vec<&str> = span.split_whitespace().collect();
            let own: Vec<&str> = program.split(' ').collect();
            if words.len() > own.len() && words.starts_with(&own) {
                checked.mentioned += 1;
                let problem = unknown(&command, &words[own.len()..]);
                checked.problems.extend(problem.map(|problem| format!("{page}: `{span}`: {problem}")));
            }
        }
    }
    checked.examples(program, &command, &command);
    checked
}

/// How many calls were looked at, and what is wrong with them.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    /// In blocks of commands.
    pub(crate) typed: usize,
    /// In the help of the program.
    pub(crate) examples: usize,
    /// Between backticks.
    pub(crate) mentioned: usize,
    pub(crate) problems: Vec<String>,
}

impl Checked {
    fn script(&mut self, place: &str, script: &str, program: &str, command: &Command) {
        let commands = match simple_commands(script) {
            Ok(commands) => commands,
            Err(problem) => return self.problems.push(format!("{place}: {problem}")),
        };
        for words in commands {
            if let Some(arguments) = arguments(&words, program) {
                self.typed += 1;
                self.problems
                    .extend(refusal(command, arguments).map(|why| format!("{place}: {}: {why}", words.join(" "))));
            }
        }
    }

    /// The examples at the end of the help of a command and those below it.
    fn examples(&mut self, program: &str, whole: &Command, command: &Command) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default().replace("\\\n      ", "");
        for line in help.lines().filter_map(|line| line.strip_prefix("  ")) {
            // What an example does is said behind more than one space.
            let line = line.split("  ").next().unwrap_or(line);
            let before = self.typed;
            self.script("help", line, program, whole);
            self.examples += std::mem::replace(&mut self.typed, before) - before;
        }
        for below in command.get_subcommands() {
            self.examples(program, whole, below);
        }
    }
}

/// Why a command line is not taken.
fn refusal(command: &Command, arguments: &[String]) -> Option<String> {
    let words = std::iter::once("program").chain(arguments.iter().map(String::as_str));
    match command.clone().try_get_matches_from(words) {
        // Help and version come this way too.
        Err(error) if error.use_stderr() => Some(error.to_string()),
        _ => None,
    }
}

/// The arguments, if a command calls this program: at its start, behind `cargo run -- ` or behind `kubectl exec POD -- `.
fn arguments<'a>(words: &'a [String], program: &str) -> Option<&'a [String]> {
    let is_assignment = |word: &&String| word.split_once('=').is_some_and(|(name, _)| is_variable(name));
    let words = &words[words.iter().take_while(is_assignment).count()..];
    let is_program = |word: &String| Path::new(word).file_name().is_some_and(|name| name == program);
    match program.split_once(' ') {
        Some((first, second)) => (words.first()? == first && words.get(1)? == second).then(|| &words[2..]),
        None if is_program(words.first()?) => Some(&words[1..]),
        None => {
            let (before, after) = words.split_at(words.iter().position(|word| word == "--")?);
            let is_default_of_cargo = before.starts_with(&["cargo".to_owned(), "run".to_owned()])
                && !before.iter().any(|word| word == "-p" || word == "--package" || word == "--example");
            match after.get(1) {
                _ if is_default_of_cargo && program == "eagle" => Some(&after[1..]),
                Some(word) if is_program(word) => Some(&after[2..]),
                _ => None,
            }
        }
    }
}

fn is_variable(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// What a command line with names in the place of values has that the program has not.
fn unknown(command: &Command, words: &[&str]) -> Option<String> {
    let mut command = command;
    let mut words = words.iter().map(|word| word.trim_matches(['[', ']']));
    let mut positionals = 0;
    while let Some(word) = words.next() {
        if word.starts_with(['>', '|', '#']) || word == "--" {
            break;
        } else if let Some(flag) = word.strip_prefix("--") {
            let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
            let Some(argument) = command.get_arguments().find(|argument| argument.get_long() == Some(name)) else {
                // clap adds these on its own.
                let is_own = ["help", "version"].contains(&name);
                return (!is_own).then(|| format!("`{}` has no flag --{name}", command.get_name()));
            };
            if argument.get_action().takes_values() && value.is_none() {
                words.next();
            }
        } else if command.has_subcommands() {
            let mut found = word.split('|').map(|name| command.find_subcommand(name).ok_or(name));
            match found.next()? {
                Ok(below) => {
                    if let Some(Err(name)) = found.find(Result::is_err) {
                        return Some(format!("`{}` has no {name}", command.get_name()));
                    }
                    command = below;
                }
                Err(name) => return Some(format!("`{}` has no {name}", command.get_name())),
            }
        } else {
            let Some(argument) =
                command.get_positionals().nth(positionals).or_else(|| command.get_positionals().last())
            else {
                return Some(format!("`{}` takes no {word}", command.get_name()));
            };
            positionals += 1;
            let possible = argument.get_possible_values();
            let is_placeholder = word.chars().all(|c| c.is_ascii_uppercase() || c == '.');
            let is_possible =
                |name: &str| possible.is_empty() || possible.iter().any(|value| value.matches(name, false));
            if !is_placeholder && !word.split('|').all(is_possible) {
                return Some(format!("`{}` takes no {word}", command.get_name()));
            }
        }
    }
    None
}

/// Puts a word that has ended where it belongs: nowhere, if it is what a redirection leads to.
fn end_of_word(word: &mut Option<String>, is_target: &mut bool, commands: &mut [Vec<String>]) {
    if let Some(word) = word.take()
        && !std::mem::take(is_target)
        && let Some(command) = commands.last_mut()
    {
        command.push(word);
    }
}

/// The simple commands of a script, as words without their quotes; redirections are left out. Expansions stay as they are written.
pub(crate) fn simple_commands(script: &str) -> Result<Vec<Vec<String>>, String> {
    let mut commands = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut is_target = false;
    let mut characters = script.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\'' | '"' => {
                let quoted = word.get_or_insert_default();
                loop {
                    match characters.next() {
                        Some(inner) if inner == character => break,
                        Some('\\') if character == '"' => quoted.extend(characters.next()),
                        Some(inner) => quoted.push(inner),
                        None => return Err(format!("a quote {character} has no end")),
                    }
                }
            }
            '\\' => match characters.next() {
                Some('\n') | None => end_of_word(&mut word, &mut is_target, &mut commands),
                Some(escaped) => word.get_or_insert_default().push(escaped),
            },
            '#' if word.is_none() => while characters.next_if(|next| *next != '\n').is_some() {},
            '>' | '<' => {
                // The number of a descriptor is part of the redirection.
                word = word.filter(|word| !word.chars().all(|c| c.is_ascii_digit()));
                end_of_word(&mut word, &mut is_target, &mut commands);
                is_target = true;
            }
            '|' | '&' | ';' | '(' | ')' | '\n' => {
                end_of_word(&mut word, &mut is_target, &mut commands);
                is_target = false;
                commands.push(Vec::new());
            }
            character if character.is_whitespace() => end_of_word(&mut word, &mut is_target, &mut commands),
            character => word.get_or_insert_default().push(character),
        }
    }
    end_of_word(&mut word, &mut is_target, &mut commands);
    commands.retain(|command| !command.is_empty());
    Ok(commands)
}

#[cfg(test)]
mod tests {
    use clap::{Arg, ArgAction};

    use super::*;

    fn program() -> Command {
        let nodes = Arg::new("nodes").long("nodes").value_parser(clap::value_parser!(u8));
        let flag = Arg::new("keep").long("keep").action(ArgAction::SetTrue);
        let kind = Arg::new("kind").value_parser(["docker", "podman"]).required(true);
        let root = Command::new("eagle").arg(Arg::new("level").long("level").global(true));
        let demo = Command::new("demo").args([nodes, flag]);
        let mut root = root.subcommands([demo, Command::new("configure").arg(kind), Command::new("man")]);
        root.build();
        root
    }

    #[test]
    fn calls_are_found_where_a_shell_would_make_them() {
        let script = "A=b target/eagle demo --x 'y z' # eagle no\ncat <a | eagle one > two 2>three && x\n\
            kubectl exec a -- eagle b\ncargo run --release -- c\ncargo run -p other -- d\nkill eagle\neagle \\\n e \"f\ng\"\n";
        let commands = simple_commands(script).unwrap();
        let found: Vec<String> =
            commands.iter().filter_map(|words| arguments(words, "eagle")).map(|words| words.join(" ")).collect();
        assert_eq!(found, ["demo --x y z", "one", "b", "c", "e f\ng"]);
        assert!(simple_commands("eagle 'a").is_err());
        let words = ["cargo", "xtask", "test"].map(str::to_owned);
        assert_eq!(arguments(&words, "cargo xtask"), Some(&words[2..]));
    }

    #[test]
    fn what_the_command_line_would_refuse_is_found() {
        let program = program();
        for (words, is_right) in [
            ("demo --nodes 3 --level x", true),
            ("demo --nodes many", false),
            ("demo --node 3", false),
            ("demos", false),
            ("configure", false),
            ("--help", true),
        ] {
            let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
            assert_eq!(refusal(&program, &words).is_none(), is_right, "{words:?}");
        }
        for (words, is_right) in [
            ("demo --nodes N [--keep]", true),
            ("demo|man --level", true),
            ("demo|men", false),
            ("demo --nodes=N --nothing", false),
            ("configure RUNTIME", true),
            ("configure docker|podman > FILE", true),
            ("configure docker|crio", false),
            ("man all", false),
        ] {
            let words: Vec<&str> = words.split(' ').collect();
            assert_eq!(unknown(&program, &words).is_none(), is_right, "{words:?}");
        }
    }
}
