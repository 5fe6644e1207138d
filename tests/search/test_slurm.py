"""A search as a job of Slurm: what its script asks for, what is refused, how it ends; once on a Slurm of its own."""

import getpass
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from optuna.trial import TrialState

from search import catalog, mounts, slurm
from search.cli import cli
from search.errors import UserError
from search.storage import open_storage

SPACE = """\
study: slurmed
objective: {metric: val/psnr, direction: maximize}
budget: {trials: 4, steps: 1400}
pruner: {kind: none}
resources: {gpus: 0, cpus: 2}
train:
  model: {backbone: attention, width: 16, depth: 1, head_size: 8}
  quantizer: {codebook_size: 32, code_dim: 4}
  loss: {perceptual: 0.0}
  data: {resolution: 32}
  evaluation: {images: 4, lpips: false}
  optimizer: {warmup_steps: 10}
  batch_size: 4
  checkpoint_every: 0
search:
  optimizer.lr: {float: [1.0e-4, 1.0e-2], log: true}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a name that only careful quoting survives, and a space file in it; the working folder."""
    place = tmp_path / 'it\'s $(touch here) "mine"'
    place.mkdir()
    (place / "space.yaml").write_text(SPACE)
    monkeypatch.chdir(place)
    monkeypatch.delenv("VQSEARCH_STORAGE", raising=False)
    return place


def run(*words):
    """Output of the command, which has to succeed."""
    result = CliRunner().invoke(cli, ["slurm", "space.yaml", "--gpus-per-node", "0", *words], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def shared(folder, *words):
    return run("--storage", f"journal://{folder}/a.journal", "--output", f"{folder}/out", "--shared", *words)


def test_the_script_asks_slurm_for_what_was_asked_and_a_signal_and_a_place_in_the_queue(folder):
    words = ["--nodes", "3", "--gpus-per-node", "8", "--time", "1-12", "--partition", "gpu", "--account", "lab"]
    words += ["--mem", "64G", "--sbatch", "--qos=high", "--setup", "module load cuda", "--set", "resources.gpus=0.5"]
    text = shared(folder, *words)
    assert text.splitlines()[:17] == [
        "#!/usr/bin/env bash",
        "#SBATCH --job-name=vqsearch-slurmed",
        "#SBATCH --nodes=3",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --cpus-per-task=32",  # sixteen trials of two cores
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --time=1-12",
        "#SBATCH --partition=gpu",
        "#SBATCH --account=lab",
        "#SBATCH --mem=64G",
        "#SBATCH --signal=B:USR1@300",
        "#SBATCH --requeue",
        "#SBATCH --no-kill",
        "#SBATCH --open-mode=append",
        "#SBATCH --output=vqsearch-%j.log",
        "#SBATCH --qos=high",
        "# Made by vqsearch slurm. Submitted again, it goes on with the search.",
    ]
    assert text.index("module load cuda\n") < text.index("set -euo pipefail\n")


def words_of(text, name):
    """An array of the script as bash reads it."""
    head = text.partition("set -euo pipefail")[0]
    ask = f"{head}\nprintf '%s\\0' \"${{{name}[@]}}\""
    return subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True).stdout.split("\0")[:-1]


def test_no_name_of_a_file_is_more_than_a_name_to_the_shell(folder):
    text = shared(folder, "--time", "60", "--set", "budget.trials=2", "--trials", "3")
    place = str(folder)
    assert words_of(text, "folder") == [place]
    assert words_of(text, "python") == [sys.executable, "-P", "-m"]
    assert words_of(text, "command") == [
        *("search", "launch", f"{place}/space.yaml", "--set", "budget.trials=2", "--trials", "3"),
        *("--storage", f"journal://{place}/a.journal", "--output", f"{place}/out"),
    ]
    assert not (folder / "here").exists()


def test_a_comparison_is_compared(folder):
    shutil.copy(Path(__file__).parents[2] / "spaces" / "fair-demo.yaml", folder / "space.yaml")
    assert words_of(shared(folder, "--time", "60"), "command")[1:3] == ["compare", f"{folder}/space.yaml"]


def test_a_transfer_is_a_transfer(folder):
    shutil.copy(Path(__file__).parents[2] / "spaces" / "transfer-demo.yaml", folder / "space.yaml")
    assert words_of(shared(folder, "--time", "60"), "command")[1:3] == ["transfer", f"{folder}/space.yaml"]


def test_in_a_container_everything_runs_in_its_image_which_sees_the_files(folder, tmp_path):
    (tmp_path / "vq.sif").write_text("")
    place = tmp_path / "plain"
    place.mkdir()
    (place / "space.yaml").write_text(SPACE)
    os.chdir(place)
    words = ["--storage", f"journal://{tmp_path}/j/a.journal", "--output", f"{tmp_path}/out", "--shared"]
    text = run(*words, "--time", "60", "--container", f"{tmp_path}/vq.sif", "--gpus-per-node", "1")
    bound = [f"--bind={tmp_path}/{name}" for name in ("j", "out", "plain")]
    image = f"{tmp_path}/vq.sif"
    assert words_of(text, "python") == ["apptainer", "exec", "--nv", *bound, image, "python3", "-P", "-m"]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing(folder):
    text = shared(folder, "--time", "60", "--nodes", "2")
    checked = subprocess.run(["shellcheck", "-"], input=text, capture_output=True, text=True)
    assert checked.stdout == ""


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("90", 5400), ("10:30", 630), ("24:00:00", 86400), ("2-00", 172800), ("1-2:30", 95400), ("1-00:00:01", 86401)],
)
def test_a_time_is_read_as_slurm_reads_it(time, seconds):
    assert slurm._seconds(time) == seconds


def test_a_short_job_is_told_earlier_in_its_life(folder):
    assert "#SBATCH --signal=B:USR1@150\n" in shared(folder, "--time", "10")


JOURNAL = "journal:///FILE on a file system that all nodes share, or postgresql://..."


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            ["--storage", "sqlite:///a.db"],
            f"--storage sqlite:///a.db: SQLite loses writes where several machines share a file; expected {JOURNAL}",
        ),
        (
            ["--storage", "postgresql://me@localhost/studies"],
            "--storage postgresql://me@localhost/studies: every node would look for it on itself; expected the name of "
            "its host",
        ),
        (["--time", "soon"], "--time: must be a limit as Slurm writes it, such as 24:00:00 or 2-00, but got 'soon'"),
        (["--time", "0:0"], "--time: must be a limit as Slurm writes it, such as 24:00:00 or 2-00, but got '0:0'"),
        (["--partition", "a b"], "--partition: must be a name that Slurm knows, but got 'a b'"),
        (["--account", "a\n#SBATCH"], "--account: must be a name that Slurm knows, but got 'a\\n#SBATCH'"),
        (
            ["--mem", "much"],
            "--mem: must be megabytes or a number with K, M, G or T, such as 64G, but got 'much'",
        ),
        (["--sbatch", "qos"], "--sbatch: must be one option of sbatch, such as --qos=high, but got 'qos'"),
        (
            ["--set", "resources.gpus=1"],
            "--gpus-per-node: a trial asks for 1 GPU (resources.gpus), but a node would have 0",
        ),
        (
            ["--cpus-per-task", "1"],
            "--cpus-per-task: a trial asks for 2 cores (resources.cpus), but a node would have 1",
        ),
        (["--container", "/no/image.sif"], "--container /no/image.sif: no such image"),
    ],
)
def test_what_could_not_work_is_refused_before_it_waits_in_a_queue(folder, words, problem):
    given = ["--storage", "postgresql://me@db/studies", "--output", "s3://bucket/out", "--time", "60", *words]
    with pytest.raises(UserError) as caught:
        run(*given)
    assert str(caught.value) == problem


def test_a_storage_or_output_that_one_machine_alone_sees_is_refused(folder, monkeypatch):
    kind = mounts.kind(folder)
    monkeypatch.setattr(mounts, "SHARED", mounts.SHARED - {kind})
    alone = f"lies on {kind} of this machine alone; expected"
    with pytest.raises(UserError) as caught:
        run("--storage", f"journal://{folder}/a", "--time", "60")
    assert str(caught.value) == f"--storage {folder}/a: {alone} {JOURNAL} (--shared, if all nodes see it)"
    with pytest.raises(UserError) as caught:
        run("--storage", "postgresql://db/studies", "--time", "60")
    expected = "a folder on a file system that all nodes share, or a bucket (--shared, if all nodes see it)"
    assert str(caught.value) == f"--output {folder}/vqsearch-output: {alone} {expected}"
    monkeypatch.setattr(mounts, "SHARED", mounts.SHARED | {kind})
    assert run("--storage", f"journal://{folder}/a", "--time", "60")


def test_a_password_stays_in_its_file(folder, monkeypatch):
    monkeypatch.setenv("VQSEARCH_STORAGE", "postgresql://me:secret@db/studies")
    with pytest.raises(UserError) as caught:
        run("--output", "s3://bucket/out", "--time", "60")
    assert str(caught.value) == (
        "--storage postgresql://me:***@db/studies: Slurm keeps scripts, and with them this password; expected "
        "--storage-file FILE"
    )
    file = folder / "url"
    file.write_text("postgresql://me:secret@db/studies\n")
    file.chmod(0o600)
    text = run("--storage-file", "url", "--output", "s3://bucket/out", "--time", "60")
    assert "secret" not in text
    assert words_of(text, "command")[3:5] == ["--storage-file", str(file)]


def test_without_slurm_there_is_nothing_to_submit_to(folder, monkeypatch):
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(UserError) as caught:
        shared(folder, "--time", "60", "--submit")
    assert str(caught.value) == (
        "--submit: there is no sbatch here; expected a login node of the cluster, or the script without --submit"
    )


def test_what_slurm_says_against_a_job_is_said(folder, monkeypatch):
    stand_in(folder, "sbatch", "cat >/dev/null; echo 'sbatch: error: invalid partition' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    with pytest.raises(UserError) as caught:
        shared(folder, "--time", "60", "--submit")
    assert str(caught.value) == "--submit: Slurm does not take the job: sbatch: error: invalid partition"
    stand_in(folder, "sbatch", "cat >script; echo 12; echo $VQSEARCH_STORAGE >storage")
    monkeypatch.setenv("VQSEARCH_STORAGE", "postgresql://me:secret@db/studies")
    assert shared(folder, "--time", "60", "--submit", "--nodes", "2").splitlines() == [
        "slurmed: job 12 waits for 2 nodes",
        "watch it:  tail -F vqsearch-12.log",
        "stop it:   scancel --batch --signal=TERM 12",
    ]
    assert (folder / "script").read_text() == shared(folder, "--time", "60", "--nodes", "2")
    assert (folder / "storage").read_text() == "\n"


def stand_in(folder, name, body):
    """A program in place of one of Slurm's, or of Python."""
    (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def job(folder, monkeypatch):
    """Starts the script on two nodes of a Slurm that is made of stand-ins, with a driver that drains in a moment."""
    tools = folder / "tools"
    tools.mkdir()
    stand_in(tools, "srun", 'echo "srun $*" >>log; while [[ $1 == --* ]]; do shift; done; exec "$@"')
    stand_in(tools, "scontrol", 'case $1 in show) echo n1; echo n2;; *) echo "scontrol $*" >>log;; esac')
    driver = "trap 'sleep 0.2; exit 143' TERM; echo driver >>log; while [ ! -e over ]; do sleep 0.05; done"
    stand_in(
        tools,
        "python",
        f"""case $3 in
    search.slurm_job) if [ "$4" = ports ]; then echo 10.0.0.1 4242; else while [ -e slow ]; do sleep 0.05; done; fi;;
    ray.scripts.scripts) [ "${{#RAY_AUTH_TOKEN}}" = 64 ] && [ ! -e broken ] || exit 1; exec sleep 60;;
    search) {driver};;
esac""",
    )
    text = shared(folder, "--time", "60", "--nodes", "2")
    (folder / "job.sh").write_text(
        text.replace(f"python=({sys.executable} ", f"python=({shlex.quote(str(tools / 'python'))} ")
    )
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "70007",
        "SLURM_JOB_NODELIST": "n[1-2]",
    }
    started = []

    def start(*files):
        for each in files:
            (folder / each).touch()
        process = subprocess.Popen(
            ["bash", "job.sh"], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def log(folder, until=""):
    """What the stand-ins were asked for, as soon as it holds such a line."""
    file, lines = folder / "log", []
    for _ in range(400):
        lines = file.read_text().splitlines() if file.exists() else []
        if any(until in line for line in lines):
            return lines
        time.sleep(0.05)
    raise AssertionError(lines)


def test_a_job_starts_a_head_and_the_others_and_ends_with_its_search(folder, job):
    process = job("over")
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")
    starts = [line for line in log(folder) if "ray.scripts.scripts start --block" in line]
    assert [re.search(r"--nodelist=(\S+)", line)[1] for line in starts] == ["n1", "n2"]
    assert "--head --node-ip-address=10.0.0.1 --port=4242 --include-dashboard=false" in starts[0]
    assert starts[1].endswith("--address=10.0.0.1:4242")
    assert "--temp-dir=/tmp/vqsearch-70007-0 --num-cpus=2 --num-gpus=0" in starts[1]
    ends = [line for line in log(folder) if line.endswith(" rm -rf -- /tmp/vqsearch-70007-0")]
    assert len(ends) == 2
    assert not [line for line in log(folder) if line.startswith("scontrol")]


def test_a_job_whose_time_is_nearly_up_drains_and_goes_back_to_the_queue(folder, job):
    process = job()
    log(folder, "driver")
    os.kill(process.pid, signal.SIGUSR1)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert said == "vqsearch: the time of job 70007 is up; it goes back to the queue, and on from there\n"
    assert log(folder)[-1] == "scontrol requeue 70007"


def test_a_time_that_is_up_before_the_search_began_is_no_end_of_it(folder, job):
    process = job("slow")
    log(folder, "--head")
    os.kill(process.pid, signal.SIGUSR1)
    (folder / "slow").unlink()
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert "driver" not in log(folder)
    assert log(folder)[-1] == "scontrol requeue 70007"


def test_a_job_that_is_told_to_end_drains_and_stays_ended(folder, job):
    process = job()
    log(folder, "driver")
    os.kill(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (143, "")
    assert not [line for line in log(folder) if line.startswith("scontrol")]


def test_a_head_that_does_not_start_ends_the_job_at_once(folder, job):
    process = job("broken", "slow")
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (1, "vqsearch: Ray's head did not start, see above\n")


SLOW = """\
import time

import vqvae


@vqvae.register("loss", "slow")
def slow(made, images):
    time.sleep(0.05)
    return (made - images).square().mean()
"""

DAEMONS = ("munged", "slurmctld", "slurmd")


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A Slurm of two nodes, both on this machine; how long a requeued job waits is cut to seconds."""
    missing = [name for name in DAEMONS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {missing[0]} on this machine: apt-get install slurm-wlm munge")
    place, started = tmp_path / "slurm", []
    for name in ("state", "spool-n1", "spool-n2"):
        (place / name).mkdir(parents=True)
    place.chmod(0o755)
    (place / "key").write_bytes(os.urandom(128))
    (place / "key").chmod(0o600)
    ports = free_ports(4)
    host, user = socket.gethostname().split(".")[0], getpass.getuser()
    nodes = [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=1000 State=UNKNOWN"
        for name, port in (("n1", ports[2]), ("n2", ports[3]))
    ]
    settings = {
        "ClusterName": "test",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmUser": user,
        "SlurmdUser": user,
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={place}/munge,cred_expire=5",
        "SlurmctldPort": ports[0],
        "SlurmdPort": ports[1],
        "StateSaveLocation": f"{place}/state",
        "SlurmdSpoolDir": f"{place}/spool-%n",
        "SlurmctldPidFile": f"{place}/slurmctld.pid",
        "SlurmdPidFile": f"{place}/%n.pid",
        "SlurmdParameters": "config_overrides",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "JobAcctGatherType": "jobacct_gather/none",
        "AccountingStorageType": "accounting_storage/none",
        "MpiDefault": "none",
        "ReturnToService": 2,
        "KillWait": 5,
        "SchedulerParameters": "batch_sched_delay=0,sched_interval=5",
    }
    partition = "PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP"
    lines = [f"{key}={value}" for key, value in settings.items()]
    (place / "slurm.conf").write_text("\n".join([*lines, *nodes, partition, ""]))
    monkeypatch.setenv("SLURM_CONF", f"{place}/slurm.conf")
    munge = [f"--key-file={place}/key", f"--socket={place}/munge", f"--pid-file={place}/munged.pid"]
    munge += [f"--log-file={place}/munged.log", f"--seed-file={place}/seed", "--force", "--foreground"]
    try:
        for name, command in {
            "munged": ["munged", *munge],
            "slurmctld": ["slurmctld", "-D"],
            "n1": ["slurmd", "-D", "-N", "n1"],
            "n2": ["slurmd", "-D", "-N", "n2"],
        }.items():
            with (place / f"{name}.log").open("w") as said:
                started.append(subprocess.Popen(command, stdout=said, stderr=said))
            time.sleep(0.5)
        waited(lambda: asked("sinfo", "-h", "-t", "idle", "-o", "%D") == "2", 30)
        yield place
        asked("scancel", "--user", user)
        waited(lambda: not asked("squeue", "-h"), 60)
    finally:
        for process in reversed(started):
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


def free_ports(count):
    held = [socket.socket() for _ in range(count)]
    try:
        for each in held:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in held]
    finally:
        for each in held:
            each.close()


def asked(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()


def waited(until, seconds):
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, asked("squeue")
        time.sleep(1)


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_longer_than_its_jobs_ends_with_its_exact_budget(cluster, tmp_path, monkeypatch):
    place = tmp_path / "it's mine"
    place.mkdir()
    (place / "slow.py").write_text(SLOW)
    text = SPACE.replace("cpus: 2", "cpus: 1").replace(
        "loss: {perceptual: 0.0}", "loss: {perceptual: 0.0, terms: {slow: 1.0}}"
    )
    (place / "space.yaml").write_text(text)
    monkeypatch.chdir(place)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(slurm.__file__).parents[1]))
    # Four trials of 70 s on two nodes: more than three minutes less the notice and the start.
    words = ["--nodes", "2", "--cpus-per-task", "1", "--time", "3", "--plugin", "slow.py", "--submit"]
    number = shared(place, *words).split("job ")[1].split()[0]
    try:
        waited(lambda: not asked("squeue", "-h"), 1800)
    finally:
        told = (place / f"vqsearch-{number}.log").read_text()
        for left in Path("/tmp").glob(f"vqsearch-{number}-[0-9]*"):
            shutil.rmtree(left, ignore_errors=True)
    study, _ = catalog.load(open_storage(f"journal://{place}/a.journal", create=False), "slurmed")
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 4, told
    assert told.count(f"the time of job {number} is up; it goes back to the queue") >= 1, told
    assert re.search(r"goes on at step [1-9]", told), told
