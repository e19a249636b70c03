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
    let full_peak = peak_of_full(&rows);
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
        let source = claims_of(row).map_or("", |claims| claims.source);
        let [storage, memory, gradients, inference] = judge(row, full_peak);
        table.row([
            Cell::from(row.name.clone()),
            row.kind.name().into(),
            storage.cell(),
            memory.cell(),
            gradients.cell(),
            inference.cell(),
            Cell::of_class(source, "wrap"),
        ]);
    }
    table
}

/// A cost of a method as it is claimed and as it was measured.
#[derive(Clone, Debug)]
pub(crate) struct Judgment {
    /// Which cost.
    pub(crate) cost: &'static str,
    /// The measured figure.
    pub(crate) measured: String,
    /// The claim; none if none is known.
    pub(crate) claimed: Option<&'static str>,
    /// Whether they agree; none if nothing can be said.
    pub(crate) agrees: Option<bool>,
}

impl Judgment {
    /// The measured figure with the claim, marked if they disagree.
    fn cell(&self) -> Cell {
        let text = match self.claimed {
            Some(claim) => format!("{} (claimed: {claim})", self.measured),
            None => self.measured.clone(),
        };
        match self.agrees {
            Some(true) => Cell::of_class(format!("✓ {text}"), "wrap agrees"),
            Some(false) => Cell::of_class(format!("✗ {text}"), "wrap differs"),
            None => Cell::of_class(text, "wrap"),
        }
    }
}

/// What is claimed of a row's method.
pub(crate) fn claims_of(row: &Row) -> Option<Claims> {
    by_name(&row.method).ok()?.claims
}

/// The peak memory of full fine-tuning among these rows.
pub(crate) fn peak_of_full(rows: &[&Row]) -> Option<u64> {
    rows.iter().find(|row| row.method == "full")?.peak_bytes
}

/// Storage, training memory, gradients and inference of a method. `full_peak` is the peak memory of
/// full fine-tuning.
pub(crate) fn judge(row: &Row, full_peak: Option<u64>) -> [Judgment; 4] {
    let claims = claims_of(row);
    [
        storage(row, claims),
        memory(row, claims, full_peak),
        gradients(row, claims),
        inference(row, claims),
    ]
}

fn storage(row: &Row, claims: Option<Claims>) -> Judgment {
    let base = row.declared.base_parameters * size_of::<f32>();
    let share = percent(row.stored_bytes as usize, base);
    let saves = (row.stored_bytes as f64) < SMALL * base as f64;
    let claim = claims.map(|claims| match claims.saves_storage {
        Some(true) => "small",
        Some(false) => "not small",
        None => "depends, or not said",
    });
    let claimed = claims.and_then(|claims| claims.saves_storage);
    Judgment {
        cost: "storage",
        measured: format!("{}, {share} of the base", bytes(row.stored_bytes)),
        claimed: claim,
        agrees: claimed.map(|claimed| claimed == saves),
    }
}

fn memory(row: &Row, claims: Option<Claims>, full: Option<u64>) -> Judgment {
    let cost = "training memory";
    let Some(peak) = row.peak_bytes else {
        return not_measured(cost);
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
    Judgment {
        cost,
        measured,
        claimed: claim,
        agrees,
    }
}

fn gradients(row: &Row, claims: Option<Claims>) -> Judgment {
    let [through, layers] = row.gradient_layers;
    let measured = match through {
        0 => "none".to_owned(),
        through => format!("{through} of {layers} layers"),
    };
    let claimed = claims.map(|claims| claims.gradients_through_base);
    let claim = claimed.map(|claimed| match claimed {
        Some(true) => "yes",
        Some(false) => "no",
        None => "not said",
    });
    let agrees = claimed.flatten().map(|claimed| claimed == (through > 0));
    Judgment {
        cost: "gradients through the base",
        measured,
        claimed: claim,
        agrees,
    }
}

fn inference(row: &Row, claims: Option<Claims>) -> Judgment {
    let cost = "inference";
    let Some(slowdown) = row.slowdown else {
        return not_measured(cost);
    };
    let merged = row.merged_slowdown;
    let measured = match (merged, row.measured_changed) {
        (Some(merged), _) => format!("{slowdown:.2} × unmerged, {merged:.2} × merged"),
        (None, Some(_)) => format!("{slowdown:.2} × unmerged, merged not measured"),
        (None, None) => format!("{slowdown:.2} ×"),
    };
    // A method that can be merged is claimed to cost nothing once it is.
    let overhead = merged.or(row.measured_changed.is_none().then_some(slowdown));
    // Where an overhead is claimed, it may be too small to be noticed.
    let agrees = claims.and_then(|claims| match claims.inference {
        "none" => Some(overhead? < NOTICEABLE),
        _ => None,
    });
    Judgment {
        cost,
        measured,
        claimed: claims.map(|claims| claims.inference),
        agrees,
    }
}

fn not_measured(cost: &'static str) -> Judgment {
    Judgment {
        cost,
        measured: "not measured".to_owned(),
        claimed: None,
        agrees: None,
    }
}
