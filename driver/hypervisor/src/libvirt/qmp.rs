//! QEMU's own answers: about its disks, the reply to the monitor command `query-block`; about why it stands
//! still, that to `query-status`; about the images that it has open, that to `query-named-block-nodes`.
//!
//! The fields are QEMU's (qapi/block-core.json: BlockInfo, BlockDeviceInfo, ImageInfo). A disk is found by
//! its device's path in QEMU's object tree (`qdev`), one component of which is libvirt's alias.
//!
//! Imports: `error`, `types`; `image` (a limit).

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::types::QemuDisk;
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_image::MAX_CHAIN;

/// The command.
pub(crate) const QUERY_BLOCK: &str = r#"{"execute":"query-block"}"#;

/// The other command.
pub(crate) const QUERY_STATUS: &str = r#"{"execute":"query-status"}"#;

/// Stops the processors.
pub(crate) const STOP: &str = r#"{"execute":"stop"}"#;

/// Lists all images that QEMU has open, used or not.
pub(crate) const QUERY_NODES: &str = r#"{"execute":"query-named-block-nodes","arguments":{"flat":true}}"#;

/// An image is a node of its format over one of its protocol.
pub(crate) const LAYERS: usize = 2;

/// What a reply returns; null where it says no, or can't be read.
fn returned(reply: &str) -> Value {
    let reply: Option<Value> = serde_json::from_str(reply).ok();
    reply.and_then(|mut reply| reply.get_mut("return").map(Value::take)).unwrap_or_default()
}

/// What a reply returns, or the words with which QEMU refuses.
pub(crate) fn answer(reply: &str) -> std::result::Result<Value, String> {
    let reply: Value = serde_json::from_str(reply).map_err(|e| format!("its answer can't be read: {e}"))?;
    match (reply.get("return"), reply["error"]["desc"].as_str()) {
        (Some(value), _) => Ok(value.clone()),
        (None, Some(why)) => Err(why.to_owned()),
        (None, None) => Err("it answers with neither a result nor an error".to_owned()),
    }
}

/// The node that a disk or an image above uses an image by, from what [`QUERY_NODES`] returns: the format's,
/// where libvirt made one.
pub(crate) fn format_node(nodes: &Value, image: &Path) -> Option<String> {
    let names = names_of(nodes, image);
    names.iter().find(|name| name.ends_with("-format")).or(names.first()).cloned()
}

/// Whether a reply to `query-status` says that the guest runs.
pub(crate) fn is_running(reply: &str) -> bool {
    returned(reply)["running"] == true
}

/// Whether a reply to `query-status` says that an I/O error stopped the guest (qapi/run-state.json:
/// RunState).
pub(crate) fn is_io_error(reply: &str) -> bool {
    returned(reply)["status"] == "io-error"
}

/// Whether the agent's reply to `guest-fsfreeze-status` says that nothing is frozen (qga/qapi-schema.json:
/// GuestFsfreezeStatus).
pub(crate) fn is_thawed(reply: &str) -> bool {
    returned(reply) == "thawed"
}

/// The names of libvirt's nodes for an image, from a reply to [`QUERY_NODES`].
pub(crate) fn nodes_of(reply: &str, image: &Path) -> Vec<String> {
    names_of(&returned(reply), image)
}

fn names_of(nodes: &Value, image: &Path) -> Vec<String> {
    let nodes = nodes.as_array().map(Vec::as_slice).unwrap_or_default().iter();
    let named =
        nodes.filter_map(|node| Some((node.get("node-name")?.as_str()?, node.get("file")?.as_str()?)));
    let ours = named
        .filter(|(name, file)| name.starts_with("libvirt-") && local_file(file).as_deref() == Some(image));
    ours.map(|(name, _)| name.to_owned()).collect()
}

/// Closes a node; QEMU refuses where anything uses it (qapi/block-core.json: blockdev-del).
pub(crate) fn close_node(name: &str) -> String {
    serde_json::json!({"execute": "blockdev-del", "arguments": {"node-name": name}}).to_string()
}

/// Reads the reply.
///
/// # Errors
/// [`ErrorKind::Damaged`] for what is no reply to `query-block`.
pub(crate) fn read_query_block(reply: &str) -> Result<Vec<QemuDisk>> {
    let bad = || Error::new(ErrorKind::Damaged, "QEMU's answer to query-block can't be understood");
    let reply: Value = serde_json::from_str(reply).map_err(|e| bad().with_source(e))?;
    let devices = reply.get("return").and_then(Value::as_array).ok_or_else(bad)?;
    Ok(devices.iter().filter_map(read_device).collect())
}

/// `None` for devices without a path in the tree: they are none of the domain's disks.
fn read_device(device: &Value) -> Option<QemuDisk> {
    let alias = alias_of(device.get("qdev")?.as_str()?)?;
    let inserted = device.get("inserted");
    let file = inserted.and_then(|i| i.get("file")).and_then(Value::as_str).and_then(local_file);
    let mut images: Vec<PathBuf> = file.iter().cloned().collect();
    let mut image = inserted.and_then(|i| i.get("image")).and_then(|i| i.get("backing-image"));
    while let Some(below) = image {
        let Some(path) = below.get("filename").and_then(Value::as_str).and_then(local_file) else { break };
        if images.len() == MAX_CHAIN {
            break;
        }
        // A filter (copy-on-read, throttle) stands above its image in the chain, and is called by the image's
        // file.
        if images.last() != Some(&path) {
            images.push(path);
        }
        image = below.get("backing-image");
    }
    let backing = images.into_iter().skip(usize::from(file.is_some())).collect();
    Some(QemuDisk { alias, file, backing })
}

/// The node that a disk has on top, its filters included, from what [`QUERY_BLOCK`] returns: block jobs are
/// for that one.
pub(crate) fn root_node(devices: &Value, alias: &str) -> Option<String> {
    let of = |device: &&Value| device["qdev"].as_str().and_then(alias_of).as_deref() == Some(alias);
    let device = devices.as_array()?.iter().find(of)?;
    device["inserted"]["node-name"].as_str().map(str::to_owned)
}

/// `/machine/peripheral/virtio-disk0/virtio-backend` and `ide0-0-1` name the device in different ways.
fn alias_of(qdev: &str) -> Option<String> {
    let after = qdev.strip_prefix("/machine/peripheral/").unwrap_or(qdev);
    let alias = after.split('/').next().filter(|a| !a.is_empty())?;
    Some(alias.to_owned())
}

/// A local file's path: plain, or in QEMU's JSON form, where the innermost `file` has it.
fn local_file(name: &str) -> Option<PathBuf> {
    let Some(json) = name.strip_prefix("json:") else {
        return name.starts_with('/').then(|| PathBuf::from(name));
    };
    let mut node: Value = serde_json::from_str(json).ok()?;
    loop {
        if let Some(path) = node.get("filename").and_then(Value::as_str) {
            return path.starts_with('/').then(|| PathBuf::from(path));
        }
        node = node.get_mut("file")?.take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_io_error_is_told_from_other_reasons() {
        assert!(is_io_error(r#"{"return":{"status":"io-error","running":false},"id":"libvirt-4"}"#));
        for other in [r#"{"return":{"status":"paused","running":false}}"#, r#"{"error":{}}"#, "[]", ""] {
            assert!(!is_io_error(other) && !is_running(other), "{other}");
        }
        assert!(is_running(r#"{"return":{"status":"running","running":true}}"#));
    }

    #[test]
    fn only_the_agents_own_word_says_that_nothing_is_frozen() {
        assert!(is_thawed(r#"{"return":"thawed"}"#));
        for other in [r#"{"return":"frozen"}"#, r#"{"return":{}}"#, r#"{"error":{}}"#, r#""thawed""#, ""] {
            assert!(!is_thawed(other), "{other}");
        }
    }

    #[test]
    fn the_nodes_of_an_image_are_libvirts_own() {
        let reply = r##"{"return":[
          {"node-name":"libvirt-3-format","file":"json:{\"backing\":null,\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"/i/a.overlay\"}}"},
          {"node-name":"libvirt-3-storage","file":"/i/a.overlay"},
          {"node-name":"#block172","file":"/i/a.overlay"},
          {"node-name":"libvirt-1-storage","file":"/i/a.qcow2"},
          {"node-name":"libvirt-9-storage","file":"nbd://host:10809"}, {"file":"/i/a.overlay"}, 7]}"##;
        assert_eq!(nodes_of(reply, Path::new("/i/a.overlay")), ["libvirt-3-format", "libvirt-3-storage"]);
        for other in [r#"{"error":{}}"#, "[]", "", r#"{"return":{}}"#] {
            assert_eq!(nodes_of(other, Path::new("/i/a.overlay")), Vec::<String>::new(), "{other}");
        }
        let node = |image: &str| format_node(&answer(reply).unwrap(), Path::new(image));
        assert_eq!(node("/i/a.overlay").as_deref(), Some("libvirt-3-format"));
        assert_eq!(node("/i/a.qcow2").as_deref(), Some("libvirt-1-storage"));
        assert_eq!(node("/i/b"), None);
        assert_eq!(answer(r#"{"error":{"class":"GenericError","desc":"no"}}"#), Err("no".to_owned()));
        assert!(answer("").is_err() && answer("[]").is_err());
        let close = r#"{"arguments":{"node-name":"libvirt-3-format"},"execute":"blockdev-del"}"#;
        assert_eq!(close_node("libvirt-3-format"), close);
    }

    #[test]
    fn the_chain_is_read_as_qemu_has_it() {
        let reply = r#"{"return":[
          {"device":"","qdev":"/machine/peripheral/virtio-disk0/virtio-backend","type":"unknown","inserted":
            {"file":"/i/a.overlay","node-name":"libvirt-3-format","image":{"filename":"/i/a.overlay","backing-image":
              {"filename":"json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"/i/a.qcow2\"}}",
               "backing-image":{"filename":"/i/golden"}}}}},
          {"device":"","qdev":"sata0-0-1","type":"unknown","tray_open":false},
          {"device":"drive0","type":"unknown"},
          {"qdev":"ide0-0-0","inserted":{"file":"nbd://host:10809","image":{}}}]}"#;
        let disks = read_query_block(reply).unwrap();
        let expected = [
            QemuDisk {
                alias: "virtio-disk0".into(),
                file: Some("/i/a.overlay".into()),
                backing: vec!["/i/a.qcow2".into(), "/i/golden".into()],
            },
            QemuDisk { alias: "sata0-0-1".into(), file: None, backing: vec![] },
            QemuDisk { alias: "ide0-0-0".into(), file: None, backing: vec![] },
        ];
        assert_eq!(disks, expected);
        assert_eq!(root_node(&answer(reply).unwrap(), "virtio-disk0").as_deref(), Some("libvirt-3-format"));
        assert_eq!(root_node(&answer(reply).unwrap(), "sata0-0-1"), None);
        assert!(read_query_block("{}").is_err());
        assert!(read_query_block(r#"{"error":{}}"#).is_err());
        assert!(read_query_block("x").is_err());
    }

    /// As QEMU 10 says it of a disk with `copy_on_read='on'` that has an overlay.
    #[test]
    fn a_filter_is_no_image() {
        let reply = r#"{"return":[
          {"device":"","qdev":"/machine/peripheral/virtio-disk0/virtio-backend","inserted":
            {"node-name":"libvirt-CoR-vda","drv":"copy-on-read",
             "file":"json:{\"driver\":\"copy-on-read\",\"file\":{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"/i/o\"}}}",
             "image":{"format":"copy-on-read",
              "filename":"json:{\"driver\":\"copy-on-read\",\"file\":{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"/i/o\"}}}",
              "backing-image":{"filename":"/i/o","backing-image":{"filename":"/i/a.qcow2"}}}}}]}"#;
        let disks = read_query_block(reply).unwrap();
        let expected = QemuDisk {
            alias: "virtio-disk0".into(),
            file: Some("/i/o".into()),
            backing: vec!["/i/a.qcow2".into()],
        };
        assert_eq!(disks, [expected]);
        assert_eq!(root_node(&answer(reply).unwrap(), "virtio-disk0").as_deref(), Some("libvirt-CoR-vda"));
    }
}
