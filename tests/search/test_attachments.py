"""Pictures and notes, as the Optuna dashboard finds them; no driver is needed."""

from types import SimpleNamespace

import optuna
import optuna_dashboard
import pytest
from optuna.artifacts import get_all_artifact_meta
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.trial import TrialState

from search import attachments, output, records, space
from search.attachments import PictureStore
from search.records import Picture
from search.storage import open_storage

HOSTILE = "<script>alert(1)</script> | [a](javascript:b) $x$ `c` *d* __e__ www.f.org https://g.org h@i.org \\ \n# j"


@pytest.fixture
def place(tmp_path, tiny_file):
    """A study with one running trial that has two pictures at step 2, below a root of its own."""
    stored = space.load(tiny_file, ["constraints={parameters: {max: 1000}, val/psnr: {min: 30}}"])
    root = tmp_path / "out"
    study = optuna.create_study(
        study_name="tiny", direction="maximize", storage=open_storage(f"journal:///{tmp_path}/s")
    )
    records.create(study, stored.source, str(root), 10, {"vqsearch": "0.1.0", "torch": "2.11"})
    study.enqueue_trial({"optimizer.lr": 1e-3, "quantizer.codebook_size": 64})
    trial = study.ask(
        {
            "optimizer.lr": optuna.distributions.FloatDistribution(1e-4, 1e-1),
            "quantizer.codebook_size": optuna.distributions.CategoricalDistribution((16, 64)),
        }
    )
    folder = output.folder_of("tiny", 0, 2)
    pictures = [Picture(step=2, name=name, folder=folder) for name in ("reconstructions", "worst")]
    (root / folder).mkdir(parents=True)
    for picture in pictures:
        (root / folder / f"{picture.name}.png").write_bytes(picture.name.encode())
    records.set_pictures(trial, pictures)
    attachments.attach(study, trial, pictures)
    return SimpleNamespace(
        study=study, space=stored, trial=trial, root=root, pictures=pictures, store=PictureStore(study._storage)
    )


def test_optuna_reads_the_pictures_of_a_trial_as_its_artifacts(place):
    found = get_all_artifact_meta(place.trial)
    assert [(meta.filename, meta.mimetype) for meta in found] == [
        ("reconstructions at step 000002.png", "image/png"),
        ("worst at step 000002.png", "image/png"),
    ]
    assert [place.store.open_reader(meta.artifact_id).read() for meta in found] == [b"reconstructions", b"worst"]


def test_a_picture_that_is_attached_twice_is_there_once(place):
    attachments.attach(place.study, place.trial, place.pictures)
    assert len(get_all_artifact_meta(place.trial)) == 2


def test_a_picture_is_found_where_the_output_root_has_moved_to(place, tmp_path):
    place.root.rename(tmp_path / "moved")
    (meta, _) = get_all_artifact_meta(place.trial)
    with pytest.raises(ArtifactNotFound):
        place.store.open_reader(meta.artifact_id)
    records.set_output(place.study, str(tmp_path / "moved"))
    assert place.store.open_reader(meta.artifact_id).read() == b"reconstructions"


def test_the_pictures_of_a_copy_lie_with_its_original(place, tmp_path):
    original = records.Original(study="tiny", number=0, output=str(place.root))
    frozen = place.study.trials[0]
    copied = optuna.create_study(study_name="copy", storage=place.study._storage)
    records.create(copied, {}, str(tmp_path / "elsewhere"), 10, {})
    copied.add_trial(optuna.trial.create_trial(value=1.0, user_attrs=records.copy_of(frozen, original)))
    name = attachments.artifact_id(copied._study_id, 0, place.pictures[0])
    assert place.store.open_reader(name).read() == b"reconstructions"


@pytest.mark.parametrize(
    "name",
    ["", "0-0-2", "0-0-2-zz", "0-0-2-7265-1", "9-0-2-776f727374", "0-9-2-776f727374", "0-0-3-776f727374", "0-0-2-2e2e"],
)
def test_an_id_of_nothing_is_not_found(place, name):
    assert place.store.open_reader(attachments.artifact_id(0, 0, place.pictures[1])).read() == b"worst"
    with pytest.raises(ArtifactNotFound):
        place.store.open_reader(name)


@pytest.mark.parametrize("folder", ["../..", "/etc", "tiny/link"])
def test_no_path_leads_out_of_the_output_root(place, tmp_path, folder):
    (tmp_path / "secret.png").write_bytes(b"secret")
    (place.root / "tiny/link").symlink_to(tmp_path)
    picture = Picture(step=3, name="secret", folder=folder)
    records.set_pictures(place.trial, [picture])
    with pytest.raises(ArtifactNotFound, match=r"outside the output root|behind a symbolic link"):
        place.store.open_reader(attachments.artifact_id(0, 0, picture))


@pytest.mark.parametrize("root", ["/dev/null", "nonsense://x"])
def test_a_root_that_does_not_answer_has_no_pictures(place, root):
    records.set_output(place.study, root)
    with pytest.raises(ArtifactNotFound):
        place.store.open_reader(attachments.artifact_id(0, 0, place.pictures[0]))


def test_pictures_can_be_neither_written_nor_removed(place):
    name = attachments.artifact_id(0, 0, place.pictures[0])
    with pytest.raises(PermissionError):
        place.store.write(name, None)
    place.store.remove(name)
    assert place.store.open_reader(name).read() == b"reconstructions"


def test_the_note_of_a_trial_that_starts_has_its_settings(place):
    attachments.note_trial(place.study, place.space, place.trial)
    assert optuna_dashboard.get_note(place.trial) == (
        "**Started**; there is more here when it ends.\n\n"
        "| setting | value |\n| --- | --- |\n| optimizer.lr | 0.001 |\n| quantizer.codebook\\_size | 64 |\n\n---\n"
    )


def test_the_note_of_a_trial_that_ends_says_how_and_why(place):
    place.trial.report(21.5, 6)
    records.set_metrics(place.trial, {"val/psnr": 21.5, "parameters": 1120.0})
    records.set_seconds(place.trial, 200)
    records.set_device(place.trial, "NVIDIA H200")
    records.set_reason(place.trial, "parameters is 1,120: outside constraints")
    place.trial.set_constraint("parameters", 0.12)
    attachments.note_trial(place.study, place.space, place.trial, TrialState.PRUNED)
    assert optuna_dashboard.get_note(place.trial).startswith(
        "**Pruned at step 6**, PSNR 21.50 dB (higher is better), trained for 3 min 20 s on NVIDIA H200.\n\n"
        "parameters is 1,120\\: outside constraints\n\n"
        "Limits broken:\n\n- parameters at most 1,000 (1,120, 12.0% beyond)\n\n"
        "| setting | value |"
    )


def test_a_traceback_is_a_block_of_code_and_a_long_one_keeps_its_end(place):
    records.set_reason(place.trial, "Traceback:\n" + "  <b>line</b>\n" * 1000 + "ValueError: the end")
    attachments.note_trial(place.study, place.space, place.trial, TrialState.FAIL)
    block = optuna_dashboard.get_note(place.trial).split("\n\n")[1].splitlines()
    assert block[0].startswith("    ...")
    assert block[-1] == "    ValueError: the end"
    assert all(line.startswith("    ") for line in block)
    assert 5_000 < sum(map(len, block)) < 10_000


def test_what_people_write_below_a_note_stays(place):
    attachments.note_trial(place.study, place.space, place.trial)
    optuna_dashboard.save_note(place.trial, optuna_dashboard.get_note(place.trial) + "\nLook at the hair.\n\n---\nMe")
    attachments.note_trial(place.study, place.space, place.trial, TrialState.COMPLETE)
    note = optuna_dashboard.get_note(place.trial)
    assert note.startswith("**Complete**.")
    assert note.endswith("| quantizer.codebook\\_size | 64 |\n\n---\n\nLook at the hair.\n\n---\nMe")


def test_text_of_a_study_is_text_in_a_note(place):
    records.set_reason(place.trial, HOSTILE.replace("\n", " "))
    attachments.note_trial(place.study, place.space, place.trial, TrialState.FAIL)
    assert optuna_dashboard.get_note(place.trial).split("\n\n")[1] == (
        r"\<script\>alert(1)\</script\> \| \[a\](javascript\:b) \$x\$ \`c\` \*d\* \_\_e\_\_ www\.f.org https\://g.org "
        r"h\@i.org \\ \# j"
    )


def test_the_note_of_a_study_says_from_which_trial_on_its_versions_hold(place):
    records.add_versions(place.study, 3, {"torch": "2.12"})
    assert "| versions | torch 2.12 (from trial 3) |" in attachments.study_note(place.study, place.space)


def test_the_note_of_a_study_says_what_is_searched_and_how_to_go_on(place):
    records.set_sizes(place.study, {"train": 987, "validation": 82})
    records.set_output(place.study, "s3://me:secret@bucket/root")
    attachments.note_study(place.study, place.space)
    note = optuna_dashboard.get_note(place.study)
    assert "| objective | PSNR (val/psnr) on held-out images, higher is better |" in note
    assert "| budget | 4 trials of 18 steps |" in note
    assert "| data | photographs, 64 px\\: 987 train, 82 validation images |" in note
    assert "| versions | vqsearch 0.1.0, torch 2.11 |" in note
    assert "| optimizer.lr | 0.0005 to 0.005, logarithmic |" in note
    assert "| quantizer.codebook\\_size | 16, 64, 256 |" in note
    assert "`vqsearch resume --study tiny`" in note
    assert "secret" not in note
