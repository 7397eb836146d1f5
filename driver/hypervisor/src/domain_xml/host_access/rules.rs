//! The table as a tree, in which a definition is looked up from its root down.

use std::collections::BTreeMap;

use super::table::{HOST_RULES, HostRule, PLAIN, Passes};

/// What is known of an element.
#[derive(Debug, Default)]
pub(super) struct Rules {
    children: BTreeMap<&'static str, Rules>,
    /// `None` where it passes whatever it says.
    attributes: BTreeMap<&'static str, Option<&'static HostRule>>,
    /// Of the element's text, or of all of it.
    pub(super) own: Option<&'static HostRule>,
}

impl Rules {
    /// Those of `<domain>`.
    pub(super) fn of_domain() -> Self {
        let mut root = Self::default();
        // What `*` stands for must be there before it.
        let (every, named): (Vec<_>, Vec<_>) = PLAIN.iter().partition(|row| row.at.contains('*'));
        for rule in HOST_RULES {
            let (path, attributes) = rule.at.split_once('@').unwrap_or((rule.at, ""));
            root.visit(path, &mut |rules| {
                if attributes.is_empty() {
                    rules.own = Some(rule);
                }
                for name in attributes.split('|').filter(|name| !name.is_empty()) {
                    rules.attributes.insert(name, Some(rule));
                }
            });
        }
        for row in named.into_iter().chain(every) {
            root.visit(row.at, &mut |rules| {
                for name in row.attributes.split_whitespace() {
                    rules.attributes.entry(name).or_insert(None);
                }
            });
        }
        root
    }

    pub(super) fn child(&self, name: &str) -> Option<&Self> {
        self.children.get(name)
    }

    pub(super) fn attribute(&self, name: &str) -> Option<Option<&'static HostRule>> {
        self.attributes.get(name).copied()
    }

    /// Whether the element is a finding as it stands.
    pub(super) fn refuses(&self) -> bool {
        self.own.is_some_and(|rule| matches!(rule.passes, Passes::Nothing))
    }

    fn visit(&mut self, path: &'static str, each: &mut dyn FnMut(&mut Self)) {
        if path.is_empty() {
            return each(self);
        }
        let (names, rest) = path.split_once('/').unwrap_or((path, ""));
        if names == "*" {
            return self.children.values_mut().for_each(|child| child.visit(rest, each));
        }
        for name in names.split('|') {
            self.children.entry(name).or_default().visit(rest, each);
        }
    }
}
