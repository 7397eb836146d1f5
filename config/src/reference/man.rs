//! The reference in troff. It reads the Markdown that this crate writes, no other: headings, paragraphs,
//! lists of one level, blocks that are indented by four, and code between backticks, which becomes bold.

use roff::{Inline, Roff, bold, roman};

/// The man page with this text as its body.
pub(super) fn page(text: &str) -> String {
    let mut out = Roff::new();
    out.control("TH", ["VIRTFOLD.YAML", "5", "", "virtfold", "virtfold"]);
    out.control("SH", ["NAME"]);
    out.text([roman("virtfold.yaml - the configuration of virtfold")]);
    out.control("SH", ["SYNOPSIS"]);
    out.text([bold("/etc/virtfold/config.yaml"), roman(", "), bold("/etc/virtfold/conf.d/*.yaml")]);
    out.control("SH", ["DESCRIPTION"]);
    let mut verbatim = false;
    for line in text.lines() {
        let code = line.strip_prefix("    ");
        if verbatim && code.is_none() {
            out.control("EE", []);
        } else if !verbatim && code.is_some() {
            out.control("EX", []);
        }
        verbatim = code.is_some();
        if let Some(code) = code {
            out.text([roman(code)]);
        } else if let Some(heading) = line.strip_prefix("## ") {
            out.control("SH", [heading.to_uppercase().as_str()]);
        } else if let Some(heading) = line.strip_prefix("### ") {
            // Arguments are taken as they are, and a plain hyphen would be printed as a dash.
            out.control("SS", [heading.trim_matches('`').replace('-', "\\-").as_str()]);
        } else if let Some(item) = line.strip_prefix("- ") {
            out.control("IP", ["-", "2"]);
            out.text(inlines(item));
        } else if line.is_empty() {
            out.control("PP", []);
        } else {
            out.text(inlines(line.trim_start()));
        }
    }
    out.control("SH", ["SEE ALSO"]);
    out.text([bold("virtfold"), roman("(1)")]);
    out.render()
}

/// A line's text, code in bold.
fn inlines(line: &str) -> Vec<Inline> {
    let parts = line.split('`').enumerate();
    parts.map(|(number, part)| if number % 2 == 1 { bold(part) } else { roman(part) }).collect()
}
