//! A plan as people read it.

use virtfold_backup::plan::{Plan, PlannedDisk};
use virtfold_base::units::Human;

use crate::report::printable;

/// The plan as a table.
pub(super) fn text(plan: &Plan) -> String {
    let domain = &plan.domain;
    let mut lines = vec![
        format!("domain      {} ({}), {}", printable(&domain.name), domain.uuid, domain.state),
        format!("mode        {}: {}", plan.way, plan.way_rule),
        format!("quiesce     {}", plan.quiesce.rule),
    ];
    if matches!(plan.way, "online" | "standing") {
        lines.push(format!("pause       {} ms at a time at most", plan.pause_budget_ms));
    }
    for room in &plan.room {
        lines.push(format!(
            "free space  {}: {} free, {} estimated for overlays, {} to stay free",
            printable(&room.directories.join(", ")),
            Human(room.free),
            Human(room.estimate),
            Human(room.min_free)
        ));
    }
    lines.extend(plan.notes.iter().map(|note| format!("note        {}", printable(note))));
    lines.push(String::new());
    let width = plan.disks.iter().map(|disk| disk.rule.chars().count()).max().unwrap_or(0).max(4);
    let heads = ("disk", "what", "format", "capacity", "allocated");
    lines.push(format!(
        "{:<8} {:<width$} {:<6} {:>10} {:>10}  image",
        heads.0, heads.1, heads.2, heads.3, heads.4
    ));
    plan.disks.iter().for_each(|disk| lines.extend(disk_lines(disk, width)));
    lines.push(String::new());
    for finding in &plan.obstacles {
        lines.push(format!("obstacle    {}", printable(&finding.sentence)));
        lines.extend(finding.hint.iter().map(|hint| format!("            hint: {}", printable(hint))));
    }
    if plan.obstacles.is_empty() {
        lines.push("no obstacles; nothing was changed".to_owned());
    }
    lines.join("\n")
}

fn disk_lines(disk: &PlannedDisk, width: usize) -> Vec<String> {
    let size = |bytes: Option<u64>| bytes.map_or("-".to_owned(), |bytes| Human(bytes).to_string());
    let format = disk.format.map_or("-".to_owned(), |format| format.to_string());
    let row = format!(
        "{:<8} {:<width$} {format:<6} {:>10} {:>10}  {}",
        printable(&disk.target),
        disk.rule,
        size(disk.capacity),
        size(disk.allocated),
        printable(disk.source.as_deref().unwrap_or("-")),
    );
    let below = |what: String| format!("{:<1$}{what}", "", width + 40);
    let mut lines = vec![row];
    lines.extend(
        disk.backing.iter().map(|link| below(format!("on {} ({})", printable(&link.path), link.format))),
    );
    if let (Some(overlay), Some(estimate)) = (&disk.overlay, disk.overlay_estimate) {
        let shown = overlay.display().to_string();
        lines.push(below(format!("overlay {}, {} estimated", printable(&shown), Human(estimate))));
    }
    lines
}
