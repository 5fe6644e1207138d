"""Files with the weights of networks that others trained: which one goes where, and whether it is whole.

Nothing here downloads. A file's name ends in the beginning of its SHA-256, torchvision's and torch-fidelity's custom.
"""

from __future__ import annotations

import hashlib
import operator
import pickle
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from vqvae.config import VqvaeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vqvae.config import TrainConfig

RANDOM = "random"
"""In place of a trunk's file: an untrained one, for tests."""


class WeightsError(VqvaeError):
    """Weights of a network that are missing, damaged or of another network.

    Attributes:
        problem: the message but for the ways to do without.
        without: settings that do without them, such as ``loss.perceptual=0``.
    """

    def __init__(self, problem: str, without: Sequence[str] = ()) -> None:
        super().__init__(problem + (f"; or do without: {', '.join(without)}" if without else ""))
        self.problem = problem
        self.without = tuple(without)


class Trunk(NamedTuple):
    """A network of torchvision, trained on ImageNet, by whose activations LPIPS compares images."""

    network: str
    """Name of torchvision's constructor."""
    file: str
    """Name of torchvision's file of weights."""
    taps: tuple[int, ...]
    """Layers of `features` after which activations are compared: ReLUs."""
    place: str
    """The field of `TrainConfig` that names another file."""
    use: str
    """The field of `TrainConfig` that asks for it."""
    off: str
    """The value of `use` that does without it."""


TRUNKS = {
    "vgg": Trunk("vgg16", "vgg16-397923af.pth", (3, 8, 15, 22, 29), "loss.lpips_trunk", "loss.perceptual", "0"),
    "alex": Trunk(
        "alexnet", "alexnet-owt-7be5be79.pth", (1, 4, 7, 9, 11), "evaluation.lpips_trunk", "evaluation.lpips", "false"
    ),
}
"""vgg trains, alex judges: then a larger weight of the perceptual term cannot buy the metric."""

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
"""torch-fidelity's file of the Inception network that the Frechet distance is defined with."""


def hub() -> Path:
    """The folder in which torchvision and torch-fidelity keep what they download."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def trunk_file(trunk: Trunk, file: str = "") -> Path:
    """Where the weights of a trunk lie: `file`, or by default torch.hub's folder.

    Raises:
        WeightsError: nothing is there.
    """
    path = Path(file).expanduser() if file else hub() / trunk.file
    if not path.is_file():
        raise _missing([trunk], [path])
    return path


def require(config: TrainConfig) -> None:
    """Looks for every file that a run reads, so that it is asked for before anything else is done.

    Raises:
        WeightsError: naming all that are missing, where they go, how they come there, and how to do without.
    """
    wanted = [trunk for trunk in TRUNKS.values() if _field(config, trunk.use) and _field(config, trunk.place) != RANDOM]
    places = {trunk: Path(_field(config, trunk.place) or hub() / trunk.file).expanduser() for trunk in wanted}
    absent = [trunk for trunk, path in places.items() if not path.is_file()]
    if absent:
        raise _missing(absent, [places[trunk] for trunk in absent])
    if config.evaluation.rfid_weights:
        inception_file(config.evaluation.rfid_weights)


def inception_file(file: str) -> Path:
    """Where the weights of Inception lie.

    Raises:
        WeightsError: nothing is there.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise WeightsError(
            f"{path}: no such file; rfid needs {INCEPTION}, torch-fidelity's weights of Inception, which nothing here "
            f'downloads; on a machine with a network python -c "import torch, '
            f"torch_fidelity.feature_extractor_inceptionv3 as inception; "
            f'torch.hub.load_state_dict_from_url(inception.URL_INCEPTION_V3)" puts it into {hub()}; '
            f"copy it and name its place (evaluation.rfid_weights)",
            without=['evaluation.rfid_weights=""'],
        )
    return path


def read(path: Path, custom: str) -> dict[str, Any]:
    """The tensors of a file whose SHA-256 begins as its name says; no code in it is run.

    Args:
        path: the file.
        custom: an example of a right name.

    Raises:
        WeightsError: the name holds no checksum, or another one than the file's, or the file holds no tensors.
    """
    said = re.search(r"-([0-9a-f]{8,})\.pth$", path.name)
    if not said:
        raise WeightsError(f"{path}: expected a name that ends in the checksum, such as {custom}")
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"{path}: can't be read: {error.strerror or error}") from error
    if not found.startswith(said[1]):
        raise WeightsError(
            f"{path}: damaged: its SHA-256 should begin with {said[1]}, but begins with {found[: len(said[1])]}; "
            f"expected {custom} as it was published"
        )
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise WeightsError(f"{path}: not a file of weights ({type(error).__name__})") from error
    if not isinstance(weights, dict):
        raise WeightsError(f"{path}: not a file of weights ({type(weights).__name__})")
    return weights


def _missing(trunks: Sequence[Trunk], paths: Sequence[Path]) -> WeightsError:
    files, it = ("no such file", "it") if len(trunks) == 1 else ("no such files", "them")
    networks = " and ".join(trunk.network for trunk in trunks)
    names = ", ".join(trunk.file for trunk in trunks)
    calls = "; ".join(f"torchvision.models.{trunk.network}(weights='DEFAULT')" for trunk in trunks)
    return WeightsError(
        f"{' and '.join(map(str, paths))}: {files}; LPIPS needs torchvision's ImageNet weights of {networks} ({names})"
        f', which nothing here downloads; on a machine with a network python -c "import torchvision; {calls}" puts '
        f"{it} into {hub()}; copy {it} there, or name another place ({', '.join(trunk.place for trunk in trunks)})",
        without=[f"{trunk.use}={trunk.off}" for trunk in trunks],
    )


def _field(config: TrainConfig, name: str) -> Any:
    return operator.attrgetter(name)(config)
