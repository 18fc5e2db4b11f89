//! The figure of a comparison, drawn from its CSV alone: the worst node's measure by bytes and by work.

use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::sim::plot::{Drawn, with_prefix};

/// A panel's size in pixels.
const PANEL: (u32, u32) = (460, 400);

/// Width of the legend, height of the title.
const LEGEND: u32 = 290;
const HEAD: u32 = 40;

/// Colors in the order of the algorithms; those of one algorithm's variants are not related.
const COLORS: [RGBColor; 10] = [
    RGBColor(60, 60, 60),
    RGBColor(160, 160, 160),
    RGBColor(214, 104, 24),
    RGBColor(150, 75, 160),
    RGBColor(31, 98, 168),
    RGBColor(86, 180, 233),
    RGBColor(0, 130, 90),
    RGBColor(120, 190, 60),
    RGBColor(230, 170, 0),
    RGBColor(200, 30, 60),
];

/// One algorithm.
struct Course {
    name: String,
    color: RGBColor,
    /// Work, bytes and the measure at the worst node.
    points: Vec<[f64; 3]>,
}

impl Course {
    /// The line by work or by bytes; what is zero or not finite has no place on logarithmic axes.
    fn line(&self, column: usize) -> impl Iterator<Item = (f64, f64)> + Clone + '_ {
        let points = self.points.iter().map(move |point| (point[column], point[2]));
        points.filter(|(x, y)| *x > 0.0 && *y > 0.0 && y.is_finite())
    }
}

/// The measure's name and the courses.
fn parse(csv: &str) -> Result<(String, Vec<Course>)> {
    let mut lines = csv.lines();
    let header = lines.next().context("the file is empty")?;
    let measure = header.rsplit(',').next().and_then(|name| name.strip_suffix("_worst"));
    let measure = measure.with_context(|| format!("line 1 has no measure: {header:?}"))?;
    let mut courses: Vec<Course> = Vec::new();
    for (number, line) in (2..).zip(lines) {
        let cells: Vec<&str> = line.split(',').collect();
        let [name, _, work, bytes, _, worst] = cells[..] else {
            return Err(anyhow!("line {number} has {} cells, not 6", cells.len()));
        };
        let cell = |cell: &str| cell.parse().map_err(|_| anyhow!("line {number}: {cell:?}"));
        let point = [cell(work)?, cell(bytes)?, cell(worst)?];
        if courses.last().is_none_or(|course| course.name != name) {
            let color = COLORS[courses.len() % COLORS.len()];
            courses.push(Course { name: name.to_owned(), color, points: Vec::new() });
        }
        courses.last_mut().expect("just pushed").points.push(point);
    }
    Ok((measure.replace('_', " "), courses))
}

/// The SVG text.
///
/// # Errors
/// If the text is no comparison.
pub(super) fn draw(title: &str, csv: &str) -> Result<String> {
    let (measure, courses) = parse(csv)?;
    let mut svg = String::new();
    let size = (2 * PANEL.0 + LEGEND, PANEL.1 + HEAD);
    let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
    let drawn = draw_on(&root, title, &measure, &courses);
    drawn.map_err(|error| anyhow!("cannot draw the comparison: {error}"))?;
    drop(root);
    Ok(svg)
}

fn draw_on(
    root: &DrawingArea<SVGBackend<'_>, Shift>,
    title: &str,
    measure: &str,
    courses: &[Course],
) -> Drawn {
    root.fill(&WHITE)?;
    let (head, body) = root.split_vertically(HEAD);
    head.draw(&Text::new(title.to_owned(), (16, 12), ("sans-serif", 19).into_font()))?;
    let (panels, legend) = body.split_horizontally(2 * PANEL.0);
    let measure = format!("{measure}, worst node");
    let axes = [(1, "sent, all nodes (bytes)"), (0, "gradients or probes, all nodes")];
    for (panel, (column, x_title)) in panels.split_evenly((1, 2)).iter().zip(axes) {
        draw_panel(panel, x_title, &measure, column, courses)?;
    }
    for (at, course) in courses.iter().enumerate() {
        let y = 24 + 24 * at as i32;
        let style = course.color.stroke_width(3);
        legend.draw(&PathElement::new(vec![(4, y), (28, y)], style))?;
        let silent = course.points.iter().all(|point| point[1] == 0.0);
        let name = format!("{}{}", course.name, if silent { " (sends nothing)" } else { "" });
        legend.draw(&Text::new(name, (36, y - 7), ("sans-serif", 14).into_font()))?;
    }
    root.present()?;
    Ok(())
}

fn draw_panel(
    panel: &DrawingArea<SVGBackend<'_>, Shift>,
    x_title: &str,
    y_title: &str,
    column: usize,
    courses: &[Course],
) -> Drawn {
    let points = || courses.iter().flat_map(|course| course.line(column));
    let range = |part: fn((f64, f64)) -> f64| {
        points().map(part).fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        })
    };
    let (left, right) = range(|point| point.0);
    let (low, high) = range(|point| point.1);
    if left > right {
        return Ok(());
    }
    // A little room at both ends: 4 % of the axis.
    let room = |low: f64, high: f64| (high / low).powf(0.04).max(1.02);
    let (beside, above) = (room(left, right), room(low, high));
    let mut chart = ChartBuilder::on(panel)
        .margin(8)
        .margin_right(24)
        .x_label_area_size(46)
        .y_label_area_size(70)
        .build_cartesian_2d(
            (left / beside..right * beside).log_scale(),
            (low / above..high * above).log_scale(),
        )?;
    chart
        .configure_mesh()
        .x_desc(x_title)
        .y_desc(y_title)
        .x_label_formatter(&|x| with_prefix(*x))
        .y_label_formatter(&|y| small(*y))
        .axis_desc_style(("sans-serif", 15))
        .label_style(("sans-serif", 13))
        .bold_line_style(BLACK.mix(0.12))
        .light_line_style(TRANSPARENT)
        .axis_style(BLACK.mix(0.6))
        .draw()?;
    for course in courses {
        let style = course.color.stroke_width(2);
        chart.draw_series(LineSeries::new(course.line(column), style))?;
    }
    Ok(())
}

/// A number of the vertical axis.
fn small(value: f64) -> String {
    if value >= 0.01 { with_prefix(value) } else { format!("{value:.0e}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comparison_with_zeros_and_gaps_is_drawn() {
        let csv = "algorithm,unit,work,bytes,test_error_mean,test_error_worst\n\
                   a,gradients,0,0,1e0,1e0\na,gradients,10,0,5e-1,NaN\nb,probes,0,0,1e0,1e0\n\
                   b,probes,20,300,1e-3,2e-3\n";
        let svg = draw("t", csv).unwrap();
        assert!(svg.starts_with("<svg") && !svg.contains("NaN"));
        assert!(svg.contains("a (sends nothing)") && svg.contains("test error, worst node"));
        assert!(draw("t", "a,b\n").unwrap_err().to_string().contains("line 1"));
    }
}
