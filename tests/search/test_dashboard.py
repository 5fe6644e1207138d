"""The dashboard's answers: what it shows, to whom, and what it lets nobody do; test_browser.py looks at its pages."""

import gzip
import io
import json
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from types import SimpleNamespace
from wsgiref.util import setup_testing_defaults

import optuna
import optuna_dashboard
import pytest

from search import attachments, dashboard, login, output, records, space
from search.dashboard import Pages
from search.errors import UserError
from search.lease import Lease
from search.login import Guard
from search.storage import open_storage


@pytest.fixture
def study(tmp_path, tiny_file):
    """A study with a complete, an infeasible and a pruned trial."""
    stored = space.load(tiny_file, ["study=faces"])
    study = optuna.create_study(
        study_name="faces", direction="maximize", storage=open_storage(f"sqlite:///{tmp_path}/vqsearch.db")
    )
    records.create(study, stored.source, str(tmp_path / "out"), 10, {"vqsearch": "0.1.0"})
    for values in ((20.0, 21.0, 22.0), (20.0,), (19.0, 18.0)):
        trial = study.ask()
        trial.suggest_float("optimizer.lr", 1e-4, 1e-2, log=True)
        for step, value in enumerate(values, start=1):
            trial.report(value, step)
        folder = output.folder_of("faces", trial.number, len(values))
        records.set_checkpoint(trial, records.CheckpointRecord(step=len(values), folder=folder, metrics={}))
        records.set_metrics(trial, {"val/psnr": values[-1]})
        picture = records.Picture(step=len(values), name="reconstructions", folder=folder)
        records.set_pictures(trial, [picture])
        attachments.attach(study, trial, [picture])
        (tmp_path / "out" / folder).mkdir(parents=True)
        (tmp_path / "out" / attachments.path_of(picture)).write_bytes(b"png")
        state = optuna.trial.TrialState.COMPLETE if len(values) == 3 else optuna.trial.TrialState.PRUNED
        if len(values) == 1:
            trial.set_constraint("parameters", 0.5)
        attachments.note_trial(study, stored, trial, state)
        study.tell(trial, values[-1] if len(values) == 3 else None, state=state)
    return study


def ask(application, method, path, body=b"", **headers):
    """A request without a server."""
    environment = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path.partition("?")[0],
        "QUERY_STRING": path.partition("?")[2],
    }
    environment |= {"HTTP_HOST": "localhost:8080", "CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body)}
    environment |= {"HTTP_ACCEPT_ENCODING": "", "REMOTE_ADDR": "127.0.0.1"}
    environment |= {name if name.isupper() else f"HTTP_{name.upper()}": value for name, value in headers.items()}
    setup_testing_defaults(environment)
    begun = []
    text = b"".join(application(environment, lambda *answer: begun.extend(answer)))
    headers = dict(begun[1])
    text = gzip.decompress(text) if headers.get("Content-Encoding") == "gzip" else text
    return SimpleNamespace(status=int(begun[0].split()[0]), headers=headers, body=text)


def of(answer):
    return json.loads(answer.body)


def shown(study, **options):
    return of(ask(Pages(study._storage, write=False), "GET", f"/api/studies/{study._study_id}", **options))


def test_a_trial_has_its_note_its_pictures_and_what_it_measured_and_nothing_that_only_a_search_reads(study):
    for answer in (shown(study), shown(study, accept_encoding="gzip, br")):
        first = answer["trials"][0]
        assert first["note"]["body"].startswith("**Complete at step 3**, PSNR 22.00 dB (higher is better).")
        assert [artifact["filename"] for artifact in first["artifacts"]] == ["reconstructions at step 000003.png"]
        assert first["user_attrs"] == [{"key": "val/psnr", "value": "22.0"}]
        assert answer["union_user_attrs"] == [{"key": "val/psnr", "sortable": True}]
        assert answer["user_attrs"] == []
        assert answer["best_trials"][0]["note"] == first["note"]


def test_constraints_are_shown_as_the_dashboard_knows_them(study):
    assert [trial["constraints"] for trial in shown(study)["trials"]] == [[], [0.5], []]


def test_a_running_trial_is_shown_as_it_is_now(study):
    pages = Pages(study._storage, write=False)
    trial = study.ask()
    of(ask(pages, "GET", f"/api/studies/{study._study_id}"))
    trial.set_user_attr("val/psnr", 5.0)
    trials = pages._shown.get_all_trials(study._study_id)
    assert trials[3].user_attrs == {"val/psnr": 5.0}
    assert trials[0] is pages._shown.get_all_trials(study._study_id)[0]  # made ready once


def test_leases_are_not_listed(study):
    lease = Lease(study._storage, "faces")
    studies = of(ask(Pages(study._storage, write=False), "GET", "/api/studies"))["study_summaries"]
    assert [(found["study_name"], found["user_attrs"]) for found in studies] == [("faces", [])]
    lease.release()


def test_pictures_come_from_the_output_root_and_one_that_is_not_there_is_not_found(study, tmp_path):
    pages = Guard(Pages(study._storage, write=False), "127.0.0.1", None)
    trial = study.trials[0]
    path = f"/artifacts/{study._study_id}/{trial._trial_id}/"
    path += shown(study)["trials"][0]["artifacts"][0]["artifact_id"]
    answer = ask(pages, "GET", path)
    assert (answer.status, answer.body, answer.headers["Content-Type"]) == (200, b"png", "image/png")
    assert "Access-Control-Allow-Origin" not in answer.headers
    (tmp_path / "out").rename(tmp_path / "away")
    assert ask(pages, "GET", path).status == 404


WRITES = [
    ("DELETE", "/api/studies/1"),
    ("POST", "/api/studies"),
    ("POST", "/api/studies/1/rename"),
    ("PUT", "/api/studies/1/note"),
    ("POST", "/api/trials/1/tell"),
    ("POST", "/api/trials/1/user-attrs"),
    ("POST", "/api/artifacts/1/1"),
    ("DELETE", "/api/artifacts/1/1/1-0-3-7265"),
    ("PATCH", "/"),
]


@pytest.mark.parametrize(("method", "path"), WRITES)
def test_read_only_refuses_every_change(study, method, path):
    answer = ask(Pages(study._storage, write=False), method, path, b"{}", CONTENT_TYPE="application/json")
    assert answer.status == 405
    assert of(answer) == {"reason": "read-only; vqsearch dashboard --write lets people change something"}
    assert len(study.trials) == 3


def test_writing_edits_notes(study):
    body = json.dumps({"version": 1, "body": "mine"}).encode()
    pages = Pages(study._storage, write=True)
    assert ask(pages, "PUT", "/api/studies/1/note", body, CONTENT_TYPE="application/json").status == 204
    assert optuna_dashboard.get_note(study) == "mine"


@pytest.mark.parametrize(("method", "path"), [each for each in WRITES if each not in (WRITES[0], WRITES[3])])
def test_writing_leaves_trials_and_names_to_the_search(study, method, path):
    answer = ask(Pages(study._storage, write=True), method, path, b"{}", CONTENT_TYPE="application/json")
    assert answer.status == 405
    assert of(answer) == {"reason": "trials are written by the search alone; notes can be edited and studies deleted"}


def test_writing_deletes_a_study_but_not_beside_its_driver(study, tmp_path):
    pages = Pages(study._storage, write=True)
    lease = Lease(study._storage, "faces")
    answer = ask(pages, "DELETE", "/api/studies/1", b"{}", CONTENT_TYPE="application/json")
    assert answer.status == 409
    assert re.fullmatch(r"process \d+ on .+ is running this study; vqsearch stop stops it", of(answer)["reason"])
    lease.release()
    assert ask(pages, "DELETE", "/api/studies/1", b"{}", CONTENT_TYPE="application/json").status == 204
    assert study._storage.get_all_studies() == []
    assert len(output.files(str(tmp_path / "out"), "faces")) == 3  # files go by `vqsearch delete` alone


def hello(_environment, start):
    start("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9", "127.0.0.1:8080", "[::1]:8080", "127.1.2.3"])
def test_without_a_password_names_of_this_machine_are_answered(host):
    assert ask(Guard(hello, "127.1.2.3", None), "GET", "/", host=host).status == 200


@pytest.mark.parametrize("host", ["evil.org", "localhost.evil.org", "", "[::1", "127.0.0.1.evil.org:80"])
def test_without_a_password_other_names_are_refused(host):
    answer = ask(Guard(hello, "127.0.0.1", None), "GET", "/", host=host)
    assert answer.status == 403
    assert of(answer) == {"reason": f"{host!r} is no name of this dashboard; expected localhost"}


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8080", 200),
        ("http://localhost:8081", 403),
        ("https://evil.org", 403),
        ("null", 403),
        (None, 403),
    ],
)
def test_changes_must_come_from_the_dashboards_own_pages(origin, status):
    headers = {} if origin is None else {"origin": origin}
    assert ask(Guard(hello, "127.0.0.1", None), "PUT", "/", **headers).status == status


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def guarded():
    clock = Clock()
    return SimpleNamespace(guard=Guard(hello, "0.0.0.0", "open sesame", clock), clock=clock)


def log_in(guard, password, **headers):
    headers = {"host": "gpu7:8080", "origin": "http://gpu7:8080"} | headers
    return ask(guard, "POST", "/login?next=/dashboard/studies/1", f"password={password}".encode(), **headers)


@pytest.mark.parametrize("path", ["/api/studies", "/artifacts/1/1/0", "/static/bundle.js", "/csv/1"])
def test_nothing_is_told_before_the_password(guarded, path):
    assert ask(guarded.guard, "GET", path, host="gpu7:8080").status == 401


def test_pages_lead_to_the_login_and_it_leads_back(guarded):
    answer = ask(guarded.guard, "GET", "/dashboard/studies/1", host="gpu7:8080")
    assert (answer.status, answer.headers["Location"]) == (303, "/login?next=%2Fdashboard%2Fstudies%2F1")
    answer = log_in(guarded.guard, "open+sesame")
    assert (answer.status, answer.headers["Location"]) == (303, "/dashboard/studies/1")
    cookie = answer.headers["Set-Cookie"]
    assert re.fullmatch(r"vqsearch-\w{8}=\d+\.\w{64}; Max-Age=43200; Path=/; HttpOnly; SameSite=Strict", cookie)
    held = cookie.partition(";")[0]
    assert ask(guarded.guard, "GET", "/api/studies", cookie=held).body == b"hello"
    assert ask(guarded.guard, "GET", "/api/studies", cookie=held[:-1]).status == 401
    assert ask(guarded.guard, "GET", "/api/studies", cookie=held.replace("=4", "=5")).status == 401
    assert ask(Guard(hello, "0.0.0.0", "open sesame"), "GET", "/api/studies", cookie=held).status == 401
    guarded.clock.now += login.SESSION_S
    assert ask(guarded.guard, "GET", "/api/studies", cookie=held).status == 401


@pytest.mark.parametrize("to", ["//evil.org", "https://evil.org", "/\\evil.org", "/%0d%0aSet-Cookie:a=b"])
def test_a_login_leads_nowhere_else(guarded, to):
    body = b"password=open+sesame"
    answer = ask(guarded.guard, "POST", f"/login?next={to}", body, host="gpu7", origin="http://gpu7")
    assert answer.headers["Location"] == "/"


def test_a_wrong_password_is_refused_and_many_have_to_wait(guarded):
    for _ in range(login.TRIES):
        answer = log_in(guarded.guard, "wrong")
        assert (answer.status, b"This is not the password." in answer.body) == (403, True)
        assert "Set-Cookie" not in answer.headers
    answer = log_in(guarded.guard, "open+sesame")
    assert (answer.status, answer.headers["Retry-After"]) == (429, "2")
    assert log_in(guarded.guard, "open+sesame", REMOTE_ADDR="10.0.0.2").status == 303  # others need not wait
    guarded.clock.now += 3
    assert log_in(guarded.guard, "wrong").status == 403
    assert log_in(guarded.guard, "open+sesame").headers["Retry-After"] == "4"
    guarded.clock.now += 5
    assert log_in(guarded.guard, "open+sesame").status == 303
    assert log_in(guarded.guard, "wrong").status == 403


def test_the_login_page_takes_what_it_is_given_as_text(guarded):
    answer = ask(guarded.guard, "GET", '/login?next=/"><script>alert(1)</script>')
    assert b"<script>" not in answer.body
    assert answer.status == 200


@pytest.mark.parametrize(("host", "alone"), [("127.0.0.1", True), ("::1", True), ("localhost", True),
                                             ("0.0.0.0", False), ("10.0.0.5", False), ("gpu7", False)])  # fmt: skip
def test_which_addresses_are_this_machines_alone(host, alone):
    assert login.is_loopback(host) == alone


def test_a_password_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(login.VARIABLE, raising=False)
    assert login.password(None) is None
    monkeypatch.setenv(login.VARIABLE, "from the environment")
    assert login.password(None) == "from the environment"
    file = tmp_path / "password"
    file.write_text("from the file\nmore\n")
    file.chmod(0o640)
    assert login.password(str(file)) == "from the file"
    file.chmod(0o644)
    with pytest.raises(UserError, match=r"everyone on this machine may read it; chmod o= "):
        login.password(str(file))
    file.write_text("\nx")
    with pytest.raises(UserError, match=r"password: its first line is empty; expected a password$"):
        login.password(str(file))
    with pytest.raises(UserError, match=r"nowhere: can't be read: No such file or directory$"):
        login.password("nowhere")


def run(tmp_path, *arguments):
    command = [sys.executable, "-m", "search", "dashboard", *arguments]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)


def test_an_address_for_others_needs_a_password(tmp_path, monkeypatch):
    monkeypatch.delenv(login.VARIABLE, raising=False)
    ran = run(tmp_path, "--host", "0.0.0.0")
    assert ran.returncode == 2
    assert ran.stderr == (
        "vqsearch: --host 0.0.0.0: other machines reach this address, and the dashboard asks nobody who they are; "
        "expected --password-file FILE or $VQSEARCH_DASHBOARD_PASSWORD\n"
    )


def test_it_serves_until_it_is_interrupted(study, tmp_path):
    command = [sys.executable, "-m", "search", "dashboard", "--port", "0", "--study", "faces"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        address = re.fullmatch(r"the dashboard is at (http://127\.0\.0\.1:\d+/)(\S+) \(Ctrl-C ends it\)\n", line)
        assert address[2] == "dashboard/studies/1"
        with urllib.request.urlopen(f"{address[1]}api/studies") as answer:
            assert len(json.load(answer)["study_summaries"]) == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130


def test_a_port_that_is_taken_is_named(study):
    with dashboard.listen(study._storage, "127.0.0.1", 0) as server:
        port = server.server_port
        words = f"--host 127.0.0.1 --port {port}: can't listen there: Address already in use; try --port 0"
        with pytest.raises(UserError, match=f"^{words}$"):
            dashboard.listen(study._storage, "127.0.0.1", port)


def test_it_answers_on_ipv6(study):
    with dashboard.listen(study._storage, "::1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with urllib.request.urlopen(f"http://[::1]:{server.server_port}/api/studies") as answer:
            assert answer.status == 200
        server.shutdown()
