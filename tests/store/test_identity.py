"""Names by content: whatever byte of a model changes, its name changes, however it was hidden."""

import os
import shutil
import time

import pytest

from persyn_datasets import InputError
from persyn_datasets.store import identity
from persyn_datasets.store.identity import content_hash, response_weights, weights_of

SIZE = 2**24 + 2**20  # version 0.1.0 read 64 KiB at its begin and 64 KiB from 16 MiB on


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").write_bytes(bytes(SIZE))
    return tmp_path / "model"


def write_at(file, offset, byte):
    with file.open("r+b") as data:
        data.seek(offset)
        data.write(byte)


@pytest.fixture(params=["read each time", "kept between processes"])
def kept(request, monkeypatch):
    if request.param.startswith("kept"):
        monkeypatch.setattr(identity, "LARGE_BYTES", 0)
        monkeypatch.setattr(identity, "SETTLED_SECONDS", -1e9)  # files of this moment count as old
    return request.param.startswith("kept")


@pytest.mark.parametrize("offset", [0, 2**20, SIZE - 1])
def test_any_changed_byte_is_seen_at_the_same_size_and_date(folder, kept, offset):
    weights = folder / "model.safetensors"
    first, status = content_hash(folder), weights.stat()
    assert content_hash(folder) == first
    time.sleep(0.02)  # longer than a tick of the file system's clock
    write_at(weights, offset, b"1")
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert weights.stat().st_mtime_ns == status.st_mtime_ns
    assert content_hash(folder) != first
    time.sleep(0.02)
    write_at(weights, offset, b"\0")
    assert content_hash(folder) == first


def test_another_file_of_the_same_size_and_date_is_seen(folder, kept, tmp_path):
    weights, other = folder / "model.safetensors", tmp_path / "other"
    first = content_hash(folder)
    other.write_bytes(b"1" * SIZE)
    shutil.copystat(weights, other)
    other.replace(weights)
    assert content_hash(folder) != first


def test_a_large_file_is_read_once_in_all_processes(folder, monkeypatch):
    monkeypatch.setattr(identity, "LARGE_BYTES", SIZE)
    monkeypatch.setattr(identity, "SETTLED_SECONDS", -1e9)
    first = content_hash(folder)
    monkeypatch.setattr(identity.hashlib, "file_digest", None)  # to read it again would fail
    assert content_hash(folder) == first


def test_a_file_that_changed_just_now_is_not_kept(folder, monkeypatch, journal_root):
    monkeypatch.setattr(identity, "LARGE_BYTES", 0)
    content_hash(folder)
    assert not (journal_root / "hashes").exists()


def test_the_content_of_a_folder(folder, tmp_path):
    first = content_hash(folder)
    shutil.copytree(folder, tmp_path / "copy")
    assert content_hash(tmp_path / "copy") == first  # wherever it lies
    for beside in (".cache/huggingface", "checkpoint-8", ".git"):
        (folder / beside).mkdir(parents=True)
        (folder / beside / "model.safetensors").write_bytes(b"1")
    assert content_hash(folder) == first
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    assert content_hash(folder) != (second := first)
    (folder / "1_Pooling" / "config.json").rename(folder / "1_Pooling" / "other.json")
    assert content_hash(folder) not in (first, second)
    assert content_hash(tmp_path / "none") is None
    assert content_hash(folder / "config.json") != content_hash(folder / "model.safetensors")


def test_a_model_on_the_hub_is_its_commit(hub, monkeypatch):
    first = hub.put("org/m", {"config.json": "{}"}, kind="model")
    assert weights_of("org/m") == weights_of("org/m", "main") == first.oid
    second = hub.put("org/m", {"model.safetensors": b"1"}, kind="model")
    assert weights_of("org/m") == second.oid != first.oid
    hub.count_again()
    assert weights_of("org/m", first.oid) == first.oid
    assert hub.requests == []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert weights_of("org/m") == second.oid


def test_a_model_that_is_nowhere(hub):
    with pytest.raises(InputError, match="'org/none'"):
        weights_of("org/none")
    with pytest.raises(InputError, match="'../none/at/all'"):
        weights_of("../none/at/all")


def test_journals_of_responses_keep_their_names(folder, tmp_path):
    """Paid answers of version 0.1.0 are found; other weights never get them."""
    first = response_weights(str(folder))
    assert first == "355ff5d793c09ae1cc3ef655c2a7b838"
    assert response_weights(str(folder)) == first
    shutil.copytree(folder, tmp_path / "copy")
    write_at(tmp_path / "copy" / "model.safetensors", 2**20, b"1")  # between the samples
    other = response_weights(str(tmp_path / "copy"))
    assert other != first
    assert response_weights(str(folder)) == first
    assert response_weights(str(tmp_path / "copy")) == other
    assert response_weights("org/model") is None
