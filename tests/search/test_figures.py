"""Figures for print."""

import dataclasses
import io
import re
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from search import figures, findings, gallery


@pytest.fixture
def found(ended):
    return findings.read(*ended(), "sqlite:///a.db")


def streams(pdf):
    """The text of a PDF with its compressed streams unpacked."""
    parts = [zlib.decompress(part) for part in re.findall(rb"/FlateDecode.*?stream\n(.*?)\nendstream", pdf, re.S)]
    return pdf + b"".join(parts)


def load(found, picture):
    with open(f"{found.root}/{picture.folder}/{picture.name}.png", "rb") as file:
        return file.read()


def test_figures_are_a_column_wide_with_fonts_in_them_and_the_same_each_time(found):
    drawn = dict(gallery.draw([found], load))
    assert list(drawn) == ["history", "rungs", "pareto", "importances", "reconstructions", "worst"]
    again = dict(gallery.draw([found], load))
    for name, figure in drawn.items():
        pdf = figures.pdf(figure)
        assert figure.get_figwidth() == 3.3
        assert pdf == figures.pdf(again[name]), name
        text = streams(pdf)
        assert b"/FontFile2" in text, name
        assert b"/Type3" not in text, name
        assert b"CreationDate" not in text, name
        assert not any(axes.get_title() for axes in figure.axes), name


def test_pyplot_keeps_no_figure(found):
    figures.history([found])
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_axes_have_units_and_point_to_the_better_side():
    assert figures.axis("val/psnr") == "PSNR (dB) ↑"
    assert figures.axis("val/lpips_alex") == "LPIPS (alex) ↓"
    assert figures.axis("val/entropy_bits_per_image") == "entropy-coded size (bits/image)"


def test_the_best_so_far_never_gets_worse(found):
    (axes,) = figures.history([found]).axes
    steps = next(line for line in axes.lines if line.get_drawstyle() == "steps-post")
    assert list(np.diff(steps.get_ydata()) >= 0) == [True] * 10
    assert steps.get_xdata()[-1] == 15
    assert steps.get_ydata()[-1] == pytest.approx(22.05)


def test_trials_that_stopped_stand_at_the_worse_edge(found):
    (axes,) = figures.history([found]).axes
    rug = next(line for line in axes.lines if line.get_marker() == "|")
    assert list(rug.get_xdata()) == [10, 11, 12, 13]
    assert set(rug.get_ydata()) == {axes.get_ylim()[0]}


def test_a_far_outlier_does_not_flatten_the_rest(found):
    trials = list(found.trials)
    trials[3] = dataclasses.replace(trials[3], value=-1000.0)
    (axes,) = figures.history([dataclasses.replace(found, trials=trials)]).axes
    assert axes.get_ylim()[0] > 15
    dots = next(line for line in axes.lines if line.get_marker() == "o")
    assert dots.get_ydata()[3] == axes.get_ylim()[0]


def test_a_few_trials_are_all_shown(found):
    few = dataclasses.replace(found, trials=[found.trials[0], *found.trials[8:10]])
    (axes,) = figures.history([few]).axes
    assert axes.get_ylim()[0] < 19.8


def test_the_front_is_drawn_over_all_points(found):
    (axes,) = figures.pareto([found]).axes
    everything, front = (line for line in axes.lines if line.get_marker() == "o")
    assert len(everything.get_xdata()) == len(front.get_xdata()) == 10
    trials = list(found.trials)
    trials[4] = dataclasses.replace(trials[4], metrics={**trials[4].metrics, figures.BITS: 500.0})
    (axes,) = figures.pareto([dataclasses.replace(found, trials=trials)]).axes
    everything, front = (line for line in axes.lines if line.get_marker() == "o")
    assert 500.0 in everything.get_xdata()
    assert 500.0 not in front.get_xdata()


def test_studies_side_by_side_differ_in_more_than_color(found):
    other = dataclasses.replace(found, study="second")
    for draw in (figures.history, figures.rungs, figures.pareto):
        (legend,) = draw([found, other]).legends
        entries = legend.legend_handles
        assert [text.get_text() for text in legend.get_texts()] == ["shapes", "second"]
        assert len({(entry.get_marker(), entry.get_linestyle(), entry.get_color()) for entry in entries}) == 2
        assert entries[0].get_marker() != entries[1].get_marker()
        assert entries[0].get_linestyle() != entries[1].get_linestyle()


def test_nothing_is_drawn_of_nothing(found):
    empty = dataclasses.replace(found, trials=[], ranking=[], importances={}, why_no_importances="none is complete")
    drawn = dict(gallery.draw([empty], lambda _found, _picture: None))
    assert set(drawn.values()) == {None}
    assert [gallery.why_not([empty], name) for name in drawn] == [
        "no trial is complete",
        "no trial was measured",
        "fewer than two complete trials with an entropy-coded size besides the objective",
        "none is complete",
        *[f"no such picture of the best trials can be read below {found.root}"] * 2,
    ]


def test_rows_of_pictures_are_the_originals_and_what_each_trial_made_of_them(found):
    sheet = Image.open(io.BytesIO(load(found, found.best.picture("reconstructions"))))
    figure = figures.reconstructions([("first", load(found, found.best.picture("reconstructions")))] * 2, 64)
    originals, made, _ = (axes.images[0].get_array() for axes in figure.axes)
    pixels = np.asarray(sheet)
    np.testing.assert_array_equal(originals, pixels[:64, : 6 * 64])
    np.testing.assert_array_equal(made, pixels[64:128, : 6 * 64])
    assert [text.get_text() for text in figure.texts] == ["original", "first", "first"]


def test_names_are_text_whatever_they_hold(found, recwarn):
    odd = dataclasses.replace(found, study=r"$\frac{1}{0}$ \input{/etc/passwd} 模型")
    assert figures.pdf(figures.history([odd, found])).startswith(b"%PDF")
    assert figures.png(figures.history([odd, found])).startswith(b"\x89PNG")
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


@pytest.mark.parametrize("name", ["a", "mambavision, seed 1", "an arm whose name is longer than any column would hold"])
def test_names_beside_pictures_lie_within_the_figure(name):
    held = io.BytesIO()
    Image.fromarray(np.zeros((32, 64, 3), np.uint8)).save(held, "PNG")
    figure = figures.reconstructions([(name, held.getvalue())], 16)
    first, last = name[:1], name[-1:]
    boxes = [text.get_window_extent() for text in figure.texts]
    assert figure.texts[1].get_text().startswith(first)
    assert figure.texts[1].get_text().endswith(last)
    assert min(box.x0 for box in boxes) >= 0
    assert max(box.x1 for box in boxes) <= figure.axes[0].get_window_extent().x0
