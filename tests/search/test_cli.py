"""What the command line prints and how it ends, where no search has to run for it."""

import json
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from search.cli import cli
from search.storage import open_storage


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_help_with_an_example(name, command):
    _, out, _ = command(name, "--help", check=0)
    assert f"Example:\n  vqsearch {name} " in out or f"Example:\n  vqsearch {name}\n" in out


def test_a_command_that_ends_well_or_is_refused_says_so_by_its_exit_status(tmp_path):
    for words, code in ((["--version"], 0), (["validate", "other.yaml"], 2)):
        called = [sys.executable, "-m", "search", *words]
        ran = subprocess.run(called, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ran.returncode == code
        assert (ran.stdout if code else ran.stderr) == ""
        assert "Traceback" not in ran.stderr


def test_help_loads_neither_torch_nor_ray_nor_optuna(tmp_path):
    script = (
        "import sys, runpy; sys.argv = ['vqsearch', '--help']\n"
        "try:\n    runpy.run_module('search', run_name='__main__')\n"
        "except SystemExit:\n    pass\n"
        "print(sorted({'torch', 'ray', 'optuna', 'pydantic', 'numpy'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


def test_importing_the_packages_loads_no_torch(tmp_path):
    script = "import sys, vqvae, search, vqvae.config; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"


def test_help_is_quick(tmp_path):
    def seconds(*command):
        started = time.perf_counter()
        subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, check=True)
        return time.perf_counter() - started

    bare = min(seconds("-c", "pass") for _ in range(5))
    helped = min(seconds("-m", "search", "--help") for _ in range(5))
    assert helped <= 3 * bare + 0.3


def test_missing_weights_of_lpips_are_said_before_any_trial_is_spent(tiny_file, refused, monkeypatch):
    home = tiny_file.parent / "home"
    monkeypatch.setenv("TORCH_HOME", str(home))
    assert refused("launch", "tiny.yaml", "--set", "train.evaluation.lpips=true") == (
        f"vqsearch: {home}/hub/checkpoints/alexnet-owt-7be5be79.pth: no such file; LPIPS needs torchvision's ImageNet "
        "weights of alexnet (alexnet-owt-7be5be79.pth), which nothing here downloads; on a machine with a network "
        "python -c \"import torchvision; torchvision.models.alexnet(weights='DEFAULT')\" puts it into "
        f"{home}/hub/checkpoints; copy it there, or name another place (evaluation.lpips_trunk); or do without: "
        "evaluation.lpips=false"
    )
    study = open_storage(f"sqlite:///{tiny_file.parent}/vqsearch.db").get_all_studies()
    assert study == []


def test_a_storage_that_does_not_answer_gives_one_line_without_the_password(tiny_file, refused, monkeypatch):
    monkeypatch.setenv("VQSEARCH_STORAGE", "postgresql://me:secret@127.0.0.1:1/x")
    for words in (["status"], ["launch", "tiny.yaml"], ["resume"]):
        line = refused(*words)
        assert line.startswith("vqsearch: postgresql://me:***@127.0.0.1:1/x: the storage can't be opened: ")
        assert "secret" not in line


@pytest.mark.ray
def test_asking_for_more_than_the_cluster_has_is_said_at_once_with_the_flags_that_mend_it(tiny_file, refused):
    import torch

    here = torch.cuda.is_available()
    line = refused("launch", "tiny.yaml", "--set", "resources.cpus=999", "--set", f"resources.gpus={0 if here else 1}")
    few = "" if here else r"1 GPUs \(the largest node has 0; --set resources\.gpus=0\) and "
    many = r"999 CPUs \(the largest node has (\d+); --set resources\.cpus=\1\)"
    assert re.match(rf"vqsearch: a trial asks for {few}{many}", line)
    assert "--wait-for-nodes" in line


def test_validate_says_what_it_checked(tiny_file, command):
    _, out, _ = command("validate", "tiny.yaml", check=0)
    assert out == "tiny.yaml: ok; 2 parameters, 4 trials, evaluated at 2, 6, 18\n"
    told = json.loads(command("validate", "--json", "tiny.yaml", check=0)[1])
    assert told == [{"file": "tiny.yaml", "study": "tiny", "rungs": [2, 6], "steps": 18}]


def test_a_config_is_trained_by_itself_and_a_second_call_goes_on(tmp_path, command):
    config = {
        "model": {"backbone": "attention", "width": 16, "depth": 1, "head_size": 16, "patch": 16},
        "quantizer": {"codebook_size": 16, "code_dim": 4},
        "loss": {"perceptual": 0},
        "optimizer": {"warmup_steps": 1, "schedule": "constant"},
        "data": {"resolution": 64},
        "evaluation": {"lpips": False, "images": 8},
        "batch_size": 4,
        "micro_batch": 4,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    _, first, _ = command("train", "config.json", "--steps", "3", "--to", "mine", check=0)
    assert "step 3/3  val/" in first
    assert first.splitlines()[-4:] == [
        "the model is in mine/model",
        "look at it:   mine/reconstructions.png, and worst.png beside it",
        "reconstruct:  vqsearch reconstruct mine/model PICTURE --to DIR",
        "tokenize:     vqsearch tokenize mine/model FOLDER --to tokens.npz",
    ]
    _, second, _ = command("train", "config.json", "--set", "steps=5", "--to", "mine", check=0)
    assert second.startswith("going on from mine/checkpoints/step-00000003\n")
    assert "step 5/5  val/" in second
    assert (tmp_path / "mine" / "model" / "weights.safetensors").exists()
    assert (tmp_path / "mine" / "reconstructions.png").exists()


def test_a_run_without_files_of_weights_is_refused_at_once_with_the_ways_on(tmp_path, refused, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    line = refused("train", "preset:mamba", "--data", "/no/such/folder", "--to", "runs/mine")
    assert line.startswith(f"vqsearch: {tmp_path}/home/hub/checkpoints/vgg16-397923af.pth and ")
    assert line.endswith("; or do without: --set loss.perceptual=0 --set evaluation.lpips=false")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_pictures_is_trained_on_quietly_and_tokenized(tmp_path, command, refused):
    (tmp_path / "faces").mkdir()
    for number in range(12):
        noise = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "faces" / f"{number}.png")
    settings = [
        "model={backbone: attention, width: 16, depth: 1, head_size: 16, patch: 16}",
        "quantizer={codebook_size: 16, code_dim: 4}",
        "loss.perceptual=0",
        "evaluation.lpips=false",
        f"data={{resolution: 64, cache: {tmp_path}/cache}}",
        "batch_size=4",
    ]
    flags = [word for each in settings for word in ("--set", each)]
    words = ["train", "preset:attention", "--data", "faces", "--steps", "2", *flags, "--to", "mine", "-q"]
    assert command(*words, check=0)[1].splitlines()[0] == "the model is in mine/model"
    config = json.loads((tmp_path / "mine" / "model" / "config.json").read_text())["config"]
    assert (config["steps"], config["data"]["source"], config["data"]["path"]) == (2, "folder", f"{tmp_path}/faces")
    _, out, _ = command("tokenize", "mine/model", "faces", "--to", "out/tokens.npz", "--batch", "5")
    assert out == "12 pictures, 4 x 4 tokens of 16 codes each, uint8 -> out/tokens.npz\n"
    assert np.load(tmp_path / "out" / "tokens.npz")["indices"].shape == (12, 4, 4)
    part = ["--split", "test", "--to", "test.npz", "-q"]
    _, out, _ = command("tokenize", "mine/model", "faces", *part)
    assert out == "1 picture, 4 x 4 tokens of 16 codes each, uint8 -> test.npz\n"
    again = refused("tokenize", "mine/model", "faces", "--to", "out/tokens.npz")
    assert again == "vqsearch: out/tokens.npz: there already; expected a new file"


def test_a_flag_mends_a_config_before_it_is_checked(tmp_path, refused):
    (tmp_path / "config.yaml").write_text("steps: 3\nbatch_size: 4\nevaluation: {lpips: false}\n")
    line = refused("train", "config.yaml", "--to", "x", "--set", "micro_batch=3")
    assert line == "vqsearch: config.yaml: micro_batch: must be a divisor of batch_size (4), but got 3"
    line = refused("train", "config.yaml", "--to", "x", "--set", "micro_batch=4", "--set", "optimizer.lr=0")
    assert line == "vqsearch: config.yaml: optimizer.lr: must be above 0 and finite, but got 0.0"
