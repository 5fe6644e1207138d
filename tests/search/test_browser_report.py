"""The report's page in a real browser, from disk, with the network off."""

import json
import re

import optuna
import pytest

from search import findings, records, report

HOSTILE = '<img src="https://example.com/x.png" onerror="alert(1)"><script>alert(2)</script>'
TURNED = "safe\u202etxt.exe"

SPACE = f"""\
study: shapes
objective: {{metric: val/psnr, direction: maximize}}
budget: {{trials: 15, steps: 360}}
train:
  quantizer: {{code_dim: 4}}
  optimizer: {{warmup_steps: 1}}
  data: {{resolution: 64}}
  evaluation: {{lpips: false}}
search:
  model.backbone: {{choice: {{'{HOSTILE}': attention, '</script><b>bold</b>': mamba}}}}
  optimizer.lr: {{float: [5.0e-4, 5.0e-3], log: true}}
baselines:
  - {{model.backbone: '{HOSTILE}', optimizer.lr: 1.0e-3}}
"""


@pytest.fixture
def opened(ended, tmp_path, browser_page):
    """A function that writes the report of studies, opens it from disk without network, and gives the page."""

    def make(*studies, **options):
        target = tmp_path / "report.html"
        report.write([findings.read(*each, "sqlite:///a.db") for each in studies or [ended()]], str(target))
        page = browser_page(offline=True, **options)
        page.set_default_timeout(10_000)
        page.asked, page.said = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda message: page.said.append(message.text))
        page.goto(target.as_uri())
        page.wait_for_selector("[data-trials=s0] tbody tr" if not studies else "main", state="attached")
        return page

    return make


def draw(page, name):
    """Bring a chart into view, and wait until it is drawn."""
    chart = page.locator(f"#s0-{name}")
    chart.scroll_into_view_if_needed()
    chart.locator(".main-svg").first.wait_for()
    return chart


def luminance(color):
    """Relative luminance of an rgb() color (WCAG 2.2)."""
    parts = [float(part) / 255 for part in re.findall(r"[\d.]+", color)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_the_page_opens_from_disk_without_asking_for_anything_or_an_error(opened):
    page = opened()
    for chart in page.locator(".plot").all():
        chart.scroll_into_view_if_needed()
        chart.locator(".main-svg").first.wait_for()
    assert [url for url in page.asked if not url.startswith("data:")] == [page.url]
    assert page.problems == []
    assert page.said == []
    assert page.locator(".plot").count() == 10
    broken = (
        "[...document.images].filter((each) => { each.loading = 'eager'; return each.complete && !each.naturalWidth })"
    )
    assert page.evaluate(f"{broken}.length") == 0


def test_a_point_says_its_trial_when_it_is_pointed_at(opened):
    page = opened()
    chart = draw(page, "history")
    point = chart.locator(".scatterlayer .point").nth(3)
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    chart.locator(".hoverlayer .hovertext").wait_for()
    said = chart.locator(".hoverlayer").text_content()
    assert re.search(r"trial \d+, complete", said)
    assert "PSNR" in said
    assert "lr 0.00" in said


def test_a_click_on_the_legend_hides_a_trace(opened):
    page = opened()
    chart = draw(page, "curves")
    before = chart.locator(".scatterlayer .trace").count()
    chart.locator(".legendtoggle").first.click()
    page.wait_for_function(
        "([chart, before]) => chart.querySelectorAll('.scatterlayer .trace').length < before",
        arg=[chart.element_handle(), before],
    )


def test_all_trials_are_filtered_and_sorted(opened):
    page = opened()
    rows = page.locator("[data-trials=s0] tbody tr")
    assert rows.count() == 16
    page.get_by_label("Filter trials").fill("the disk is gone")
    assert rows.count() == 1
    assert rows.first.locator("th").inner_text() == "14"
    page.get_by_label("Filter trials").fill("")
    page.get_by_label("State").select_option("pruned")
    assert rows.count() == 5
    assert page.locator("output").inner_text() == "5 of 16 trials"
    page.get_by_label("State").select_option("")
    heading = page.locator("[data-trials=s0] thead th").nth(2)
    heading.locator("button").click()
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert rows.first.locator("th").inner_text() == "9"


def test_the_best_trials_are_sorted_by_numbers(opened):
    page = opened()
    table = page.locator("table.sortable")
    column = table.locator("thead th").all_inner_texts().index("parameters")
    table.locator("thead th").nth(column).locator("button").click()
    values = [
        int(each.replace(",", "")) for each in table.locator(f"tbody td:nth-child({column + 1})").all_inner_texts()
    ]
    assert values == sorted(values)
    assert len(values) == 10


def test_a_picture_is_enlarged_and_closed_again(opened):
    page = opened()
    page.locator(".sheet button").first.click()
    assert page.locator("dialog").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_it_without_scrolling_sideways(opened, dark):
    page = opened(width=390, height=844, dark=dark)
    for name in ("history", "parallel", "front-size"):
        draw(page, name)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate(
        "[...document.querySelectorAll('.plot')].every((each) => each.scrollHeight <= each.offsetHeight + 1)"
    )
    assert page.problems == []


def test_colors_follow_the_system_and_the_button_and_text_can_be_read(opened):
    page = opened()
    chart = draw(page, "history")
    paper = "getComputedStyle(document.body).backgroundColor"
    bar = "(chart) => chart.querySelector('.scatterlayer .lines path').style.stroke"
    light = (page.evaluate(paper), chart.evaluate(bar))
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("([paper]) => getComputedStyle(document.body).backgroundColor !== paper", arg=[light[0]])
    page.wait_for_function(
        "([chart, before]) => chart.querySelector('.scatterlayer .lines path').style.stroke !== before",
        arg=[chart.element_handle(), light[1]],
    )
    dark = (page.evaluate(paper), chart.evaluate(bar))
    page.get_by_role("button", name="Switch between light and dark").click()
    page.wait_for_function(
        "([chart, before]) => chart.querySelector('.scatterlayer .lines path').style.stroke === before",
        arg=[chart.element_handle(), light[1]],
    )
    assert (page.evaluate(paper), chart.evaluate(bar)) == light
    assert luminance(light[0]) > 0.9
    assert luminance(dark[0]) < 0.05


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_has_a_contrast_of_four_and_a_half(opened, dark):
    page = opened(dark=dark)
    draw(page, "history")
    pairs = page.evaluate(
        """() => [...document.querySelectorAll('body *')].filter((each) => each.checkVisibility()
          && [...each.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())).map((each) => {
            let under = each;
            while (under && getComputedStyle(under).backgroundColor === 'rgba(0, 0, 0, 0)') under = under.parentElement;
            const ink = each instanceof SVGElement ? getComputedStyle(each).fill : getComputedStyle(each).color;
            return [each.textContent.trim().slice(0, 40), ink, getComputedStyle(under).backgroundColor];
          })"""
    )
    assert len(pairs) > 200
    assert [each for each in pairs if contrast(*each[1:]) < 4.5] == []


def test_names_that_are_markup_stay_text(opened, ended):
    study, loaded = ended(text=SPACE, reason=f"{HOSTILE}\n{TURNED}", device=HOSTILE)
    study.set_user_attr(records.VERSIONS, [{"from_trial": 0, HOSTILE: TURNED}])
    page = opened((study, loaded))
    for chart in page.locator(".plot").all():
        chart.scroll_into_view_if_needed()
        chart.locator(".main-svg").first.wait_for()
    chart = draw(page, "history")
    box = chart.locator(".scatterlayer .point").nth(2).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    chart.locator(".hoverlayer .hovertext").wait_for()
    hovered = chart.locator(".hoverlayer").text_content()
    assert "<script>alert(2)</script>" in hovered or "</script><b>bold</b>" in hovered
    assert page.locator("main b, main script, img[onerror]").count() == 0
    assert "<script>alert(2)</script>" in page.locator("[data-trials=s0] table").inner_text()
    assert "\u202e" not in json.dumps(page.content(), ensure_ascii=False)
    assert page.problems == []
    assert [url for url in page.asked if not url.startswith("data:")] == [page.url]


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_a_comparison_opens_with_its_plots_and_fits_the_window(opened, fair, width, dark):
    for each in fair.values():
        each.write()
    page = opened(*((each.study, each.space) for each in fair.values()), width=width, dark=dark)
    for name in ("forest-means", "forest-leads"):
        chart = page.locator(f"#all-{name}")
        chart.scroll_into_view_if_needed()
        chart.locator(".main-svg").first.wait_for()
    assert page.locator("#all-forest-means .errorbar").count() == 3
    assert page.locator("#all-forest-leads .errorbar").count() == 2
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    pictures = page.locator("section[aria-labelledby=side-by-side] .strips img")
    assert pictures.count() == 3 * 4
    assert page.problems == []


def test_a_search_that_runs_has_a_page_too(opened, ended):
    full, loaded = ended()
    study = optuna.create_study(direction="maximize", study_name="shapes")
    for name, value in full.user_attrs.items():
        study.set_user_attr(name, value)
    study.add_trials(full.trials[10:13])
    study.ask()
    page = opened((study, loaded))
    draw(page, "curves")
    assert "as of" in page.locator("header").inner_text()
    assert "Nothing won yet" in page.locator("#answer").inner_text()
    assert page.problems == []
