"""A search at a small size for a model of a larger one: what the file means, what it refuses, what it came to."""

import dataclasses
import json
import signal
import subprocess
import sys
import time

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from search import attachments, findings, gap, launch, records, report, space, transfer
from search.errors import StudyError
from search.lengthening import lengthen
from vqvae.model import count_parameters

VQSEARCH = [sys.executable, "-m", "search"]
WIDE = ["train.model.width=64", "transfer={proxy: {width: 16}, top: 2}"]


def load(file, *overrides):
    return space.load(file, [*WIDE, *overrides])


def test_trials_are_proxies_and_what_is_wanted_is_the_target(tiny_file):
    found = load(tiny_file)
    labels = {"optimizer.lr": 2e-3, "quantizer.codebook_size": 64}
    small, large = found.config(labels), found.wanted(labels)
    assert (small.model.width, large.model.width) == (16, 64)
    assert small.parametrization == large.parametrization
    assert dataclasses.asdict(large.parametrization) == {
        "kind": "sp-full-align", "base_width": 16, "base_depth": 0, "base_gan_width": 0,
    }  # fmt: skip
    assert small.optimizer == large.optimizer
    assert (small.rungs, large.rungs) == (found.rungs, ())
    assert dataclasses.replace(large, model=small.model, rungs=small.rungs) == small, "nothing else differs"


def test_depth_steps_and_images_may_differ_too(tiny_file):
    found = load(
        tiny_file,
        "transfer={proxy: {width: 16, depth: 2, steps: 18, images: 50}}",
        "train.model={backbone: attention, width: 64, depth: 4, decoder_depth: 6, head_size: 16, patch: 16}",
        "train.optimizer.warmup_steps=4",
        "budget.steps=72",
    )
    labels = {"optimizer.lr": 2e-3, "quantizer.codebook_size": 64}
    small, large = found.config(labels), found.wanted(labels)
    assert (small.model.depth, small.model.decoder_depth, small.steps, small.data.images) == (2, 3, 18, 50)
    assert (large.model.depth, large.model.decoder_depth, large.steps, large.data.images) == (4, 6, 72, 0)
    assert (small.optimizer.warmup_steps, large.optimizer.warmup_steps) == (1, 4), "a warm-up keeps its part of the run"
    assert small.parametrization.base_depth == large.parametrization.base_depth == 2
    assert (found.budget.steps, found.rungs) == (18, space.rungs(18, found.pruner))
    assert transfer.words(found.transfer) == "width 16 to 64, depth 2 to 4, steps 18 to 72, images 50 to all"


def test_a_stored_transfer_reads_back_as_the_same_space(tiny_file):
    found = load(tiny_file)
    assert space.parse(json.loads(json.dumps(found.source)), "study tiny") == found


def test_the_direct_search_trains_what_the_transfer_wants(tiny_file):
    found = load(
        tiny_file, "transfer={proxy: {width: 16, steps: 36}}", "pruner={kind: asha, at: [9]}", "budget.steps=72"
    )
    direct = space.parse(transfer.direct(found.source, found.transfer), "direct")
    labels = {"optimizer.lr": 2e-3, "quantizer.codebook_size": 64}
    assert direct.study == "tiny-direct"
    assert direct.transfer is None
    assert direct.rungs == (18,)
    assert dataclasses.replace(direct.config(labels), rungs=()) == found.wanted(labels)
    assert (direct.parameters, direct.seed, direct.budget.trials) == (found.parameters, found.seed, found.budget.trials)


def test_a_target_may_be_told_apart_from_train_where_the_proxy_equals_it(tiny_file):
    found = load(tiny_file, "transfer={proxy: {steps: 9}, target: {width: 32, images: 20}}")
    labels = {"optimizer.lr": 2e-3, "quantizer.codebook_size": 64}
    direct = space.parse(transfer.direct(found.source, found.transfer), "direct")
    for config in (found.config(labels), found.wanted(labels), direct.config(labels)):
        assert (config.model.width, config.data.images, config.parametrization.base_width) == (32, 20, 32)


REFUSED = [
    (
        ["transfer={proxy: {depth: 1}}", "train.model.depth=2", "train.model.decoder_depth=abc"],
        "train.model.decoder_depth: must be a whole number, but got 'abc'",
    ),
    (
        ["transfer={proxy: {depth: 1}}", "train.model.depth=0", "train.model.decoder_depth=2"],
        "transfer.proxy.depth: must be at most the target's, which is 0, but got 1",
    ),
    (
        ["transfer={proxy: {}}"],
        ("transfer.proxy: must be smaller than the target in one of width, depth, steps, images, but equals it"),
    ),
    (
        ["transfer={proxy: {width: 128}}"],
        ("transfer.proxy.width: must be at most the target's, which is 64, but got 128"),
    ),
    (
        ["transfer={proxy: {width: 16, images: 0}, target: {images: 20}}"],
        ("transfer.proxy.images: must be at most the target's, which is 20, but got all"),
    ),
    (
        ["transfer={proxy: {width: 16, head_size: 8}}"],
        (
            "transfer.proxy.head_size: must be equal at proxy and target, so it stands under train; "
            "width, depth, steps, images may differ"
        ),
    ),
    (
        ["transfer={proxy: {width: 24}}"],
        (
            "transfer.proxy: can't be built: train.model.head_size: must divide the 24 channels that "
            "attention works on, but got 16"
        ),
    ),
    (
        ["train.parametrization.kind=standard"],
        (
            "train.parametrization.kind: must be sp-full-align, mup or sp-no-align in a transfer, "
            "since under standard a learning rate holds for one width, but got 'standard'"
        ),
    ),
    (
        ["train.parametrization.base_width=32"],
        ("train.parametrization.base_width: the transfer sets this itself: it is the proxy's, transfer.proxy"),
    ),
    (
        ["train.optimizer.clip_norm=1.0"],
        (
            "train.optimizer.clip_norm: must be 0 in a transfer, but got 1.0: the norm is that of all"
            " gradients, and has other parts in a larger model"
        ),
    ),
    (
        ["search.optimizer.clip_norm={float: [0.5, 1.0]}"],
        (
            "search.optimizer.clip_norm: can't be searched in a transfer: the norm is that of all "
            "gradients, and has other parts in a larger model"
        ),
    ),
    (
        ["search.model.width={choice: [16, 32]}"],
        (
            "search.model.width: can't be searched in a transfer: transfer says what it is at the "
            "proxy and at the target"
        ),
    ),
    (
        ["search.parametrization.kind={choice: [mup, sp-full-align]}"],
        ("search.parametrization.kind: can't be searched in a transfer: it says what transfers"),
    ),
    (
        ["transfer={proxy: {depth: 1}}", "train.model.depth=2", "search.model.decoder_depth={choice: [1, 2]}"],
        ("search.model.decoder_depth: can't be searched in a transfer: it has to grow with the depth, in proportion"),
    ),
    (
        ["transfer={proxy: {depth: 1}}", "train.model.depth=2", "train.model.decoder_depth=3"],
        (
            "train.model.decoder_depth: must be such that it stays in proportion to the depth, 2 at "
            "the target and 1 at the proxy, but got 3, which makes 1.5"
        ),
    ),
    (
        ["transfer={proxy: {steps: 9}}", "search.optimizer.warmup_steps={choice: [1, 2]}"],
        (
            "search.optimizer.warmup_steps: can't be searched in a transfer: it has to keep its part of the steps, "
            "which differ"
        ),
    ),
    (
        ["finalists={top: 1}"],
        (
            "finalists: must not stand beside transfer: a transfer already trains its best settings "
            "again; its target trials can't be judged on top"
        ),
    ),
]


@pytest.mark.parametrize(("overrides", "problem"), REFUSED)
def test_what_would_not_transfer_is_refused_with_its_place(refused, tiny_file, overrides, problem):
    flags = [word for each in (*WIDE, *overrides) for word in ("--set", each)]
    line = refused("validate", "tiny.yaml", *flags)
    assert line.partition(": ")[2].endswith(problem), line


def test_launch_and_transfer_each_point_to_the_other(refused, tiny_file):
    flags = [word for each in WIDE for word in ("--set", each)]
    line = refused("launch", "tiny.yaml", *flags)
    assert line.endswith("transfer: this is a search for a larger model: vqsearch transfer tiny.yaml"), line
    line = refused("transfer", "tiny.yaml")
    assert line == (
        "vqsearch: tiny.yaml: has no transfer, which says what is smaller while searching; vqsearch launch tiny.yaml"
    )


def test_validate_says_what_is_trained_at_both_sizes(command, tiny_file):
    flags = [word for each in WIDE for word in ("--set", each)]
    _, out, _ = command("validate", "tiny.yaml", *flags, check=0)
    first, second, third = out.splitlines()
    assert first.startswith("tiny.yaml: ok; 2 parameters, 4 trials")
    found = load(tiny_file)
    small, large = (f"{count_parameters(config):,}" for config in launch.sizes(found))
    assert second == f"  searched with {small} parameters for a target of {large}: width 16 to 64"
    assert small != large
    assert third == "  settings that are trained at the target: the best 2"


def test_trials_of_a_transfer_do_not_become_longer(tiny_file):
    with pytest.raises(StudyError, match="tiny: --steps 72: proxies and targets of a transfer were compared at their"):
        lengthen(load(tiny_file), [], 72)


def made(found, values, targets, direct=()):
    """A storage with a study whose trials have values at the proxy and at the target, and maybe a direct search."""
    storage = optuna.storages.InMemoryStorage()

    def fill(name, of, told, steps, seconds):
        made = optuna.create_study(storage=storage, study_name=name, direction="maximize")
        records.create(made, of.source, "root", 10, {})
        for number, value in enumerate(told):
            reached = steps if value is not None else steps // 3
            made.add_trial(
                create_trial(
                    state=TrialState.PRUNED if value is None else TrialState.COMPLETE,
                    value=value,
                    params={"optimizer.lr": 1e-3 * (1 + number % 4), "quantizer.codebook_size": 16},
                    distributions={
                        "optimizer.lr": optuna.distributions.FloatDistribution(5e-4, 5e-3, log=True),
                        "quantizer.codebook_size": optuna.distributions.IntDistribution(16, 256),
                    },
                    intermediate_values={reached: value or 10.0},
                    user_attrs={records.SECONDS: seconds * reached / steps},
                )
            )
        return made

    landed = [(value, records.Finalist(of=of, seed=0, at_target=True)) for of, value in targets.items()]
    # trials at the target take ten times as long
    own = fill("tiny", found, values, 18, 60.0)
    for number, (value, what) in enumerate(landed, len(values)):
        own.add_trial(
            create_trial(
                state=TrialState.COMPLETE, value=value, params=own.trials[what.of].params,
                distributions=own.trials[what.of].distributions, intermediate_values={18: value},
                user_attrs={records.SECONDS: 600.0, **records.finalist_attrs(what)},
            )
        )  # fmt: skip
        assert own.trials[-1].number == number
    if direct:
        other = space.parse(transfer.direct(found.source, found.transfer), "direct")
        fill("tiny-direct", other, direct, 18, 600.0)
    return storage, own


def test_a_gap_is_that_to_a_direct_search_where_there_is_one(tiny_file):
    found = load(tiny_file)
    storage, own = made(found, [20.0, 21.0, None, None], {1: 24.0, 0: 23.0}, [24.1, 23.0, None, None])
    told = gap.read(own, found, storage)
    assert [(each.of, each.at_proxy, each.value) for each in told.landed] == [(1, 21.0, 24.0), (0, 20.0, 23.0)]
    assert told.chosen == 1
    assert told.agreeing == (1, 1)
    assert told.proxies.whole == pytest.approx(2 + 2 / 3)
    assert told.proxies.hours == pytest.approx((2 + 2 / 3) / 60)
    assert told.targets.hours == pytest.approx(20 / 60)
    assert told.direct.value == 24.1
    assert told.loss_gap(24.0, 24.1) == pytest.approx(10**0.01 - 1)
    assert told.share == pytest.approx(((2 + 2 / 3) / told.dearer + 2) / (2 + 2 / 3))
    assert 5 < told.dearer < 16, "sixteen times in the middle, less at the ends"
    said = gap.lines(told)
    assert (
        said[0]
        == "trial 1 is the best at the target, 24.00 dB: lr 0.002, codebook_size 16; the proxies ranked it first"
    )
    assert said[2] == (
        "tiny-direct, the direct search at the target, found 24.10 dB (its trial 0): the transfer is behind it by "
        "0.10 dB (2.3% of its squared error)"
    )
    json.dumps(gap.as_json(told))


def test_without_a_direct_search_its_cost_is_an_estimate_and_its_result_unknown(tiny_file):
    found = load(tiny_file)
    storage, own = made(found, [20.0, 21.0, None, None], {1: 23.0, 0: 24.0})
    told = gap.read(own, found, storage)
    assert told.direct is None
    assert told.direct_hours == pytest.approx((2 + 2 / 3) / 6), "each whole trial takes as long as one at the target"
    assert told.agreeing == (0, 1)
    said = gap.lines(told)
    assert "trial 1, which the proxies ranked first, is behind it by 1.00 dB (25.9% of its squared error)" in said[0]
    assert said[-1].startswith(
        "estimate: a direct search that stops as many trials as early would train for 26 min 40 s"
    )
    assert said[-1].endswith("what it would find is not known (--direct makes it)")


def test_a_direct_search_of_another_space_is_not_compared_with(tiny_file):
    found = load(tiny_file)
    storage, own = made(found, [20.0, 21.0, None, None], {1: 23.0, 0: 24.0}, [24.1, 23.0, None, None])
    other = load(tiny_file, "train.quantizer.code_dim=8")
    assert gap.read(own, found, storage).direct is not None
    assert gap.read(own, other, storage).direct is None


@pytest.mark.parametrize("budget", [{"steps": 36}, {"trials": 3}])
def test_a_direct_search_of_other_steps_or_trials_is_not_compared_with(tiny_file, monkeypatch, budget):
    found = load(tiny_file)
    whole = transfer.direct(found.source, found.transfer)
    other = {**whole, "budget": {**whole["budget"], **budget}}
    with monkeypatch.context() as patch:  # the study is made of the other space, and then compared with this one
        patch.setattr(transfer, "direct", lambda _source, _transfer: other)
        storage, own = made(found, [20.0, 21.0, None, None], {1: 23.0, 0: 24.0}, [24.1, 23.0, None, None])
    assert gap.read(own, found, storage).direct is None


@pytest.mark.ray
@pytest.mark.slow
def test_a_transfer_whose_driver_is_killed_at_the_target_goes_on_to_the_exact_end(tiny_file, tmp_path, start):
    flags = [word for each in WIDE for word in ("--set", each)]
    flags += ["--set", "budget={trials: 3, steps: 72}", "--set", "transfer.target={steps: 720}"]
    flags += ["--set", "train.checkpoint_every=20"]
    process = start([*VQSEARCH, "transfer", "tiny.yaml", *flags], cwd=tmp_path)
    lines = []
    for line in iter(process.stdout.readline, ""):
        lines.append(line)
        if "at the target" in line and "starts as trial" in line:
            break
    else:
        raise AssertionError("".join(lines) + process.stderr.read())
    storage = f"sqlite:///{tmp_path}/vqsearch.db"

    def trials():
        return optuna.load_study(study_name="tiny", storage=storage).trials

    deadline = time.monotonic() + 120
    while not any(records.is_at_target(t) and records.checkpoint(t) for t in trials()):
        assert process.poll() is None
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    before = trials()
    assert any(records.is_at_target(trial) and trial.state == TrialState.RUNNING for trial in before)
    ran = subprocess.run([*VQSEARCH, "resume"], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "goes on at step" in ran.stdout
    assert "is the best at the target" in ran.stdout
    after = trials()
    assert all(trial.state.is_finished() for trial in after)
    assert sum(records.counts(trial) for trial in after) == 3
    assert [records.finalist(t) for t in before if records.is_at_target(t)] == [
        records.finalist(t) for t in after if records.is_at_target(t)
    ]
    exported = subprocess.run(
        [*VQSEARCH, "export", "--to", "model"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert exported.returncode == 0, exported.stderr
    assert json.loads((tmp_path / "model" / "config.json").read_text())["config"]["model"]["width"] == 64


def test_a_report_has_the_targets_what_was_saved_and_what_that_does_not_show(tiny_file, tmp_path):
    found = load(tiny_file)
    _, own = made(found, [20.0, 21.0, None, None], {1: 24.0, 0: 23.0}, [24.1, 23.0, None, None])
    seen = findings.read(own, found, "sqlite:///x.db")
    assert seen.best.number == 1, "the search's, not the target's"
    report.write([seen], str(tmp_path / "report.md"))
    text = (tmp_path / "report.md").read_text()
    table = text.partition("## At the target")[2].partition("## Best trials")[0]
    assert "| **trial 1** | 21.00 | **24.00** | - | 4 | 0.002 | 16 |" in table
    assert "| trial 0 | 20.00 | 23.00 | 1.00 | 5 | 0.001 | 16 |" in table
    assert "tiny-direct is one search: another seed of it would find something a little different." in table
    report.write([seen], str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    assert "At the target</h2>" in page
    assert (
        "Trial 1 is the best at the target, 24.00 dB: lr 0.002, codebook_size 16; the proxies ranked it first." in page
    )
    note = attachments.study_note(own, found)
    assert "width 16 to 64, of which trials are the first" in note
