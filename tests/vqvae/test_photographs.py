import numpy as np
import pytest

from vqvae import photographs
from vqvae.sources import DataError


def test_photographs_are_cut_into_a_grid():
    parts = photographs.crops(64)
    assert {name: part[np.arange(len(part))].shape for name, part in parts.items()} == {
        "train": (987, 64, 64, 3),
        "validation": (82, 64, 64, 3),
        "test": (77, 64, 64, 3),
    }


@pytest.mark.parametrize(("resolution", "crops"), [(256, [594, 22, 32]), (512, [287, 10, 4])])
def test_at_high_resolutions_the_crops_overlap_and_small_photographs_are_enlarged(resolution, crops):
    parts = photographs.crops(resolution)
    assert [len(part) for part in parts.values()] == crops
    assert parts["test"][np.arange(crops[2])].shape == (crops[2], resolution, resolution, 3)


def test_no_photograph_is_in_two_splits():
    files = [file for part in photographs.PHOTOGRAPHS.values() for file in part]
    assert len(set(files)) == len(files) == 10


def test_a_photograph_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(photographs.PHOTOGRAPHS, "test", (("skimage", "data/none.png"),))
    with pytest.raises(DataError) as caught:
        photographs.crops(64)
    assert str(caught.value).startswith("photograph data/none.png: not in the installed scikit-image (looked at ")
