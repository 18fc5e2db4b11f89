//! Figures of a trace, drawn from the CSV alone: loss and accuracy against model time, work and
//! bytes, and the distance from consensus.
//!
//! A line a seed is thin; the thick one is their mean, as far as all seeds go.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use plotters::coord::Shift;
use plotters::prelude::*;

/// A panel's size in pixels.
const PANEL: (u32, u32) = (420, 330);

/// Height of the line with title and legend.
const HEAD: u32 = 64;

const BLUE_LINE: RGBColor = RGBColor(31, 98, 168);
const ORANGE_LINE: RGBColor = RGBColor(214, 104, 24);

/// Rows of a trace by seed: time, work, bytes and the measured columns, `NaN` where a cell is empty.
struct Trace {
    /// `probes` or `gradients`.
    work: String,
    columns: Vec<String>,
    seeds: BTreeMap<u64, Vec<Vec<f64>>>,
}

impl Trace {
    fn parse(csv: &str) -> Result<Trace> {
        let mut lines = csv.lines();
        let header = lines.next().context("the trace is empty")?;
        let columns: Vec<String> = header.split(',').map(str::to_owned).collect();
        ensure!(
            columns.len() == super::trace::COLUMNS.len() + 1
                && columns[0] == "seed"
                && columns[1] == "time_s",
            "line 1 is not the header of a trace: {header:?}"
        );
        let mut seeds: BTreeMap<u64, Vec<Vec<f64>>> = BTreeMap::new();
        for (number, line) in (2..).zip(lines) {
            let cells: Vec<&str> = line.split(',').collect();
            ensure!(
                cells.len() == columns.len(),
                "line {number} has {} cells, not {}",
                cells.len(),
                columns.len()
            );
            let seed = cells[0]
                .parse()
                .map_err(|_| anyhow!("line {number}: {:?} is no seed", cells[0]))?;
            let row = cells.iter().map(|cell| match cell.parse::<f64>() {
                Ok(value) => Ok(value),
                Err(_) if cell.is_empty() => Ok(f64::NAN),
                Err(_) => bail!("line {number}: {cell:?} is no number"),
            });
            seeds.entry(seed).or_default().push(row.collect::<Result<_>>()?);
        }
        ensure!(!seeds.is_empty(), "the trace has no rows");
        Ok(Trace { work: columns[2].clone(), columns, seeds })
    }

    fn column(&self, name: &str) -> usize {
        self.columns.iter().position(|column| column == name).unwrap_or(0)
    }

    /// A line for each seed.
    fn lines(&self, x: usize, y: usize) -> Vec<Vec<(f64, f64)>> {
        let line = |rows: &Vec<Vec<f64>>| rows.iter().map(|row| (row[x], row[y])).collect();
        self.seeds.values().map(line).collect()
    }
}

/// The mean of some lines, point by point, as far as all go.
fn mean(lines: &[Vec<(f64, f64)>]) -> Vec<(f64, f64)> {
    let count = lines.len() as f64;
    let len = lines.iter().map(Vec::len).min().unwrap_or(0);
    let at = |k: usize, part: fn(&(f64, f64)) -> f64| {
        lines.iter().map(|line| part(&line[k])).sum::<f64>() / count
    };
    (0..len).map(|k| (at(k, |point| point.0), at(k, |point| point.1))).collect()
}

/// One quantity in one color.
struct Series {
    name: &'static str,
    column: &'static str,
    color: RGBColor,
}

/// The SVG files of a trace: name and text.
///
/// # Errors
/// If the text is no trace.
pub fn figures(csv: &str) -> Result<Vec<(&'static str, String)>> {
    let trace = Trace::parse(csv)?;
    let work = format!("{}, all nodes", trace.work);
    let axes = [
        ("time_s", "model time (s)"),
        (&*trace.work, &*work),
        ("bytes", "sent, all nodes (bytes)"),
    ];
    let figure = |title: &str, y: &str, axes: &[(&str, &str)], log: bool, series: &[Series]| {
        let mut svg = String::new();
        let size = (PANEL.0 * axes.len() as u32, PANEL.1 + HEAD);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let drawn = draw(&root, &trace, title, y, axes, log, series);
        drawn.map_err(|error| anyhow!("{title}: {error}"))?;
        root.present().map_err(|error| anyhow!("{title}: {error}"))?;
        drop(root);
        Ok::<_, anyhow::Error>(svg)
    };
    let pair = |mean: &'static str, worst: &'static str| {
        [
            Series { name: "mean of nodes", column: mean, color: BLUE_LINE },
            Series { name: "worst node", column: worst, color: ORANGE_LINE },
        ]
    };
    let distance =
        [Series { name: "largest distance of a node", column: "consensus", color: BLUE_LINE }];
    Ok(vec![
        (
            "accuracy.svg",
            figure(
                "Accuracy on held-out rows",
                "accuracy",
                &axes,
                false,
                &pair("accuracy", "accuracy_min"),
            )?,
        ),
        (
            "loss.svg",
            figure(
                "Loss on held-out rows",
                "loss (nats)",
                &axes,
                false,
                &pair("loss", "loss_max"),
            )?,
        ),
        (
            "consensus.svg",
            figure(
                "Distance from consensus",
                "distance from the mean",
                &axes[..1],
                true,
                &distance,
            )?,
        ),
    ])
}

pub(crate) type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw(
    root: &DrawingArea<SVGBackend<'_>, Shift>,
    trace: &Trace,
    title: &str,
    y_title: &str,
    axes: &[(&str, &str)],
    log: bool,
    series: &[Series],
) -> Drawn {
    root.fill(&WHITE)?;
    let (head, panels) = root.split_vertically(HEAD);
    head.draw(&Text::new(title.to_owned(), (16, 10), ("sans-serif", 19).into_font()))?;
    legend(&head, trace.seeds.len(), series)?;
    let panels = panels.split_evenly((1, axes.len()));
    for (panel, &(column, x_title)) in panels.iter().zip(axes) {
        let lines: Vec<Vec<Vec<(f64, f64)>>> = series
            .iter()
            .map(|series| trace.lines(trace.column(column), trace.column(series.column)))
            .collect();
        draw_panel(panel, x_title, y_title, log, series, &lines)?;
    }
    Ok(())
}

fn legend<'a>(head: &DrawingArea<SVGBackend<'a>, Shift>, seeds: usize, series: &[Series]) -> Drawn {
    let mut left = 16;
    for Series { name, color, .. } in series {
        head.draw(&PathElement::new(vec![(left, 46), (left + 24, 46)], color.stroke_width(3)))?;
        head.draw(&Text::new(*name, (left + 30, 39), ("sans-serif", 14).into_font()))?;
        left += 44 + 8 * name.len() as i32;
    }
    let note = match seeds {
        1 => return Ok(()),
        seeds => format!("{seeds} seeds: thin; thick: their mean"),
    };
    head.draw(&Text::new(note, (left, 39), ("sans-serif", 14).into_font().color(&BLACK.mix(0.6))))?;
    Ok(())
}

fn draw_panel(
    panel: &DrawingArea<SVGBackend<'_>, Shift>,
    x_title: &str,
    y_title: &str,
    log: bool,
    series: &[Series],
    lines: &[Vec<Vec<(f64, f64)>>],
) -> Drawn {
    let log = log && spans_decades(lines);
    // What cannot be shown: empty cells, and zero on a logarithmic axis.
    let scaled = |line: &[(f64, f64)]| -> Vec<(f64, f64)> {
        let points = line.iter().map(|&(x, y)| (x, if log { y.log10() } else { y }));
        points.filter(|(x, y)| x.is_finite() && y.is_finite()).collect()
    };
    let points = || lines.iter().flatten().flat_map(|line| scaled(line));
    let range = points()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), (_, y)| (low.min(y), high.max(y)));
    if range.0 > range.1 {
        let style = ("sans-serif", 14).into_font().color(&BLACK.mix(0.6));
        panel.draw(&Text::new("no finite values", (150, PANEL.1 as i32 / 2), style))?;
    }
    let (low, high) = span(range, log);
    let right = points().fold(0.0, |most, (x, _)| f64::max(most, x)).max(1e-9);
    let mut chart = ChartBuilder::on(panel)
        .margin(8)
        .margin_right(24)
        .x_label_area_size(46)
        .y_label_area_size(66)
        .build_cartesian_2d(0.0..right * 1.02, low..high)?;
    let digits = digits_of(high - low);
    chart
        .configure_mesh()
        .x_desc(x_title)
        .y_desc(y_title)
        .x_labels(6)
        .y_labels(if log { ((high - low) as usize + 1).min(9) } else { 7 })
        .x_label_formatter(&|x| with_prefix(*x))
        .y_label_formatter(&|y| match log {
            true => format!("{:.0e}", 10f64.powf(*y)),
            false => format!("{y:.digits$}"),
        })
        .axis_desc_style(("sans-serif", 15))
        .label_style(("sans-serif", 13))
        .bold_line_style(BLACK.mix(0.12))
        .light_line_style(TRANSPARENT)
        .axis_style(BLACK.mix(0.6))
        .draw()?;
    // The first series is drawn last, so that it is seen where lines coincide.
    for (series, lines) in series.iter().zip(lines).rev() {
        if lines.len() > 1 {
            for line in lines {
                let style = series.color.mix(0.3).stroke_width(1);
                chart.draw_series(LineSeries::new(scaled(line), style))?;
            }
        }
        let thick = series.color.stroke_width(2);
        chart.draw_series(LineSeries::new(scaled(&mean(lines)), thick))?;
    }
    Ok(())
}

/// Whether positive values differ so much that a logarithmic axis shows more.
fn spans_decades(lines: &[Vec<Vec<(f64, f64)>>]) -> bool {
    let values = lines.iter().flatten().flatten().map(|point| point.1);
    let positive = values.filter(|value| *value > 0.0 && value.is_finite());
    let (low, high) = positive
        .fold((f64::INFINITY, 0.0f64), |(low, high), value| (low.min(value), high.max(value)));
    high > 30.0 * low
}

/// The span of an axis for values from `low` to `high`: whole decades, or from zero when that is
/// near.
fn span((low, high): (f64, f64), log: bool) -> (f64, f64) {
    if low > high {
        return (0.0, 1.0);
    }
    if log {
        return (low.floor(), high.ceil().max(low.floor() + 1.0));
    }
    let pad = ((high - low) * 0.05).max(1e-9 * high.abs()).max(1e-12);
    let bottom = if low >= 0.0 && low < 0.4 * high { 0.0 } else { low - pad };
    match high {
        0.0 => (0.0, 1.0),
        high => (bottom, high + pad),
    }
}

/// Decimal places that tell the ticks of a range apart.
fn digits_of(range: f64) -> usize {
    (1.5 - range.log10()).ceil().clamp(0.0, 6.0) as usize
}

/// A number of an axis, with k, M or G.
pub(crate) fn with_prefix(value: f64) -> String {
    let (scale, letter) = match value.abs() {
        size if size >= 1e9 => (1e9, " G"),
        size if size >= 1e6 => (1e6, " M"),
        size if size >= 1e4 => (1e3, " k"),
        _ => (1.0, ""),
    };
    let value = value / scale;
    let text = format!("{value:.3}");
    let text =
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{letter}")
}

/// Draws the figures of a file into a folder.
///
/// # Errors
/// When the file is no trace, or the folder cannot be written.
pub fn run(trace: &Path, out: &Path) -> Result<()> {
    let csv = fs::read_to_string(trace)
        .map_err(|error| super::Usage(format!("cannot read trace {}: {error}", trace.display())))?;
    let figures = figures(&csv).with_context(|| trace.display().to_string())?;
    fs::create_dir_all(out).with_context(|| format!("cannot make folder {}", out.display()))?;
    for (name, svg) in figures {
        let path = out.join(name);
        fs::write(&path, svg).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_count_in_thousands_and_millions() {
        let shown: Vec<String> = [0.0, 0.25, 2000.0, 25_000.0, 2.5e6, 3e9].map(with_prefix).into();
        assert_eq!(shown, ["0", "0.25", "2000", "25 k", "2.5 M", "3 G"]);
    }

    #[test]
    fn what_is_no_trace_is_refused_with_its_line() {
        let error = |csv: &str| figures(csv).unwrap_err().to_string();
        assert!(error("a,b\n").contains("line 1"));
        let header =
            "seed,time_s,probes,bytes,accuracy,accuracy_min,loss,loss_max,consensus,rounds,up";
        assert!(error(header).contains("no rows"));
        assert!(error(&format!("{header}\n1,2\n")).contains("line 2"));
        assert!(error(&format!("{header}\n1,x,3,4,5,6,7,8,9,10,11\n")).contains("line 2"));
    }

    #[test]
    fn a_trace_with_empty_cells_is_drawn() {
        let header =
            "seed,time_s,gradients,bytes,accuracy,accuracy_min,loss,loss_max,consensus,rounds,up";
        let csv = format!("{header}\n1,0,0,0,0.1,0.1,2,2,0,,2\n1,1,5,90,,,,,,,2\n");
        let figures = figures(&csv).unwrap();
        assert_eq!(figures.len(), 3);
        for (name, svg) in figures {
            assert!(svg.starts_with("<svg") && !svg.contains("NaN"), "{name}");
        }
    }
}
