"""What a training run is: frozen, keyword-only dataclasses, checked when they are made.

Every field is followed by its meaning, unit and range. The defaults are the settings of the article
this project grew from (256-pixel images, 30,000 steps, a Mamba backbone of 33M parameters).

    config = TrainConfig(steps=1000, model=ModelConfig(backbone="attention", width=128, depth=2))
    config = replace(config, {"optimizer.lr": 1e-3})
    config == from_dict(to_dict(config))

This module uses the standard library only, so that a command line can read it without loading torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class VqvaeError(Exception):
    """Base of every error that `vqvae` raises for what a user can mend.

    The message says what, where, which value and what was expected.
    """


class ConfigError(VqvaeError):
    """A setting that is unknown, of the wrong type or out of range.

    Attributes:
        key: dotted name of the field, such as ``optimizer.lr``.
        problem: the rest of the message.
    """

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key = key
        self.problem = problem

    def within(self, parent: str) -> ConfigError:
        """The same error, its key seen from one level up."""
        return ConfigError(f"{parent}.{self.key}", self.problem)


LARGEST = 2**16
"""Of any one dimension of a model or an image: far beyond use, near enough that sizes still multiply."""


def _require(holds: bool, key: str, expected: str, value: object) -> None:
    if not holds:
        raise ConfigError(key, f"must be {expected}, but got {value!r}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Encoder and decoder, mirror images of each other."""

    backbone: str = "mamba"
    """One of `vqvae.model.BACKBONES`: convolution, attention, mamba, bimamba."""
    width: int = 256
    """Channels of a token."""
    depth: int = 12
    """Blocks on each side (for the convolution backbone: on each side at each resolution)."""
    patch: int = 8
    """Pixels a token covers along each side; a power of two for the convolution backbone."""
    overlap: float = 0.0
    """Overlap of neighboring patches as a fraction of the patch: kernel = patch x (1 + overlap); 0 to 2."""
    final_convolution: bool = False
    """A last 3 x 3 convolution on the pixels, against grid artifacts."""
    mlp_ratio: int = 4
    """Hidden width of SwiGLU / width."""
    head_size: int = 64
    """Channels of one head, of attention and of Mamba2."""
    state_size: int = 128
    """State dimensions of Mamba2 (N in the paper)."""
    channel_multipliers: tuple[float, ...] = ()
    """Convolution backbone: channels at each resolution / `width`, from pixels to tokens; () is 1/2, ..., 1/2, 1."""

    def __post_init__(self) -> None:
        for name in ("width", "depth", "patch", "mlp_ratio", "head_size", "state_size"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
            most = 1000 if name == "depth" else LARGEST
            _require(getattr(self, name) <= most, name, f"at most {most}", getattr(self, name))
        _require(0 <= self.overlap <= 2, "overlap", "from 0 to 2", self.overlap)
        extra = self.patch * self.overlap
        _require(
            extra == int(extra) and int(extra) % 2 == 0,
            "overlap",
            f"such that patch x overlap is an even number of pixels (patch is {self.patch})",
            self.overlap,
        )
        _require(
            all(0 < m <= LARGEST for m in self.channel_multipliers),
            "channel_multipliers",
            f"above 0 and at most {LARGEST} each",
            self.channel_multipliers,
        )


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """From vectors to code indices and back."""

    kind: str = "vq"
    """One of `vqvae.quantize.QUANTIZERS`."""
    codebook_size: int = 16384
    """Number of codes."""
    code_dim: int = 16
    """Dimensions of a code."""
    beta: float = 0.25
    """Weight of the commitment term (van den Oord et al. 2017, eq. 3)."""
    l2_normalize: bool = True
    """Compare codes and encoder outputs on the unit sphere (ViT-VQGAN, Yu et al. 2022, section 3.2)."""

    def __post_init__(self) -> None:
        _require(self.codebook_size >= 2, "codebook_size", "at least 2", self.codebook_size)
        _require(self.codebook_size <= 2**24, "codebook_size", f"at most {2**24}", self.codebook_size)
        _require(1 <= self.code_dim <= LARGEST, "code_dim", f"from 1 to {LARGEST}", self.code_dim)
        _require(0 <= self.beta < math.inf, "beta", "at least 0 and finite", self.beta)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the terms of the training loss; a term of weight 0 is not computed."""

    l1: float = 0.0
    """Weight of the mean absolute error of pixels in [-1, 1]."""
    l2: float = 1.0
    """Weight of the mean squared error of pixels in [-1, 1]."""
    perceptual: float = 0.1
    """Weight of LPIPS on the vgg16 trunk (Zhang et al. 2018)."""
    lpips_trunk: str = ""
    """File with torchvision's vgg16 weights; "" looks in torch.hub's folder, "random" draws them, for tests."""

    def __post_init__(self) -> None:
        for name in ("l1", "l2", "perceptual"):
            _require(0 <= getattr(self, name) < math.inf, name, "at least 0 and finite", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule, which always runs over the whole of `TrainConfig.steps`."""

    lr: float = 3.0e-4
    """Peak learning rate."""
    beta1: float = 0.9
    """Decay of the first moment; 0 to 1."""
    beta2: float = 0.95
    """Decay of the second moment; 0 to 1."""
    weight_decay: float = 0.05
    """Decoupled weight decay of matrices; codebook, norms, biases, positions, A_log, D, dt_bias have none."""
    epsilon: float = 1.0e-8
    """Added to the root of the second moment."""
    schedule: str = "cosine"
    """After the linear warm-up: cosine, wsd (constant, then linear decay) or constant."""
    warmup_steps: int = 1024
    """Optimizer steps of linear warm-up from 0."""
    decay_fraction: float = 0.2
    """Part of the steps in which wsd decays; 0 to 1."""
    final_lr_ratio: float = 0.0
    """Learning rate at the last step / peak; 0 to 1."""
    clip_norm: float = 0.0
    """Gradients are scaled to at most this global norm; 0 is off."""

    def __post_init__(self) -> None:
        _require(0 < self.lr < math.inf, "lr", "above 0 and finite", self.lr)
        for name in ("beta1", "beta2"):
            _require(0 <= getattr(self, name) < 1, name, "from 0 to below 1", getattr(self, name))
        _require(self.weight_decay >= 0, "weight_decay", "at least 0", self.weight_decay)
        _require(self.epsilon > 0, "epsilon", "above 0", self.epsilon)
        schedules = ("cosine", "wsd", "constant")
        _require(self.schedule in schedules, "schedule", f"one of {', '.join(schedules)}", self.schedule)
        _require(self.warmup_steps >= 0, "warmup_steps", "at least 0", self.warmup_steps)
        for name in ("decay_fraction", "final_lr_ratio"):
            _require(0 <= getattr(self, name) <= 1, name, "from 0 to 1", getattr(self, name))
        _require(self.clip_norm >= 0, "clip_norm", "at least 0", self.clip_norm)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images come from and how they are prepared."""

    source: str = "photographs"
    """photographs (bundled with scikit-image and scikit-learn, no download) or folder."""
    path: str = ""
    """Image folder, searched in depth; needed by the source folder."""
    resolution: int = 256
    """Height and width of the training images in pixels; a multiple of the patch."""
    validation_fraction: float = 0.05
    """Part of a folder's images held out for the search; above 0, below 1."""
    test_fraction: float = 0.05
    """Part of a folder's images that only finalists are judged on; 0 to below 1."""
    crop_scale: float = 0.8
    """Smallest area of a random resized crop / area of the image; above 0, at most 1 (1 is off)."""
    flip: float = 0.3
    """Probability of a horizontal flip."""
    cache: str = ""
    """Folder of the decoded images that all trials of a machine share; "" is ~/.cache/vqsearch."""

    def __post_init__(self) -> None:
        sources = ("photographs", "folder")
        _require(self.source in sources, "source", f"one of {', '.join(sources)}", self.source)
        if self.source == "folder":
            _require(bool(self.path), "path", "the folder of images, since source is folder", self.path)
        _require(1 <= self.resolution <= LARGEST, "resolution", f"from 1 to {LARGEST}", self.resolution)
        _require(
            0 < self.validation_fraction < 1,
            "validation_fraction",
            "above 0 and below 1",
            self.validation_fraction,
        )
        _require(0 <= self.test_fraction < 1, "test_fraction", "from 0 to below 1", self.test_fraction)
        _require(
            self.validation_fraction + self.test_fraction < 1,
            "test_fraction",
            f"such that with validation_fraction ({self.validation_fraction}) it stays below 1",
            self.test_fraction,
        )
        _require(0 < self.crop_scale <= 1, "crop_scale", "above 0 and at most 1", self.crop_scale)
        _require(0 <= self.flip <= 1, "flip", "from 0 to 1", self.flip)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured on held-out images."""

    images: int = 512
    """Held-out images that are measured, at most."""
    lpips: bool = True
    """Measure LPIPS on the alex trunk (never the one that trains)."""
    lpips_trunk: str = ""
    """File with torchvision's alexnet weights; "" looks in torch.hub's folder, "random" draws them, for tests."""

    def __post_init__(self) -> None:
        _require(self.images >= 1, "images", "at least 1", self.images)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    steps: int = 30000
    """Optimizer steps of the whole run; schedules run over it."""
    rungs: tuple[int, ...] = ()
    """Steps after which the model is evaluated, besides the last one; increasing."""
    batch_size: int = 128
    """Images of one optimizer step."""
    micro_batch: int = 16
    """Images on the device at once; divides `batch_size`."""
    ema_decay: float = 0.999
    """Decay a step of the weights' moving average, which is what is evaluated and exported; 0 is off."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints besides those at rungs; 0 is off."""
    seed: int = 0
    """Of the weights, the order of the images and the augmentation."""
    device: str = "auto"
    """auto (cuda where there is one, else cpu), cpu or cuda."""
    precision: str = "auto"
    """auto (bfloat16 autocast on cuda, float32 on cpu), bfloat16 or float32."""
    compile: str = "auto"
    """Compile the blocks: auto (on cuda), always or never."""

    def __post_init__(self) -> None:
        _require(self.steps >= 1, "steps", "at least 1", self.steps)
        rising = all(a < b for a, b in zip(self.rungs, self.rungs[1:], strict=False))
        _require(
            rising and all(0 < rung <= self.steps for rung in self.rungs),
            "rungs",
            f"increasing and from 1 to the number of steps ({self.steps})",
            self.rungs,
        )
        _require(self.batch_size >= 1, "batch_size", "at least 1", self.batch_size)
        _require(self.micro_batch >= 1, "micro_batch", "at least 1", self.micro_batch)
        _require(
            self.batch_size % self.micro_batch == 0,
            "micro_batch",
            f"a divisor of batch_size ({self.batch_size})",
            self.micro_batch,
        )
        _require(0 <= self.ema_decay < 1, "ema_decay", "from 0 to below 1", self.ema_decay)
        _require(self.checkpoint_every >= 0, "checkpoint_every", "at least 0", self.checkpoint_every)
        for name, choices in (
            ("device", ("auto", "cpu", "cuda")),
            ("precision", ("auto", "bfloat16", "float32")),
            ("compile", ("auto", "always", "never")),
        ):
            value = getattr(self, name)
            _require(value in choices, name, f"one of {', '.join(choices)}", value)
        _require(
            self.data.resolution % self.model.patch == 0,
            "data.resolution",
            f"a multiple of model.patch ({self.model.patch})",
            self.data.resolution,
        )

    @property
    def tokens(self) -> int:
        """Tokens of one image."""
        return (self.data.resolution // self.model.patch) ** 2


def fields(kind: type = TrainConfig, prefix: str = "") -> dict[str, Any]:
    """Dotted name of every field -> its type, the nested dataclasses unfolded.

    >>> fields()["optimizer.lr"]
    <class 'float'>
    """
    hints = typing.get_type_hints(kind)
    found: dict[str, Any] = {}
    for item in dataclasses.fields(kind):
        annotation = hints[item.name]
        name = f"{prefix}{item.name}"
        if dataclasses.is_dataclass(annotation):
            found |= fields(typing.cast("type", annotation), f"{name}.")
        else:
            found[name] = annotation
    return found


def convert(key: str, value: Any, annotation: Any) -> Any:
    """`value` as the type of a field: whole numbers pass as floats and lists as tuples, nothing else bends.

    Raises:
        ConfigError: of another type, NaN included.
    """
    if typing.get_origin(annotation) is tuple:
        _require(isinstance(value, (list, tuple)), key, "a list", value)
        return tuple(convert(key, item, typing.get_args(annotation)[0]) for item in value)
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is float:
        _require(number and not math.isnan(value), key, names[float], value)
        return float(value)
    if annotation is int:
        _require(number and math.isfinite(value) and value == int(value), key, names[int], value)
        return int(value)
    _require(isinstance(value, annotation), key, names[annotation], value)
    return value


def from_dict(values: Mapping[str, Any], kind: type = TrainConfig) -> Any:
    """A config from nested mappings, such as parsed YAML or JSON; what is absent keeps its default.

    Args:
        values: field -> value, or nested mapping for a part.
        kind: the dataclass to make; `TrainConfig` by default.

    Raises:
        ConfigError: an unknown field, a wrong type or a value out of range, with its dotted key.
    """
    hints = typing.get_type_hints(kind)
    known = {item.name for item in dataclasses.fields(kind)}
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(str(key), unknown(str(key), known))
        if dataclasses.is_dataclass(hints[key]):
            _require(isinstance(value, Mapping), key, "a mapping of fields", value)
            try:
                arguments[key] = from_dict(value, typing.cast("type", hints[key]))
            except ConfigError as error:
                raise error.within(key) from None
        else:
            arguments[key] = convert(key, value, hints[key])
    return kind(**arguments)


def unknown(key: str, known: typing.Iterable[str]) -> str:
    """The words for a key that is not among `known`, with the nearest one that is."""
    near = difflib.get_close_matches(key, list(known), n=1)
    return f"unknown field; did you mean {near[0]}?" if near else f"unknown field; known are {', '.join(sorted(known))}"


def to_dict(config: Any) -> dict[str, Any]:
    """The nested dictionary of a config, of JSON types only (tuples become lists)."""
    return {
        item.name: (
            to_dict(value)
            if dataclasses.is_dataclass(value := getattr(config, item.name))
            else list(value)
            if isinstance(value, tuple)
            else value
        )
        for item in dataclasses.fields(config)
    }


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names to nested dictionaries: ``{"a.b": 1}`` to ``{"a": {"b": 1}}``."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return nested


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings with those of `changes` laid over them; neither is changed."""
    result = dict(values)
    for key, value in changes.items():
        before = result.get(key)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        result[key] = merged(typing.cast("Mapping[str, Any]", before), value) if both else value
    return result


def replace(config: TrainConfig, flat: Mapping[str, Any]) -> TrainConfig:
    """`config` with some fields set, named by their dotted names; all are set before anything is checked.

    Raises:
        ConfigError: as in `from_dict`.
    """
    result: TrainConfig = from_dict(merged(to_dict(config), nest(flat)))
    return result


METRICS: dict[str, str] = {
    "val/lpips_alex": "minimize",
    "val/psnr": "maximize",
    "val/ssim": "maximize",
    "val/l1": "minimize",
    "val/codebook_usage": "",
    "val/perplexity": "",
    "val/entropy_bits_per_image": "",
}
"""What an evaluation measures on held-out images -> the direction in which it is better, "" for a diagnostic."""
