"""What `vqsearch doctor` says of planted faults; each is put there as it comes, none of our code is replaced."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import optuna
import pytest
from PIL import Image

from search import doctor, lease, machine, places, stored, system
from search.checkup import Finding
from search.machine import Device, Graphics
from search.schema import Resources
from search.storage import open_storage
from vqvae.config import DataConfig

H200 = Device(name="NVIDIA H200", memory=140 * 2**30, bfloat16=True)
T4 = Device(name="Tesla T4", memory=15 * 2**30, bfloat16=False)
SEEN = Graphics(seen=("NVIDIA H200",), driver="535.54", serves="12.2", torch="2.15.0")


def one(findings):
    (found,) = findings
    return found


def line(finding):
    return f"{finding.status}: {finding.said}" + (f" -> {finding.mend}" if finding.mend else "")


def planted(found, **changes):
    return Graphics(**{**vars(found), **changes})


@pytest.mark.parametrize(
    ("found", "wanted", "said"),
    [
        (
            planted(SEEN, built="12.1", devices=(H200, H200)),
            1,
            "ok: 2 x NVIDIA H200 with 140 GiB; driver 535.54 (CUDA up to 12.2), torch 2.15.0 for CUDA 12.1; bfloat16",
        ),
        (
            planted(SEEN, built="12.1", devices=(H200, T4)),
            1,
            "warning: NVIDIA H200 with 140 GiB, Tesla T4 with 15 GiB; driver 535.54 (CUDA up to 12.2), torch 2.15.0 "
            "for CUDA 12.1; Tesla T4 without bfloat16, which would be emulated slowly -> --set train.precision=float32",
        ),
        (
            planted(SEEN, built="13.0", problem="the driver is too old"),
            1,
            "error: NVIDIA H200; driver 535.54 (CUDA up to 12.2), but torch 2.15.0 for CUDA 13.0 -> a newer driver, or "
            "a build of torch for CUDA 12.2 or older, or --set resources.gpus=0",
        ),
        (
            SEEN,
            None,
            "warning: NVIDIA H200; driver 535.54 (CUDA up to 12.2), but torch 2.15.0 without CUDA -> a CUDA build of "
            "torch for CUDA 12.2 or older (pytorch.org/get-started)",
        ),
        (
            planted(SEEN, built="12.1", problem="CUDA error: no kernel image is available"),
            0,
            "warning: NVIDIA H200; driver 535.54 (CUDA up to 12.2), but torch 2.15.0 for CUDA 12.1 can't use it: CUDA "
            "error: no kernel image is available -> $CUDA_VISIBLE_DEVICES, nvidia-smi and the driver's log say more",
        ),
        (
            Graphics(torch="2.15.0", built="13.2"),
            0.5,
            "error: no NVIDIA GPU that a driver lists; torch 2.15.0 for CUDA 13.2 -> a machine with one and its driver "
            "(nvidia-smi), or --set resources.gpus=0",
        ),
        (Graphics(torch="2.15.0"), 0, "ok: no NVIDIA GPU that a driver lists; torch 2.15.0 without CUDA"),
        (
            Graphics(problem="libcudart.so.13: no such file"),
            0,
            "error: torch can't be imported: libcudart.so.13: no such file -> pip install --force-reinstall torch "
            "torchvision",
        ),
    ],
)
def test_gpus_driver_and_the_build_of_torch_are_held_against_each_other(found, wanted, said):
    assert line(one(machine.gpus(found, wanted))) == said


def test_the_driver_is_asked_by_its_own_program(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        "--query*) printf 'NVIDIA H200, 570.86.15\\nTesla T4, 570.86.15\\n' ;;\n"
        "*) echo '| NVIDIA-SMI 570.86.15      Driver Version: 570.86.15      CUDA Version: 12.8     |' ;;\n"
        "esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = machine.read_graphics()
    assert (found.seen, found.driver, found.serves) == (("NVIDIA H200", "Tesla T4"), "570.86.15", "12.8")


def test_packages_that_are_old_or_missing_are_named_with_the_command_that_mends_them():
    required = ["ray[tune]>=2.50", "optuna>=5.0", "torch>=2.11", "wandb; extra == 'wandb'"]
    versions = {"torch": "2.11.0+cu128", "ray": "2.9.1"}
    assert line(one(machine.packages("3.10.2", required, versions.get))) == (
        "error: Python is 3.10.2, older than 3.11; ray is 2.9.1, older than 2.50; optuna is not installed -> an "
        "environment with Python >=3.11; pip install 'ray[tune]>=2.50' 'optuna>=5.0'"
    )
    versions |= {"ray": "2.60.0", "optuna": "5.0.0"}
    assert line(one(machine.packages("3.12.1", required, versions.get))) == (
        "ok: Python 3.12.1, 3 packages as required: torch 2.11.0+cu128, ray 2.60.0, optuna 5.0.0"
    )


def test_kernels_are_missed_only_where_a_scan_runs_on_a_gpu(tmp_path, monkeypatch):
    missing = "no_such_kernels is not installed; the scan runs in plain PyTorch"
    for searched, with_gpu in ((True, False), (False, True)):
        assert line(one(machine.kernels(searched, with_gpu, "no_such_kernels"))) == f"ok: {missing}"
    assert line(one(machine.kernels(True, True, "no_such_kernels"))) == (
        f"warning: {missing}, more slowly than its kernels would on a GPU -> pip install --no-build-isolation "
        "'vqsearch[mamba]'"
    )
    for name, fault, status in (
        ("kernels_of_another_torch", "ImportError('undefined symbol')", "warning"),
        ("kernels_that_crash", "RuntimeError('no driver')", "error"),
    ):
        folder = tmp_path / name / "ops" / "triton"
        folder.mkdir(parents=True)
        (folder / "ssd_combined.py").write_text(f"raise {fault}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        assert one(machine.kernels(True, True, name)).status == status


def test_processors_are_held_against_what_trials_ask_for(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    need = Resources(gpus=0.5, cpus=4)
    assert (
        line(one(system.processors(need, None, 1, 2))) == "error: 2 CPUs; a trial asks for 4 -> --set resources.cpus=2"
    )
    assert line(one(system.processors(need, 4, 1, 16))) == (
        "warning: 16 CPUs; a trial asks for 4, and parallel is 4, but 2 run at once here -> more nodes, or "
        "--set parallel=2"
    )
    assert line(one(system.processors(need, 2, 1, 16))) == "ok: 16 CPUs; a trial asks for 4"
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    assert line(one(system.processors(need, 2, 1, 16))) == (
        "warning: 16 CPUs, OMP_NUM_THREADS=16; a trial asks for 4 -> OMP_NUM_THREADS=4"
    )


def test_little_memory_is_said_with_the_number_of_trials_it_is_enough_for():
    info = {"MemTotal": 16 * 2**30, "MemAvailable": 5 * 2**30}
    assert line(one(system.memory(4, info))) == (
        "warning: 5.0 GiB of 16.0 GiB are free; 4 trials at once may need 8 GiB -> --set parallel=2"
    )
    assert line(one(system.memory(2, info))) == "ok: 5.0 GiB of 16.0 GiB are free"


def test_a_container_with_little_shared_memory_is_told_the_flag():
    assert line(one(system.shared_memory(64 * 2**20))) == (
        "warning: /dev/shm has 64 MiB; Ray and torch need 256 MiB -> docker run --shm-size=8g"
    )


def test_a_low_limit_of_open_files_is_said_with_its_ulimit():
    script = (
        "import resource; from search import system\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, {hard}))\n"
        "found = next(iter(system.limits())); print(found.status, found.said, found.mend, sep=' | ')"
    )

    def said(hard):
        command = [sys.executable, "-c", script.format(hard=hard)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert said(4096) == "warning | 256 open files; Ray may need 4,096 | ulimit -n 4096"
    assert said(512) == (
        "warning | 256 open files; Ray may need 4,096 | ulimit -n 4096, for which the administrator raises "
        "the limit of 512"
    )


def test_a_taken_port_is_said():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        assert line(one(system.port(number))) == (
            f"warning: port {number}, the dashboard's, can't be had: Address already in use -> vqsearch "
            "dashboard --port 0"
        )
    assert line(one(system.port(number))) == f"ok: port {number}, the dashboard's, is free"


def test_a_machine_whose_name_has_no_address_is_told():
    assert line(one(system.network("no-such-name.invalid"))) == (
        "warning: the name of this machine, no-such-name.invalid, has no address -> a line '127.0.1.1 "
        "no-such-name.invalid' in /etc/hosts"
    )
    assert one(system.network("localhost")).status == "ok"


def disk(free, files=1000, total=100e9):
    """What statvfs says of a disk with that many free bytes and files."""
    block = 4096
    counts = int(total / block), int(free / block), int(free / block)
    return os.statvfs_result((block, block, *counts, 10**6, files, files, 0, 255))


@pytest.mark.parametrize(
    ("usage", "needed", "said"),
    [
        (disk(50e9), 1e9, "ok: /runs on ext4, 50.0 GB of 100.0 GB are free; about 1.0 GB will be needed"),
        (disk(5e9), 0, "warning: /runs on ext4, 5.0 GB of 100.0 GB are free -> another disk"),
        (
            disk(50e9),
            80e9,
            "warning: /runs on ext4, 50.0 GB of 100.0 GB are free; about 80.0 GB will be needed -> another disk",
        ),
        (disk(0), 0, "error: /runs on ext4, 0.0 GB of 100.0 GB are free -> another disk"),
        (
            disk(50e9, files=0),
            0,
            "error: /runs on ext4, 50.0 GB of 100.0 GB are free, but no more files (inodes) -> another disk",
        ),
    ],
)
def test_a_disk_that_is_small_or_full_is_said(tmp_path, usage, needed, said):
    assert line(places.room("output", places.Path("/runs"), usage, "ext4", needed, "another disk")) == said


def test_a_temporary_disk_on_which_ray_would_stop_is_said(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/scratch")
    assert line(one(places.temporary(disk(2e9)))) == (
        "warning: /scratch, where Ray keeps its sessions, is 98 % full; above 95 % it starts nothing more -> remove "
        "what nobody needs there, or $RAY_TMPDIR on another disk"
    )
    assert one(places.temporary(disk(50e9))).status == "ok"


def test_an_output_root_is_tried_and_left_as_it_was(tmp_path):
    found = one(places.output_root(str(tmp_path / "runs"), 1e9))
    assert found.status != "error"
    assert re.fullmatch(
        rf"{tmp_path}/runs on \w+, [\d.,]+ GB of [\d.,]+ GB are free; about 1\.0 GB will be needed", found.said
    )
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    found = one(places.output_root(str(tmp_path / "file" / "runs")))
    assert (found.status, found.mend) == ("error", "--output with another folder")
    assert found.said.startswith(f"{tmp_path}/file/runs: the output root can't be written: ")


@pytest.mark.parametrize(
    ("skew", "status", "words"),
    [
        (0.2, "ok", "the server is 0.2 s ahead of this machine"),
        (-54.0, "ok", "the server is 54.0 s behind this machine"),
        (-56.0, "warning", "the server is 56.0 s behind this machine; a driver that runs may look silent"),
        (4000.0, "error", "the server is 4000.0 s ahead of this machine; a driver that runs may be taken for dead"),
    ],
)
def test_a_clock_is_judged_by_what_leases_bear(skew, status, words):
    found = stored.clock(skew, "the server")
    assert (found.status, found.said, bool(found.mend)) == (status, words, status != "ok")
    # What a driver there wrote when it last beat, up to `BEAT_S` ago, says that it lives wherever we say ok.
    beat = time.time() + skew - (lease.BEAT_S if skew < 0 else 0)
    holder = lease.Holder(number=0, host="other", pid=1, machine="other", born=0, beat=beat, paused=False)
    assert lease.lives(holder) is (True if status == "ok" else None)


def test_a_storage_that_is_not_there_yet_is_not_made(tmp_path):
    for url in (f"sqlite:///{tmp_path}/a.db", f"journal://{tmp_path}/deep/studies"):
        storage, clock = stored.storage(url)
        assert line(storage) == f"ok: {url} will be made"
        assert line(clock) == "ok: the storage is on a disk of this machine, and so is its clock"
    assert list(tmp_path.iterdir()) == []
    url = f"sqlite:///{tmp_path}/no/a.db"
    assert (
        line(next(iter(stored.storage(url))))
        == f"error: {url}: no such folder {tmp_path}/no -> mkdir -p '{tmp_path}/no'"
    )


def test_a_storage_is_written_to_and_nothing_stays(storage_url):
    optuna.create_study(study_name="a", storage=open_storage(storage_url))
    storage, clock = stored.storage(storage_url)
    assert (storage.status, clock.status) == ("ok", "ok"), storage
    assert ": 1 study, " in storage.said
    assert [each.study_name for each in open_storage(storage_url).get_all_studies()] == ["a"]


def test_a_server_without_tables_is_left_so(postgresql):
    url = postgresql()
    for _ in range(2):
        storage, clock = stored.storage(url)
        assert re.search(r" \(PostgreSQL [\d.]+\) answers in \d+ ms; tables will be made$", storage.said)
        assert clock.said.startswith("the storage's server is 0.")


def test_a_storage_that_may_only_be_read_is_said():
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/a.db"
        storage = open_storage(url)
        optuna.create_study(storage=storage)
        storage.engine.dispose()
        os.chmod(f"{folder}/a.db", 0o444)
        os.chmod(folder, 0o555)
        if not user:
            os.seteuid(65534)
        try:
            found = next(iter(stored.storage(url)))
        finally:
            if not user:
                os.seteuid(user)
        os.chmod(folder, 0o755)
    assert line(found) == (
        f"error: {url}: can be read, but not written: attempt to write a readonly database -> who may write to "
        f"{folder}/a.db and its folder"
    )


def test_pictures_are_tried_and_none_is_an_error(tmp_path):
    config = DataConfig(source="folder", path=str(tmp_path), cache=str(tmp_path), resolution=64)
    found = one(doctor.guarded("images", lambda: places.images(config)))
    assert line(found).startswith(f"error: {tmp_path}: no pictures in it -> files ending in .jpg, ")
    (tmp_path / "a.png").write_bytes(b"not a picture")
    pictures, cache = places.images(config)
    assert line(pictures) == (
        f"error: 1 picture in {tmp_path}; 1 of the first 1 can't be read: a.png (UnidentifiedImageError) -> pictures "
        "that a viewer opens; the rest is skipped"
    )
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "b.png")
    pictures, cache = places.images(config)
    assert pictures.status == "warning"
    assert cache.name == "cache"
    (tmp_path / "a.png").unlink()
    assert line(next(iter(places.images(config)))) == f"ok: 1 picture in {tmp_path}; the first 1 can be read"


def test_a_check_that_crashes_or_hangs_is_a_finding_and_hides_passwords():
    def crash():
        raise ValueError("postgresql://me:secret@host/x is odd\nsecond line")

    assert (
        line(one(doctor.guarded("a", crash)))
        == "error: can't be checked: ValueError: postgresql://me:***@host/x is odd"
    )
    never = threading.Event()
    assert line(one(doctor.guarded("b", never.wait, 0.05))) == (
        "error: no answer within 0.05 s -> a disk, a server or a driver hangs; mend that, then look again"
    )
    never.set()
    assert one(doctor.guarded("c", lambda: [Finding(name="c", status="ok", said="fine")])).said == "fine"


def test_the_command_says_a_line_for_each_and_exits_by_the_errors(tiny_file, command, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tiny_file.parent / "home"))
    code, out, err = command("doctor", "tiny.yaml")
    assert (code, err) == (0, ""), out
    lines = [each for each in out.splitlines() if not each.startswith(" " * 24)]
    assert all(re.match(r"(ok     |warning|error  )  \S.{12}  \S", each) for each in lines[:-1])
    assert "ok       space          tiny.yaml: 2 parameters, 4 trials" in lines
    assert re.fullmatch(r"0 errors, \d+ warnings?, \d+ ok", lines[-1])
    assert sorted(each.name for each in tiny_file.parent.iterdir()) == ["tiny.yaml"]

    code, out, err = command("doctor", "tiny.yaml", "--set", "train.evaluation.lpips=true")
    home = tiny_file.parent / "home" / "hub" / "checkpoints"
    assert (code, err) == (2, "")
    assert f"error    weights        {home}/alexnet-owt-7be5be79.pth: no such file\n" in out
    assert "\n" + " " * 24 + "mend: LPIPS needs torchvision's ImageNet weights of alexnet" in out
    assert "; or do without: --set train.evaluation.lpips=false\n" in out
    assert "1 error, " in out.splitlines()[-1]


def test_a_storage_that_does_not_answer_is_one_of_the_findings(tiny_file, command, monkeypatch):
    monkeypatch.setenv("VQSEARCH_STORAGE", "postgresql://me:secret@127.0.0.1:1/x")
    code, out, err = command("doctor", "--json")
    told = json.loads(out)
    assert (code, err, "secret" in out) == (2, "", False)
    assert told["errors"] == sum(each["status"] == "error" for each in told["checks"]) == 1
    found = one(each for each in told["checks"] if each["name"] == "storage")
    assert found["said"].startswith("postgresql://me:***@127.0.0.1:1/x: the storage can't be opened: ")
    assert found["mend"] == "a storage that is there and lets this user in; --storage names another one"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "study: [1]",
        "study: !!python/object/apply:os.system [ls]",
        "\x00\x1b[2J",
        "comparison: x",
        "a: &a [*a]",
    ],
)
def test_no_space_file_makes_the_doctor_crash(tmp_path, command, text):
    name = "bad\x1b[31m\nok.yaml"
    (tmp_path / name).write_text(text)
    code, out, err = command("doctor", name)
    assert (code, err) == (2, "")
    assert "error    space          bad\\x1b[31m\\nok.yaml:" in out
    assert "\x1b" not in out
    assert "Traceback" not in out
    assert "storage        sqlite:///vqsearch.db will be made" in out


def test_a_password_on_the_command_line_is_refused_without_showing_it(command):
    code, out, _ = command("doctor", "--storage", "postgresql://me:secret@host/x")
    assert code == 2
    assert "       output  " in out
    assert "error    storage        a command line shows the storage's password to everyone on this machine\n" in out
    assert "secret" not in out


def test_a_torch_that_cannot_be_imported_is_a_line(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libtorch.so: wrong ELF class')\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "search", "doctor"]
    ran = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert "error    gpus           torch can't be imported: libtorch.so: wrong ELF class\n" in ran.stdout
    assert "Traceback" not in ran.stdout + ran.stderr
