"""A space that trains in seconds, for every test that needs a search."""

import os
import shutil
import tempfile
import uuid

import pytest

# Sums depend on the number of threads, and trials of one CPU have one. Set before anything imports torch, and for the
# processes that tests start, too.
os.environ["OMP_NUM_THREADS"] = "1"

TINY = """\
study: tiny
objective: {metric: val/psnr, direction: maximize}
budget: {trials: 4, steps: 18}
resources: {gpus: 0, cpus: 1}
parallel: 2
train:
  model: {backbone: attention, width: 16, depth: 1, head_size: 16, patch: 16}
  quantizer: {code_dim: 4}
  loss: {perceptual: 0}
  optimizer: {warmup_steps: 1}
  data: {resolution: 64}
  evaluation: {lpips: false, images: 8}
  batch_size: 4
  micro_batch: 4
search:
  optimizer.lr: {float: [5.0e-4, 5.0e-3], log: true}
  quantizer.codebook_size: {choice: [16, 64, 256]}
"""


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config, items):
    """For `pytest -n 2 --dist loadgroup`: one worker takes all tests that start a Ray, others take whole files.

    Two Rays at once would each take all CPUs for theirs. The tests with a Ray are first, since they take longest.
    """
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            group = "ray" if item.get_closest_marker("ray") else item.nodeid.partition("::")[0]
            item.add_marker(pytest.mark.xdist_group(group))
        items.sort(key=lambda item: item.get_closest_marker("ray") is None)


@pytest.fixture(autouse=True, scope="session")
def _own_state(tmp_path_factory):
    """Which code was named on this machine is kept for these tests alone; the processes that they start have it too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture
def tiny_file(tmp_path):
    """A space file in a folder of its own."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def tiny_text():
    """The text of the space file, for fixtures that live longer than a test."""
    return TINY


@pytest.fixture(scope="session")
def postgresql():
    """A PostgreSQL server of our own; gives a function that makes an empty database and returns its URL."""
    pgserver = pytest.importorskip("pgserver", reason="pgserver, a PostgreSQL for tests, is not installed")
    import sqlalchemy

    folder = tempfile.mkdtemp(prefix="pg")  # Its socket's path must be short.
    server = pgserver.get_server(folder, cleanup_mode="delete")
    engine = sqlalchemy.create_engine(
        server.get_uri().replace("postgresql://", "postgresql+psycopg://"), isolation_level="AUTOCOMMIT"
    )

    def database():
        name = f"test_{uuid.uuid4().hex[:12]}"
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
        return server.get_uri().replace("/postgres?", f"/{name}?")

    yield database
    engine.dispose()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "journal", "postgresql"])
def storage_url(request, tmp_path):
    """An empty storage of each kind."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgresql")()
    return f"{request.param}:///{tmp_path}/{request.param}-studies"


@pytest.fixture(autouse=True)
def _registered_here():
    """Parts that a test registers in this process, and files that it runs here, are gone after it."""
    from vqvae import config, plugins

    entered, loaded, metrics = set(plugins._ENTERED), dict(plugins._LOADED), dict(config.METRICS)
    yield
    for kind, name in set(plugins._ENTERED) - entered:
        plugins._withdraw(kind, name)
    plugins._LOADED.clear()
    plugins._LOADED.update(loaded)
    config.METRICS.clear()  # a trainer adds to them without being registered
    config.METRICS.update(metrics)
