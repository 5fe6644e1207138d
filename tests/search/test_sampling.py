import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search import parameters, sampling, space
from search.parameters import Parameter


def loaded(tiny_file, *flags):
    return space.load(tiny_file, flags)


def history(searched, count, study=None):
    """Ask and tell `count` trials; the value is a smooth function of the parameters."""
    study = study or optuna.create_study(direction="maximize")
    study.sampler = sampling.build(searched, startup=10)
    for _ in range(count):
        trial = study.ask()
        labels = parameters.suggest(searched.parameters, trial)
        study.tell(trial, -abs(labels["optimizer.lr"] - 2e-3) + labels["quantizer.codebook_size"] / 1e6)
    return study


@pytest.mark.parametrize("kind", ["tpe", "random", "qmc", "cmaes", "gp"])
def test_a_reopened_study_suggests_what_an_uninterrupted_one_does(tiny_file, kind):
    searched = loaded(tiny_file, f"sampler.kind={kind}", "pruner.kind=none")
    whole = history(searched, 16)
    study = history(searched, 7)
    for total in (11, 16):
        history(searched, total - len(study.trials), study)
    assert [t.params for t in study.trials] == [t.params for t in whole.trials]


def test_startup_trials_cover_every_choice_and_the_whole_range(tiny_file):
    study = history(loaded(tiny_file), 8)
    sizes = [trial.params["quantizer.codebook_size"] for trial in study.trials]
    rates = sorted(trial.params["optimizer.lr"] for trial in study.trials)
    assert {sizes.count(size) for size in (16, 64, 256)} <= {2, 3, 4}
    assert rates[0] < 1e-3
    assert rates[-1] > 3e-3


def test_startup_trials_differ_from_one_another(tiny_file):
    study = history(loaded(tiny_file), 10)
    assert len({trial.params["optimizer.lr"] for trial in study.trials}) == 10


@pytest.mark.parametrize("kind", ["tpe", "random", "cmaes"])
def test_an_ordered_choice_is_stored_as_a_number_but_only_its_labels_are_drawn(tiny_file, kind):
    study = history(loaded(tiny_file, f"sampler.kind={kind}", "pruner.kind=none"), 30)
    assert {trial.params["quantizer.codebook_size"] for trial in study.trials} == {16, 64, 256}
    distribution = study.trials[0].distributions["quantizer.codebook_size"]
    assert distribution == optuna.distributions.IntDistribution(16, 256, log=True)


def test_tpe_takes_over_after_the_startup_trials_and_moves_to_better_ones(tiny_file):
    study = history(loaded(tiny_file), 40)
    late = [abs(trial.params["optimizer.lr"] - 2e-3) for trial in study.trials[30:]]
    early = [abs(trial.params["optimizer.lr"] - 2e-3) for trial in study.trials[:10]]
    assert sum(late) / len(late) < 0.75 * sum(early) / len(early)


def test_a_condition_decides_whether_a_parameter_is_asked_for(tiny_file):
    searched = loaded(
        tiny_file,
        "search.model.backbone={choice: [mamba, attention]}",
        "search.model.depth={int: [1, 3], when: {model.backbone: mamba}}",
    )
    study = history(searched, 20)
    for trial in study.trials:
        assert ("model.depth" in trial.params) == (trial.params["model.backbone"] == "mamba")


def test_a_labelled_choice_stores_its_label_and_trains_its_value(tiny_file):
    searched = loaded(
        tiny_file,
        "train.model.backbone=convolution",
        "search.model.channel_multipliers={choice: {flat: [1, 1, 1, 1, 1], steep: [0.5, 0.5, 1, 1, 1]}}",
    )
    config = searched.config({"model.channel_multipliers": "steep"})
    assert config.model.channel_multipliers == (0.5, 0.5, 1.0, 1.0, 1.0)
    assert {t.params["model.channel_multipliers"] for t in history(searched, 12).trials} == {"flat", "steep"}


@given(
    low=st.integers(1, 50),
    span=st.integers(0, 200),
    step=st.integers(1, 7),
    log=st.booleans(),
    kind=st.sampled_from(["int", "float"]),
    number=st.integers(0, 40),
)
def test_a_quasi_random_value_lies_in_its_range_and_on_its_steps(low, span, step, log, kind, number):
    steps = {"step": None if kind == "float" else 1} if log else {"step": step}
    searched = Parameter(name="x", kind=kind, low=low, high=low + span, log=log, **steps)
    study = optuna.create_study(sampler=sampling.QuasiRandomSampler([searched], 0, number))
    value = parameters.suggest([searched], study.ask())["x"]
    assert low <= value <= low + span
    assert log or (value - low) % step == pytest.approx(0)


def test_the_startup_covers_the_trials_that_run_at_once(tiny_file):
    assert sampling.startup_trials(loaded(tiny_file), parallel=2) == 10
    assert sampling.startup_trials(loaded(tiny_file), parallel=32) == 32
