//! The field's taxonomy table: what a method is said to cost, beside what it cost.

use std::collections::BTreeMap;

use epiphyte_methods::{Claims, by_name};

use super::page::{Cell, Table, bytes, percent};
use crate::summary::{Row, Summary};

/// An adapter of more than this share of the base's bytes saves no storage worth the name.
const SMALL: f64 = 0.5;
/// A forward pass this many times longer than the base's is an overhead, and not noise.
const NOTICEABLE: f64 = 1.1;

/// The rows of a task: each method's claims with the measured figures, disagreements marked.
pub(super) fn table(summary: &Summary, place: (&str, &str)) -> Table {
    let rows = summary.of_place(place);
    let full = rows.iter().find(|row| row.method == "full");
    let full_peak = full.and_then(|row| row.peak_bytes);
    let mut table = Table::new(
        format!("Claimed and measured costs: {} on {}", place.1, place.0),
        &[
            ("method", false),
            ("type", false),
            ("storage", false),
            ("training memory", false),
            ("gradients through the base", false),
            ("inference", false),
            ("claims of", false),
        ],
    );
    let mut by_kind: BTreeMap<_, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        by_kind.entry(row.kind).or_default().push(row);
    }
    for row in by_kind.into_values().flatten() {
        let claims = by_name(&row.method).ok().and_then(|method| method.claims);
        table.row([
            Cell::from(row.name.clone()),
            row.kind.name().into(),
            storage(row, claims),
            memory(row, claims, full_peak),
            gradients(row, claims),
            inference(row, claims),
            Cell::of_class(claims.map_or("", |claims| claims.source), "wrap"),
        ]);
    }
    table
}

/// A measured figure with the claim, marked if they disagree.
fn beside(measured: String, claim: Option<&str>, agrees: Option<bool>) -> Cell {
    let text = match claim {
        Some(claim) => format!("{measured} (claimed: {claim})"),
        None => measured,
    };
    match agrees {
        Some(true) => Cell::of_class(format!("✓ {text}"), "wrap agrees"),
        Some(false) => Cell::of_class(format!("✗ {text}"), "wrap differs"),
        None => Cell::of_class(text, "wrap"),
    }
}

fn storage(row: &Row, claims: Option<Claims>) -> Cell {
    let base = row.declared.base_parameters * size_of::<f32>();
    let share = percent(row.stored_bytes as usize, base);
    let saves = (row.stored_bytes as f64) < SMALL * base as f64;
    let claim = claims.map(|claims| {
        if claims.saves_storage {
            "small"
        } else {
            "not small"
        }
    });
    let agrees = claims.map(|claims| claims.saves_storage == saves);
    beside(
        format!("{}, {share} of the base", bytes(row.stored_bytes)),
        claim,
        agrees,
    )
}

fn memory(row: &Row, claims: Option<Claims>, full: Option<u64>) -> Cell {
    let Some(peak) = row.peak_bytes else {
        return "not measured".into();
    };
    let claim = claims.map(|claims| match claims.saves_memory {
        Some(true) => "less than full",
        Some(false) => "no less than full",
        None => "depends, or not said",
    });
    let measured = match full.filter(|_| row.method != "full") {
        Some(full) => format!(
            "{}, {} of full",
            bytes(peak),
            percent(peak as usize, full as usize)
        ),
        None => bytes(peak),
    };
    let claimed = claims.and_then(|claims| claims.saves_memory);
    let agrees = claimed
        .zip(full)
        .map(|(saves, full)| saves == (peak < full));
    beside(measured, claim, agrees)
}

fn gradients(row: &Row, claims: Option<Claims>) -> Cell {
    let [through, layers] = row.gradient_layers;
    let measured = match through {
        0 => "none".to_owned(),
        through => format!("{through} of {layers} layers"),
    };
    let claim = claims.map(|claims| {
        if claims.gradients_through_base {
            "yes"
        } else {
            "no"
        }
    });
    let agrees = claims.map(|claims| claims.gradients_through_base == (through > 0));
    beside(measured, claim, agrees)
}

fn inference(row: &Row, claims: Option<Claims>) -> Cell {
    let Some(slowdown) = row.slowdown else {
        return "not measured".into();
    };
    let merged = row.measured_changed.is_some();
    let measured = match merged {
        true => format!("{slowdown:.2} × unmerged, none merged"),
        false => format!("{slowdown:.2} ×"),
    };
    // Where an overhead is claimed, it may be too small to be noticed.
    let agrees = claims.and_then(|claims| match claims.inference {
        "none" => Some(merged || slowdown < NOTICEABLE),
        _ => None,
    });
    beside(measured, claims.map(|claims| claims.inference), agrees)
}
