"""What a training run is: frozen, keyword-only dataclasses, checked when they are made.

Every field is followed by its meaning, unit and range. The defaults are the settings of the article
this project grew from (256-pixel images, 30,000 steps, a Mamba backbone of 33M parameters).

    config = TrainConfig(steps=1000, model=ModelConfig(backbone="attention", width=128, depth=2))

This module uses the standard library only, so that a command line can read it without loading torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


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


def require(holds: bool, key: str, expected: str, value: object) -> None:
    """Raises ConfigError unless `holds`: ``KEY: must be EXPECTED, but got VALUE``."""
    if not holds:
        raise ConfigError(key, f"must be {expected}, but got {value!r}")


def _each(
    config: object,
    names: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    """Holds each of the fields `names` to a range: from `least` or `above`, to `most`, `below` or any finite number."""
    low = f"from {least:g}" if above is None else f"above {above:g}"
    if most is None and below is None:
        low = low.replace("from", "at least")
        expected = f"{low} and finite"
    elif above is None:
        expected = f"{low} to {most:g}" if below is None else f"{low} to below {below:g}"
    else:
        expected = f"{low} and at most {most:g}" if below is None else f"{low} and below {below:g}"
    for name in names.split():
        value = getattr(config, name)
        enough = (least is None or value >= least) and (above is None or value > above)
        within = value <= most if most is not None else value < (math.inf if below is None else below)
        require(enough and within, name, expected, value)


def _one_of(config: object, name: str, *choices: str) -> None:
    value = getattr(config, name)
    require(value in choices, name, f"one of {', '.join(choices)}", value)


class Options(Mapping[str, Any]):
    """Settings by names that someone else understands, such as a plug-in (`vqvae.plugins`): immutable and hashable.

    Args:
        values: name -> number, text, boolean or a list of them.

    Raises:
        ConfigError: a value of another type.
    """

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self._values = {str(name): _plain(str(name), value) for name, value in (values or {}).items()}

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        return repr(self._values)

    def __getattr__(self, name: str) -> Any:
        """An option as a field: a part that is built finds its own dataclass in this place."""
        if name.startswith("_") or name not in self._values:
            raise AttributeError(f"no option {name!r}")
        return self._values[name]


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_plain(name, item) for item in value)
    plain = isinstance(value, (bool, int, float, str)) and value == value  # NaN is not
    require(plain, name, "a number, text, true, false or a list of them", value)
    return value


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Encoder and decoder, mirror images of each other but for their depth."""

    backbone: str = "mamba"
    """Convolution, attention, mamba, bimamba, mambavision, or the name of a plug-in's."""
    width: int = 256
    """Channels of a token."""
    depth: int = 12
    """Blocks on each side (for the convolution backbone: on each side at each resolution)."""
    decoder_depth: int = 0
    """Blocks of the decoder, where they are not as many as the encoder's `depth`; 0 is as many."""
    patch: int = 8
    """Pixels a token covers along each side; a power of two for the convolution backbone."""
    overlap: float = 0.0
    """Overlap of neighboring patches as a fraction of the patch: kernel = patch x (1 + overlap); 0 to 2. The
    convolution backbone has no patches and none of it."""
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
    options: Options = field(default_factory=Options)
    """Settings that the backbone of a plug-in has for itself; ours have none."""

    def __post_init__(self) -> None:
        for name in ("width", "depth", "patch", "mlp_ratio", "head_size", "state_size"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
            most = 1000 if name == "depth" else LARGEST
            require(getattr(self, name) <= most, name, f"at most {most}", getattr(self, name))
        _each(self, "decoder_depth", least=0, most=1000)
        _each(self, "overlap", least=0, most=2)
        extra = self.patch * self.overlap
        require(
            extra == int(extra) and int(extra) % 2 == 0,
            "overlap",
            f"such that patch x overlap is an even number of pixels (patch is {self.patch})",
            self.overlap,
        )
        require(
            all(0 < m <= LARGEST for m in self.channel_multipliers),
            "channel_multipliers",
            f"above 0 and at most {LARGEST} each",
            self.channel_multipliers,
        )


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """From vectors to code indices and back."""

    kind: str = "vq"
    """One of `vqvae.quantize.QUANTIZERS`: vq, simvq, fsq, lfq, bsq, gumbel."""
    codebook_size: int = 16384
    """Number of codes; a power of two for lfq and bsq; fsq takes it from its `levels`."""
    code_dim: int = 16
    """Dimensions of a code of vq, simvq and gumbel; fsq, lfq and bsq take them from their codes."""
    beta: float = 0.25
    """Weight of the commitment term (van den Oord et al. 2017, eq. 3) of vq, simvq, lfq and bsq."""
    l2_normalize: bool = True
    """vq: compare codes and encoder outputs on the unit sphere (ViT-VQGAN, Yu et al. 2022, section 3.2)."""
    update: str = "gradient"
    """vq: the codebook learns by gradient (of its own term) or by ema (a moving average of its vectors)."""
    ema_decay: float = 0.99
    """vq, update ema: decay of an optimizer step; from 0 to below 1, and in practice 0.99 or more."""
    estimator: str = "straight-through"
    """vq, simvq: gradient through the nearest code: straight-through or rotation (Fifty et al. 2024)."""
    lr_multiplier: float = 1.0
    """Learning rate of the codebook (of simvq: of its map) / that of the rest."""
    revive_below: float = 0.0
    """vq: a code drawn less often than this x vectors / codes (a moving average) restarts at one of the batch's
    vectors; 0 is off, below 1."""
    levels: tuple[int, ...] = ()
    """fsq: values of each dimension, such as 8, 5, 5, 5 for 1000 codes (Mentzer et al. 2023, table 1)."""
    entropy_weight: float = 0.1
    """lfq, bsq: weight of the entropy term (Yu et al. 2023, eq. 5; Zhao et al. 2024); short runs want less: 0.01."""
    diversity: float = 1.0
    """lfq, bsq: weight inside the entropy term of the entropy of the mean, which spreads the codes (gamma)."""
    entropy_temperature: float = 0.01
    """lfq, bsq: temperature of the soft assignment that the entropy term looks at."""
    temperature: float = 1.0
    """gumbel: temperature of the first step; it falls exponentially over the whole run."""
    final_temperature: float = 0.0625
    """gumbel: temperature of the last step (Ramesh et al. 2021, section 2.1 and appendix A.2)."""
    kl_weight: float = 5.0e-4
    """gumbel: weight of the divergence of the code distribution from the uniform one."""
    options: Options = field(default_factory=Options)
    """Settings that the quantizer of a plug-in has for itself; ours have none."""

    def __post_init__(self) -> None:
        require(self.codebook_size >= 2, "codebook_size", "at least 2", self.codebook_size)
        require(self.codebook_size <= 2**24, "codebook_size", f"at most {2**24}", self.codebook_size)
        require(1 <= self.code_dim <= LARGEST, "code_dim", f"from 1 to {LARGEST}", self.code_dim)
        _each(self, "beta entropy_weight diversity kl_weight lr_multiplier", least=0)
        _each(self, "entropy_temperature temperature final_temperature", above=0)
        _one_of(self, "update", "gradient", "ema")
        _one_of(self, "estimator", "straight-through", "rotation")
        _each(self, "ema_decay revive_below", least=0, below=1)
        require(all(level >= 2 for level in self.levels), "levels", "at least 2 each", self.levels)
        require(
            math.prod(self.levels) <= 2**24, "levels", f"at most {2**24} codes, their product, together", self.levels
        )
        if self.kind == "fsq":
            require(bool(self.levels), "levels", "the values of each dimension, since kind is fsq", self.levels)
        if self.kind in ("lfq", "bsq"):
            require(
                self.codebook_size & (self.codebook_size - 1) == 0,
                "codebook_size",
                f"a power of two, since kind is {self.kind}",
                self.codebook_size,
            )


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
    terms: Options = field(default_factory=Options)
    """Weights of the terms of plug-ins, by their names; at least 0."""

    def __post_init__(self) -> None:
        _each(self, "l1 l2 perceptual", least=0)
        for name, weight in self.terms.items():
            require(name not in ("l1", "l2", "perceptual"), f"terms.{name}", f"set as loss.{name}", weight)
            number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
            require(number and 0 <= weight < math.inf, f"terms.{name}", "at least 0 and finite", weight)


@dataclass(frozen=True, kw_only=True)
class GanConfig:
    """A PatchGAN discriminator with the hinge loss, trained beside the model (Esser et al. 2021, section 3.1)."""

    weight: float = 0.0
    """Weight of the generator's term; 0 is off: no discriminator is made."""
    start: float = 0.25
    """Part of the steps after which the discriminator begins to train and to count; 0 to below 1."""
    adaptive: bool = True
    """Scale the term by the ratio of gradients at the last layer (Esser et al. 2021, eq. 7), in each micro-batch."""
    lr: float = 1.0e-4
    """Peak learning rate of the discriminator's own AdamW; it follows the schedule of the model's."""
    beta1: float = 0.5
    """Decay of its first moment; 0 to 1."""
    beta2: float = 0.9
    """Decay of its second moment; 0 to 1."""
    width: int = 64
    """Channels of the discriminator's first layer; they double with each one, up to eight times as many."""
    depth: int = 3
    """Strided layers: a logit sees 16, 34, 70, 142 pixels at depth 1, 2, 3, 4."""

    def __post_init__(self) -> None:
        _each(self, "weight", least=0)
        _each(self, "start beta1 beta2", least=0, below=1)
        _each(self, "lr", above=0)
        _each(self, "width", least=1, most=LARGEST)
        _each(self, "depth", least=1, most=8)


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
    """Added to the root of the second moment; where it is silent, 1e-12 under any parametrization but standard."""
    schedule: str = "cosine"
    """After the linear warm-up: cosine, wsd (constant, then linear decay) or constant."""
    warmup_steps: int = 1024
    """Optimizer steps of linear warm-up from 0."""
    decay_fraction: float = 0.2
    """Part of the steps in which wsd decays; 0 to 1."""
    final_lr_ratio: float = 0.0
    """Learning rate at the last step / peak; 0 to 1."""
    clip_norm: float = 0.0
    """The model's gradients are scaled to at most this global norm; 0 is off."""

    def __post_init__(self) -> None:
        _each(self, "lr", above=0)
        _each(self, "beta1 beta2", least=0, below=1)
        require(self.weight_decay >= 0, "weight_decay", "at least 0", self.weight_decay)
        require(self.epsilon > 0, "epsilon", "above 0", self.epsilon)
        _one_of(self, "schedule", "cosine", "wsd", "constant")
        require(self.warmup_steps >= 0, "warmup_steps", "at least 0", self.warmup_steps)
        _each(self, "decay_fraction final_lr_ratio", least=0, most=1)
        require(self.clip_norm >= 0, "clip_norm", "at least 0", self.clip_norm)


TRANSFER_EPSILON = 1.0e-12
"""AdamW's epsilon under any parametrization but standard, at most."""


@dataclass(frozen=True, kw_only=True)
class ParametrizationConfig:
    """How what was tuned on a small model is carried over to a larger one of its family (`vqvae.parametrization`)."""

    kind: str = "standard"
    """standard (the same settings at any size), mup, sp-full-align (what to begin with) or sp-no-align: learning rates,
    weight decay and initial weights by the role of each parameter."""
    base_width: int = 0
    """`model.width` of the model that was tuned, at which every kind is standard; 0 will do for standard alone."""
    base_depth: int = 0
    """`model.depth` of it: what the blocks add to the trunk is multiplied by base_depth / depth (but for bimamba, which
    needs no such factor); 0 is off. A `decoder_depth` of its own is taken to grow with `depth`."""
    base_gan_width: int = 0
    """`gan.width` beside it; 0 is that of the run: one discriminator for models of every size."""

    def __post_init__(self) -> None:
        _one_of(self, "kind", "standard", "mup", "sp-full-align", "sp-no-align")
        _each(self, "base_width base_gan_width", least=0, most=LARGEST // 2)
        _each(self, "base_depth", least=0, most=1000)
        require(
            self.kind == "standard" or self.base_width > 0,
            "base_width",
            f"the width of the model that was tuned, since kind is {self.kind}",
            self.base_width,
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images come from and how they are prepared."""

    source: str = "photographs"
    """photographs (bundled with scikit-image and scikit-learn, no download), folder, huggingface or webdataset, or one
    that a plug-in adds to `vqvae.sources.SOURCES`."""
    path: str = ""
    """An image folder, searched in depth; the name or folder of a Hugging Face data set; a glob of WebDataset tars."""
    subset: str = "train"
    """huggingface: the split of the data set that is read; ours are made from it."""
    column: str = "image"
    """huggingface: the column with the images."""
    resolution: int = 256
    """Height and width of the training images in pixels; a multiple of the patch."""
    fit: str = "short-side"
    """How a picture becomes square: short-side (shrunk to the resolution, its middle), crop (its middle at its own
    scale) or stretch."""
    small: str = "upscale"
    """Pictures with a side below the resolution: upscale or skip."""
    group_by: str = "near-duplicates"
    """What stays together in one split: near-duplicates, folder or file."""
    splits: str = ""
    """File with a line "train|validation|test NAME" for each picture, instead of the fractions; the rest trains."""
    validation_fraction: float = 0.05
    """Part of the images held out for the search; above 0, below 1."""
    test_fraction: float = 0.05
    """Part of the images that only finalists are judged on; 0 to below 1."""
    images: int = 0
    """Training images, at most; 0 is all. Fewer are among the more, the same in every run; held-out images stay."""
    crop_scale: float = 0.8
    """Smallest area of a random resized crop / area of the image; above 0, at most 1 (1 is off)."""
    flip: float = 0.3
    """Probability of a horizontal flip."""
    sharpness: float = 0.3
    """Probability of sharpening by the factor 2."""
    autocontrast: float = 0.3
    """Probability of stretching each color to the full range."""
    cache: str = ""
    """Folder of the decoded images that all trials of a machine share; "" is ~/.cache/vqsearch."""
    options: Options = field(default_factory=Options)
    """Settings that the source of a plug-in has for itself; ours have none."""

    def __post_init__(self) -> None:
        what = {"folder": "the folder of images", "huggingface": "the data set", "webdataset": "the tars"}
        if self.source in what:
            require(bool(self.path), "path", f"{what[self.source]}, since source is {self.source}", self.path)
        require(1 <= self.resolution <= LARGEST, "resolution", f"from 1 to {LARGEST}", self.resolution)
        _one_of(self, "fit", "short-side", "crop", "stretch")
        _one_of(self, "small", "upscale", "skip")
        _one_of(self, "group_by", "near-duplicates", "folder", "file")
        _each(self, "validation_fraction", above=0, below=1)
        _each(self, "test_fraction", least=0, below=1)
        require(
            self.validation_fraction + self.test_fraction < 1,
            "test_fraction",
            f"such that with validation_fraction ({self.validation_fraction}) it stays below 1",
            self.test_fraction,
        )
        _each(self, "images", least=0)
        _each(self, "crop_scale", above=0, most=1)
        _each(self, "flip sharpness autocontrast", least=0, most=1)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured on held-out images."""

    images: int = 512
    """Held-out images that are measured, at most."""
    lpips: bool = True
    """Measure LPIPS on the alex trunk (never the one that trains)."""
    lpips_trunk: str = ""
    """File with torchvision's alexnet weights; "" looks in torch.hub's folder, "random" draws them, for tests."""
    perturbed: float = 0.1
    """Part of the codes replaced by near neighbors before lpips_perturbed is measured; 0 to 1, 0 is off."""
    rfid_weights: str = ""
    """File with the Inception weights of torch-fidelity, with which rfid is measured; "" is off."""
    test: bool = False
    """Measure the whole test split too, at the last step: for models that report, never for one that is chosen."""
    metrics: tuple[str, ...] = ()
    """Metrics of plug-ins that are measured too, by their names."""

    def __post_init__(self) -> None:
        require(self.images >= 1, "images", "at least 1", self.images)
        _each(self, "perturbed", least=0, most=1)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    gan: GanConfig = field(default_factory=GanConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    parametrization: ParametrizationConfig = field(default_factory=ParametrizationConfig)
    data: DataConfig = field(default_factory=DataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    steps: int = 30000
    """Optimizer steps of the whole run; schedules run over it."""
    rungs: tuple[int, ...] = ()
    """Steps after which the model is evaluated, besides the last one; increasing."""
    batch_size: int = 128
    """Images of one optimizer step."""
    micro_batch: int | Literal["auto"] = "auto"
    """Images on the device at once, or on all the devices of one run together; divides `batch_size`. auto: on cuda the
    whole batch, halved whenever memory runs out; on the cpu at most 16."""
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
    options: Options = field(default_factory=Options)
    """Settings that a trainer of one's own has for itself; ours has none."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, "steps", "at least 1", self.steps)
        rising = all(a < b for a, b in zip(self.rungs, self.rungs[1:], strict=False))
        require(
            rising and all(0 < rung <= self.steps for rung in self.rungs),
            "rungs",
            f"increasing and from 1 to the number of steps ({self.steps})",
            self.rungs,
        )
        require(self.batch_size >= 1, "batch_size", "at least 1", self.batch_size)
        if self.micro_batch != "auto":
            require(self.micro_batch >= 1, "micro_batch", "at least 1", self.micro_batch)
            require(
                self.batch_size % self.micro_batch == 0,
                "micro_batch",
                f"a divisor of batch_size ({self.batch_size})",
                self.micro_batch,
            )
        _each(self, "ema_decay", least=0, below=1)
        require(self.checkpoint_every >= 0, "checkpoint_every", "at least 0", self.checkpoint_every)
        _one_of(self, "device", "auto", "cpu", "cuda")
        _one_of(self, "precision", "auto", "bfloat16", "float32")
        _one_of(self, "compile", "auto", "always", "never")
        require(
            self.data.resolution % self.model.patch == 0,
            "data.resolution",
            f"a multiple of model.patch ({self.model.patch})",
            self.data.resolution,
        )
        epsilon, silent = self.optimizer.epsilon, OptimizerConfig().epsilon
        require(
            self.parametrization.kind == "standard" or epsilon == silent or epsilon <= TRANSFER_EPSILON,
            "optimizer.epsilon",
            f"at most {TRANSFER_EPSILON:g}, or left out, since parametrization.kind is {self.parametrization.kind}: "
            "gradients shrink with the width",
            epsilon,
        )
        require(
            not (self.gan.weight and self.gan.adaptive) or any((self.loss.l1, self.loss.l2, self.loss.perceptual)),
            "gan.adaptive",
            "false where loss.l1, loss.l2 and loss.perceptual are all 0: there is no gradient to compare with",
            self.gan.adaptive,
        )
        least = 3 * 2**self.gan.depth  # the discriminator's two convolutions without stride take a row each
        require(
            not self.gan.weight or self.data.resolution >= least,
            "gan.depth",
            f"such that data.resolution ({self.data.resolution}) is at least 3 x 2^depth = {least}",
            self.gan.depth,
        )

    @property
    def tokens(self) -> int:
        """Tokens of one image."""
        return (self.data.resolution // self.model.patch) ** 2


METRICS: dict[str, str] = {
    "val/lpips_alex": "minimize",
    "val/psnr": "maximize",
    "val/ssim": "maximize",
    "val/l1": "minimize",
    "val/lpips_perturbed": "minimize",
    "val/rfid": "minimize",
    "val/codebook_usage": "",
    "val/perplexity": "",
    "val/entropy_bits_per_image": "",
}
"""What an evaluation measures on held-out images -> the direction in which it is better, "" for a diagnostic; metrics
of plug-ins come on top."""

COSTS = ("parameters", "images_per_s", "encode_images_per_s", "decode_images_per_s", "peak_memory_gib")
"""What an evaluation says of the cost: images_per_s is of training, the others are those of `vqvae.speed.costs`."""
