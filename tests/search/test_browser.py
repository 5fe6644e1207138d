"""The dashboard's pages in Chromium: what people see, and what they can't do."""

import contextlib
import threading
import urllib.error
import urllib.request

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState
from PIL import Image

from search import attachments, dashboard, output, records, space
from search.storage import open_storage

HOSTILE = '<script>alert("in")</script><b id="in">bold</b><img src="/" onerror="alert(1)">'


def add_trial(study, stored, root, label="attention", reason=""):
    """A trial at its end, with a picture of 64 x 32 pixels."""
    trial = study.ask({"model.backbone": CategoricalDistribution(("mamba", "attention", HOSTILE))})
    trial._cached_frozen_trial.params["model.backbone"] = label
    picture = records.Picture(step=18, name="reconstructions", folder=output.folder_of("faces", trial.number, 18))
    (root / picture.folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 32), "teal").save(root / attachments.path_of(picture))
    trial.report(21.5, 18)
    records.set_metrics(trial, {"val/psnr": 21.5, reason or "parameters": 1e6})
    records.set_pictures(trial, [picture])
    attachments.attach(study, trial, [picture])
    if reason:
        records.set_reason(trial, reason)
    state = TrialState.FAIL if reason else TrialState.COMPLETE
    attachments.note_trial(study, stored, trial, state)
    study.tell(trial, None if reason else 21.5, state=state)


@pytest.fixture(scope="module")
def storage(tmp_path_factory, tiny_text):
    """A study of one trial, and one all of whose names would do harm."""
    folder = tmp_path_factory.mktemp("browser")
    (folder / "faces.yaml").write_text(tiny_text.replace("study: tiny", "study: faces"))
    stored = space.load(folder / "faces.yaml")
    storage = open_storage(f"sqlite:///{folder}/vqsearch.db")
    for name, label, reason in (("faces", "attention", ""), (f"evil {HOSTILE}", HOSTILE, HOSTILE)):
        study = optuna.create_study(study_name=name, direction="maximize", storage=storage)
        records.create(study, stored.source, str(folder / "out"), 10, {"vqsearch": name})
        attachments.note_study(study, stored)
        study.enqueue_trial({"model.backbone": label})
        add_trial(study, stored, folder / "out", label, reason)
    return storage


@contextlib.contextmanager
def served(storage, **options):
    """Address of a dashboard."""
    with dashboard.listen(storage, "127.0.0.1", 0, **options) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def address(storage):
    with served(storage) as found:
        yield found


def test_the_study_is_listed_its_trial_opens_and_shows_the_picture(address, browser_page):
    from playwright.sync_api import expect

    page = browser_page()
    page.goto(address)
    page.get_by_text("1. faces").click()
    expect(page.get_by_text("Best Trial (number=0)")).to_be_visible(timeout=20_000)
    page.get_by_role("link", name="Details").click()
    expect(page.get_by_text("Complete at step 18, PSNR 21.50 dB (higher is better).")).to_be_visible()
    picture = page.get_by_alt_text("reconstructions at step 000018.png")
    expect(picture).to_be_visible()
    page.wait_for_function("document.images.length && [...document.images].every(image => image.complete)")
    assert picture.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [64, 32]
    assert page.problems == []


def test_names_labels_and_notes_stay_text(address, browser_page):
    from playwright.sync_api import expect

    page = browser_page()
    page.goto(f"{address}/dashboard")
    expect(page.get_by_text(f"2. evil {HOSTILE}")).to_be_visible(timeout=20_000)
    for path, text in (
        ("/trials?numbers=0", f"model.backbone {HOSTILE}"),
        ("/trials?numbers=0", f"{HOSTILE} 1000000"),
        ("/note", f"vqsearch evil {HOSTILE}"),
    ):
        page.goto(f"{address}/dashboard/studies/2{path}")
        page.wait_for_load_state("networkidle")
        expect(page.get_by_text(text).first).to_be_visible(timeout=20_000)
        assert page.locator("#in").count() == 0
        assert page.locator("script:not([src])").count() == 0
    page.goto(f"{address}/dashboard/studies/2/trials?numbers=0")
    expect(page.locator("p", has_text=HOSTILE).first).to_have_text(HOSTILE)
    assert page.problems == []


def test_read_only_refuses_to_delete_a_study(address, browser_page, storage):
    from playwright.sync_api import expect

    page = browser_page()
    page.goto(f"{address}/dashboard")
    expect(page.get_by_text("1. faces")).to_be_visible(timeout=20_000)
    assert not page.get_by_label("delete study").first.is_visible()
    deleting = "fetch('/api/studies/1', {method: 'DELETE'}).then(async answer => [answer.status, await answer.json()])"
    refused = [405, {"reason": "read-only; vqsearch dashboard --write lets people change something"}]
    assert page.evaluate(deleting) == refused
    request = urllib.request.Request(f"{address}/api/studies/1", method="DELETE", headers={"Origin": address})
    with pytest.raises(urllib.error.HTTPError, match="405"):
        urllib.request.urlopen(request)
    page.reload()
    expect(page.get_by_text("1. faces")).to_be_visible()
    assert len(storage.get_all_studies()) == 2


def test_a_note_is_edited_where_that_is_allowed(storage, browser_page):
    from playwright.sync_api import expect

    with served(storage, write=True) as address:
        page = browser_page()
        page.goto(f"{address}/dashboard")
        expect(page.get_by_label("delete study").first).to_be_visible(timeout=20_000)
        assert not page.get_by_label("rename study").first.is_visible()
        page.goto(f"{address}/dashboard/studies/1/note")
        expect(page.get_by_text("vqsearch resume --study faces")).to_be_visible(timeout=20_000)
        edit = "{method: 'PUT', headers: {'Content-Type': 'application/json'}, body: JSON.stringify(%s)}"
        note = edit % "{version: 2, body: 'Look at the **hair**.'}"
        assert page.evaluate(f"fetch('/api/studies/1/note', {note}).then(answer => answer.status)") == 204
        page.reload()
        expect(page.get_by_text("Look at the hair.")).to_be_visible(timeout=20_000)


def test_a_wrong_password_is_refused_and_the_right_one_opens_the_page_that_was_asked_for(storage, browser_page):
    from playwright.sync_api import expect

    with served(storage, password="open sesame") as address:
        page = browser_page()
        page.goto(f"{address}/dashboard/studies/1")
        expect(page).to_have_url(f"{address}/login?next=%2Fdashboard%2Fstudies%2F1")
        page.get_by_label("Password").fill("wrong")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_have_text("This is not the password.")
        page.get_by_label("Password").fill("open sesame")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_text("Best Trial (number=0)")).to_be_visible(timeout=20_000)
        expect(page).to_have_url(f"{address}/dashboard/studies/1")
        (cookie,) = page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        stranger = browser_page()
        stranger.goto(f"{address}/dashboard")
        expect(stranger.get_by_label("Password")).to_be_visible()


def test_on_a_phone_nothing_is_cut_off(address, browser):
    context = browser.new_context(viewport={"width": 390, "height": 844}, is_mobile=True, color_scheme="dark")
    page = context.new_page()
    for path, found in (
        ("", page.get_by_role("link", name="Compare")),
        ("/studies/1", page.locator("main .js-plotly-plot")),
        ("/studies/1/trials?numbers=0", page.get_by_alt_text("reconstructions at step 000018.png")),
    ):
        page.goto(f"{address}/dashboard{path}")
        found.first.wait_for()
        box = found.first.bounding_box()
        assert box["x"] + box["width"] <= page.evaluate("document.documentElement.clientWidth")
    context.close()
