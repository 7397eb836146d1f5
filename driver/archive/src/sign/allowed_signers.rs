//! Whose keys are known: a list as `ssh-keygen -Y verify -f` takes it.
//!
//! A line is `HOST[,HOST...] [OPTIONS] KEYTYPE KEY [COMMENT]`. Keys of other types can't sign archives and
//! are passed over, as are keys for other namespaces. What would narrow a key's use in a way that is not kept
//! here (`valid-before`, patterns, certificates) is refused: to pass over it would be to trust more.

use super::{NAMESPACE, PublicKey, check_host};
use virtfold_base::error::{Error, ErrorKind, Result};

/// The most bytes of a list.
const MAX_LEN: usize = 1 << 20;
/// The option of a key that is to sign archives alone.
pub const OPTIONS: &str = "namespaces=\"virtfold-archive\"";

/// Hosts and their public keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedSigners(Vec<(String, PublicKey)>);

impl AllowedSigners {
    /// Reads a list; `name` is what messages call it.
    ///
    /// # Errors
    /// Usage: a line that is none, or that asks for more than is kept here.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        if text.len() > MAX_LEN {
            return Err(Error::new(ErrorKind::Usage, format!("'{name}' is too long for a list of signers")));
        }
        let mut found = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            found.extend(signers(line).map_err(|what| {
                let message = format!("'{name}', line {}: {what}", number + 1);
                Error::new(ErrorKind::Usage, message)
                    .with_hint("a line is as 'virtfold key show' prints it: HOST OPTIONS ssh-ed25519 KEY")
            })?);
        }
        Ok(Self(found))
    }

    /// Adds one.
    pub fn add(&mut self, host: String, key: PublicKey) {
        self.0.push((host, key));
    }

    /// Takes over another list.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Whether `host` signs with `key`.
    pub fn knows(&self, host: &str, key: &PublicKey) -> bool {
        self.0.iter().any(|(name, known)| name == host && known == key)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &PublicKey)> {
        self.0.iter().map(|(host, key)| (host.as_str(), key))
    }

    /// The line of one.
    ///
    /// # Errors
    /// As [`PublicKey::to_openssh`].
    pub fn line(host: &str, key: &PublicKey) -> Result<String> {
        Ok(format!("{host} {OPTIONS} {}", key.to_openssh()?.trim_end()))
    }
}

/// Who signs by a line; what is wrong with it.
fn signers(line: &str) -> std::result::Result<Vec<(String, PublicKey)>, String> {
    let mut words = words(line)?.into_iter();
    let hosts = words.next().unwrap_or_default();
    let mut kind = words.next().ok_or("it has no key")?;
    let mut is_ours = true;
    if !is_kind(&kind) {
        is_ours = for_archives(&kind)?;
        kind = words.next().ok_or("it has no key")?;
    }
    let key = words.next().ok_or("it has no key")?;
    if !is_kind(&kind) {
        return Err("it has no key's type where one must be".to_owned());
    }
    let names = hosts.split(',').map(|host| check_host(host).map(|()| host.to_owned()));
    let names = names.collect::<Result<Vec<_>>>().map_err(|e| e.to_string())?;
    let parsed = ssh_key::PublicKey::from_openssh(&format!("{kind} {key}")).map_err(|_| "its key is none")?;
    let Some(key) = PublicKey::of(parsed.key_data()).filter(|_| is_ours) else { return Ok(Vec::new()) };
    Ok(names.into_iter().map(|name| (name, key.clone())).collect())
}

/// What a key's type begins with.
fn is_kind(word: &str) -> bool {
    ["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"].iter().any(|start| word.starts_with(start))
}

/// Whether a key with these options signs archives.
fn for_archives(options: &str) -> std::result::Result<bool, String> {
    let list = options.strip_prefix("namespaces=\"").and_then(|rest| rest.strip_suffix('"'));
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.@,".contains(c);
    match list {
        Some(list) if list.chars().all(plain) => Ok(list.split(',').any(|name| name == NAMESPACE)),
        _ => Err(format!("the option '{}' is not supported", options.escape_debug())),
    }
}

/// The words of a line; a space between quotes is none that parts.
fn words(line: &str) -> std::result::Result<Vec<String>, String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for c in line.chars() {
        match c {
            ' ' | '\t' if !quoted => words.extend((!word.is_empty()).then(|| std::mem::take(&mut word))),
            _ => {
                quoted ^= c == '"';
                word.push(c);
            }
        }
    }
    words.extend((!word.is_empty()).then_some(word));
    if quoted { Err("a quote is not closed".to_owned()) } else { Ok(words) }
}

#[cfg(test)]
mod tests {
    use super::super::SigningKey;
    use super::*;

    fn key() -> PublicKey {
        SigningKey::new("web").unwrap().public()
    }

    #[test]
    fn lists_say_whose_key_it_is() {
        let (one, two) = (key(), key());
        let plain = one.to_openssh().unwrap();
        let text = format!(
            "# ours\n\n{}\nb,c {} a comment\nd namespaces=\"file,git\" {plain}\n",
            AllowedSigners::line("a", &one).unwrap(),
            two.to_openssh().unwrap().trim_end()
        );
        let list = AllowedSigners::parse("signers", &text).unwrap();
        assert!(list.knows("a", &one) && list.knows("b", &two) && list.knows("c", &two));
        for (host, key) in [("a", &two), ("b", &one), ("d", &one), ("A", &one), ("", &one)] {
            assert!(!list.knows(host, key), "{host}");
        }
        assert_eq!(list.iter().count(), 3);
    }

    #[test]
    fn what_would_narrow_trust_is_refused_and_not_passed_over() {
        let key = key().to_openssh().unwrap();
        for bad in [
            format!("a valid-before=\"20200101\" {key}"),
            format!("a cert-authority {key}"),
            format!("a namespaces=\"virtfold-*\" {key}"),
            format!("a namespaces=\"virtfold-archive\",valid-before=\"2020\" {key}"),
            format!("* {key}"),
            format!("a,!b {key}"),
            key.clone(),
            "a".to_owned(),
            "a ssh-ed25519 AAAA".to_owned(),
            format!("a namespaces=\"virtfold-archive {key}"),
        ] {
            let error = AllowedSigners::parse("signers", &format!("\n{bad}\n")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{bad}");
            assert!(error.to_string().starts_with("'signers', line 2: "), "{error}");
        }
    }
}
