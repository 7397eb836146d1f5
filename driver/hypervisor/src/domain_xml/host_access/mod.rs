//! What a definition has of its host: whoever defines XML out of an archive asks for it first.
//!
//! An **allow-list** (`table.rs`): an element or attribute that is the guest's alone passes, one that reaches
//! the host passes where its value is harmless, and everything else is a [`Finding`], also what nobody here
//! knows. So what a new libvirt adds is refused until it is looked at.
//!
//! The XML is walked from its root along the table. What an unknown or refused element holds is part of that
//! one finding. Elements in a foreign namespace are findings, attributes, too: libvirt compares names and
//! often no namespaces. `<metadata>` is opaque to libvirt, and to this.
//!
//! What the host's own definition of this guest has already, element for element and to the letter, adds
//! nothing ([`Granted::own`]): a child of `<domain>`, `<devices>` or `<os>` is compared as a whole, so that
//! no part of it can be left out or put in.
//!
//! Imports: `table`, `kinds`, `rules`; of the room the parser.

mod kinds;
mod rules;
mod table;
mod values;

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::LazyLock;

use roxmltree::{Attribute, Node};

pub use self::kinds::HostAccess;
use self::rules::Rules;
use self::table::{HostRule, NESTED, OPAQUE};
use super::{DomainXml, child, open, text_within};
use virtfold_base::error::Result;

static RULES: LazyLock<Rules> = LazyLock::new(Rules::of_domain);

/// More of a value is not told.
const SHOWN: usize = 120;

/// Something that a definition has of its host, or that nobody here knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What `--allow` calls it.
    pub kind: HostAccess,
    /// The element or attribute: `devices/interface/script`.
    pub place: String,
    /// What it says; the beginning of it.
    pub value: String,
    /// Why it does not pass.
    pub reason: &'static str,
    /// The disk that it belongs to.
    pub disk: Option<String>,
}

/// What the definition may have of the host.
#[derive(Clone, Debug, Default)]
pub struct Granted<'a> {
    /// Files and devices that the restore writes.
    pub restored: Vec<PathBuf>,
    /// Directories in which libvirt makes the sockets of channels.
    pub channels: Vec<PathBuf>,
    /// The host's own definitions of this guest.
    pub own: Vec<&'a DomainXml>,
}

/// What `xml` has of its host beyond what is granted; empty where it may be defined.
///
/// # Errors
/// As [`DomainXml::parse`].
pub fn check(xml: &DomainXml, granted: &Granted<'_>) -> Result<Vec<Finding>> {
    let document = open(xml.text())?;
    let rules = &*RULES;
    let mut own = HashSet::new();
    for xml in &granted.own {
        own.extend(parts(open(xml.text())?.root_element()).map(spelled));
    }
    let root = document.root_element();
    let mut walk = Walk { granted, found: Vec::new() };
    if let Some(space) = root.tag_name().namespace() {
        walk.add(FOREIGN, "domain".to_owned(), space.to_owned(), None);
    }
    walk.element(Step { node: root, rules, path: String::new(), disk: None });
    for whole in ["os", "devices"] {
        for (node, rules) in children_named(root, whole).filter_map(|node| Some((node, rules.child(whole)?)))
        {
            walk.element(Step { node, rules, path: whole.to_owned(), disk: None });
        }
    }
    for part in parts(root).filter(|part| own.is_empty() || !own.contains(&spelled(*part))) {
        walk.from(part, rules);
    }
    Ok(walk.found)
}

/// The elements that are compared as a whole.
fn parts<'a, 'i: 'a>(root: Node<'a, 'i>) -> impl Iterator<Item = Node<'a, 'i>> {
    let elements = |node: Node<'a, 'i>| node.children().filter(Node::is_element);
    elements(root).flat_map(move |node| {
        let whole = (!is_holder(node)).then_some(node);
        whole.into_iter().chain(elements(node).filter(move |_| whole.is_none()))
    })
}

fn is_holder(node: Node<'_, '_>) -> bool {
    node.tag_name().namespace().is_none() && ["os", "devices"].contains(&node.tag_name().name())
}

fn children_named<'a, 'i: 'a>(root: Node<'a, 'i>, name: &'static str) -> impl Iterator<Item = Node<'a, 'i>> {
    super::children(root, name)
}

/// An element in one spelling: no comments, no blanks between elements, attributes in order.
fn spelled(part: Node<'_, '_>) -> String {
    let parent = part.parent_element().map_or("", |parent| parent.tag_name().name());
    let mut text = format!("{parent:?}");
    let mut waiting = vec![(part, 0usize)];
    while let Some((node, depth)) = waiting.pop() {
        if node.is_text() {
            let said = node.text().unwrap_or_default();
            if !said.trim().is_empty() {
                text.push_str(&format!("{depth}{said:?}"));
            }
            continue;
        }
        if !node.is_element() {
            continue;
        }
        let name = node.tag_name();
        let mut attributes: Vec<_> =
            node.attributes().map(|a| (a.namespace(), a.name(), spelled_value(node, a))).collect();
        attributes.sort_unstable();
        let written = write!(text, "{depth}{:?}{:?}{attributes:?}", name.namespace(), name.name());
        debug_assert!(written.is_ok());
        let inner: Vec<_> = node.children().collect();
        waiting.extend(inner.into_iter().rev().map(|child| (child, depth + 1)));
    }
    text
}

/// A MAC address says nothing of the host, and a copy has its own.
fn spelled_value<'a>(node: Node<'_, '_>, attribute: Attribute<'a, '_>) -> &'a str {
    let is_mac = node.has_tag_name("mac") && attribute.name() == "address";
    if is_mac { "" } else { attribute.value() }
}

/// An element on the way.
struct Step<'a, 'i, 'r> {
    node: Node<'a, 'i>,
    rules: &'r Rules,
    path: String,
    disk: Option<Disk>,
}

/// The disk that an element belongs to.
#[derive(Clone)]
struct Disk {
    target: String,
    removable: bool,
}

impl Disk {
    fn of(node: Node<'_, '_>) -> Self {
        let target = child(node, "target").and_then(|target| target.attribute("dev"));
        let removable = matches!(node.attribute("device"), Some("cdrom" | "floppy"));
        Self { target: target.unwrap_or_default().to_owned(), removable }
    }
}

struct Walk<'g, 'x> {
    granted: &'g Granted<'x>,
    found: Vec<Finding>,
}

impl Walk<'_, '_> {
    /// A part with all that is in it. No recursion: hostile XML may be deep.
    fn from(&mut self, part: Node<'_, '_>, root: &Rules) {
        let parent = part.parent_element().filter(|parent| is_holder(*parent));
        let parent = parent.map(|parent| parent.tag_name().name());
        let (rules, path) = match parent {
            Some(name) => (root.child(name).unwrap_or(root), name.to_owned()),
            None => (root, String::new()),
        };
        let mut waiting: Vec<_> = self.step(part, rules, &path, None).into_iter().collect();
        while let Some(step) = waiting.pop() {
            self.element(Step { path: step.path.clone(), disk: step.disk.clone(), ..step });
            if step.path == OPAQUE {
                continue;
            }
            let elements: Vec<_> = step.node.children().filter(Node::is_element).collect();
            for node in elements.into_iter().rev() {
                waiting.extend(self.step(node, step.rules, &step.path, step.disk.as_ref()));
            }
        }
    }

    /// Where an element is in the table; a finding where it is not.
    fn step<'a, 'i, 'r>(
        &mut self,
        node: Node<'a, 'i>,
        parent: &'r Rules,
        path: &str,
        disk: Option<&Disk>,
    ) -> Option<Step<'a, 'i, 'r>> {
        let name = node.tag_name();
        let path = if path.is_empty() { name.name().to_owned() } else { format!("{path}/{}", name.name()) };
        let path = path.replace("/backingStore/backingStore", "/backingStore");
        if name.namespace().is_some() {
            self.add(FOREIGN, path, text_within(node), disk);
            return None;
        }
        let Some(rules) = parent.child(name.name()) else {
            self.add(NOT_KNOWN, path, text_within(node), disk);
            return None;
        };
        let disk = if path == "devices/disk" { Some(Disk::of(node)) } else { disk.cloned() };
        if let Some(rule) = rules.own.filter(|_| rules.refuses()) {
            self.refuse(rule, path, said_within(node), disk.as_ref());
            return None;
        }
        let rules = if name.name() == NESTED { parent } else { rules };
        Some(Step { node, rules, path, disk })
    }

    /// An element's attributes and its text.
    fn element(&mut self, step: Step<'_, '_, '_>) {
        let Step { node, rules, path, disk } = step;
        for attribute in node.attributes() {
            let (place, value) = (format!("{path}@{}", attribute.name()), attribute.value());
            if attribute.namespace().is_some() {
                self.add(FOREIGN, place, value.to_owned(), disk.as_ref());
                continue;
            }
            match rules.attribute(attribute.name()) {
                None => self.add(NOT_KNOWN, place, value.to_owned(), disk.as_ref()),
                Some(Some(rule)) if !values::passes(rule.passes, value, node, self.granted) => {
                    self.refuse(rule, place, value.to_owned(), disk.as_ref());
                }
                Some(_) => {}
            }
        }
        let Some(rule) = rules.own else { return };
        let text = text_within(node);
        if !text.trim().is_empty() && !values::passes(rule.passes, &text, node, self.granted) {
            self.refuse(rule, path, text, disk.as_ref());
        }
    }

    fn refuse(&mut self, rule: &HostRule, place: String, value: String, disk: Option<&Disk>) {
        let removable = disk.is_some_and(|disk| disk.removable);
        let medium = [HostAccess::Disk, HostAccess::NetworkDisk].contains(&rule.kind) && removable;
        let kind = if medium { HostAccess::Cdrom } else { rule.kind };
        self.add(Why { kind, reason: rule.reason }, place, value, disk);
    }

    fn add(&mut self, why: Why, place: String, value: String, disk: Option<&Disk>) {
        let value: String = value.trim().chars().take(SHOWN).collect();
        let (kind, reason, disk) = (why.kind, why.reason, disk.map(|disk| disk.target.clone()));
        self.found.push(Finding { kind, place, value, reason, disk });
    }
}

/// Why something does not pass.
struct Why {
    kind: HostAccess,
    reason: &'static str,
}

const FOREIGN: Why = Why {
    kind: HostAccess::Namespace,
    reason: "a foreign namespace: libvirt hands it on, or reads it as its own",
};
const NOT_KNOWN: Why = Why { kind: HostAccess::Unknown, reason: "virtfold does not know what it does" };

/// What a refused element says: its text, else its first attributes and those of its elements.
fn said_within(node: Node<'_, '_>) -> String {
    let text = text_within(node);
    if !text.trim().is_empty() {
        return text;
    }
    let attributes = node.descendants().flat_map(|inner| inner.attributes()).take(6);
    let said: Vec<_> = attributes.map(|a| format!("{}={}", a.name(), a.value())).collect();
    said.join(" ")
}

#[cfg(test)]
mod tests;
