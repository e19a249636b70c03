//! Charts as SVG: points on two axes, and curves. Colors are those of the page's style sheet.

use std::fmt::Write as _;

use super::page::{Table, escape, figure as number, short};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 48.0;
/// About the width of a character of 13 pixels.
const CHARACTER: f64 = 6.8;

/// One axis.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    /// What it shows, with its unit.
    pub(super) title: String,
    /// Whether each step multiplies.
    pub(super) is_logarithmic: bool,
}

impl Axis {
    pub(super) fn linear(title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            is_logarithmic: false,
        }
    }

    pub(super) fn logarithmic(title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            is_logarithmic: true,
        }
    }
}

/// A named point.
#[derive(Clone, Debug)]
pub(super) struct Dot {
    pub(super) name: String,
    pub(super) x: f64,
    pub(super) y: f64,
    /// The number of its color and shape.
    pub(super) style: usize,
    /// Whether its name is written where there is room.
    pub(super) is_marked: bool,
}

/// A named curve.
#[derive(Clone, Debug)]
pub(super) struct Curve {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
    /// The number of its color and dashes; none for one of many in the background.
    pub(super) style: Option<usize>,
}

/// An axis with its range and the places of its marks.
struct Scale {
    low: f64,
    high: f64,
    is_logarithmic: bool,
    /// The value in whose place a logarithmic axis shows zero, if it has one.
    zero: Option<f64>,
    marks: Vec<f64>,
}

/// The share of a logarithmic axis with a zero that lies below the smallest other value.
const ZERO: f64 = 0.08;

impl Scale {
    fn of(values: impl Iterator<Item = f64> + Clone, axis: &Axis) -> Self {
        let is_usable = |value: &f64| value.is_finite() && (!axis.is_logarithmic || *value > 0.0);
        let has_zero = values.clone().any(|value| value == 0.0);
        let values = values.filter(is_usable);
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(f64::NEG_INFINITY, f64::max);
        let (low, high) = if low > high { (1.0, 2.0) } else { (low, high) };
        match axis.is_logarithmic {
            true if has_zero => Self::logarithmic(low, high).with_zero(),
            true => Self::logarithmic(low, high),
            false => Self::linear(low, high),
        }
    }

    fn linear(low: f64, high: f64) -> Self {
        let room = if high > low {
            (high - low) * 0.06
        } else {
            low.abs().max(1e-3) * 0.1
        };
        let (low, high) = (low - room, high + room);
        let rough = (high - low) / 5.0;
        let size = 10f64.powf(rough.log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * size);
        let step = steps
            .into_iter()
            .find(|step| *step >= rough)
            .unwrap_or(rough);
        let first = (low / step).ceil() as i64;
        let last = (high / step).floor() as i64;
        Self {
            low,
            high,
            is_logarithmic: false,
            zero: None,
            marks: (first..=last).map(|at| at as f64 * step).collect(),
        }
    }

    fn logarithmic(low: f64, high: f64) -> Self {
        let (low, high) = (low / 1.25, high * 1.25);
        let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
        let factors: &[f64] = match (high / low).log10() {
            0.0..1.0 => &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
            1.0..2.5 => &[1.0, 2.0, 5.0],
            _ => &[1.0],
        };
        let marks = decades.flat_map(|at| factors.iter().map(move |by| by * 10f64.powi(at)));
        Self {
            low,
            high,
            is_logarithmic: true,
            zero: None,
            marks: marks.filter(|mark| (low..=high).contains(mark)).collect(),
        }
    }

    /// Makes room for zero, which has no logarithm, at the lower end.
    fn with_zero(mut self) -> Self {
        let room = (self.high / self.low).powf(ZERO).max(2.0);
        let zero = self.low / room;
        self.low = zero / room.sqrt();
        self.zero = Some(zero);
        self.marks.insert(0, 0.0);
        self
    }

    /// Where a value is, from 0 to 1.
    fn at(&self, value: f64) -> f64 {
        let value = match self.zero {
            Some(zero) if value == 0.0 => zero,
            _ => value,
        };
        match self.is_logarithmic {
            true => (value / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        }
    }
}

/// The two axes of a chart.
struct Frame {
    x: Scale,
    y: Scale,
    svg: String,
}

impl Frame {
    fn new(name: &str, [x, y]: [&Axis; 2], values: &[(f64, f64)]) -> Self {
        let mut frame = Self {
            x: Scale::of(values.iter().map(|it| it.0), x),
            y: Scale::of(values.iter().map(|it| it.1), y),
            svg: format!(
                "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n",
                escape(name)
            ),
        };
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        for mark in frame.x.marks.clone() {
            let at = frame.place(mark, frame.y.low).0;
            let _ = writeln!(
                frame.svg,
                "<line class=\"grid\" x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{bottom}\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 17.0,
                short(mark)
            );
        }
        for mark in frame.y.marks.clone() {
            let at = frame.place(frame.x.low, mark).1;
            let _ = writeln!(
                frame.svg,
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 7.0,
                at + 4.5,
                short(mark)
            );
        }
        let (middle, center) = ((LEFT + right) / 2.0, (TOP + bottom) / 2.0);
        let _ = writeln!(
            frame.svg,
            "<path class=\"axis\" d=\"M{LEFT} {TOP}V{bottom}H{right}\"/>\
             <text x=\"{middle}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text transform=\"translate(14 {center}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            HEIGHT - 9.0,
            escape(&x.title),
            escape(&y.title)
        );
        frame
    }

    fn place(&self, x: f64, y: f64) -> (f64, f64) {
        let bottom = HEIGHT - BOTTOM;
        (
            LEFT + self.x.at(x) * (WIDTH - RIGHT - LEFT),
            bottom - self.y.at(y) * (bottom - TOP),
        )
    }

    fn path(&self, points: &[(f64, f64)]) -> String {
        let places = points.iter().map(|&(x, y)| self.place(x, y));
        let places = places.map(|(x, y)| format!("{x:.1} {y:.1}"));
        format!("M{}", places.collect::<Vec<String>>().join("L"))
    }
}

/// A shape of a style around a place.
fn shape(style: usize, (x, y): (f64, f64)) -> String {
    let path = match style % 7 {
        0 => return format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\"/>"),
        1 => "m-4.5-4.5h9v9h-9z",
        2 => "m0-5.5l5.2 9.5h-10.4z",
        3 => "m0-6l6 6l-6 6l-6-6z",
        4 => "m-1.7-5.5h3.4v3.8h3.8v3.4h-3.8v3.8h-3.4v-3.8h-3.8v-3.4h3.8z",
        5 => "m0 5.5l5.2-9.5h-10.4z",
        _ => "m-5.5-3h11v6h-11z",
    };
    format!("<path d=\"M{x:.1} {y:.1}{path}\"/>")
}

/// Which points no other beats: less of x, and more of y (or less, if `smaller_is_better`).
pub(super) fn front(dots: &[Dot], smaller_is_better: bool) -> Vec<usize> {
    let worth = |dot: &Dot| if smaller_is_better { -dot.y } else { dot.y };
    let mut order: Vec<usize> = (0..dots.len()).collect();
    order.sort_by(|&one, &other| {
        let by_x = dots[one].x.total_cmp(&dots[other].x);
        by_x.then(worth(&dots[other]).total_cmp(&worth(&dots[one])))
    });
    let mut best = f64::NEG_INFINITY;
    order.retain(|&at| {
        let is_better = worth(&dots[at]) > best;
        best = best.max(worth(&dots[at]));
        is_better
    });
    order
}

/// Points with the front of the best, a legend of the styles, and their table.
pub(super) fn scatter(
    caption: &str,
    axes: [&Axis; 2],
    dots: &[Dot],
    styles: &[(usize, &str)],
    smaller_is_better: bool,
) -> String {
    let values: Vec<(f64, f64)> = dots.iter().map(|dot| (dot.x, dot.y)).collect();
    let mut frame = Frame::new(caption, axes, &values);
    let best = front(dots, smaller_is_better);
    let steps: Vec<(f64, f64)> = best.iter().map(|&at| (dots[at].x, dots[at].y)).collect();
    if steps.len() > 1 {
        let path = frame.path(&steps);
        let _ = writeln!(frame.svg, "<path class=\"front\" d=\"{path}\"/>");
    }
    let mut taken: Vec<[f64; 4]> = Vec::new();
    for dot in dots {
        let (x, y) = frame.place(dot.x, dot.y);
        taken.push([x - 5.0, y - 5.0, x + 5.0, y + 5.0]);
        let _ = writeln!(
            frame.svg,
            "<g class=\"dot s{}\"><title>{}: {}, {}</title>{}</g>",
            dot.style % 7,
            escape(&dot.name),
            short(dot.x),
            short(dot.y),
            shape(dot.style, (x, y))
        );
    }
    let named = best.iter().copied();
    let others = (0..dots.len()).filter(|at| dots[*at].is_marked && !best.contains(at));
    for at in named.chain(others) {
        label(&mut frame, &dots[at], &mut taken);
    }
    let mut table = Table::new(
        format!("{caption}, as numbers"),
        &[
            ("name", false),
            ("x", true),
            ("y", true),
            ("on the front", false),
        ],
    );
    for (at, dot) in dots.iter().enumerate() {
        let on_front = if best.contains(&at) { "yes" } else { "" };
        let (x, y) = (short(dot.x), short(dot.y));
        table.row([dot.name.clone(), x, y, on_front.to_owned()]);
    }
    let mut legend = String::new();
    for (style, name) in styles
        .iter()
        .filter(|(it, _)| dots.iter().any(|dot| dot.style == *it))
    {
        let shape = shape(*style, (16.0, 7.0));
        let _ = write!(
            legend,
            "<li><svg viewBox=\"0 0 32 14\" aria-hidden=\"true\"><g class=\"s{}\">{shape}</g></svg> {}</li>",
            style % 7,
            escape(name)
        );
    }
    figure(caption, frame, &legend, &table)
}

/// Writes a point's name where it covers nothing, if there is such a place.
fn label(frame: &mut Frame, dot: &Dot, taken: &mut Vec<[f64; 4]>) {
    let (x, y) = frame.place(dot.x, dot.y);
    let width = dot.name.chars().count() as f64 * CHARACTER;
    let places = [0.0, -13.0, 13.0, -26.0, 26.0]
        .into_iter()
        .flat_map(|shift| [(x + 8.0, y + shift), (x - 8.0 - width, y + shift)]);
    for (left, middle) in places {
        let own = [left, middle - 7.0, left + width, middle + 7.0];
        let is_inside = left > LEFT && own[2] < WIDTH && own[1] > 0.0 && own[3] < HEIGHT - BOTTOM;
        let is_free = taken
            .iter()
            .all(|it| own[2] < it[0] || own[0] > it[2] || own[3] < it[1] || own[1] > it[3]);
        if is_inside && is_free {
            let _ = writeln!(
                frame.svg,
                "<text x=\"{left:.1}\" y=\"{:.1}\">{}</text>",
                middle + 4.5,
                escape(&dot.name)
            );
            taken.push(own);
            return;
        }
    }
}

const DASHES: [&str; 4] = ["", "7 3", "2 3", "9 3 2 3"];

/// Curves, with those in the background first, a legend, and the table of their ends.
pub(super) fn curves(caption: &str, axes: [&Axis; 2], curves: &[Curve]) -> String {
    let values: Vec<(f64, f64)> = curves.iter().flat_map(|it| it.points.clone()).collect();
    let mut frame = Frame::new(caption, axes, &values);
    let mut legend = String::new();
    let (behind, before): (Vec<&Curve>, Vec<&Curve>) =
        curves.iter().partition(|curve| curve.style.is_none());
    for curve in behind
        .into_iter()
        .chain(before)
        .filter(|it| !it.points.is_empty())
    {
        let path = frame.path(&curve.points);
        let name = escape(&curve.name);
        let (class, dashes) = match curve.style {
            Some(style) => (format!("line s{}", style % 7), DASHES[style / 7 % 4]),
            None => ("rest".to_owned(), ""),
        };
        let _ = writeln!(
            frame.svg,
            "<path class=\"{class}\" stroke-dasharray=\"{dashes}\" d=\"{path}\"><title>{name}</title></path>"
        );
        if curve.style.is_some() {
            let _ = write!(
                legend,
                "<li><svg viewBox=\"0 0 32 14\" aria-hidden=\"true\"><path class=\"{class}\" \
                 stroke-dasharray=\"{dashes}\" d=\"M1 7H31\"/></svg> {name}</li>"
            );
        }
    }
    let mut table = Table::new(
        format!("{caption}, as numbers"),
        &[
            ("name", false),
            ("points", true),
            ("first", true),
            ("lowest", true),
            ("highest", true),
            ("last", true),
        ],
    );
    for curve in curves {
        let ys = || curve.points.iter().map(|it| it.1);
        let show = |value: Option<f64>| value.map_or(String::new(), number);
        table.row([
            curve.name.clone(),
            curve.points.len().to_string(),
            show(ys().next()),
            show(ys().reduce(f64::min)),
            show(ys().reduce(f64::max)),
            show(ys().next_back()),
        ]);
    }
    figure(caption, frame, &legend, &table)
}

fn figure(caption: &str, frame: Frame, legend: &str, table: &Table) -> String {
    let caption = escape(caption);
    let legend = match legend {
        "" => String::new(),
        legend => format!("<ul class=\"legend\">{legend}</ul>\n"),
    };
    format!(
        "<figure class=\"chart\"><figcaption>{caption}</figcaption>\n\
         <div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Chart: {caption}\">\n{}</svg></div>\n\
         {legend}{}</figure>\n",
        frame.svg,
        table.details("Table")
    )
}

#[cfg(test)]
mod tests {
    use super::{Axis, Dot, Scale, front, scatter};

    fn dot(name: &str, x: f64, y: f64) -> Dot {
        Dot {
            name: name.to_owned(),
            x,
            y,
            style: 0,
            is_marked: false,
        }
    }

    #[test]
    fn the_front_has_what_nothing_beats() {
        let dots = [
            dot("cheap", 1.0, 0.5),
            dot("worse", 2.0, 0.4),
            dot("better", 3.0, 0.9),
            dot("same for more", 4.0, 0.9),
            dot("best", 5.0, 1.0),
        ];
        assert_eq!(front(&dots, false), [0, 2, 4]);
        assert_eq!(front(&dots, true), [0, 1]);
    }

    #[test]
    fn marks_lie_in_the_range_and_are_round() {
        let axis = Axis::linear("score");
        let scale = Scale::of([0.71, 0.84].into_iter(), &axis);
        assert_eq!(scale.marks, [0.75, 0.8]);
        let scale = Scale::of([0.0, 100.0].into_iter(), &axis);
        assert_eq!(scale.marks, [0.0, 50.0, 100.0]);
        let scale = Scale::of([1e3, 2e6].into_iter(), &Axis::logarithmic("parameters"));
        assert_eq!(scale.marks, [1e3, 1e4, 1e5, 1e6]);
        for values in [vec![], vec![f64::NAN], vec![0.5], vec![0.0, 0.0]] {
            for axis in [&axis, &Axis::logarithmic("x")] {
                let scale = Scale::of(values.clone().into_iter(), axis);
                assert!(
                    !scale.marks.is_empty() && scale.low < scale.high,
                    "{values:?}"
                );
            }
        }
    }

    #[test]
    fn zero_is_at_the_lower_end_of_a_logarithmic_axis() {
        let axis = Axis::logarithmic("trainable");
        let scale = Scale::of([0.0, 100.0, 1e6].into_iter(), &axis);
        assert_eq!(scale.marks[0], 0.0);
        assert!((0.0..scale.at(100.0)).contains(&scale.at(0.0)));
        let dots = [dot("head alone", 0.0, 0.5), dot("c", 1000.0, 0.7)];
        let axes = [&axis, &Axis::linear("score")];
        let html = scatter("Score", axes, &dots, &[(0, "additive")], false);
        assert_eq!(html.matches("<g class=\"dot").count(), 2);
        assert!(html.contains(">0</text>") && html.contains("head alone: 0, 0.5"));
        assert!(!html.contains("inf") && !html.contains("NaN"), "{html}");
    }

    #[test]
    fn every_point_is_in_chart_and_table() {
        let dots = [dot("a & b", 10.0, 0.5), dot("c", 1000.0, 0.7)];
        let axes = [&Axis::logarithmic("trainable"), &Axis::linear("score")];
        let html = scatter("Score", axes, &dots, &[(0, "additive")], false);
        assert_eq!(html.matches("<g class=\"dot").count(), 2);
        assert_eq!(html.matches("<tr>").count(), 3);
        assert!(html.contains("a &amp; b") && !html.contains("NaN"));
    }
}
