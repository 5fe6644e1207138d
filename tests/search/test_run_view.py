"""What is shown of a run, in a terminal and elsewhere."""

import io

import pytest
from rich.console import Console, Group

from search.run_view import RunView, line
from vqvae.config import TrainConfig
from vqvae.conversion import replace
from vqvae.data import Decoding
from vqvae.train import Progress

CONFIG = replace(TrainConfig(), {"steps": 1000, "batch_size": 10})


def view(width=120, **options):
    terminal = options.pop("terminal", False)
    return RunView(
        Console(width=width, file=io.StringIO(), highlight=False, force_terminal=terminal), CONFIG, **options
    )


def report(step, evaluated=False, **metrics):
    names = {name.replace("__", "/"): value for name, value in metrics.items()}
    return Progress(step=step, metrics=names, evaluated=evaluated)


def lines(shown):
    return shown.console.file.getvalue().splitlines()


def rendered(shown):
    with shown.console.capture() as captured:
        shown.console.print(Group(shown.render()))  # alone, a text would be wrapped
    return captured.get().rstrip("\n")


def test_a_line_begins_with_what_is_measured_on_held_out_images_then_what_it_costs():
    metrics = {"train/loss": 0.25, "images_per_s": 312.0, "val/psnr": 21.5, "parameters": 1000.0, "train/l2": 0.125}
    assert line(5, 10, metrics) == (
        "step 5/10  val/psnr 21.5  images_per_s 312  parameters 1000  train/l2 0.125  train/loss 0.25"
    )


def test_the_live_line_shows_steps_rate_time_left_and_loss():
    shown = view()
    assert rendered(shown) == "reading the images and building the model"
    shown.show(report(250, images_per_s=50.0, train__loss=0.125))
    assert rendered(shown) == "━" * 10 + "─" * 30 + " 250/1000 steps  50 images/s  about 2 min 30 s left  loss 0.125"
    shown.show(report(260, train__loss=0.5))  # the rate is not known anew at each report
    assert "260/1000 steps  50 images/s  about 2 min 28 s left  loss 0.5" in rendered(shown)


def test_the_live_line_shows_how_far_the_pictures_are():
    shown = view(terminal=True)
    shown.decoding(Decoding(1200, 50000))
    assert "decoding the pictures: 1,200 of 50,000" in rendered(shown)
    shown.decoding(Decoding(0, 0, "process 12 on host"))
    assert "decoding the pictures: 0, by process 12 on host" in rendered(shown)
    assert lines(shown) == []


def test_without_a_terminal_decoding_is_told_now_and_then():
    shown = view()
    shown.decoding(Decoding(0, 50000))
    shown.decoding(Decoding(1200, 50000))
    assert lines(shown) == ["decoding the pictures: 0 of 50,000"]


@pytest.mark.parametrize("width", [30, 80, 200])
def test_the_live_line_keeps_to_the_width_of_the_terminal(width):
    shown = view(width)
    shown.show(report(250, images_per_s=50.0, train__loss=0.125))
    assert "\n" not in rendered(shown)
    assert len(rendered(shown)) <= width
    assert "250/1000" in rendered(shown)


def test_without_a_terminal_evaluations_are_lines_and_other_reports_now_and_then():
    shown = view()
    with shown.watching():
        shown.show(report(1, train__loss=1.0))
        shown.show(report(2, train__loss=0.5))
        shown.show(report(100, evaluated=True, val__psnr=20.0, images_per_s=50.0))
        shown.show(report(1000, evaluated=True, val__psnr=21.0, images_per_s=50.0))
    assert lines(shown) == [
        "step 1/1000  train/loss 1",
        "step 100/1000  val/psnr 20  images_per_s 50  about 3 min 0 s left",
        "step 1000/1000  val/psnr 21  images_per_s 50",
    ]


def test_in_a_terminal_evaluations_stay_above_the_live_line():
    shown = view(terminal=True)
    with shown.watching():
        shown.show(report(1, train__loss=1.0))
        shown.show(report(100, evaluated=True, val__psnr=20.0, train__l2=0.5))
        shown.say("a [red]line[/red]")
    text = shown.console.file.getvalue()
    assert "step 100/1000  val/psnr 20" in text
    assert "a [red]line[/red]" in text
    assert "train/" not in text


def test_quiet_shows_nothing():
    shown = view(quiet=True)
    with shown.watching():
        shown.say("going on")
        shown.show(report(1000, evaluated=True, val__psnr=21.0))
    assert lines(shown) == []
