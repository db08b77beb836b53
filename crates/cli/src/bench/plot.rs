//! Draws what was measured: a picture of each group of figures, as SVG and as PNG.

use std::fs;
use std::ops::Range;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{register_font, FontStyle};

use super::report::{Figure, Group, Report};
use crate::failure::Failure;

const SIZE: (u32, u32) = (1000, 640);
const FONT: &str = "sans-serif";

/// Draws all groups that have an axis to draw along.
pub fn draw(report: &Report, dir: &Path) -> Result<(), Failure> {
    // Built in: what a system has of fonts differs.
    register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT).map_err(|_| "the font does not load")?;
    fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    for group in report.groups() {
        let figures: Vec<_> = report.of(group).into_iter().filter(|f| f.at.is_some()).collect();
        if figures.is_empty() {
            continue;
        }
        let stem = dir.join(file_name(group));
        let (svg, png) = (stem.with_extension("svg"), stem.with_extension("png"));
        let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", stem.display());
        chart(&SVGBackend::new(&svg, SIZE).into_drawing_area(), group, &figures).map_err(|e| failed(&e))?;
        chart(&BitMapBackend::new(&png, SIZE).into_drawing_area(), group, &figures).map_err(|e| failed(&e))?;
        report.progress(&format!("drew {} and {}", svg.display(), png.display()));
    }
    Ok(())
}

fn file_name(group: Group) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { ' ' };
    let words: String = format!("{} {}", group.bench, group.name).chars().map(plain).collect();
    words.split_whitespace().collect::<Vec<_>>().join("-")
}

/// A range with some room around it on a logarithmic scale, on which zero is not.
fn around(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (low, high) = values.filter(|v| *v > 0.0).fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
    if low > high {
        0.1..10.0
    } else {
        low / 1.5..high * 1.5
    }
}

fn chart<D: DrawingBackend>(
    area: &DrawingArea<D, Shift>,
    group: Group,
    figures: &[&Figure],
) -> Result<(), DrawingAreaErrorKind<D::ErrorType>> {
    // Zero sessions stand at one.
    let x = |f: &Figure| f.at.unwrap_or_default().max(1) as f64;
    area.fill(&WHITE)?;
    let xs = around(figures.iter().map(|f| x(f)));
    let mut ys = around(figures.iter().flat_map(|f| [f.part(0.0), f.part(1.0)]));
    let mut names: Vec<&str> = Vec::new();
    for figure in figures {
        if !names.contains(&figure.series.as_str()) {
            names.push(&figure.series);
        }
    }
    // Room for the legend above all lines.
    let legend = (names.len() as f64 * 19.0 + 30.0) / f64::from(SIZE.1 - 100);
    ys.end *= (ys.end / ys.start).powf((legend / (1.0 - legend)).min(3.0));
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{}: {}", group.bench, group.name), (FONT, 24))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(70)
        .build_cartesian_2d(xs.log_scale(), ys.log_scale())?;
    chart
        .configure_mesh()
        .x_desc(group.axis)
        .y_desc(group.unit)
        .x_label_formatter(&|v| v.to_string())
        .label_style((FONT, 15))
        .axis_desc_style((FONT, 17))
        .draw()?;
    for (i, name) in names.iter().enumerate() {
        let color = Palette99::pick(i).to_rgba();
        let of: Vec<&&Figure> = figures.iter().filter(|f| f.series == *name && f.part(0.5) > 0.0).collect();
        let line = LineSeries::new(of.iter().map(|f| (x(f), f.part(0.5))), color.stroke_width(2));
        chart
            .draw_series(line)?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        let spread = |f: &&&Figure| {
            let low = f.part(0.0).max(f.part(0.5) / 1e3);
            ErrorBar::new_vertical(x(f), low, f.part(0.5), f.part(1.0), color.filled(), 8)
        };
        chart.draw_series(of.iter().map(spread))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .label_font((FONT, 14))
        .draw()?;
    area.present()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_picture_have_text() {
        let group = Group { bench: "recovery", name: "time for each session", unit: "us", axis: "sessions" };
        let mut report = Report::new();
        for (at, value) in [(64, 11.0), (512, 10.0), (512, 14.0)] {
            report.note(group, "repair", Some(at), value);
        }
        let dir = std::env::temp_dir().join(format!("tcpr-plot-{}", std::process::id()));
        draw(&report, &dir).expect("drawn");
        let stem = dir.join("recovery-time-for-each-session");
        let svg = fs::read_to_string(stem.with_extension("svg")).expect("SVG");
        assert!(svg.contains("recovery: time for each session") && svg.contains("repair"), "{svg}");
        let png = fs::metadata(stem.with_extension("png")).expect("PNG").len();
        fs::remove_dir_all(&dir).expect("removed");
        // Lines alone compress to far less.
        assert!(png > 8000, "{png} bytes");
    }
}
