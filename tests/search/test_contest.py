"""A comparison in reports: which arm won, with what, what that does not show; and the finalists of single studies."""

import csv
import dataclasses
import html
import io
import re
from datetime import UTC, datetime

import numpy as np
import optuna
import pytest
from click.testing import CliRunner
from markdown_it import MarkdownIt
from optuna.trial import TrialState

from search import (
    cli_look,
    contest,
    disagreement,
    findings,
    markdown,
    page,
    paper,
    ranking,
    records,
    report,
    statistics,
    strips,
)
from search.findings import ranked

NOW = datetime(2026, 11, 22, 12, 30, tzinfo=UTC)
HOSTILE = r"<b>|x|_{\input{a}}$"


def read(arms):
    for each in arms.values():
        each.write()
    return [findings.read(each.study, each.space, "sqlite:///a.db") for each in arms.values()]


def rendered(found):
    return page.render(found, report.pictures(), NOW)


def words_of(text):
    """The text of a page that people see without a script, in one line."""
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", text[text.index("<body>") :], flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", body)))


def cells(columns, heading):
    """The cells of the column with a heading."""
    (found,) = [column.cells for column in columns if column.heading == heading]
    return found


def rows(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_the_page_of_a_comparison_opens_with_the_answer_and_what_it_does_not_show(fair):
    found = read(fair)
    words = words_of(rendered(found))
    said = (
        "Which arm won good (trial 0: lr 0.002, codebook_size 64) is the best on the test split: PSNR 23.",
        "The arms",
        "Every pair of arms",
        "What was held equal tokens 16 per image in every arm parameters within 11,000 to 13,000; those that stand for "
        "arms have 12,345",
        "18 steps of 4 images, so 72 by each model",
        "the best 1 of each search, and its baselines their seeds 1, 2 and 3 judged on the same 60 test images, paired",
        "free to differ size (bits/image)",
        "What this does not show A few bundled photographs show that everything works together; they rank nothing.",
        "Each arm was searched once.",
        "Not measured on the test split: LPIPS (alex), SSIM,",
        "The same test images, all arms",
        "Where the arms disagree most in PSNR Chosen among the 32 of 60 test images of which pictures were kept, by "
        "the mean over seeds; pictures of one seed each. original good, seed ",
        "Every finalist, seed by seed",
        "The searches side by side",
        "Finalists Trained again on fresh seeds",
    )
    places = [words.index(each) for each in said]
    assert places == sorted(places)
    assert "all-forest-means" in rendered(found)
    assert "all-forest-leads" in rendered(found)


def test_a_row_of_the_arms_says_quality_with_its_interval_and_cost(fair):
    of = ranked(read(fair))
    columns = contest.arms(of)
    winner = of.winner
    assert cells(columns, "arm")[0] == "good"
    half = winner.mean.high - winner.mean.value
    assert cells(columns, "test PSNR")[0] == f"{winner.mean.value:.2f} ± {half:.2f}"
    assert cells(columns, "behind the best")[0] == "-"
    assert cells(columns, "entropy-coded size") == ("62",) * 3
    assert cells(columns, "parameters") == ("12,345",) * 3
    assert cells(columns, "training speed") == ("200",) * 3
    assert cells(columns, "peak GPU memory") == ("-",) * 3
    assert cells(columns, "training time") == ("7",) * 3
    assert columns[2].best == {0}
    assert cells(contest.arm_settings(of), "optimizer.lr") == ("0.002",) * 3
    assert cells(contest.pairs(of), "so it is") == ("better", "better", "a tie")


def test_what_ties_with_the_best_is_marked_like_it(make_arms):
    arms = make_arms("one", "two", "three", overrides=["resources.gpus=0.5"])
    for name, mean in (("one", 21.0), ("two", 21.0), ("three", 15.0)):
        arms[name].judged(arms[name].setting(2e-3, 25.0), mean, spread=0.3)
    of = ranked(read(arms))
    columns = contest.arms(of)
    assert columns[2].best == {0, 1}
    assert [cell.endswith(" (tie)") for cell in cells(columns, "behind the best")] == [False, True, False]
    assert cells(columns, "GPU-hours") == ("1.75",) * 3  # three finalists of an hour and half an hour of search, at 0.5


def test_every_seed_of_every_finalist_of_every_arm_has_a_row(fair):
    found = read(fair)
    columns = contest.seeds(found)
    assert len(columns[0].cells) == 3 * 2 * 3
    assert cells(columns, "arm")[:6] == ("plain",) * 6
    assert cells(columns, "seed")[:3] == ("1", "2", "3")
    first = found[0].verdict.contenders[0]
    assert cells(columns, "validation")[:3] == ("21.50",) * 3
    assert cells(columns, "test PSNR")[:3] == tuple(f"{row.mean():.2f}" for row in first.values["psnr"])


def test_the_finalist_that_stands_for_its_arm_is_marked_and_that_of_a_search_alone_is_not(fair):
    for each in read(fair):
        chosen = ranking.representative(each.verdict.contenders, each.verdict.sign)
        (marked,) = [cell for cell in cells(contest.contenders(each), "setting of") if "stands for the arm" in cell]
        assert marked.startswith(f"trial {chosen.of}")
        alone = contest.contenders(dataclasses.replace(each, tie=None))
        assert not any("stands" in cell for cell in cells(alone, "setting of"))


def test_the_reader_is_told_what_could_be_held_against_the_comparison(make_arms):
    arms = make_arms("one", "two", "three", "early")
    settings = {"optimizer.lr": 2e-3, "quantizer.codebook_size": 64}
    for name in ("one", "two", "three"):
        of = arms[name].setting(2e-3, 25.0)
        if name == "two":
            for broken in ({"parameters": 0.5}, {"parameters": 0.1}, {"diverged": 1.0}):
                arms[name].add(settings, state=TrialState.PRUNED, broken=broken)
            for _ in range(2):
                records.add_opening(arms[name].study, records.Opening(time="2026", settings=[0], seeds=[1]))
        arms[name].judged(of, 21.0)
    found = read(arms)
    said = contest.caveats(found, ranked(found))
    assert said[0] == "A few bundled photographs show that everything works together; they rank nothing."
    for line in (
        "3 seeds of what stands for an arm: intervals over so few rest on Student's t, and on seeds that differ as if "
        "normally distributed.",
        "The test images are neighbouring crops of one photograph, not independent: intervals over them are too narrow "
        "even for it, and say nothing of another one.",
        "Intervals are not corrected for the 3 differences between arms; the column “corrected” is (Bonferroni).",
        "Peak memory was not measured, which takes a GPU.",
        "two lost 3 trials of its search to limits: parameters 2 and diverged 1.",
        "The test split of two was opened 2 times.",
        "early is not ranked: its search is not over, 0 of 4 trials have ended.",
    ):
        assert line in said
    assert "early" in words_of(rendered(found))
    assert not any("drawn independently" in line for line in said)
    assert f"## The searches\n\n{contest.SEARCHES}\n\n" in markdown.text(found, "a_files", [])
    data = dataclasses.replace(found[0].space.base.data, source="folder", path="pictures")
    base = dataclasses.replace(found[0].space.base, data=data)
    elsewhere = [dataclasses.replace(found[0], space=dataclasses.replace(found[0].space, base=base)), *found[1:]]
    general = "60 test images, taken as drawn independently from those of interest."
    assert general in contest.caveats(elsewhere, ranked(found))


def test_counts_that_a_reader_would_hold_against_it_are_told(fair):
    found = read(fair)
    said = contest.caveats(found, ranked(found))
    whole = [f"{len(each.ended('COMPLETE'))} of {len(each.own)} in {each.tie.arm}" for each in found]
    assert f"Trials of the searches that were trained to their end: {', '.join(whole[:2])} and {whole[2]}." in said
    assert not any("was searched in" in line or "too low" in line for line in said)
    first = found[0].space
    fewer = dataclasses.replace(first, parameters=first.parameters[:1])
    said = contest.caveats([dataclasses.replace(found[0], space=fewer), *found[1:]], ranked(found))
    assert f"{first.parameters[1].name} was searched in {found[1].tie.arm} and {found[2].tie.arm} alone." in said


def test_a_baseline_that_stands_and_few_tokens_are_told(make_arms):
    arms = make_arms("one", "two")
    arms["one"].judged(arms["one"].setting(0, 25.0, baseline=True), 21.0)
    for lr in (2e-3, 3e-3):
        arms["two"].judged(arms["two"].setting(lr, 25.0), 20.0)
    found = read(arms)
    said = contest.caveats(found, ranked(found))
    assert "The baseline stands for 1 of 2 ranked arms." in said
    assert "Settings judged on the test split: 1 of one and 2 of two." in said
    known = {"value": 600.0, "confidence": 0.95, "seeds": (), "images": None}
    counted = {name: statistics.Estimate(**known) for name in ("codebook_undersampled", "codebook_tokens")}
    of = ranked(found)
    (two,) = [each for each in of.arms if each.name == "two"]
    judged = [dataclasses.replace(one, means={**one.means, **counted}) for one in two.contenders]
    changed = dataclasses.replace(two, verdict=dataclasses.replace(two.verdict, contenders=judged))
    of = dataclasses.replace(of, arms=[changed if each is two else each for each in of.arms])
    assert (
        "The entropy-coded size on the test split is too low where codes are counted on few tokens: 600 tokens for 64 "
        "codes in two."
    ) in contest.caveats(found, of)


def test_a_comparison_without_any_judged_arm_says_why_in_every_report(make_arms, tmp_path, compiled):
    found = read(make_arms("one", "two"))
    words = words_of(rendered(found))
    assert "Which arm won No arm has a finalist with a value on the test split, so none won." in words
    assert "one is not ranked: its search is not over, 0 of 4 trials have ended." in words
    assert "No arm has a finalist with a value, so there are no pictures to put side by side." in words
    assert "| one | - |" in markdown.text(found, "a_files", [])
    paper.write(found, tmp_path / "paper", report.pictures())
    assert [row["arm"] for row in rows((tmp_path / "paper" / "table.csv").read_text())] == ["one", "two"]
    compiled(tmp_path, (tmp_path / "paper" / "table.tex").read_text())


def originals(group):
    """Gray of each original of a group: its place on the sheet."""
    return [int(pair[0, 0, 0, 0]) for pair in strips.pairs(group.sheets[0][1], 64)]


def test_the_images_on_which_arms_disagree_are_those_that_were_planted(make_arms):
    arms = make_arms("one", "two")
    numbers = np.unique(np.linspace(0, 59, 32).round().astype(int))
    change = np.zeros(60)
    change[numbers[[20, 7]]] = (9.0, -7.0)
    for name, each in arms.items():
        each.hard = np.zeros(60)
        each.hard[numbers[3]] = -30.0
        each.judged(each.setting(2e-3, 25.0), 21.0, change=change * (name == "two"))
    found = read(arms)
    groups, missing = disagreement.groups(found, ranked(found), report.pictures())
    assert missing == ""
    for each, (called, _) in zip(ranked(found).ranked, groups[0].sheets, strict=True):
        means = each.representative.values["psnr"].mean(axis=1)
        nearest = each.representative.seeds[abs(means - means.mean()).argmin()]
        assert called == f"{each.name}, seed {nearest}"
    by_name = {each.name: each for each in groups}
    assert list(by_name["arms_disagree"].images[:2]) == [numbers[20], numbers[7]]
    assert originals(by_name["arms_disagree"])[:2] == [20, 7]
    values = dict(by_name["arms_disagree"].values)
    assert values["two"][0] - values["one"][0] == pytest.approx(9.0, abs=1.0)
    assert by_name["arms_worst"].images[0] == numbers[3]
    assert originals(by_name["arms_worst"])[0] == 3
    shown = [number for each in groups for number in each.images]
    assert len(shown) == len(set(shown)) == 18


def test_pictures_that_can_not_be_reached_or_do_not_go_together_are_said_to_be_missing(fair):
    found = read(fair)
    text = page.render(found, lambda _found, _picture: None, NOW)
    assert (
        "Pictures of test images of good, alike, plain can't be reached from where this report was made."
        in words_of(text.replace("plain, alike", "alike, plain"))
    )

    def other(of, picture):
        png = report.pictures()(of, picture)
        return strips.joined(strips.pairs(png, 64)[::-1]) if of.tie.arm == "plain" else png

    assert "so they are not put side by side" in words_of(page.render(found, other, NOW))


def test_a_comparison_in_markdown_has_its_tables_and_pictures(fair, tmp_path):
    found = read(fair)
    file = tmp_path / "report.md"
    markdown.write(found, file, report.pictures())
    text = file.read_text()
    assert "# fair: which arm won\n\n- good (trial 0: lr 0.002, codebook\\_size 64) is the best" in text
    for heading in ("The arms", "Every pair of arms", "What was held equal", "What this does not show", "Finalists of"):
        assert f"\n## {heading}" in text
    assert "| good | 0 | **23." in text
    shown = re.findall(r"!\[(arms\w*)\]\((\S+)\)", text)
    assert [name for name, _ in shown] == ["arms", "arms_disagree", "arms_worst", "arms_agree"]
    for _, source in shown:
        assert (tmp_path / source).read_bytes().startswith(b"\x89PNG")
    lines = markdown.write(found, file, lambda _found, _picture: None)
    assert any(line.startswith("no pictures of the arms side by side: ") for line in lines)
    assert not (tmp_path / "report_files" / "arms_disagree.png").exists()


def test_a_comparison_for_a_paper_has_the_arms_in_its_table_and_figures(fair, tmp_path, compiled):
    found = read(fair)
    paper.write(found, tmp_path / "paper", report.pictures())
    names = {path.name for path in (tmp_path / "paper").iterdir()}
    assert {"table.tex", "table.csv", "finalists.tex", "finalists.csv", "trials.tex", "trials.csv"} < names
    assert {f"figure_arms{end}.pdf" for end in ("", "_disagree", "_worst", "_agree")} < names
    of = ranked(found)
    table = rows((tmp_path / "paper" / "table.csv").read_text())
    assert [row["arm"] for row in table] == [each.name for each in of.arms]
    assert float(table[1]["behind the best"]) == of.behind[table[1]["arm"]].value
    assert float(table[0]["test/psnr low [dB]"]) == of.winner.mean.low
    judged = rows((tmp_path / "paper" / "finalists.csv").read_text())
    assert len(judged) == 18
    assert float(judged[0]["test/psnr [dB]"]) == found[0].verdict.contenders[0].values["psnr"][0].mean()
    methods = (tmp_path / "paper" / "methods.txt").read_text()
    for sentence in (
        "Arms. We compared 3 arms: good, ",
        "Held equal. Before anything ran, equal in all models of all arms were: tokens (16 per image) and parameters "
        "(11,000 to 13,000).",
        "Of the finalists of an arm the one with the best mean objective on the validation images",
        "a bootstrap of 2,000 replicates that resamples seeds and 60 images independently (Owen 2007)",
        "In the search each setting was trained once",
    ):
        assert sentence in methods
    assert "Hesterberg 2015. " in methods.partition("References")[2]
    tex = "".join((tmp_path / "paper" / f"{name}.tex").read_text() for name in ("table", "finalists", "trials"))
    text = compiled(tmp_path, tex)
    assert text is None or "behind the best" in text


def test_names_of_arms_stay_text_in_every_report(make_arms, tmp_path, compiled):
    arms = make_arms(HOSTILE, "two")
    for each, mean in zip(arms.values(), (21.0, 22.0), strict=True):
        each.judged(each.setting(2e-3, 25.0), mean)
    found = read(arms)
    text = rendered(found)
    assert HOSTILE not in text
    assert HOSTILE in words_of(text)
    made = markdown.text(found, "a_files", [])
    markup = MarkdownIt("commonmark").enable("table").render(made)
    assert "<b>" not in markup
    assert html.escape(HOSTILE) in markup
    tex = paper.arms_tex(found, ranked(found))
    assert r"\input{a}" not in tex
    text = compiled(tmp_path, tex)
    assert text is None or "input" in text
    assert all(row["arm"] in (HOSTILE, "two") for row in rows(paper.arms_csv(ranked(found))))


def test_a_single_study_shows_its_finalists_in_every_report(fair, tmp_path):
    found = read(fair)[:1]
    assert ranked(found) is None
    words = words_of(rendered(found))
    assert "Which arm won" not in words
    assert "Finalists Trained again on fresh seeds and judged on the test split" in words
    assert "Seed by seed setting of seed trial validation dB test PSNR" in words
    text = markdown.text(found, "a_files", [])
    assert "## Finalists\n\n| setting of | test PSNR (dB) ↑ |" in text
    assert "## Finalists seed by seed\n\n| setting of | seed |" in text
    assert re.search(r"\| trial 1 \(baseline\) \| 18\.\d\d ± ", text)
    paper.write(found, tmp_path / "paper", report.pictures())
    names = {path.name for path in (tmp_path / "paper").iterdir()}
    assert {"table.tex", "table.csv", "finalists.tex", "finalists.csv", "figure_finalists.pdf"} < names
    assert "trials.csv" not in names


def test_a_study_without_finalists_says_nothing_of_them(ended, tmp_path):
    found = [findings.read(*ended(), "sqlite:///a.db")]
    assert "Finalists" not in words_of(rendered(found))
    assert "Finalists" not in markdown.text(found, "a_files", [])
    paper.write(found, tmp_path / "paper", report.pictures())
    assert not (tmp_path / "paper" / "finalists.tex").exists()


def test_the_command_takes_the_name_of_a_comparison_for_all_of_its_arms(fair, tmp_path):
    read(fair)
    url = f"sqlite:///{tmp_path}/a.db"
    for each in fair.values():
        name = each.study.study_name
        optuna.copy_study(from_study_name=name, from_storage=each.study._storage, to_storage=url)
    target = tmp_path / "report.md"
    options = ["--storage", url, "--study", "fair", "--to", str(target)]
    CliRunner().invoke(cli_look.report, options, catch_exceptions=False)
    assert target.read_text().startswith("<!-- vqsearch report -->\n# fair: which arm won\n")
