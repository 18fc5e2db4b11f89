//! Figures drawn from a CSV alone: of a trace, loss and accuracy against model time, work and bytes,
//! and the distance from consensus; of a soak, memory, open files and ledger against time.
//!
//! A line a seed, or a node, is thin; the thick one is their mean, as far as all go.

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

/// What a soak writes down of each node.
const SOAK: &str = "seconds,node,rss_kib,open_files,threads,ledger_bytes,round,certified";

/// Rows of a CSV by seed or node, `NaN` where a cell is empty.
struct Trace {
    columns: Vec<String>,
    lines: BTreeMap<u64, Vec<Vec<f64>>>,
    /// What has a line each.
    each: &'static str,
}

impl Trace {
    fn parse(csv: &str) -> Result<Trace> {
        let mut lines = csv.lines();
        let header = lines.next().context("the file is empty")?;
        let columns: Vec<String> = header.split(',').map(str::to_owned).collect();
        let is_trace = columns.len() == super::trace::COLUMNS.len() + 1
            && columns[0] == "seed"
            && columns[1] == "time_s";
        let (key, each) = if header == SOAK { (1, "nodes") } else { (0, "seeds") };
        ensure!(
            is_trace || header == SOAK,
            "line 1 is neither the header of a trace nor that of a soak: {header:?}"
        );
        let mut by_key: BTreeMap<u64, Vec<Vec<f64>>> = BTreeMap::new();
        for (number, line) in (2..).zip(lines) {
            let cells: Vec<&str> = line.split(',').collect();
            ensure!(
                cells.len() == columns.len(),
                "line {number} has {} cells, not {}",
                cells.len(),
                columns.len()
            );
            let of = cells[key]
                .parse()
                .map_err(|_| anyhow!("line {number}: {:?} is no {}", cells[key], columns[key]))?;
            let row = cells.iter().map(|cell| match cell.parse::<f64>() {
                Ok(value) => Ok(value),
                Err(_) if cell.is_empty() => Ok(f64::NAN),
                Err(_) => bail!("line {number}: {cell:?} is no number"),
            });
            by_key.entry(of).or_default().push(row.collect::<Result<_>>()?);
        }
        ensure!(!by_key.is_empty(), "there are no rows");
        Ok(Trace { columns, lines: by_key, each })
    }

    fn column(&self, name: &str) -> usize {
        self.columns.iter().position(|column| column == name).unwrap_or(0)
    }

    /// A line for each seed or node.
    fn lines(&self, x: usize, y: usize) -> Vec<Vec<(f64, f64)>> {
        let line = |rows: &Vec<Vec<f64>>| rows.iter().map(|row| (row[x], row[y])).collect();
        self.lines.values().map(line).collect()
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

/// A panel: its columns and what its axes are called.
struct Panel<'a> {
    x: (&'a str, &'a str),
    y: &'a str,
    series: &'a [Series],
}

/// The SVG files of a trace or a soak: name and text.
///
/// # Errors
/// If the text is neither.
pub fn figures(csv: &str) -> Result<Vec<(&'static str, String)>> {
    let trace = Trace::parse(csv)?;
    let figure = |title: &str, log: bool, panels: &[Panel<'_>]| {
        let mut svg = String::new();
        let size = (PANEL.0 * panels.len() as u32, PANEL.1 + HEAD);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let drawn = draw(&root, &trace, title, log, panels);
        drawn.map_err(|error| anyhow!("{title}: {error}"))?;
        root.present().map_err(|error| anyhow!("{title}: {error}"))?;
        drop(root);
        Ok::<_, anyhow::Error>(svg)
    };
    if trace.each == "nodes" {
        let one = |column| [Series { name: "mean of nodes", column, color: BLUE_LINE }];
        let [memory, files, ledger] = ["rss_kib", "open_files", "ledger_bytes"].map(one);
        let panel = |y, series| Panel { x: ("seconds", "time (s)"), y, series };
        let panels = [
            panel("resident memory (KiB)", &memory[..]),
            panel("open files", &files),
            panel("ledger (bytes)", &ledger),
        ];
        return Ok(vec![("soak.svg", figure("What a running node holds", false, &panels)?)]);
    }
    // `probes` or `gradients`.
    let work = &*trace.columns[2];
    let all_nodes = format!("{work}, all nodes");
    let axes =
        [("time_s", "model time (s)"), (work, &*all_nodes), ("bytes", "sent, all nodes (bytes)")];
    let pair = |mean: &'static str, worst: &'static str| {
        [
            Series { name: "mean of nodes", column: mean, color: BLUE_LINE },
            Series { name: "worst node", column: worst, color: ORANGE_LINE },
        ]
    };
    let (accuracy, loss) = (pair("accuracy", "accuracy_min"), pair("loss", "loss_max"));
    let distance =
        [Series { name: "largest distance of a node", column: "consensus", color: BLUE_LINE }];
    let (y, x) = ("distance from the mean", axes[0]);
    Ok(vec![
        (
            "accuracy.svg",
            figure(
                "Accuracy on held-out rows",
                false,
                &axes.map(|x| Panel { x, y: "accuracy", series: &accuracy }),
            )?,
        ),
        (
            "loss.svg",
            figure(
                "Loss on held-out rows",
                false,
                &axes.map(|x| Panel { x, y: "loss (nats)", series: &loss }),
            )?,
        ),
        (
            "consensus.svg",
            figure("Distance from consensus", true, &[Panel { x, y, series: &distance }])?,
        ),
    ])
}

pub(crate) type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw(
    root: &DrawingArea<SVGBackend<'_>, Shift>,
    trace: &Trace,
    title: &str,
    log: bool,
    panels: &[Panel<'_>],
) -> Drawn {
    root.fill(&WHITE)?;
    let (head, areas) = root.split_vertically(HEAD);
    head.draw(&Text::new(title.to_owned(), (16, 10), ("sans-serif", 19).into_font()))?;
    legend(&head, (trace.lines.len(), trace.each), panels[0].series)?;
    let areas = areas.split_evenly((1, panels.len()));
    for (area, &Panel { x, y, series }) in areas.iter().zip(panels) {
        let lines: Vec<Vec<Vec<(f64, f64)>>> = series
            .iter()
            .map(|series| trace.lines(trace.column(x.0), trace.column(series.column)))
            .collect();
        draw_panel(area, x.1, y, log, series, &lines)?;
    }
    Ok(())
}

fn legend(
    head: &DrawingArea<SVGBackend<'_>, Shift>,
    (count, each): (usize, &str),
    series: &[Series],
) -> Drawn {
    let mut left = 16;
    for Series { name, color, .. } in series {
        head.draw(&PathElement::new(vec![(left, 46), (left + 24, 46)], color.stroke_width(3)))?;
        head.draw(&Text::new(*name, (left + 30, 39), ("sans-serif", 14).into_font()))?;
        left += 44 + 8 * name.len() as i32;
    }
    let note = match count {
        1 => return Ok(()),
        count => format!("{count} {each}: thin; thick: their mean"),
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
    fn a_soak_is_drawn_with_a_line_a_node() {
        let csv = format!("{SOAK}\n0,0,900,7,5,10,1,0\n0,1,950,8,5,10,1,0\n5,0,990,7,5,20,,\n");
        let figures = figures(&csv).unwrap();
        let [("soak.svg", svg)] = &figures[..] else { panic!("one figure") };
        for text in ["resident memory (KiB)", "open files", "ledger (bytes)", "2 nodes: thin"] {
            assert!(svg.contains(text), "{text}");
        }
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
