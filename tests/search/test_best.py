"""The table of the best trials, and their configs for programs and for `vqsearch train`."""

import io
import json

import optuna
import pytest
from click.testing import CliRunner
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from search import best, models, records, standing, yaml12
from search.cli import cli
from search.errors import StudyError, UserError
from search.text import PlainConsole

MEASURED = {
    "val/psnr": 22.971,
    "val/ssim": 0.54345,
    "val/codebook_usage": 0.3877,
    "val/codebook_tokens": 5248.0,
    "val/codebook_undersampled": 1.0,
    "val/entropy_bits_per_image": 14336.4,
    "parameters": 425664.0,
    "images_per_s": 165.33,
    "seconds": 200.4,
}


def add(study, state=TrialState.COMPLETE, value=22.971, lr=2.9246637e-3, size=64, **attributes):
    """A trial of the tiny space, as a search would have left it."""
    study.add_trial(
        create_trial(
            state=state,
            value=value if state == TrialState.COMPLETE else None,
            params={"optimizer.lr": lr, "quantizer.codebook_size": size},
            distributions={
                "optimizer.lr": FloatDistribution(5e-4, 5e-3, log=True),
                "quantizer.codebook_size": CategoricalDistribution([16, 64, 256]),
            },
            user_attrs={**MEASURED, "val/psnr": value, **attributes},
            intermediate_values={18: value},
        )
    )


@pytest.fixture
def studied(searched):
    """An empty study of the tiny space."""
    searched.study = optuna.create_study(study_name="tiny", direction="maximize")
    return searched


def shown(studied, *, top=9, number=None, width=80):
    console = PlainConsole()
    console.file, console.width = io.StringIO(), width
    for part in best.table(studied.study, studied.space, best.chosen(studied.study, number, top), width):
        console.print(part)
    return console.file.getvalue()


def test_a_trial_is_shown_with_units_and_its_settings(studied):
    add(studied.study)
    assert (
        shown(studied)
        == """\
tiny: trial 0, the best of 1 complete trials by PSNR

trial                                         0
PSNR (higher is better)  dB               22.97
measured on held-out images
SSIM                                     0.5434
codebook usage           %                 38.8
entropy-coded size       bits/image      14,336
tokens counted                            5,248
costs
parameters                              425,664
training speed           images/s           165
training time                        3 min 20 s
settings
optimizer.lr                           0.002925
quantizer.codebook_size                      64

Trial 0: too few tokens were counted to show every code; codebook usage,
perplexity of the codes, entropy-coded size are too low.
"""
    )


@pytest.mark.parametrize("width", [80, 60, 40])
def test_trials_stand_beside_each_other_as_far_as_the_width_goes(studied, width):
    for number in range(7):
        add(studied.study, value=20.0 + number)
    lines = shown(studied, width=width).splitlines()
    assert max(map(len, lines)) <= width
    assert not [line for line in lines if line != line.rstrip()]
    starts = [place for place, line in enumerate(lines) if line.startswith("trial ")]
    assert lines[starts[0] + 1].index("dB") == lines[starts[0] + 4].index("%")
    assert sum(line.count("3 min 20 s") for line in lines) == 7
    heads = [lines[start].split()[1:] for start in starts]
    assert [int(number) for head in heads for number in head] == [6, 5, 4, 3, 2, 1, 0]
    assert len(heads[0]) == {80: 4, 60: 2, 40: 1}[width] - (width == 80)


def test_a_copy_is_marked_in_the_table_in_status_and_for_programs(studied):
    original = {"study": "old\nstudy", "number": 7, "output": "root"}
    add(studied.study, **{records.COPIED: original})
    table = shown(studied)
    assert table.splitlines()[2].split() == ["trial", "0", "(copy)"]
    assert "\nTrial 0, a copy of trial 7 of old\\nstudy.\n" in table
    (line,) = [line for line in standing.summary(studied.study, studied.space) if line.startswith("best")]
    assert line == "best: trial 0, a copy of trial 7 of old\\nstudy, val/psnr 22.971"
    (trial,) = best.chosen(studied.study, None, 1)
    assert best.as_json(trial, studied.space)["copy_of"] == {"study": "old\nstudy", "number": 7}


def test_any_trial_can_be_asked_for_and_says_what_it_is(studied):
    for value in (20.0, 22.0, 21.0):
        add(studied.study, value=value)
    add(studied.study, state=TrialState.PRUNED, value=15.5)
    add(studied.study, state=TrialState.FAIL, value=15.0, reason="lost its worker 3 times")
    studied.study.enqueue_trial({"optimizer.lr": 1e-3})
    assert shown(studied, top=2).startswith("tiny: the best 2 of 3 complete trials by PSNR\n")
    assert shown(studied, number=0).startswith("tiny: trial 0, number 3 of 3 complete trials by PSNR\n")
    pruned = shown(studied, number=3)
    assert pruned.startswith("tiny: trial 3, pruned (at a rung), measured at step 18 of 18\n")
    assert "PSNR (higher is better)  dB               15.50\n" in pruned
    assert shown(studied, number=4).startswith("tiny: trial 4, failed (lost its worker), measured at step 18 of 18\n")
    assert "\nPSNR (higher is better)  dB          -\n" in shown(studied, number=5)
    with pytest.raises(StudyError, match=r"^tiny: no trial 6; the numbers go from 0 to 5$"):
        shown(studied, number=6)


def test_a_complete_trial_that_breaks_a_limit_is_not_among_the_best_and_says_which(studied):
    add(studied.study)
    trial = studied.study.ask()
    trial.set_constraint("parameters", 0.5)
    studied.study.tell(trial, 99.0)
    assert [each.number for each in best.chosen(studied.study, None, 5)] == [0]
    assert shown(studied, number=1).startswith("tiny: trial 1, complete, but outside parameters\n")


HOSTILE = "[red]x[/red]\x1b[2J\n<script>"


def test_hostile_text_of_a_storage_stays_text(studied):
    studied.study = optuna.create_study(study_name=f"tiny{HOSTILE}", direction="maximize")
    add(studied.study, **{f"val/{HOSTILE}": 3.0, "val/ssim": HOSTILE})
    table = shown(studied, width=200)
    assert "\x1b" not in table
    assert table.splitlines()[0].startswith("tiny[red]x[/red]\\x1b[2J\\n<script>: trial 0")
    assert "SSIM" in table
    text = best.as_yaml(studied.study, studied.space, studied.study.trials[0])
    assert text.splitlines()[0] == "# study tiny[red]x[/red]\\x1b[2J\\n<script>, trial 0: val/psnr 22.97 dB"
    assert text.splitlines()[1] == "model:"


def test_a_config_for_programs_is_the_trials_own(studied):
    add(studied.study, size=256, **{"train/loss": 1.0})
    (trial,) = best.chosen(studied.study, None, 1)
    told = best.as_json(trial, studied.space)
    assert told["metrics"]["val/psnr"] == told["value"] == 22.971
    assert told["config"]["optimizer"]["lr"] == 2.9246637e-3
    assert told["config"]["quantizer"]["codebook_size"] == 256
    assert told["config"]["rungs"] == list(studied.space.rungs) != []
    assert set(told["metrics"]) == set(MEASURED) - {"seconds"}
    json.dumps(told)


def test_the_yaml_is_read_back_as_the_config_without_its_rungs(studied, tmp_path):
    add(studied.study, lr=1e-3)
    studied.space.base.__dict__["ema_decay"] = 1e-05  # which PyYAML writes as YAML 1.1 wants it
    trial = studied.study.trials[0]
    (tmp_path / "c.yaml").write_text(best.as_yaml(studied.study, studied.space, trial))
    expected = studied.space.config(trial.params)
    assert models.read_config(str(tmp_path / "c.yaml"), {"rungs": list(expected.rungs)}) == expected
    assert models.read_config(str(tmp_path / "c.yaml"), {"steps": 2}).rungs == ()


def test_a_trial_without_settings_has_no_yaml(studied):
    studied.study.enqueue_trial({"optimizer.lr": 1e-3})
    with pytest.raises(StudyError, match=r"^tiny: trial 0 is WAITING and has no config$"):
        best.as_yaml(studied.study, studied.space, studied.study.trials[0])
    assert best.as_json(studied.study.trials[0], studied.space)["config"] is None


@pytest.fixture
def stored(tiny_file, tmp_path, monkeypatch):
    """The folder of a storage with a study of one trial."""
    from search import space
    from search.storage import open_storage

    monkeypatch.chdir(tmp_path)
    storage = open_storage("sqlite:///vqsearch.db")
    study = optuna.create_study(study_name="tiny", storage=storage, direction="maximize")
    add(study, value=20.0)
    add(study, value=21.0, lr=1.5e-3)
    records.create(study, space.load(tiny_file).source, str(tmp_path / "root"), 4, {"torch": "2"})
    return tmp_path


def ran(*arguments):
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    return done.exit_code, done.stdout, done.stderr


def test_the_yaml_of_the_best_trains(stored):
    code, text, _ = ran("best", "--yaml")
    assert code == 0
    assert text.startswith("# study tiny, trial 1: val/psnr 21.00 dB\nmodel:\n")
    assert yaml12.parse(text, "c.yaml").value["optimizer"]["lr"] == 1.5e-3
    (stored / "c.yaml").write_text(text)
    code, out, err = ran("train", "c.yaml", "--to", "x", "--set", "steps=2", "--quiet")
    assert (code, err) == (0, "")
    assert "the model is in x/model\n" in out


def test_the_command_shows_the_best_or_one_or_several(stored):
    assert ran("best")[1].startswith("tiny: trial 1, the best of 2 complete trials by PSNR\n")
    assert ran("best", "--top", "2")[1].startswith("tiny: the best 2 of 2 complete trials by PSNR\n")
    assert ran("best", "--trial", "0")[1].startswith("tiny: trial 0, number 2 of 2 complete trials by PSNR\n")
    assert [trial["number"] for trial in json.loads(ran("best", "--json", "--top", "2")[1])] == [1, 0]
    assert [trial["number"] for trial in json.loads(ran("best", "--json", "--trial", "0")[1])] == [0]


@pytest.mark.parametrize(
    "flags", [("--top", "2", "--trial", "0"), ("--json", "--yaml"), ("--top", "2", "--yaml")], ids=" ".join
)
def test_what_cannot_be_had_together_is_refused(stored, flags):
    one, other = [flag for flag in flags if flag.startswith("--")]
    with pytest.raises(UserError) as caught:
        cli.main(["best", *flags], standalone_mode=False)
    assert str(caught.value) == f"{one} and {other}: can't be had together; expected one of them"


def test_where_no_trial_is_complete_yet_a_program_is_told_by_the_exit_status(stored):
    study = optuna.load_study(study_name="tiny", storage="sqlite:///vqsearch.db")
    empty = optuna.create_study(study_name="empty", storage=study._storage, direction="maximize")
    records.create(empty, records.space(study) | {"study": "empty"}, str(stored / "root"), 4, {"torch": "2"})
    nothing = "empty: no trial is complete yet; --trial N shows another one"
    assert ran("best", "--study", "empty") == (0, f"{nothing}\n", "")
    assert ran("best", "--study", "empty", "--json") == (0, "[]\n", "")
    with pytest.raises(UserError) as caught:
        cli.main(["best", "--study", "empty", "--yaml"], standalone_mode=False)
    assert str(caught.value) == nothing
