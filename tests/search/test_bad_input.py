"""A corpus of bad input: each ends with exit code 2 and one exact line, and leaves everything as it was."""

import hashlib
import io
import json
import shlex
import shutil
import sqlite3

import optuna
import pytest
from PIL import Image

from search import records, space, study
from search.storage import open_storage
from vqvae import checkpoint
from vqvae.config import TrainConfig
from vqvae.conversion import replace
from vqvae.model import build_model

SMALL = {
    "model.backbone": "attention", "model.width": 16, "model.depth": 1, "model.head_size": 16, "model.patch": 16,
    "quantizer.codebook_size": 16, "quantizer.code_dim": 4, "data.resolution": 64,
}  # fmt: skip


# A command line -> the line it ends with, behind "vqsearch: " or, where click speaks, behind its usage.
CORPUS = {
    "validate faces": "faces: can't be read: [Errno 21] Is a directory: 'faces'",
    "validate empty.yaml": "empty.yaml: a space file is a mapping with study, objective, budget and search",
    "validate latin.yaml": (
        "latin.yaml: can't be read: 'utf-8' codec can't decode byte 0xff in position 10: invalid start byte"
    ),
    "launch picture.yaml": (
        "picture.yaml: can't be read: 'utf-8' codec can't decode byte 0x89 in position 0: invalid start byte"
    ),
    "validate tabs.yaml": "tabs.yaml:3: this is no valid YAML: found character '\\t' that cannot start any token",
    "launch python.yaml": (
        "python.yaml:1: study: the tag tag:yaml.org,2002:python/object/apply:os.system is not allowed"
    ),
    "launch twice.yaml": "twice.yaml:5: study: this key stands here a second time; first in line 1",
    "launch silent.yaml": "silent.yaml: search: this key is missing",
    "launch config.yaml": (
        "config.yaml:1: steps: unknown key; known are study, objective, budget, sampler, pruner, resources, "
        "parallel, retries, seed, keep, log, finalists, transfer, storage, output, plugins, trainer, train, search, "
        "constraints, baselines"
    ),
    "launch tiny.yaml --set budgets.trials=3": "tiny.yaml: budgets: unknown key; did you mean budget?",
    "launch tiny.yaml --set 'search.model.depth={choice: []}'": (
        "--set search.model.depth={choice: []}: search.model.depth.choice: must be a list or a mapping of "
        "labels, not empty, but got []"
    ),
    "launch tiny.yaml --trials 0": "Error: Invalid value for '--trials': 0 is not in the range x>=1.",
    "launch tiny.yaml --trials many": "Error: Invalid value for '--trials': 'many' is not a valid integer range.",
    "launch tiny.yaml --fast": "Error: No such option '--fast'. (Did you mean one of: '--set', '--study'?)",
    "lunch tiny.yaml": "Error: No such command 'lunch'. Did you mean 'launch'?",
    "launch": "Error: Missing argument 'SPACE'.",
    "best --top 0": "Error: Invalid value for '--top': 0 is not in the range x>=1.",
    "dashboard --port 99999": "Error: Invalid value for '--port': 99999 is not in the range 0<=x<=65535.",
    "export": "Error: Missing option '--to'.",
    "resume --set seed=3": (
        "--set seed: a study that goes on can change budget.trials, budget.hours, parallel, resources.gpus, "
        "resources.cpus, resources.accelerator_type, resources.labels, keep.best, finalists.top, finalists.seeds, "
        "finalists.include, transfer.top, transfer.include, log.tensorboard, log.wandb; nothing else"
    ),
    "resume --set parallel=0": "study tiny: parallel: must be at least 1, but got 0",
    "resume": "{house}/root: the output root of the study is not there; --output says where it has moved",
    "resume --output nowhere": (
        "{house}/nowhere: the output root of the study is not there; --output says where it has moved"
    ),
    "launch tiny.yaml --output elsewhere": (
        "tiny: its checkpoints lie in {house}/root, not in {house}/elsewhere; if they have moved: vqsearch "
        "resume --study tiny --output {house}/elsewhere"
    ),
    "launch tiny.yaml --study new --output tiny.yaml": (
        "{house}/tiny.yaml: the output root can't be written: [Errno 17] Cannot create directory "
        "'{house}/tiny.yaml': non-directory entry exists. Detail: [errno 17] File exists"
    ),
    "launch tiny.yaml --study new --output ftp://bucket/x": (
        "ftp://bucket/x: this is no folder and no URL of a bucket: Unrecognized filesystem type in URI: ftp://bucket/x"
    ),
    "launch tiny.yaml --study new --set 'train.data={source: folder, path: texts, resolution: 64}'": (
        "{house}/texts: no pictures in it; expected files ending in .jpg, .jpeg, .png, .webp, .bmp, .gif, .tif, .tiff"
    ),
    "launch tiny.yaml --study new --set 'train.data={source: folder, path: bad-faces, resolution: 64}'": (
        "{house}/bad-faces: too few pictures (2 could not be read): expected at least 3 for its splits, but got 0"
    ),
    "status --storage oracular://host/x": "oracular://host/x: this is no storage URL",
    "status --storage postgresql://me@host:abc/x": (
        "postgresql://me@host:abc/x: this is no storage URL: the port must be a number"
    ),
    "launch tiny.yaml --storage sqlite://": (
        "sqlite://: a database in memory is gone with this process; expected a file: sqlite:///vqsearch.db"
    ),
    "status --storage sqlite:///faces": "sqlite:///faces: no such database file",
    "launch tiny.yaml --storage sqlite:///faces": (
        "sqlite:///faces: the storage can't be opened: unable to open database file"
    ),
    "launch tiny.yaml --storage sqlite:///no/a.db": "sqlite:///no/a.db: no such folder no",
    "status --storage sqlite:///text.db": ("sqlite:///text.db: the storage can't be opened: file is not a database"),
    "status --storage sqlite:///truncated.db": (
        "sqlite:///truncated.db: the storage can't be opened: database disk image is malformed"
    ),
    "resume --storage sqlite:///truncated.db": (
        "sqlite:///truncated.db: the storage can't be opened: database disk image is malformed"
    ),
    "launch tiny.yaml --storage sqlite:///stump.db": (
        "sqlite:///stump.db: the storage can't be opened: database disk image is malformed"
    ),
    "status --storage journal:///{house}/none": "journal:///{house}/none: no such file",
    "launch tiny.yaml --storage journal:///{house}/faces": (
        "journal:///{house}/faces: this is a folder; expected a file"
    ),
    "status --storage journal:///{house}/garbage-journal": (
        "journal:///{house}/garbage-journal: this is no journal of Optuna"
    ),
    "launch tiny.yaml --storage journal:///{house}/foreign-journal": (
        "journal:///{house}/foreign-journal: damaged, or no journal of Optuna: Should not reach."
    ),
    "launch tiny.yaml --storage journal:///{house}/tiny.yaml/x": (
        "journal:///{house}/tiny.yaml/x: can't be opened: File exists"
    ),
    "status --storage postgresql://me:secret@127.0.0.1:1/x": (
        "a command line shows the storage's password to everyone on this machine; expected --storage-file "
        "FILE, $VQSEARCH_STORAGE, or a URL without one and ~/.pgpass"
    ),
    "status --storage-file none": "--storage-file none: can't be read: No such file or directory",
    "status --storage-file no-url": (
        "--storage-file no-url: its first line is no storage URL, such as sqlite:///vqsearch.db"
    ),
    "status --storage-file password": (
        "--storage-file password: holds a password that everyone on this machine may read; chmod o= 'password'"
    ),
    "status --storage sqlite:///good.db --storage-file no-url": (
        "--storage-file no-url: its first line is no storage URL, such as sqlite:///vqsearch.db"
    ),
    "status --study mine": "mine: no such study in the storage; it holds tiny",
    "status --storage sqlite:///two.db": (
        "--study is needed, since the storage does not hold exactly one search; it holds a, b"
    ),
    "status --storage sqlite:///foreign.db --study tiny": (
        "tiny: this study was not made by vqsearch, so nothing can be said of it; it holds no search of vqsearch"
    ),
    "resume --storage sqlite:///foreign.db": (
        "--study is needed, since the storage does not hold exactly one search; it holds no search of vqsearch"
    ),
    "launch tiny.yaml --storage sqlite:///foreign.db": (
        "tiny: the storage holds a study of this name that vqsearch did not make; choose another name with --study"
    ),
    "resume --storage sqlite:///newer.db": (
        "study tiny: federation: unknown key; known are study, objective, budget, sampler, pruner, "
        "resources, parallel, retries, seed, keep, log, finalists, transfer, storage, output, plugins, trainer, train, "
        "search, constraints, baselines"
    ),
    "export --trial 99 --to x": "tiny: no trial 99; the numbers go from 0 to 2",
    "export --trial best --to x": "Error: Invalid value for '--trial': 'best' is not a valid integer.",
    "export --trial 1 --to x": "tiny: trial 1 is PRUNED and has no checkpoint",
    "export --trial 0 --to x": (
        "{house}/root: no folder tiny/trials/00000/step-00000018 in the output root, though the study names it"
    ),
    "export --trial 2 --to x": "{house}/root: the study names '../../etc', which lies outside the output root",
    "export --trial 0 --to faces": "faces: expected a folder that is new or empty",
    "export --trial 0 --to tiny.yaml/x": (
        "{house}/root: no folder tiny/trials/00000/step-00000018 in the output root, though the study names it"
    ),
    "reconstruct nowhere faces/a.png --to x": ("nowhere: no such folder; expected a model or a checkpoint of vqsearch"),
    "reconstruct tiny.yaml faces/a.png --to x": (
        "tiny.yaml: no such folder; expected a model or a checkpoint of vqsearch"
    ),
    "reconstruct no-config faces/a.png --to x": (
        "no-config: no config.json in it; expected a model or a checkpoint of vqsearch"
    ),
    "reconstruct odd-config faces/a.png --to x": (
        "odd-config/config.json: damaged: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    ),
    "reconstruct other-format faces/a.png --to x": (
        "other-format/config.json: format is 'other 1'; expected 'vqsearch 2'"
    ),
    "reconstruct no-weights faces/a.png --to x": (
        "no-weights/weights.safetensors: missing or damaged: No such file or directory: no-weights/weights.safetensors"
    ),
    "tokenize cut-weights faces --to x.npz": (
        "cut-weights/weights.safetensors: missing or damaged: Error while deserializing header: incomplete "
        "metadata, file not fully covered"
    ),
    "reconstruct pickled faces/a.png --to x": (
        "pickled/weights.safetensors: missing or damaged: Error while deserializing header: header too large"
    ),
    "reconstruct model none.png --to x": "none.png: this picture can't be read: No such file or directory",
    "reconstruct model bad-faces --to x --lpips-trunk random": (
        "none of 2 pictures can be read: bad-faces/cut.png: this picture can't be read: image file is truncated"
    ),
    "reconstruct model faces/a.png --to x --lpips-trunk none.pth": (
        "--lpips-trunk: none.pth: no such file; expected torchvision's alexnet-owt-7be5be79.pth, or no such flag to go "
        "without LPIPS"
    ),
    "reconstruct model bad-faces/text.png --to x": (
        "bad-faces/text.png: this picture can't be read: cannot identify image file"
    ),
    "reconstruct model bad-faces/cut.png --to x": (
        "bad-faces/cut.png: this picture can't be read: image file is truncated"
    ),
    "reconstruct model faces/a.png more/a.jpg --to x": (
        "faces/a.png and more/a.jpg: both would become x/a.reconstruction.png; expected different names"
    ),
    "reconstruct model faces/a.png --to tiny.yaml --lpips-trunk random": "tiny.yaml: can't be written: File exists",
    "tokenize model none --to x.npz": (
        "none: no such folder; expected one with pictures (.jpg, .jpeg, .png, .webp, .bmp, .gif, .tif, .tiff)"
    ),
    "tokenize model faces/a.png --to x.npz": (
        "faces/a.png: no such folder; expected one with pictures (.jpg, .jpeg, .png, .webp, .bmp, .gif, .tif, .tiff)"
    ),
    "tokenize model texts --to x.npz": (
        "texts: no pictures in it; expected files ending in .jpg, .jpeg, .png, .webp, .bmp, .gif, .tif, .tiff"
    ),
    "tokenize model bad-faces --to x.npz": (
        "bad-faces: none of its 2 pictures can be read, bad-faces/cut.png: image file is truncated"
    ),
    "tokenize model faces --to tiny.yaml": "tiny.yaml: there already; expected a new file",
    "tokenize model faces --to tiny.yaml/x.npz": "tiny.yaml/x.npz: can't be written: File exists",
    "tokenize model faces --to x.npz --device cuda": (
        "--device: must be cpu or auto, since torch finds no CUDA device, but got 'cuda'"
    ),
    "tokenize model faces --to x.npz --split all": (
        "Error: Invalid value for '--split': 'all' is not one of 'train', 'validation', 'test'."
    ),
    "tokenize model faces --to x.npz --batch 0": ("Error: Invalid value for '--batch': 0 is not in the range x>=1."),
    "train --to x": "Error: give either a CONFIG or --trial N",
    "train tiny.yaml --trial 0 --to x": "Error: give either a CONFIG or --trial N",
    "train none.yaml --to x": "none.yaml: no such file; expected a config (YAML or JSON) or preset:NAME",
    "train faces --to x": "faces: can't be read: [Errno 21] Is a directory: 'faces'",
    "train odd.json --to x": ("odd.json:1: this is no valid YAML: expected the node content, but found '<stream end>'"),
    "train list.yaml --to x": "list.yaml: a config is a mapping of fields",
    "train config.yaml --to x": "config.yaml:3: model.width: must be a whole number, but got 'wide'",
    "train picture.yaml --to x": (
        "picture.yaml: can't be read: 'utf-8' codec can't decode byte 0x89 in position 0: invalid start byte"
    ),
    "train tiny.yaml --to x": (
        "tiny.yaml:1: study: unknown field; known are batch_size, checkpoint_every, compile, data, device, "
        "ema_decay, evaluation, gan, loss, micro_batch, model, optimizer, options, parametrization, precision, "
        "quantizer, rungs, seed, steps"
    ),
    "train preset:resnet --to x": (
        "preset: must be one of convolution, attention, mamba, bimamba, mambavision, convolution-small, "
        "attention-small, mamba-small, bimamba-small, mambavision-small, convolution-tiny, attention-tiny, "
        "mamba-tiny, bimamba-tiny, mambavision-tiny, but got 'resnet'"
    ),
    "train preset: --to x": (
        "preset: must be one of convolution, attention, mamba, bimamba, mambavision, convolution-small, "
        "attention-small, mamba-small, bimamba-small, mambavision-small, convolution-tiny, attention-tiny, "
        "mamba-tiny, bimamba-tiny, mambavision-tiny, but got ''"
    ),
    "train --trial 7 --to x": "tiny: no trial 7; the numbers go from 0 to 2",
    "train gone.yaml --to x": (
        "gone: no such folder; expected one with pictures (.jpg, .jpeg, .png, .webp, .bmp, .gif, .tif, .tiff)"
    ),
    "train gone.yaml --data nothing --to x": (
        "{house}/nothing: no such folder; expected one with pictures (.jpg, .jpeg, .png, .webp, .bmp, .gif, "
        ".tif, .tiff)"
    ),
    "train gone.yaml --data texts --to x": (
        "{house}/texts: no pictures in it; expected files ending in .jpg, .jpeg, .png, .webp, .bmp, .gif, .tif, .tiff"
    ),
    "train gone.yaml --data faces --to tiny.yaml": "tiny.yaml: can't be written: Not a directory",
    "train gone.yaml --set model.with=3 --to x": "gone.yaml: model.with: unknown field; did you mean width?",
    "train gone.yaml --set optimizer.lr=fast --to x": "gone.yaml: optimizer.lr: must be a number, but got 'fast'",
    "validate tiny.yaml --set budget.trials": "--set budget.trials: must be FIELD=VALUE, such as seed=1",
    "status --storage sqlite:///none.db": "sqlite:///none.db: no such database file",
    "resume --storage sqlite:///none.db": "sqlite:///none.db: no such database file",
    "best --storage my.db": "my.db: a storage is a URL, such as sqlite:///vqsearch.db or journal:///my.db",
    "launch tiny.yaml --study new --set 'train.data={source: folder, path: /no/such/folder, resolution: 64}'": (
        "/no/such/folder: no such folder; expected one with pictures (.jpg, .jpeg, .png, .webp, .bmp, .gif, "
        ".tif, .tiff)"
    ),
    "validate tiny.yaml --set train.model.head_size=5": (
        "--set train.model.head_size=5: train.model.head_size: must divide the 16 channels that attention "
        "works on, but got 5"
    ),
    "validate tiny.yaml --set train.model.backbone=bamba": (
        "--set train.model.backbone=bamba: train.model.backbone: must be one of convolution, attention, "
        "mamba, bimamba, mambavision, but got 'bamba'; one of your own needs its file, under plugins of a space "
        "file or as --plugin FILE"
    ),
    "validate tiny.yaml --set 'search.model.backbone={choice: [attention, bamba]}'": (
        "--set search.model.backbone={choice: [attention, bamba]}: search.model.backbone: 'bamba' can't be "
        "built: model.backbone: must be one of convolution, attention, mamba, bimamba, mambavision, but got "
        "'bamba'; one of your own needs its file, under plugins of a space file or as --plugin FILE"
    ),
    (
        "validate tiny.yaml --set 'search.model.head_size={choice: [16, 5, 8]}' --set "
        "'baselines=[{model.head_size: 5}]'"
    ): (
        "--set search.model.head_size={choice: [16, 5, 8]}: search.model.head_size: 5 can't be built: "
        "model.head_size: must divide the 16 channels that attention works on, but got 5"
    ),
    "validate tiny.yaml --set resources.cpus=.inf": (
        "--set resources.cpus=.inf: resources.cpus: must be a finite number, but got inf"
    ),
    "validate tiny.yaml --set train.model.depth=1000000000000": (
        "--set train.model.depth=1000000000000: train.model.depth: must be at most 1000, but got 1000000000000"
    ),
    "validate tiny.yaml --set 'search.model.depth={int: [1, 2]}' --set 'baselines=[{model.depth: .nan}]'": (
        "--set baselines=[{model.depth: .nan}]: baselines[0].model.depth: must be from 1 to 2, but got nan"
    ),
    "validate tiny.yaml --set 'train.model={width: 3'": (
        "--set train.model={width: 3: this is no valid YAML: expected ',' or '}', but got '<stream end>'"
    ),
    "launch tiny.yaml --study ../x": (
        "--study: study: must be letters, digits, '.', '_' and '-' (it names a folder), but got '../x'"
    ),
    "reconstruct nowhere cat.png --to x": "nowhere: no such folder; expected a model or a checkpoint of vqsearch",
    "tokenize nowhere faces --to x.npz": "nowhere: no such folder; expected a model or a checkpoint of vqsearch",
    "launch nothing.yaml": "nothing.yaml: no such space file",
    "status --storage sqlite:///damaged.db --study tiny": (
        "tiny: its stored space is damaged: Expecting property name enclosed in double quotes: line 1 column "
        "2 (char 1); expected a JSON mapping"
    ),
}


@pytest.fixture(scope="module")
def house(tmp_path_factory, tiny_text):
    """A folder with a sound specimen of everything, and damaged ones beside it."""
    folder = tmp_path_factory.mktemp("house")
    (folder / "tiny.yaml").write_text(tiny_text)
    _spaces(folder)
    _studies(folder)
    _models(folder)
    _pictures(folder)
    return folder


def _spaces(folder):
    text = (folder / "tiny.yaml").read_text()
    specimens = {
        "empty.yaml": b"",
        "latin.yaml": text.replace("tiny", "tin\u00ff").encode("latin-1"),
        "tabs.yaml": b"study: tiny\nbudget:\n\ttrials: 4\n",
        "python.yaml": b"study: !!python/object/apply:os.system ['touch made']\n",
        "twice.yaml": text.replace("parallel: 2", "study: x").encode(),
        "silent.yaml": text.partition("search:")[0].encode(),
        "picture.yaml": b"\x89PNG\r\n\x1a\n\0\0\0",
        "config.yaml": b"steps: 3\nmodel:\n  width: wide\n",
        "odd.json": b'{"steps": 3,',
        "list.yaml": b"- steps\n",
        "gone.yaml": b"data: {source: folder, path: gone, resolution: 64}\nloss: {perceptual: 0}\n"
        b"evaluation: {lpips: false}\n",
    }
    for name, content in specimens.items():
        (folder / name).write_bytes(content)


def _studies(folder):
    """good.db: a trial that is complete, one without a checkpoint, one whose checkpoint lies outside the root."""
    wanted = space.load(folder / "tiny.yaml")
    opened = study.create(open_storage(f"sqlite:///{folder}/good.db"), wanted, str(folder / "root"), 1)
    for name in ("tiny/trials/00000/step-00000018", None, "../../etc"):
        trial = opened.study.ask()
        trial.suggest_float("optimizer.lr", 5e-4, 5e-3, log=True)
        trial.suggest_categorical("quantizer.codebook_size", [16, 64, 256])
        if name:
            records.set_checkpoint(trial, records.CheckpointRecord(step=18, folder=name, metrics={}))
        opened.study.tell(trial, 20.0 if name else None, state=None if name else optuna.trial.TrialState.PRUNED)
    opened.close()
    for name in ("a", "b"):
        other = space.load(folder / "tiny.yaml", study=name)
        study.create(open_storage(f"sqlite:///{folder}/two.db"), other, str(folder / "root"), 1).close()
    shutil.rmtree(folder / "root")
    foreign, damaged, newer = (
        optuna.create_study(study_name="tiny", storage=open_storage(f"sqlite:///{folder}/{name}.db"))
        for name in ("foreign", "damaged", "newer")
    )
    foreign.tell(foreign.ask(), 1.0)
    damaged.set_user_attr(records.SPACE, "{")
    newer.set_user_attr(records.SPACE, json.dumps({**wanted.source, "federation": {"planets": 9}}))
    _settle(folder)
    whole = (folder / "good.db").read_bytes()
    (folder / "truncated.db").write_bytes(whole[: len(whole) // 2])
    (folder / "stump.db").write_bytes(whole[:100])
    (folder / "text.db").write_text("not a database, and long enough to be read as one" * 10)
    optuna.create_study(study_name="tiny", storage=open_storage(f"journal://{folder}/journal"))
    lines = (folder / "journal").read_bytes()
    (folder / "garbage-journal").write_bytes(b"\x00\xff garbage \n" + lines)
    (folder / "foreign-journal").write_bytes(b'{"op_code": 99}\n' + lines)
    (folder / "password").write_text("postgresql://me:secret@127.0.0.1:1/x\n")
    (folder / "password").chmod(0o644)
    (folder / "no-url").write_text("hello\n")


def _settle(folder):
    """Bring what lies in SQLite's logs into the databases, which are copied and compared."""
    for path in folder.glob("*.db"):
        with sqlite3.connect(path) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.close()


def _models(folder):
    config = replace(TrainConfig(), SMALL)
    model = build_model(config)
    for name in ("model", "no-config", "odd-config", "other-format", "no-weights", "cut-weights", "pickled", "swapped"):
        checkpoint.save_model(model, config, folder / name, {})
    (folder / "no-config" / "config.json").unlink()
    (folder / "odd-config" / "config.json").write_text("{")
    (folder / "other-format" / "config.json").write_text('{"format": "other 1"}')
    (folder / "no-weights" / "weights.safetensors").unlink()
    whole = (folder / "model" / "weights.safetensors").read_bytes()
    (folder / "cut-weights" / "weights.safetensors").write_bytes(whole[:-10])
    (folder / "pickled" / "weights.safetensors").write_bytes(b"\x80\x04\x95cposix\nsystem\n")
    other = replace(config, {"model.width": 32})
    shutil.rmtree(folder / "swapped")
    checkpoint.save_model(build_model(other), other, folder / "swapped", {})
    (folder / "swapped" / "weights.safetensors").write_bytes(whole)


def _pictures(folder):
    for name in ("faces", "more", "texts", "bad-faces"):
        (folder / name).mkdir()
    for name in ("faces/a.png", "more/a.jpg"):
        Image.new("RGB", (80, 80), "red").save(folder / name)
    (folder / "texts" / "a.txt").write_text("no picture")
    png = io.BytesIO()
    Image.effect_noise((80, 80), 90).save(png, "PNG")
    (folder / "bad-faces" / "cut.png").write_bytes(png.getvalue()[:500])
    (folder / "bad-faces" / "text.png").write_text("no picture")


def contents(folder):
    """Every file with what is in it, SQLite's logs aside: a reader leaves empty ones."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
        if not path.name.endswith(("-wal", "-shm"))
    }


@pytest.fixture
def ran(command, house, monkeypatch):
    """Exit code, output and errors of a command line in the house, run in this process."""
    monkeypatch.setenv("VQSEARCH_STORAGE", "sqlite:///good.db")
    monkeypatch.setenv("TORCH_HOME", str(house / "no-home"))
    return lambda line: command(*shlex.split(line), cwd=house)


@pytest.mark.parametrize("line", CORPUS)
def test_bad_input_ends_with_exit_2_and_its_message_and_changes_nothing(line, house, ran):
    before = contents(house)
    code, _, said = ran(line.replace("{house}", str(house)))
    assert code == 2
    *usage, last = said.splitlines()
    assert last == f"{'' if usage else 'vqsearch: '}{CORPUS[line].replace('{house}', str(house))}"
    assert not usage or usage[0].startswith("Usage: ")
    assert contents(house) == before


def test_weights_that_fit_another_model_are_refused_in_one_line(house, ran):
    code, _, said = ran("reconstruct swapped faces/a.png --to x")
    assert code == 2
    assert said.startswith(
        "vqsearch: swapped/weights.safetensors: does not fit the model of config.json: size mismatch for encoder."
    )
    assert said.count("\n") == 1
    assert not (house / "x").exists()
