import pytest

from search.cluster import fitting
from search.schema import Resources


@pytest.mark.parametrize(
    ("cpus", "gpus", "node", "trials"),
    [
        (1, 0, {"CPU": 4}, 4),
        (8, 0, {"CPU": 4}, 0),
        (1, 1, {"CPU": 16, "GPU": 2}, 2),
        (1, 1, {"CPU": 1, "GPU": 2}, 1),
        (1, 1, {"CPU": 4}, 0),
        (1, 0.5, {"CPU": 16, "GPU": 2}, 4),
        (1, 0.4, {"CPU": 16, "GPU": 2}, 4),
        (1, 0.1, {"CPU": 16, "GPU": 1}, 10),
        (0.5, 0, {"CPU": 2}, 4),
    ],
)
def test_a_node_runs_as_many_trials_as_fit_on_whole_devices(cpus, gpus, node, trials):
    assert fitting(node, Resources(cpus=float(cpus), gpus=float(gpus))) == trials
