"""Models by their name on the hub: from its cache, without a network; a folder always wins."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
import tiny

from pintern.assemble import load_base
from pintern.errors import UserError
from pintern.hub import resolve_model, resolve_other

NAME = "someone/small-model"
COMMIT, OLDER = "c" * 40, "a" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An offline hub cache with one model at two commits, laid out as huggingface_hub does it."""
    root = tmp_path / "hub"
    model = root / "models--someone--small-model"
    for commit in (COMMIT, OLDER):
        snapshot = model / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for file in sorted(tiny.base().iterdir()):
            blob = model / "blobs" / f"{commit[0]}-{file.name}"
            blob.parent.mkdir(exist_ok=True)
            shutil.copy(file, blob)
            (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    (model / "refs" / "v1").write_text(OLDER)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return model


@pytest.mark.parametrize(
    ("revision", "commit"), [("", COMMIT), ("main", COMMIT), ("v1", OLDER), (OLDER, OLDER)]
)
def test_a_name_is_found_in_the_cache(cache, revision, commit):
    assert resolve_model(NAME, revision) == cache / "snapshots" / commit


def test_a_model_loads_by_its_name(cache):
    named = tiny.config(model__path=NAME)
    by_name, tokenizer = load_base(named)
    by_path, _ = load_base(tiny.config())
    assert by_name.fingerprint == by_path.fingerprint
    assert tokenizer.encode("bolt") == tiny.parts().tokenizer.encode("bolt")


def test_a_folder_wins(cache, tmp_path):
    folder = tmp_path / NAME
    folder.mkdir(parents=True)
    assert resolve_model(NAME) == Path(NAME)
    with pytest.raises(UserError, match="is a folder of this machine, which has no revisions"):
        resolve_model(NAME, "v1")


@pytest.mark.parametrize("path", ["plain", "a/b/c", "/nowhere/at all", "../up", ""])
def test_what_is_no_name_is_a_folder(cache, path):
    assert resolve_model(path) == Path(path)


def test_what_the_cache_lacks_is_told(cache):
    with pytest.raises(UserError, match=r"other/model: there is no such folder, and HF_HUB_OFFL"):
        resolve_model("other/model")
    with pytest.raises(UserError, match=r"lacks this model at revision 'v2'.*hf download someone/"):
        resolve_model(NAME, "v2")


def test_a_network_that_fails_is_told(cache, monkeypatch):
    """An address at which nothing listens, as behind a firewall."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    api = huggingface_hub.HfApi(endpoint="http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.hf_api, "api", api)
    with pytest.raises(UserError, match=r"model\.path=other/model: .*the hub can't be reached"):
        resolve_model("other/model")
    with pytest.raises(UserError, match=r"sentence_model=other/model: .*the hub can't be reached"):
        resolve_other("prompt.sentence_model", "other/model")


def test_what_another_library_loads_is_a_folder_too(cache, tmp_path):
    found = resolve_other("prompt.sentence_model", NAME)
    assert found == str(cache / "snapshots" / COMMIT)
    assert resolve_other("prompt.sentence_model", str(tmp_path)) == str(tmp_path)


def test_a_copy_without_safetensors_is_told(cache):
    (cache / "snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no model\.safetensors.*save_pretrained"):
        resolve_model(NAME)
    assert resolve_model(NAME, weights=False).name == COMMIT
