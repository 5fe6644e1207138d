"""How a search was done, in sentences for the methods section of a paper; each says what the code does.

Where a sentence is about a number, the number is read from the study or from the module that uses it.
"""

from __future__ import annotations

from collections.abc import Sequence

from search import answer, units
from search.answer import count, listed
from search.findings import Findings, spans
from search.parameters import Parameter
from search.ranking import Ranking
from search.standing import shown
from search.statistics import REPLICATES
from search.text import printable
from search.verdict import CONFIDENCE
from vqvae import duplicates, metrics, robustness
from vqvae.config import TrainConfig
from vqvae.photographs import PHOTOGRAPHS

REFERENCES = {
    "Bergstra et al. 2011": "Algorithms for Hyper-Parameter Optimization. NeurIPS 2011.",
    "Golovin et al. 2017": "Google Vizier: A Service for Black-Box Optimization. KDD 2017.",
    "Hansen and Ostermeier 2001": "Completely Derandomized Self-Adaptation in Evolution Strategies. Evolutionary "
    "Computation 9(2), 2001.",
    "Hesterberg 2015": "What Teachers Should Know About the Bootstrap. The American Statistician 69(4), 2015.",
    "Heusel et al. 2017": "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium. NeurIPS "
    "2017. arXiv 1706.08500.",
    "Hutter et al. 2014": "An Efficient Approach for Assessing Hyperparameter Importance. ICML 2014.",
    "Li et al. 2020": "A System for Massively Parallel Hyperparameter Tuning. MLSys 2020. arXiv 1810.05934.",
    "Owen 1998": "Scrambling Sobol' and Niederreiter-Xing Points. Journal of Complexity 14(4), 1998.",
    "Owen 2007": "The Pigeonhole Bootstrap. Annals of Applied Statistics 1(2), 2007.",
    "Qiu et al. 2025": "Robust Latent Matters. 2025. arXiv 2503.08354.",
    "Satterthwaite 1946": "An Approximate Distribution of Estimates of Variance Components. Biometrics Bulletin 2(6), "
    "1946.",
    "Wang et al. 2004": "Image Quality Assessment: From Error Visibility to Structural Similarity. IEEE "
    "Transactions on Image Processing 13(4), 2004.",
    "Zhang et al. 2018": "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric. CVPR 2018. arXiv "
    "1801.03924.",
}
"""What the sentences cite, by the words with which they do."""


def paragraphs(findings: Findings) -> list[tuple[str, str]]:
    """The methods of a study: what a paragraph is about, and its text."""
    about = {
        "Search space": _space(findings),
        "Suggestions": _sampler(findings),
        "Early stopping": _pruner(findings),
        "Budget and compute": _budget(findings),
        "Data" if findings.space.trainer else "Images": _images(findings),
        "Evaluation": _evaluation(findings),
        "Seeds": _seeds(findings),
        "Finalists": _finalists(findings),
        "Trials that did not complete": _failures(findings),
        "Software": _software(findings),
    }
    return [(heading, printable(" ".join(lines))) for heading, lines in about.items() if lines]


def comparison(found: Sequence[Findings], ranking: Ranking) -> list[tuple[str, str]]:
    """The methods of a comparison: what a paragraph is about, and its text."""
    space, names = found[0].space, [each.name for each in ranking.arms]
    equal = [f"{units.label(name)} ({extent(name, *ends)})" for name, ends in ranking.tie.equal.items()]
    free = [units.label(name) for name in ranking.tie.free]
    about = {
        "Arms": [
            f"We compared {count(len(names), 'arm')}: {listed(names)}.",
            "Each was a search of its own with the same sampler, pruner, seed and budget of "
            f"{count(space.budget.trials, 'trial')} of {count(space.budget.steps, 'optimizer step')}; the arms ran "
            "interleaved.",
        ],
        "Held equal": [
            *([f"Before anything ran, equal in all models of all arms were: {listed(equal)}."] if equal else []),
            f"All saw the same {space.budget.steps * space.base.batch_size:,} training images when trained to their "
            "end, and were measured on the same held-out images.",
            *([f"Free to differ were: {listed(free)}."] if free else []),
        ],
        "What stands for an arm": [
            "Of the finalists of an arm the one with the best mean objective on the validation images over its fresh "
            "seeds stands for it. The test split chose none of them, but it orders the arms, so that the mean of the "
            "first is flattered.",
        ],
        "Differences": [
            "Differences between arms are paired by image; an interval that contains zero is called a tie.",
            f"There are {len(ranking.differences)} of them; intervals are not corrected for that unless said "
            "(Bonferroni).",
        ],
    }
    return [(heading, printable(" ".join(lines))) for heading, lines in about.items()]


def extent(name: str, least: float, most: float) -> str:
    """What a quantity was in all models: one number, or from where to where it went."""
    return units.text(name, most) if least == most else f"{units.figure(name, least)} to {units.text(name, most)}"


def references(texts: Sequence[str]) -> list[str]:
    """The works that some texts cite."""
    together = " ".join(texts)
    return [f"{name}. {work}" for name, work in REFERENCES.items() if name in together]


def _space(findings: Findings) -> list[str]:
    space = findings.space
    ranges = "; ".join(f"{parameter.name} {_range(parameter)}" for parameter in space.parameters)
    what = f"what the trainer {answer.trainer(findings)} trains" if space.trainer else "a VQVAE"
    lines = [
        f"We searched {count(len(space.parameters), 'hyperparameter')} of {what}: {ranges}.",
        "All other settings were the same in all trials; the space file holds them.",
    ]
    for name, limits in space.constraints.items():
        ends = [f"at {word} {units.text(name, limit)}" for word, limit in (("least", limits.min), ("most", limits.max))
                if limit is not None]  # fmt: skip
        lines.append(f"Trials were to keep {units.label(name)} {listed(ends)}; those that did not were not ranked.")
    if space.baselines:
        lines.append(
            f"{_were(len(space.baselines), 'known setting')} trained first, to be compared with: the baselines."
        )
    return lines


def _were(number: int, what: str) -> str:
    return f"{count(number, what)} {'was' if number == 1 else 'were'}"


def _range(parameter: Parameter) -> str:
    if parameter.kind == "choice":
        words = f"among {listed([shown(label) for label in parameter.labels])}"
    else:
        words = f"from {shown(parameter.low)} to {shown(parameter.high)}"
        words += f" in steps of {shown(parameter.step)}" if parameter.step not in (None, 1) else ""
        kind = "log-uniform" if parameter.log else "uniform"
        words += f" ({kind}{', whole numbers' if parameter.kind == 'int' else ''})"
    conditions = [f"{parent} is {' or '.join(shown(label) for label in labels)}" for parent, labels in parameter.when]
    return f"{words}{f', only where {listed(conditions)}' if conditions else ''}"


def _sampler(findings: Findings) -> list[str]:
    kind = findings.space.sampler.kind
    sobol = "a scrambled Sobol sequence (Owen 1998), one point for each trial's number"
    model = {
        "tpe": "a multivariate tree-structured Parzen estimator (TPE, Bergstra et al. 2011; Optuna's TPESampler with "
        "multivariate and group)",
        "gp": "a Gaussian process with log expected improvement (Optuna's GPSampler)",
        "cmaes": "CMA-ES (Hansen and Ostermeier 2001; Optuna's CmaEsSampler)",
    }.get(kind)
    if model:
        first = f"trials 0 to {findings.startup - 1}, baselines aside"
        lines = [f"The settings of {first}, came from {sobol}; those of all later ones from {model}."]
    else:
        lines = [f"The settings came from {sobol if kind == 'qmc' else 'independent random draws'}."]
    by_hand = [trial for trial in findings.own if trial.origin == "by hand"]
    if by_hand:
        lines.append(f"{_were(len(by_hand), 'setting')} asked for by hand.")
    copied = [trial for trial in findings.trials if trial.origin.startswith("copied")]
    if copied:
        lines.append(f"{_were(len(copied), 'trial')} taken over from an earlier study that had trained the same.")
    return lines


def _pruner(findings: Findings) -> list[str]:
    space = findings.space
    steps = listed([f"{step:,}" for step in space.rungs])
    if space.pruner.kind == "none":
        return ["No trial was stopped early."]
    at = f"At {'step' if len(space.rungs) == 1 else 'steps'} {steps} a trial"
    if space.pruner.kind == "asha":
        rule = (
            f"{at} went on if its value was among the best 1/{space.pruner.reduction_factor} of all values there so "
            "far, or the best one; else it was stopped for good: asynchronous successive halving (ASHA, Li et al. "
            "2020) in its stopping variant."
        )
    else:
        rule = (
            f"{at} was stopped if its best value so far was worse than the median of the complete trials' values "
            "there, once five trials were complete (Golovin et al. 2017; Optuna's MedianPruner)."
        )
    if space.trainer:
        return [rule]
    return [rule, "Schedules of learning rates ran over the whole length of a trial, never over that of a rung."]


def _budget(findings: Findings) -> list[str]:
    space, batch = findings.space, findings.space.base.batch_size
    hours = f", or {space.budget.hours:g} h by the clock" if space.budget.hours is not None else ""
    length = count(space.budget.steps, "step" if space.trainer else "optimizer step")
    seen = f" in batches of {count(batch, 'image')}: {space.budget.steps * batch:,} images"
    return [
        f"The budget was {count(space.budget.trials, 'trial')}{hours}. A trial that was not stopped trained for "
        f"{length}{'' if space.trainer else seen}.",
        *answer.cost(findings),
    ]


def _images(findings: Findings) -> list[str]:
    config = findings.space.base.data
    if findings.space.trainer:
        return [f"Trials trained and were measured on {answer.data(findings)}."]
    grouped = {
        "near-duplicates": "Near-duplicates (pictures whose difference hashes differ in at most "
        f"{duplicates.DISTANCE} of 256 bits, also by way of others) stayed together: their groups",
        "folder": "Pictures of one folder stayed together: the folders",
        "file": "The pictures",
    }[config.group_by]
    if config.source == "photographs":
        whole = {name: len(files) for name, files in PHOTOGRAPHS.items()}
        splits = (
            f"Whole photographs were held out: {whole['validation']} to validate and {whole['test']} to test, of "
            f"{sum(whole.values())}."
        )
    elif config.splits:
        splits = "A list assigned pictures to the splits, and what it did not name trained."
    else:
        test = f"to test ({_percent(config.test_fraction)} of the pictures), then " if config.test_fraction else ""
        splits = (
            f"{grouped} were ranked by the SHA-256 of their names and served, in this order, {test}to validate "
            f"({_percent(config.validation_fraction)} of the pictures) and to train."
        )
    fitted = {
        "short-side": "its central square was scaled to that size",
        "crop": "its central pixels were cropped at their own scale",
        "stretch": "it was stretched to that size",
    }[config.fit]
    how = [] if config.source == "photographs" else [f"Of each picture, {fitted}."]
    return [
        f"The images were {answer.data(findings)}.",
        *how,
        splits,
        "The search chose by the validation images alone; test images took no part in it.",
        *_augmentation(findings),
    ]


def _percent(part: float) -> str:
    return f"{100 * part:.3g} %"


def _augmentation(findings: Findings) -> list[str]:
    """What was done to training images; fields that were searched are told with the space."""
    config = findings.space.base.data
    searched = {parameter.name for parameter in findings.space.parameters}
    done = {
        "crop_scale": (
            config.crop_scale < 1,
            f"random resized crops of at least {_percent(config.crop_scale)} of the area",
        ),
        "flip": (config.flip > 0, f"horizontal flips (p = {config.flip:g})"),
        "sharpness": (config.sharpness > 0, f"sharpening by the factor 2 (p = {config.sharpness:g})"),
        "autocontrast": (config.autocontrast > 0, f"automatic contrast (p = {config.autocontrast:g})"),
    }
    words = [word for name, (used, word) in done.items() if used and f"data.{name}" not in searched]
    return [f"Training images were augmented by {listed(words)}."] if words else []


def _evaluation(findings: Findings) -> list[str]:
    base, held_out = findings.space.base, findings.sizes.get("validation")
    images = min(base.evaluation.images, held_out or base.evaluation.images)
    searched = {parameter.name for parameter in findings.space.parameters}
    average = "an exponential moving average of the weights"
    weights = average if "ema_decay" in searched else f"{average} (decay {base.ema_decay:g})"
    weights = weights if "ema_decay" in searched or base.ema_decay else "the weights of the last step"
    at = "at each rung and at the last step" if findings.space.rungs else "at the last step"
    known = {name for trial in findings.trials for name in trial.metrics}
    wins = answer.WINS[findings.space.objective.direction]
    objective = f"The objective was the {wins} {units.label(findings.metric)} at the last step."
    if findings.space.trainer:
        return [objective, f"Trials were measured {at}, by {answer.trainer(findings)} itself."]
    return [
        objective,
        f"Models were measured {at}, on {'' if held_out else 'at most '}{images:,} validation images, the same for all "
        f"trials, with {weights}, in float32.",
        *(sentence for name, sentence in _definitions(base).items() if name in known),
    ]


def _definitions(base: TrainConfig) -> dict[str, str]:
    """What a metric means, by its name."""
    replaced = _percent(base.evaluation.perturbed)
    return {
        "val/psnr": "PSNR is the mean over images of the peak signal-to-noise ratio of each, pixels in [0, 1].",
        "val/ssim": "SSIM (Wang et al. 2004) has a Gaussian window of 11 x 11 pixels (sigma 1.5) and is the mean over "
        "the three colors and all places of the window within the image.",
        "val/l1": "The L1 error is the mean absolute error of pixels in [0, 1].",
        "val/lpips_alex": "LPIPS (Zhang et al. 2018) is version 0.1 on an AlexNet, which no training loss uses.",
        "val/lpips_perturbed": f"LPIPS of perturbed codes is measured after {replaced} of the codes of each image were "
        f"replaced by one of their {robustness.NEIGHBORS} nearest others (after Qiu et al. 2025).",
        "val/rfid": "rFID (Heusel et al. 2017) is the distance between these images and their reconstructions; it is "
        "biased upwards where images are few, so it compares with no other number of images.",
        "val/codebook_usage": "Codebook usage is the part of the codes that was drawn at all on validation images.",
        "val/perplexity": "Perplexity is 2 to the entropy of the frequencies of the codes.",
        "val/entropy_bits_per_image": "Entropy-coded size is the number of tokens of an image times the entropy of the "
        "frequencies of the codes in bits: what an ideal coder of single tokens would need; further validation images "
        f"were encoded where fewer than {metrics.TOKENS_PER_CODE} tokens were counted for each code.",
        "bits_per_image": "Size is the number of tokens of an image times the binary logarithm of the codebook's size.",
        "images_per_s": "Training speed counts training alone, without evaluations.",
    }


def _seeds(findings: Findings) -> list[str]:
    seed = findings.space.seed
    first = "In the search each" if findings.verdict else "Each"
    ours = findings.space.trainer is None
    of = " for the weights, the order of the images and their augmentation" if ours else ""
    chosen = "the same validation images" if ours else "that value itself"
    return [
        f"{first} setting was trained once, with seed {seed}{of} in all trials; the sampler's seed was {seed} too.",
        "So differences between trials include those between seeds, which the search did not measure, and the value of "
        f"the chosen trial is biased towards the better, since {chosen} chose it.",
    ]


def _finalists(findings: Findings) -> list[str]:
    """How the best settings were judged; nothing where they were not."""
    judged = findings.verdict
    if judged is None:
        return []
    used = sorted({seed for each in judged.contenders for seed in each.seeds})
    images = f" and {judged.images:,} images" if judged.images else ""
    times = count(len(judged.openings), "time")
    counted = "" if findings.space.trainer else " No further images were encoded there to count codes."
    return [
        f"When the search was over, {count(len(judged.contenders), 'setting')} trained again from scratch at the full "
        f"budget, never stopped early, each with the seeds {listed([str(seed) for seed in used])}, which the search "
        f"had not used, and were measured on the test split, which was opened {times}.{counted}",
        f"Intervals are of {CONFIDENCE:.0%}: the standard error is of a bootstrap of {REPLICATES:,} replicates that "
        f"resamples seeds{images} independently (Owen 2007), the quantile that of Student's t with the degrees of "
        "freedom of Satterthwaite 1946, since percentiles are too narrow with few seeds (Hesterberg 2015); none is "
        "narrower than that over seeds alone.",
    ]


def _failures(findings: Findings) -> list[str]:
    found = answer.failures(findings)
    groups = [f"{count(len(numbers), 'trial')}: {why}" for why, numbers in found]
    return [f"Besides those stopped at rungs, trials ended early as follows. {'. '.join(groups)}."] if groups else []


def _software(findings: Findings) -> list[str]:
    lines = []
    for held in findings.packages:
        packages = listed([f"{name} {version}" for name, version in held.items() if name != "from_trial"])
        since = f"Trials from {held['from_trial']} on" if len(findings.packages) > 1 else "All trials"
        lines.append(f"{since} ran on {packages}.")
    lines += [f"Code of trial {spans(numbers)}: {words}." for words, numbers in findings.codes.items()]
    if findings.importances:
        lines.append(
            "Importances are shares of the objective's variance over the complete trials, by fANOVA (Hutter et al. "
            "2014; Optuna's FanovaImportanceEvaluator)."
        )
    return lines
