"""A study in all states, and a browser, for every test of something that people look at."""

import contextlib
import copy
import io
import shutil
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import yaml
from optuna.trial import FixedTrial, TrialState, create_trial
from PIL import Image

from search import cli, output, parameters, records, space, study, verdict
from search.errors import StorageError
from search.storage import open_storage
from search.study import Flight

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window; one for each file, since Ray must not find Playwright's event loop in its thread."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright, which drives it, is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def browser_page(browser):
    """A function that opens an empty page of a browser of its own (no cookies), by default 1280 x 900 and light.

    Takes `width`, `height` (pixels), `dark`, `offline`. On the page, `problems` is a list of what went wrong: errors
    on its console, exceptions, dialogs (which a script that was let in would open), and files it did not get.
    """
    contexts = []

    def open_page(*, width=1280, height=900, dark=False, offline=False):
        contexts.append(
            browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme="dark" if dark else "light",
                offline=offline,
            )
        )
        page = contexts[-1].new_page()
        page.problems = []
        page.on("console", lambda said: said.type == "error" and page.problems.append(said.text))
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("requestfailed", lambda request: page.problems.append(f"{request.url}: {request.failure}"))

        def refuse(dialog):
            page.problems.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        page.on("dialog", refuse)
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """A function that runs a command as a process would, but in this one, by default in the test's folder.

    Gives its exit code, output and errors. Signals, kills and what Ray does need a process; nothing else does.
    """

    def run(*arguments, cwd=tmp_path, check=None):
        monkeypatch.chdir(cwd)
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["vqsearch", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
        out, err = capsys.readouterr()
        assert check in (None, code), out + err
        return code, out, err

    return run


@pytest.fixture
def refused(command):
    """The one line with which a command refuses."""

    def line(*arguments, **options):
        _, out, err = command(*arguments, check=2, **options)
        assert len(err.splitlines()) == 1, out + err
        return err.strip()

    return line


@pytest.fixture
def start():
    """A function that starts a process with its output in pipes; what still runs when the test ends is killed."""
    started = []

    def run(command, **options):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, **(pipes | options)))
        return started[-1]

    yield run
    for process in started:
        with process:
            process.kill()


@pytest.fixture
def reached():
    """A function that waits while a process runs until a trial of the study `tiny` has a value at or past a step."""

    def wait(process, url, step=1):
        deadline, study = time.monotonic() + 240, None
        while True:
            with contextlib.suppress(KeyError, StorageError):  # not there yet
                study = study or optuna.load_study(study_name="tiny", storage=open_storage(url, create=False))
                if any(max(trial.intermediate_values, default=0) >= step for trial in study.trials):
                    return
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "it took too long"
            time.sleep(0.1)

    return wait


@pytest.fixture
def searched(tiny_file):
    """A study with a complete, a pruned, a refused and a running trial, and its space."""
    loaded = space.load(tiny_file)
    study = optuna.create_study(direction="maximize")
    for number, (state, value) in enumerate(
        [(TrialState.COMPLETE, 21.5), (TrialState.PRUNED, 12.0), (TrialState.PRUNED, None)]
    ):
        trial = study.ask()
        trial.suggest_float("optimizer.lr", 1e-4, 1e-2)
        trial.suggest_int("quantizer.codebook_size", 16, 256)
        records.set_seconds(trial, 10.0 * (number < 2))
        if value is not None:
            trial.report(value, 18)
        else:
            records.set_invalid(trial)
            trial.set_constraint("bits_per_image", 0.5)
        study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)
    running = study.ask()
    running.suggest_float("optimizer.lr", 2e-3, 2e-3)
    running.report(17.25, 2)
    flight = Flight(
        trial=running, labels={"optimizer.lr": 2e-3}, started=time.monotonic(), before=0.0, step=6,
        metrics={"images_per_s": 312.4, "val/psnr": 17.25},
    )  # fmt: skip
    return SimpleNamespace(
        study=study, space=loaded, flights={"a": flight}, draining=False, paused=None, notify=None, hours=lambda: 1.5
    )


ENDED = """\
study: shapes
objective: {metric: val/psnr, direction: maximize}
budget: {trials: 15, steps: 360}
pruner: {kind: asha, rungs: 2, reduction_factor: 3}
resources: {gpus: 0.5, cpus: 1}
seed: 7
train:
  model: {backbone: attention, width: 16, depth: 1, head_size: 16, patch: 16}
  quantizer: {code_dim: 4}
  loss: {perceptual: 0}
  optimizer: {warmup_steps: 1}
  data: {resolution: 64}
  evaluation: {lpips: false, images: 8}
  batch_size: 4
search:
  model.backbone: {choice: [attention, mamba]}
  optimizer.lr: {float: [5.0e-4, 5.0e-3], log: true}
  quantizer.codebook_size: {choice: [16, 64, 256]}
constraints: {parameters: {max: 4.0e+6}}
baselines:
  - {model.backbone: attention, optimizer.lr: 1.0e-3, quantizer.codebook_size: 64}
"""


@pytest.fixture
def ended(tmp_path):
    """A function that makes a study at its end, and its space, as drivers leave it; nothing is trained for it.

    Ten trials are complete (0 is the baseline, 9 the best, 8 the next), 10 to 12 were pruned at rungs, 13 diverged, 14
    failed, and 15 was over a limit before training. Takes the study's `name`, the `text` of its space file, and what
    else the trials have as user attributes.
    """

    def make(name="shapes", text=ENDED, **attributes):
        path = tmp_path / "ended.yaml"
        path.write_text(text)
        loaded = space.load(path)
        study = optuna.create_study(direction=loaded.objective.direction, study_name=name)
        root = tmp_path / "root"
        records.create(study, loaded.source, str(root), 10, {"vqsearch": "0.1.0", "torch": "2.15.0"})
        records.set_sizes(study, {"train": 987, "validation": 82, "test": 77})
        records.set_hours(study, 3.5)
        for number in range(16):
            study.add_trial(_ended_trial(loaded, number, name, root, attributes))
        return study, loaded

    return make


def _ended_trial(loaded, number, name, root, attributes):
    last = {10: 40, 11: 40, 12: 120, 13: 120, 14: 40, 15: 0}.get(number, 360)
    state = TrialState.FAIL if number == 14 else TrialState.COMPLETE if last == 360 else TrialState.PRUNED
    curve = {step: 18 + number / 4 - 4 * (number > 9) + step / 200 for step in (40, 120, 360) if step <= last}
    labels = {
        p.name: p.labels[number % len(p.labels)] if p.labels else p.low * (1 + number % 4) for p in loaded.parameters
    }
    system = {}
    if number == 0:
        labels = dict(loaded.baselines[0])
        system = {"fixed_params": labels}
    reasons = {
        13: "loss is nan after step 130 of 360",
        14: 'Traceback (most recent call last):\n  File "a.py", line 1\nRuntimeError: the disk is gone',
        15: "parameters is 5,000,000: outside constraints",
    }
    user = {
        records.SECONDS: 1.5 * last,
        records.DEVICE: "NVIDIA H200",
        **({records.REASON: reasons[number]} if number in reasons else {}),
        **({records.INVALID: True} if number == 15 else {}),
        **attributes,
    }
    if last:
        step = max(curve)
        user |= {
            "val/psnr": curve[step], "val/ssim": 0.5 + number / 100, "val/entropy_bits_per_image": 60.0 + 3 * number,
            "parameters": 1e5 * (1 + number), "images_per_s": 900.0 - 10 * number,
        }  # fmt: skip
        user[records.PICTURES] = [_picture(root, name, number, step, kind) for kind in ("reconstructions", "worst")]
    stored = optuna.trial.FixedTrial(labels)
    parameters.suggest(loaded.parameters, stored)
    began = datetime(2026, 3, 1, 9) + timedelta(minutes=10 * number)
    trial = optuna.trial.create_trial(
        state=state,
        value=curve[360] if state == TrialState.COMPLETE else None,
        params=stored.params,
        distributions=stored.distributions,
        user_attrs=user,
        system_attrs=system,
        intermediate_values=curve,
        constraints={13: {"diverged": 1.0}, 15: {"parameters": 0.25}}.get(number),
    )
    trial.datetime_start, trial.datetime_complete = began, began + timedelta(seconds=1.5 * last)
    return trial


def _picture(root, name, number, step, kind):
    """A sheet as `vqvae.pictures.sheet` makes it: 16 pictures of 64 pixels in two rows, here of one color each."""
    folder = output.folder_of(name, number, step)
    (root / folder).mkdir(parents=True, exist_ok=True)
    colors = np.random.default_rng(step + number).integers(0, 255, (4, 8, 3), dtype=np.uint8)
    colors[::2] = np.random.default_rng(0).integers(0, 255, (2, 8, 3))  # the originals are the same in all
    Image.fromarray(colors.repeat(64, axis=0).repeat(64, axis=1)).save(root / folder / f"{kind}.png")
    return {"step": step, "name": kind, "folder": folder}


DUEL = {
    "comparison": "duel",
    "objective": {"metric": "val/psnr", "direction": "maximize"},
    "budget": {"trials": 4, "steps": 36},
    "pruner": {"rungs": 1},
    "resources": {"gpus": 0, "cpus": 1},
    "train": {
        "model": {"width": 16, "depth": 1, "head_size": 16, "patch": 16},
        "quantizer": {"code_dim": 4, "codebook_size": 64},
        "loss": {"perceptual": 0},
        "optimizer": {"warmup_steps": 1},
        "data": {"resolution": 64},
        "evaluation": {"lpips": False},
        "batch_size": 4,
    },
    "search": {"optimizer.lr": {"float": [1e-4, 1e-2], "log": True}, "quantizer.beta": {"float": [0.1, 1.0]}},
    "baselines": [{"optimizer.lr": 1e-3}],
    "arms": {
        "attention": {"train": {"model": {"backbone": "attention"}}},
        "mamba": {
            "train": {"model": {"backbone": "mamba", "width": 32}},
            "search": {"model.depth": {"int": [1, 2]}, "quantizer.beta": None},
            "baselines": [{"optimizer.lr": 2e-3, "model.depth": 2}],
        },
    },
}


@pytest.fixture(scope="session")
def duel():
    """A function that writes a comparison file.

    Takes the folder, and what to change: a path of keys -> another value, or None for one that is to go.
    """

    def write(folder, changes=None):
        values = copy.deepcopy(DUEL)
        for (*above, last), value in (changes or {}).items():
            place = values
            for key in above:
                place = place[key]
            if value is None:
                del place[last]
            else:
                place[last] = value
        file = folder / "duel.yaml"
        file.write_text(yaml.safe_dump(values, sort_keys=False))
        return file

    return write


@pytest.fixture
def write_duel(duel, tmp_path):
    """The same, in a folder of the test's own."""
    return lambda changes=None: duel(tmp_path, changes)


BASELINE = {"optimizer.lr": 1e-3, "quantizer.codebook_size": 16}
SIDE, COLUMNS = 64, 8
"""Pixels along a picture of a finalist's sheet here, and pictures in its rows."""


class Arena:
    """A study whose finalists were made by hand, and the files that they left.

    Attributes:
        images: of the test split; all arenas share how hard each of them is.
        files: path below the output root -> what it holds.
    """

    images = 60

    def __init__(self, file, root, *overrides, name="tiny"):
        baselines = "baselines=[{optimizer.lr: 1.0e-3, quantizer.codebook_size: 16}]"
        self.space = space.load(file, [baselines, *overrides], study=name)
        self.study = optuna.create_study(study_name=name, direction=self.space.objective.direction)
        records.create(self.study, self.space.source, str(root), 10, study.versions())
        records.set_sizes(self.study, {"train": 987, "validation": 82, "test": self.images})
        self.metric = self.space.objective.metric.removeprefix("val/")
        self.files = {}
        self.dice = np.random.default_rng([1, *map(ord, name)])
        self.hard = np.random.default_rng(0).normal(0, 2, self.images)

    def add(self, settings, value=None, *, state=TrialState.COMPLETE, attrs=None, system=None, broken=None):
        fixed = FixedTrial(dict(settings))
        labels = dict(parameters.suggest(self.space.parameters, fixed))
        trial = create_trial(
            state=state,
            value=value,
            params=labels,
            distributions=fixed.distributions,
            user_attrs=attrs or {},
            system_attrs=system or {},
            intermediate_values={} if value is None else {18: value},
            constraints=broken,
        )
        self.study.add_trial(trial)
        return len(self.study.trials) - 1

    def setting(self, lr, value, baseline=False):
        """A trial of the search, whose setting may become a finalist's."""
        settings = BASELINE if baseline else {"optimizer.lr": lr, "quantizer.codebook_size": 64}
        system = {"fixed_params": dict(BASELINE)} if baseline else {}
        return self.add(dict(settings), value, system=system, attrs={"seconds": 1800.0})

    def judged(self, of, mean, seeds=3, spread=0.05, files=True, validation=None, change=0.0, metric=True):
        """Finalists of a setting: their values on the test split, image by image.

        Args:
            of: number of its trial.
            mean: on the test split, about.
            seeds: how many finalists.
            spread: standard deviation over seeds.
            files: whether their values of each image are there.
            validation: their objective on the images that choose.
            change: added to the value of each image.
            metric: whether they were measured at all.
        """
        for seed in range(1, seeds + 1):
            each = mean + self.hard + change + self.dice.normal(0, spread) + self.dice.normal(0, 0.3, self.images)
            number = len(self.study.trials)
            folder = f"{self.study.study_name}/trials/{number:05d}/step-00000018"
            attrs = records.finalist_attrs(records.Finalist(of=of, seed=seed)) | {
                **({f"test/{self.metric}": float(each.mean())} if metric else {}),
                "test/perplexity": 10.0 + seed,
                "test/entropy_bits_per_image": 60.0 + seed,
                "parameters": 12345.0,
                "images_per_s": 100.0 * seed,
                "checkpoint": {"step": 18, "folder": folder, "metrics": {}},
                "pictures": [{"step": 18, "name": "test", "folder": folder}],
                "seconds": 3600.0,
            }
            self.add(self.study.trials[of].params, mean + 0.5 if validation is None else validation, attrs=attrs)
            if files:
                buffer = io.BytesIO()
                np.savez(buffer, **{self.metric: each})
                self.files[f"{folder}/test.npz"] = buffer.getvalue()
                self.files[f"{folder}/test.png"] = _test_sheet(len(self.files) % 200)

    def read(self, path):
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path]

    def verdict(self):
        return verdict.judge(self.study, self.space, self.read)

    def write(self):
        """Put the files below the study's output root."""
        for path, content in self.files.items():
            file = Path(records.output(self.study)) / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


def _test_sheet(level):
    """A sheet of 32 pictures as `vqvae.pictures.sheet` makes it: originals are gray by their place, all became one."""
    grays = np.full((8, COLUMNS), level, dtype=np.uint8)
    grays[::2] = np.arange(32).reshape(4, 8)
    held = io.BytesIO()
    large = grays.repeat(SIDE, axis=0).repeat(SIDE, axis=1)
    Image.fromarray(np.stack([large] * 3, axis=-1)).save(held, "PNG")
    return held.getvalue()


@pytest.fixture
def make_arena(tiny_file, tmp_path):
    """A function that makes an `Arena`; takes overrides of its space file, and its `name`."""
    return lambda *overrides, **options: Arena(tiny_file, tmp_path / "root", *overrides, **options)


@pytest.fixture
def arena(make_arena):
    """A study with no trial yet, to put finalists into."""
    return make_arena()


@pytest.fixture
def make_arms(make_arena):
    """A function that makes the arenas of a comparison named ``fair``, one for each name of an arm that it is given."""

    def make(*names, overrides=(), equal=None):
        studies = {name: f"fair-{place}" for place, name in enumerate(names)}
        made = {name: make_arena(*overrides, name=study_name) for name, study_name in studies.items()}
        for name, each in made.items():
            alike = equal or {"tokens": (16.0, 16.0), "parameters": (11000.0, 13000.0)}
            what = records.Tie(comparison="fair", arm=name, arms=studies, equal=alike, free=["bits_per_image"])
            records.set_tie(each.study, what)
        return made

    return make


@pytest.fixture
def fair(make_arms):
    """A comparison whose arm ``good`` is planted to be 2 dB better than ``plain`` and ``alike``, which are the same."""
    arms = make_arms("plain", "good", "alike", overrides=["budget.trials=2", "finalists={top: 1, seeds: 3}"])
    for name, mean in (("plain", 21.0), ("good", 23.0), ("alike", 21.0)):
        of = arms[name].setting(2e-3, 25.0)
        arms[name].setting(0, 20.0, baseline=True)
        arms[name].judged(of, mean, spread=0.2)
        arms[name].judged(1, mean - 3.0)
    return arms


@pytest.fixture
def compiled():
    """A function that sets the body of a LaTeX document in a folder and gives its text; None without pdftotext."""
    return _compiled


def _compiled(folder, body):
    """The text of a document that pdflatex made without an error."""
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex on this machine: apt-get install texlive-latex-recommended")
    (folder / "main.tex").write_text(
        f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}\n{body}\n\\end{{document}}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "main.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    if shutil.which("pdftotext") is None:
        return None
    return subprocess.run(["pdftotext", "main.pdf", "-"], cwd=folder, capture_output=True, check=True).stdout.decode()
