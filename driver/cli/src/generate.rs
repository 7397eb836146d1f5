//! `virtfold generate`: man pages and completions out of the command line's own definition. Hidden: packages
//! are built with it.
//!
//! A page for each verb that is not hidden, its options by `clap_mangen`. What stands behind a verb's help
//! becomes sections: an unindented line that ends with a colon is a heading, indented lines are printed as
//! they are, everything else is text. virtfold.yaml(5) comes from the configuration's own definition.
//!
//! Imports: `exit`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Command, Subcommand};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::exit::ExitStatus;

const VERSION: &str = concat!("virtfold ", env!("CARGO_PKG_VERSION"));

/// Write man pages or completions (for who builds packages)
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: GenerateCommand,
}

#[derive(Debug, Subcommand)]
enum GenerateCommand {
    /// A man page for each verb, and virtfold.yaml(5)
    Man {
        #[command(flatten)]
        out: OutputDir,
        /// The date that the pages bear
        #[arg(long, value_name = "YYYY-MM-DD")]
        date: jiff::civil::Date,
    },
    /// For bash, zsh and fish
    Completions {
        #[command(flatten)]
        out: OutputDir,
    },
}

#[derive(Debug, clap::Args)]
struct OutputDir {
    /// Where to; files that are there are written anew
    #[arg(long = "out", value_name = "DIR")]
    directory: PathBuf,
}

/// Runs the verb.
pub(crate) fn run(args: &Args, cli: Command) -> Result<ExitStatus> {
    match &args.what {
        GenerateCommand::Man { out, date } => man(cli, &out.directory, &date.to_string())?,
        GenerateCommand::Completions { out } => completions(&cli, &out.directory)?,
    }
    Ok(ExitStatus::Done)
}

fn make(directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make '{}'", directory.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).with_context(|| format!("cannot write '{}'", path.display()))
}

fn man(cli: Command, directory: &Path, date: &str) -> Result<()> {
    make(directory)?;
    let mut cli = cli.disable_help_subcommand(true);
    cli.build();
    page_and_below(&cli, None, directory, date)?;
    // The reference knows neither date nor version: it is the same text wherever it is made.
    let title = format!(".TH VIRTFOLD.YAML 5 {date} \"{VERSION}\" virtfold");
    let configuration = virtfold_config::man_page();
    let lines =
        configuration.lines().map(|line| if line.starts_with(".TH ") { title.as_str() } else { line });
    write(&directory.join("virtfold.yaml.5"), tidy(&lines.collect::<Vec<_>>().join("\n")).as_bytes())
}

/// Without the paragraphs in which nothing stands: `mandoc` warns of them.
fn tidy(page: &str) -> String {
    let page = page.replace(".br\n\n.br\n", ".sp\n");
    let heading = |line: &str| line.starts_with(".SH ") || line.starts_with(".SS ");
    let lines: Vec<&str> = page.lines().collect();
    let (mut out, mut before) = (String::new(), "");
    for (number, &line) in lines.iter().enumerate() {
        let next = lines.get(number + 1);
        let ends = next.is_none_or(|next| heading(next) || *next == ".PP" || next.starts_with(".IP "));
        if line != ".PP" || !(ends || heading(before)) {
            out.push_str(line);
            out.push('\n');
            before = line;
        }
    }
    out
}

/// The pages of a verb and of the verbs below it.
fn page_and_below(verb: &Command, above: Option<&str>, directory: &Path, date: &str) -> Result<()> {
    let name = verb.get_display_name().unwrap_or_else(|| verb.get_name());
    let page = page(verb, above, date).with_context(|| format!("cannot make the page of '{name}'"))?;
    write(&directory.join(format!("{name}.1")), tidy(&page).as_bytes())?;
    for below in verb.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        page_and_below(below, Some(name), directory, date)?;
    }
    Ok(())
}

fn page(verb: &Command, above: Option<&str>, date: &str) -> std::io::Result<String> {
    let name = verb.get_display_name().unwrap_or_else(|| verb.get_name()).to_owned();
    let man = Man::new(verb.clone()).title(name.to_uppercase()).date(date).source(VERSION).manual("virtfold");
    let mut out = Vec::new();
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    if verb.get_arguments().any(|argument| !argument.is_hide_set()) {
        man.render_options_section(&mut out)?;
    }
    if verb.get_subcommands().any(|verb| !verb.is_hide_set()) {
        man.render_subcommands_section(&mut out)?;
    }
    let mut rest = Roff::new();
    if let Some(text) = verb.get_after_help() {
        sections(&text.to_string(), &mut rest);
    }
    rest.control("SH", ["SEE ALSO"]);
    if let Some(above) = above {
        rest.text([bold(above), roman("(1), ")]);
    }
    rest.text([bold("virtfold.yaml"), roman("(5)")]);
    rest.to_writer(&mut out)?;
    String::from_utf8(out).map_err(std::io::Error::other)
}

/// What stands behind a verb's help, as sections.
fn sections(text: &str, out: &mut Roff) {
    let mut verbatim = false;
    for line in text.lines() {
        let indented = line.strip_prefix("  ");
        if verbatim && indented.is_none() {
            out.control("EE", []);
        } else if !verbatim && indented.is_some() {
            out.control("EX", []);
        }
        verbatim = indented.is_some();
        match (indented, line.strip_suffix(':')) {
            (Some(code), _) => out.text([roman(code)]),
            (None, Some(heading)) => out.control("SH", [heading.to_uppercase().as_str()]),
            (None, None) if line.is_empty() => out.control("PP", []),
            (None, None) => out.text([roman(line)]),
        };
    }
    if verbatim {
        out.control("EE", []);
    }
}

fn completions(cli: &Command, directory: &Path) -> Result<()> {
    make(directory)?;
    let mut cli = visible(cli);
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut cli, "virtfold", directory)
            .with_context(|| format!("cannot write completions to '{}'", directory.display()))?;
    }
    Ok(())
}

/// The verb without what is hidden: nobody shall be offered that.
fn visible(verb: &Command) -> Command {
    // clap wants names that are there as long as the program, which ends with this.
    let name: &'static str = verb.get_name().to_owned().leak();
    let mut seen = Command::new(name)
        .args(verb.get_arguments().filter(|argument| !argument.is_hide_set()).cloned())
        .subcommands(verb.get_subcommands().filter(|verb| !verb.is_hide_set()).map(visible));
    if let Some(about) = verb.get_about() {
        seen = seen.about(about.clone());
    }
    match verb.get_version() {
        Some(_) => seen.version(env!("CARGO_PKG_VERSION")),
        None => seen,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn what_stands_behind_the_help_becomes_sections() {
        let mut out = Roff::new();
        sections(
            "Examples:\n  virtfold x -y\n  virtfold z\n\nA tape is .given.\n\nExit codes:\n  0  done",
            &mut out,
        );
        let text = tidy(&out.render());
        let body: Vec<_> = text.lines().filter(|line| !line.contains(" Aq ")).collect();
        let wanted = [
            ".SH EXAMPLES",
            ".EX",
            "virtfold x \\-y",
            "virtfold z",
            ".EE",
            ".PP",
            "A tape is .given.",
            ".SH \"EXIT CODES\"",
            ".EX",
            "0  done",
            ".EE",
        ];
        assert_eq!(body, wanted);
    }
}
