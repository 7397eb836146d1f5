//! Tapes as people read of them.

use virtfold_base::units::Human;
use virtfold_medium::tape::{TapeStatus, VolumeReport};

use super::Listing;
use crate::report::printable;
use crate::show::local;

pub(super) fn status(status: &TapeStatus) -> String {
    let mut text = format!("drive      {}\n", status.device);
    let tape = match (&status.label, &status.foreign) {
        (Some(label), _) => format!("volume '{}' of the pool '{}'", label.label, label.pool),
        (None, Some(who)) => format!("written by {}", printable(who)),
        (None, None) => status.tape.to_owned(),
    };
    text += &format!("tape       {tape}\n");
    if let Some(label) = &status.label {
        text += &format!("labelled   {} by {}\n", local(&label.created), printable(&label.tool));
        if let Some(until) = &label.retain_until {
            text += &format!("kept until {}\n", local(until));
        }
        text += &format!("blocks of  {}\n", Human(u64::from(label.block_size)));
    }
    if let Some(blocks) = status.blocks {
        text += &format!("blocks     {blocks}\n");
    }
    if status.protected {
        text += "protected  it is write-protected\n";
    }
    if let Some(why) = &status.failed {
        text += &format!("failed     {}\n", printable(why));
    }
    text
}

pub(super) fn listing(listing: &Listing) -> String {
    let label = &listing.label;
    let mut text = format!("volume '{}' of the pool '{}'\n", label.label, label.pool);
    if listing.archives.is_empty() {
        return text + "no archives";
    }
    text += &format!("{:<10} {:>10} {:>5} {:>5}  archive\n", "status", "size", "part", "file");
    for entry in &listing.archives {
        let joined = |numbers: &[u64]| match numbers {
            [first, _, _, .., last] => format!("{first}..{last}"),
            few => few.iter().map(u64::to_string).collect::<Vec<_>>().join(","),
        };
        let parts: Vec<u64> = entry.parts.iter().map(|part| u64::from(*part)).collect();
        let status = if entry.complete { "complete" } else { "incomplete" };
        text += &format!(
            "{status:<10} {:>10} {:>5} {:>5}  {}  {}\n",
            Human(entry.bytes).to_string(),
            joined(&parts),
            joined(&entry.files),
            printable(&entry.archive),
            printable(&entry.name),
        );
    }
    text
}

pub(super) fn verdict(verdict: &VolumeReport) -> String {
    let mut text = String::new();
    for part in &verdict.parts {
        let how = match (&part.fault, part.ended) {
            (Some(fault), _) => printable(fault),
            (None, _) if part.superseded => "written again behind it".to_owned(),
            (None, true) => "sound".to_owned(),
            (None, false) => "never finished".to_owned(),
        };
        text +=
            &format!("{} part {}: {} read, {how}\n", printable(&part.archive), part.part, Human(part.bytes));
    }
    let verdict_word = if verdict.sound { "sound" } else { "not sound" };
    text + &format!("volume '{}' is {verdict_word}", verdict.label.label)
}
