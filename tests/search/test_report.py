"""The report: which kind, what its page says, and that nothing in it runs or loads that should not."""

import base64
import dataclasses
import hashlib
import html
import json
import math
import re
from datetime import UTC, datetime

import numpy as np
import optuna
import pytest
from click.testing import CliRunner
from optuna.trial import TrialState

from search import charts, cli_look, findings, landscape, output, overview, page, records, report
from search.errors import StudyError, UserError

NOW = datetime(2026, 11, 22, 12, 30, tzinfo=UTC)
HOSTILE = '<script>alert("x")</script>'
TURNED = "safe\u202etxt.exe"


def read(made):
    return findings.read(*made, "sqlite:///a.db")


def rendered(*found, load=None):
    return page.render(found, load or report.pictures(), NOW)


def data_of(text):
    """What the page's script reads."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def words_of(text):
    """The text of the page that people see without a script, in one line."""
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", text[text.index("<body>") :], flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", body)))


def test_the_page_says_what_was_searched_what_won_by_how_much_what_it_cost_and_how_to_repeat_it(ended):
    words = words_of(rendered(read(ended())))
    for said in (
        "vqsearch report, 2026-11-22 12:30 UTC shapes 15 of 15 trials, over",
        "best PSNR (trial 9)",
        "better than the baseline 2.25 dB",
        "better than the runner-up 0.25 dB",
        "Trial 9 won with PSNR 22.05 dB",
        "how much of a difference is chance was not measured",
        "987 training, 82 validation and 77 test images",
        "Tokens 16 an image (4 x 4, patches of 16 px)",
        "Bits before coding 64 to 128 an image",
        "0.0005 to 0.005, logarithmic",
        "15 trials of 360 steps of 4 images",
        "asha: after 40 and 120 steps the best one in 3 goes on",
        "NVIDIA H200",
        "vqsearch 0.1.0, torch 2.15.0",
        "saved by pruning",
        "Stopped at a rung, not being among the best there: 2 at step 40 and 1 at step 120.",
        "failed: RuntimeError , 1 trial: 14",
        "pruned: diverged , 1 trial: 13",
        "pruned: over a limit before training , 1 trial: 15",
        "vqsearch launch shapes.yaml",
        "vqsearch resume --storage sqlite:///a.db --study shapes",
        "--trial 9 --to runs/shapes-9",
        "study: shapes objective:",
    ):
        assert said in words


def test_the_page_loads_nothing_and_lets_only_its_own_scripts_run(ended):
    text = rendered(read(ended()))
    markup = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert all(each.startswith("data:") for each in re.findall(r'(?:src|srcset|action)="([^"]*)"', markup))
    assert not re.search(r"url\(|@import", markup)
    assert set(re.findall(r'href="([^"#]*)', markup)) <= {"", "data:,"}
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'" for each in scripts]
    assert len(scripts) == 2
    assert policy == (
        f"default-src 'none'; script-src {' '.join(hashes)}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


HOSTILE_SPACE = f"""\
study: shapes
objective: {{metric: val/psnr, direction: maximize}}
budget: {{trials: 15, steps: 360}}
train:
  quantizer: {{code_dim: 4}}
  optimizer: {{warmup_steps: 1}}
  data: {{source: folder, path: '/data/{HOSTILE}', resolution: 64}}
  evaluation: {{lpips: false}}
search:
  model.backbone: {{choice: {{'{HOSTILE}': attention, '<b>bold</b>': mamba}}}}
  optimizer.lr: {{float: [5.0e-4, 5.0e-3], log: true}}
baselines:
  - {{model.backbone: '{HOSTILE}', optimizer.lr: 1.0e-3}}
"""


@pytest.fixture
def hostile(ended):
    """What a study found whose labels, reasons, versions and device are markup, scripts and turned text."""
    reason = f"Traceback:\n{HOSTILE}: </script><!-- {TURNED}\x1b[31m"
    study, loaded = ended(text=HOSTILE_SPACE, reason=reason, device=f"{HOSTILE} {TURNED}")
    study.set_user_attr(records.VERSIONS, [{"from_trial": 0, HOSTILE: TURNED}])
    return findings.read(study, loaded, "sqlite:///a.db")


def test_names_and_reasons_of_others_stay_text_in_markup_charts_and_data(hostile):
    text = rendered(hostile)
    assert HOSTILE not in text
    assert text.count("</script>") == text.count("<script") == 3
    assert "\u202e" not in text
    assert "\x1b" not in text
    words = words_of(text)
    assert HOSTILE in words
    assert "safe\\u202etxt.exe" in words
    data = data_of(text)
    slices = [chart for name, chart in data["charts"].items() if "slice" in name]
    labels = [x for chart in slices for trace in chart["data"] for x in trace["x"]]
    assert html.escape(HOSTILE, quote=False) in labels  # as plotly.js wants it
    assert not any("<" in str(label) for label in labels)
    for hover in data["hover"]["shapes"]:
        assert set(re.findall(r"<[^>]*>", hover)) <= {"<br>"}
    assert any(HOSTILE in str(cell) for row in data["trials"]["s0"]["rows"] for cell in row)


def test_a_study_without_a_complete_trial_says_that_nothing_won(ended):
    study, loaded = ended()
    running = optuna.create_study(direction="maximize", study_name="shapes")
    for name, value in study.user_attrs.items():
        running.set_user_attr(name, value)
    running.add_trials([trial for trial in study.trials if trial.state == TrialState.PRUNED])
    running.enqueue_trial({"optimizer.lr": 1e-3})
    running.ask()
    text = rendered(findings.read(running, loaded, "sqlite:///a.db"))
    words = words_of(text)
    assert "as of 2026-11-22 12:30 UTC shapes 4 of 15 trials, 1 running" in words
    assert "Nothing won yet" in words
    assert list(data_of(text)["charts"]) == ["s0-curves"]


def test_a_study_without_any_trial_gives_a_page(ended):
    _, loaded = ended()
    study = optuna.create_study(direction="maximize", study_name="shapes")
    records.create(study, loaded.source, "/nowhere", 10, {})
    words = words_of(rendered(findings.read(study, loaded, "sqlite:///a.db")))
    assert "Nothing has been measured yet." in words
    assert "No trial has come far enough to have pictures." in words


def test_values_that_are_not_finite_are_left_out_of_charts_and_shown_in_tables(ended):
    study, loaded = ended(**{"val/ssim": math.nan, "parameters": math.inf})
    labels = study.trials[5].params
    for value in (math.inf, -math.inf):
        study.add_trial(
            optuna.trial.create_trial(
                value=value, params=labels, distributions=study.trials[5].distributions,
                intermediate_values={40: math.nan, 360: value},
            )
        )  # fmt: skip
    text = rendered(findings.read(study, loaded, "sqlite:///a.db"))
    assert "NaN" not in json.dumps(data_of(text))
    assert "nan" in words_of(text)


def test_pictures_that_cannot_be_reached_are_said_to_be_missing(ended, tmp_path):
    made = ended()
    reached = rendered(read(made))
    assert all(f"{each}, step 360" in words_of(reached) for each in ("best, trial 9", "runner-up, trial 8"))
    assert 'src="data:image/webp;base64,' in reached
    (tmp_path / "root").rename(tmp_path / "gone")
    missing = rendered(read(made))
    words = words_of(missing)
    assert "src=" not in re.sub(r"<script.*?</script>", "", missing, flags=re.DOTALL)
    assert (
        f"The pictures can't be reached from where this report was made; they lie below {tmp_path / 'root'}." in words
    )


def test_a_picture_outside_the_root_is_not_read(ended, tmp_path):
    found = read(ended())
    (tmp_path / "secret.png").write_bytes(b"secret")
    outside = records.Picture(step=1, name="secret", folder="..")
    assert report.pictures()(found, outside) is None


def test_a_root_that_does_not_answer_is_asked_once(ended, monkeypatch):
    found, asked = read(ended()), []

    def silent(root, path):
        asked.append(path)
        raise OSError("no route to host")

    monkeypatch.setattr(output, "read", silent)
    assert "can't be reached" in words_of(rendered(found))
    assert len(asked) == 1


def test_studies_are_compared_and_what_is_fixed_in_them_stands_out(ended):
    first = read(ended("shapes"))
    text = ENDED_WIDER
    second = read(ended("wider", text))
    words = words_of(rendered(first, second))
    assert "shapes, wider" in words
    assert "What is fixed differs between these studies" in words
    assert "model.width 16 32" in words
    assert "better than its baseline by 2.25 dB" in words
    data = data_of(rendered(first, second))
    assert {trace["meta"] for trace in data["charts"]["all-front-size"]["data"]} == {"shapes", "wider"}
    assert set(data["hover"]) == {"shapes", "wider"}


ENDED_WIDER = """\
study: wider
objective: {metric: val/psnr, direction: maximize}
budget: {trials: 15, steps: 360}
resources: {gpus: 0.5, cpus: 1}
seed: 7
train:
  model: {backbone: attention, width: 32, depth: 1, head_size: 16, patch: 16}
  quantizer: {code_dim: 4}
  loss: {perceptual: 0}
  optimizer: {warmup_steps: 1}
  data: {resolution: 64}
  evaluation: {lpips: false, images: 8}
  batch_size: 4
search:
  optimizer.lr: {float: [5.0e-4, 5.0e-3], log: true}
baselines:
  - {optimizer.lr: 1.0e-3}
"""


def test_a_slice_shows_each_trial_at_its_own_setting(ended):
    found = read(ended())
    kinds = set()
    for chart in landscape.slices(found):
        trace = chart.data[0]
        kinds.add(chart.title)
        for number, x, y in zip(trace["customdata"], trace["x"], trace["y"], strict=True):
            assert (x, y) == (found.trials[number].settings[chart.title], found.trials[number].value)
    assert kinds == {"model.backbone", "optimizer.lr", "quantizer.codebook_size"}


def test_the_contour_has_its_points_and_axes_where_the_settings_are(ended):
    text = ENDED_WIDER.replace(
        "baselines:\n", "  quantizer.beta: {float: [0.05, 0.5], log: true}\nbaselines:\n"
    ).replace("1.0e-3}", "1.0e-3, quantizer.beta: 0.25}")
    study, loaded = ended("wider", text)
    rng = np.random.default_rng(0)
    for trial in [each for each in study.trials if each.state == TrialState.COMPLETE]:
        lr, beta = (float(5e-4 * 10 ** rng.random()), float(0.05 * 10 ** rng.random()))
        value = 30 - abs(math.log(lr / 1e-3)) - abs(math.log(beta / 0.2))
        study.add_trial(
            optuna.trial.create_trial(
                value=value, params={"optimizer.lr": lr, "quantizer.beta": beta}, distributions=trial.distributions
            )
        )
    found = findings.read(study, loaded, "sqlite:///a.db")
    contour = landscape.pair(found)[0]
    assert contour.layout["xaxis"]["title"]["text"] == "optimizer.lr"
    points = contour.data[1]
    for number, x, y in zip(points["customdata"], points["x"], points["y"], strict=True):
        settings = found.trials[number].settings
        assert (x, y) == (settings["optimizer.lr"], settings["quantizer.beta"])


def test_thousands_of_trials_make_a_few_traces_with_the_best_among_them(ended):
    study, loaded = ended()
    few = len(study.trials)
    study.add_trials(study.trials[:13] * 120)
    found = findings.read(study, loaded, "sqlite:///a.db")
    assert len(found.trials) > 1500 > few
    curves = charts.curves(found)
    assert len(curves.data) == 2 + 2 + charts.BASELINES  # stopped, complete, and those the report speaks of
    assert sum(len(trace["x"]) for trace in curves.data) < 4 * (charts.DRAWN + 2 + charts.BASELINES)
    assert f"Of {len([t for t in found.own if t.curve]):,} trials" in curves.caption
    drawn = {number for chart in landscape.slices(found) for number in chart.data[0]["customdata"]}
    assert set(found.ranking[:50]) <= drawn
    assert len(drawn) <= charts.DRAWN


def test_far_worse_trials_leave_the_axis_to_the_others_and_are_counted(ended):
    study, loaded = ended()
    trial = study.trials[5]
    study.add_trial(optuna.trial.create_trial(value=3.0, params=trial.params, distributions=trial.distributions))
    found = findings.read(study, loaded, "sqlite:///a.db")
    chart = charts.history(found)
    low, high = chart.layout["yaxis"]["range"]
    assert 3.0 < low < 20.05 < 22.05 < high
    assert chart.caption.endswith("Far worse, and outside the axis: 1 of 11.")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("report.pdf", "--to report.pdf: ends in .pdf; expected .html, .md, or a folder for a paper"),
        ("file", "--to file: is a file; expected a folder, or a name that ends in .html or .md"),
        ("file/report.html", "--to file/report.html: can't be written: Not a directory"),
    ],
)
def test_a_target_that_cannot_be_is_refused(ended, tmp_path, monkeypatch, target, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError) as error:
        report.write([read(ended())], target)
    assert str(error.value) in (message, message.replace("Not a directory", "File exists"))
    assert (tmp_path / "file").read_text() == "mine"


def test_the_command_writes_a_page_of_the_studies_it_names(ended, tmp_path):
    url = f"sqlite:///{tmp_path}/a.db"
    study, _ = ended()
    optuna.create_study(study_name="foreign", storage=url)
    optuna.copy_study(from_study_name="shapes", from_storage=study._storage, to_storage=url)
    target = tmp_path / "new" / "report.html"
    run = CliRunner().invoke(cli_look.report, ["--storage", url, "--to", str(target)], catch_exceptions=False)
    assert run.output == f"{target}: {target.stat().st_size / 1e6:.1f} MB, opens offline in any browser\n"
    assert "Trial 9 won" in words_of(target.read_text())
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]
    with pytest.raises(StudyError, match="foreign: this study was not made by vqsearch"):
        CliRunner().invoke(
            cli_look.report, ["--storage", url, "--study", "foreign", "--to", str(target)], catch_exceptions=False
        )


def test_a_baseline_that_is_the_runner_up_is_called_both(ended):
    study, loaded = ended()
    better = optuna.create_study(direction="maximize", study_name="shapes")
    for name, value in study.user_attrs.items():
        better.set_user_attr(name, value)
    better.add_trials([study.trials[0], study.trials[9]])
    found = findings.read(better, loaded, "sqlite:///a.db")
    assert [word for word, _ in overview.spoken_of(found)] == ["best, trial 1", "runner-up and baseline, trial 0"]
    assert [term for term, _, _ in overview.headline(found)][:3] == [
        "best PSNR (trial 1)", "better than the baseline", "trials of the budget",
    ]  # fmt: skip


def test_too_few_complete_trials_are_not_drawn_over_their_settings(ended):
    study, loaded = ended()
    few = optuna.create_study(direction="maximize", study_name="shapes")
    for name, value in study.user_attrs.items():
        few.set_user_attr(name, value)
    few.add_trials(study.trials[:4])
    text = rendered(findings.read(few, loaded, "sqlite:///a.db"))
    assert "Which settings mattered can't be said: 4 complete trials are too few" in words_of(text)
    assert [name for name in data_of(text)["charts"] if "front" not in name] == ["s0-history", "s0-curves"]


def test_pictures_of_copied_trials_are_read_where_their_originals_lie(ended, tmp_path):
    study, space = ended()
    picture = records.Picture(step=1, name="reconstructions", folder="old/trials/00003/step-00000001")
    (tmp_path / "elsewhere" / picture.folder).mkdir(parents=True)
    (tmp_path / "elsewhere" / picture.folder / "reconstructions.png").write_bytes(b"a picture")
    original = records.Original(study="old", number=3, output=str(tmp_path / "elsewhere"))
    study.add_trial(
        optuna.trial.create_trial(state=TrialState.FAIL, user_attrs={"copied": dataclasses.asdict(original)})
    )
    found = read((study, space))
    assert report.pictures()(found, picture) == b"a picture"
    assert report.pictures()(dataclasses.replace(found, roots={}), picture) is None
