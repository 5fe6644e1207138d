"""The report for a paper."""

import csv
import dataclasses
import io

import pytest

from search import findings, methods, paper
from search.errors import UserError

HOSTILE = (
    r"\input{/etc/passwd}", "<script>alert(1)</script>", "100% & $x_1^2$ #~{}|\"'`", "--", "é模型\u202e",
    "=HYPERLINK(1)", "\\write18{ls}", "a\nb",
)  # fmt: skip


@pytest.fixture
def found(ended):
    return findings.read(*ended(), "postgresql://me:secret@db/studies")


def load(found, picture):
    with open(f"{found.root}/{picture.folder}/{picture.name}.png", "rb") as file:
        return file.read()


def hostile(found):
    """The study with names and labels that others may have written."""
    trials = [
        dataclasses.replace(trial, settings={**trial.settings, "model.backbone": label, label: 1.0}, reason=label)
        for trial, label in zip(found.trials, HOSTILE * 2, strict=True)
    ]
    return dataclasses.replace(found, study=" ".join(HOSTILE), trials=trials)


def rows(text):
    return list(csv.reader(io.StringIO(text, newline="")))


def test_a_folder_holds_all_that_a_paper_needs(found, tmp_path):
    lines = paper.write([found], tmp_path / "paper", load)
    names = {path.name for path in (tmp_path / "paper").iterdir() if not path.name.startswith(".")}
    figures = {
        f"figure_{name}.pdf" for name in ("history", "rungs", "pareto", "importances", "reconstructions", "worst")
    }
    assert names == {"table.tex", "table.csv", "methods.txt", *figures}
    assert lines == [f"{tmp_path}/paper: {', '.join(sorted(names))}"]
    again = {path.name: path.read_bytes() for path in (tmp_path / "paper").iterdir()}
    paper.write([found], tmp_path / "paper", load)
    assert {path.name: path.read_bytes() for path in (tmp_path / "paper").iterdir()} == again


def test_pictures_that_can_not_be_reached_are_left_out_with_a_line(found, tmp_path):
    lines = paper.write([found], tmp_path / "paper", lambda _found, _picture: None)
    assert lines[1:] == [
        f"no figure_{name}.pdf: no such picture of the best trials can be read below {found.root}"
        for name in ("reconstructions", "worst")
    ]


def test_a_folder_of_other_files_is_left_alone(found, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds files that vqsearch report did not write"):
        paper.write([found], tmp_path, load)
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("root", "ended.yaml")] == ["thesis.tex"]


def test_the_table_holds_the_best_trials_and_the_baseline_with_units(found):
    lines = paper.table_tex([found]).splitlines()
    assert lines[0] == "% Needs \\usepackage{booktabs}."
    assert any("PSNR $\\uparrow$" in line for line in lines)
    assert any("(bits/image)" in line for line in lines)
    ranked = [line.split(" & ")[0].strip() for line in lines if line.startswith("    ") and " & " in line]
    assert [name for name in ranked if name[:1].isdigit()][:6] == ["9", "8", "7", "6", "5", "0 (baseline)"]
    best = next(line for line in lines if line.strip().startswith("9 &"))
    assert "\\textbf{22.05} & \\textbf{0.5900}" in best
    assert sum(line.count("\\textbf{22.05}") for line in lines) == 1


def test_the_table_compiles(found, tmp_path, compiled):
    other = dataclasses.replace(found, study="second")
    text = compiled(tmp_path, paper.table_tex([found]) + paper.table_tex([found, other]))
    assert text is None or "0 (baseline)" in text


def test_hostile_names_stay_text_in_the_table(found, tmp_path, compiled):
    source = paper.table_tex([hostile(found)])
    assert "\\input{" not in source
    assert "\\textbackslash{}input\\{/etc/passwd\\}" in source
    text = compiled(tmp_path, source)
    assert text is None or "root:" not in text
    assert text is None or "<script>alert(1)</script>" in text


def test_every_letter_of_ascii_and_more_compiles(tmp_path, compiled):
    letters = "".join(map(chr, range(0x250))) + "模型 \u202e ∀ 😀"
    text = compiled(tmp_path, paper.tex(letters))
    assert text is None or "!" in text


def test_a_csv_has_a_row_for_each_trial_with_all_digits(found):
    text = paper.table_csv([found])
    assert text.count("\r\n") == 17
    head, *trials = rows(text)
    assert {len(row) for row in trials} == {len(head)}
    by = [dict(zip(head, row, strict=True)) for row in trials]
    assert [row["trial"] for row in by] == [str(number) for number in range(16)]
    assert float(by[9]["objective: val/psnr [dB]"]) == found.trials[9].value
    assert float(by[9]["optimizer.lr"]) == found.trials[9].settings["optimizer.lr"]
    assert by[9]["val/entropy_bits_per_image [bits/image]"] == "87.0"
    assert by[9]["training time [s]"] == "540.0"
    assert by[9]["began"] == "2026-03-01T10:30:00"
    assert by[10]["objective: val/psnr [dB]"] == ""
    assert by[15]["broken limit: parameters [value / limit - 1]"] == "0.25"


def test_a_part_of_a_whole_is_written_as_it_was_measured(ended):
    usage = findings.read(*ended(**{"val/codebook_usage": 0.25}), "sqlite:///a.db")
    head, first, *_ = rows(paper.table_csv([usage]))
    assert first[head.index("val/codebook_usage")] == "0.25"


def test_no_text_in_a_csv_is_a_formula(found):
    trials = list(found.trials)
    for number, text in enumerate(("=1+1", "+1", "-1", "@SUM(1)", "\t=1", 'a "b", c')):
        trials[number] = dataclasses.replace(trials[number], device=text)
    negative = dataclasses.replace(trials[6], value=-2.5)
    trials[6] = negative
    head, *cells = rows(paper.table_csv([dataclasses.replace(found, trials=trials)]))
    column = head.index("device")
    assert [row[column] for row in cells[:6]] == ["'=1+1", "'+1", "'-1", "'@SUM(1)", "'\t=1", 'a "b", c']
    assert cells[6][head.index("objective: val/psnr [dB]")] == "-2.5"


def test_studies_share_a_table_and_have_figures_of_their_own(found, tmp_path):
    other = dataclasses.replace(found, study="second")
    lines = paper.write([found, other], tmp_path / "paper", load)
    assert "figure_importances_2.pdf" in lines[0]
    assert "figure_history_2.pdf" not in lines[0]
    assert "\\addlinespace" in (tmp_path / "paper" / "table.tex").read_text()
    assert len(rows((tmp_path / "paper" / "table.csv").read_text())) == 33


def test_methods_say_what_was_done_and_cite_it(found):
    text = paper.methods_text([found])
    for sentence in (
        "model.backbone among attention and mamba; optimizer.lr from 0.0005 to 0.005 (log-uniform)",
        "The settings of trials 0 to 9, baselines aside, came from a scrambled Sobol sequence (Owen 1998)",
        "At steps 40 and 120 a trial went on if its value was among the best 1/3 of all values there so far",
        "360 optimizer steps in batches of 4 images: 1,440 images.",
        "0.825 GPU-hours at 0.5 GPU each, on NVIDIA H200",
        "Whole photographs were held out: 2 to validate and 1 to test, of 10.",
        "on 8 validation images, the same for all trials, with an exponential moving average of the weights (decay 0.9",
        "with seed 7 for the weights, the order of the images and their augmentation in all trials",
        "which the search did not measure",
        "All trials ran on vqsearch 0.1.0 and torch 2.15.0.",
        "1 trial: diverged; trial 13: loss is nan",
        "Trial 9 won with PSNR 22.05 dB",
    ):
        assert sentence in text, sentence
    cited = text.partition("References")[2]
    assert "Li et al. 2020. " in cited
    assert "Qiu et al." not in cited
    assert "secret" not in text


@pytest.mark.parametrize(
    ("section", "changes", "words"),
    [
        ("sampler", {"kind": "random"}, "The settings came from independent random draws."),
        ("sampler", {"kind": "qmc"}, "The settings came from a scrambled Sobol sequence (Owen 1998)"),
        ("sampler", {"kind": "gp"}, "a Gaussian process with log expected improvement"),
        ("sampler", {"kind": "cmaes"}, "CMA-ES (Hansen and Ostermeier 2001"),
        ("pruner", {"kind": "median"}, "was worse than the median of the complete trials' values there"),
        ("pruner", {"kind": "none"}, "No trial was stopped early."),
    ],
)
def test_methods_follow_the_sampler_and_the_pruner(found, section, changes, words):
    part = getattr(found.space, section).model_copy(update=changes)
    other = dataclasses.replace(found, space=dataclasses.replace(found.space, **{section: part}))
    assert words in paper.methods_text([other])


def test_every_citation_has_its_work(found):
    source = " ".join(methods._definitions(found.space.base).values())
    assert {"Wang et al. 2004", "Zhang et al. 2018", "Heusel et al. 2017", "Qiu et al. 2025"} == {
        name for name in methods.REFERENCES if name in source
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"group_by": "near-duplicates"}, "differ in at most 12 of 256 bits, also by way of others) stayed together"),
        ({"group_by": "folder"}, "Pictures of one folder stayed together: the folders were ranked"),
        (
            {"group_by": "file"},
            "The pictures were ranked by the SHA-256 of their names and served, in this order, to test (5 % of the "
            "pictures), then to validate (5 % of the pictures) and to train.",
        ),
        ({"group_by": "file", "test_fraction": 0.0}, "in this order, to validate (5 % of the pictures) and to train."),
        ({"splits": "/a/list"}, "A list assigned pictures to the splits, and what it did not name trained."),
        ({"fit": "crop"}, "its central pixels were cropped at their own scale"),
    ],
)
def test_methods_follow_the_splits(found, changes, words):
    data = dataclasses.replace(found.space.base.data, source="folder", path="/data/faces", **changes)
    base = dataclasses.replace(found.space.base, data=data)
    other = dataclasses.replace(found, space=dataclasses.replace(found.space, base=base))
    text = paper.methods_text([other])
    assert words in text
    assert "/data" not in text
