"""What a run has measured so far, on disk: an interrupted run goes on from it.

One JSON object a line: first what the run is (model, settings), then a measured question each, in
the order of their completion. A line that was cut in the middle, as by a kill, is dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mechattr.errors import InputError


class Ledger:
    """Measured questions by their record's digest; on disk where there is a path.

    path: of the file; None keeps them in memory only.
    header: what the measurements depend on besides the record. A file with another one is refused:
        what it holds can't be mixed with this run's.
    """

    def __init__(self, path: Path | None, header: Mapping[str, Any], *, fresh: bool = False):
        self.path = path
        self._header = json.loads(json.dumps(header))
        self._found: dict[str, dict[str, Any]] = {}
        if path is None:
            return
        if fresh or not path.exists() or not path.stat().st_size:
            self._begin(path)
        else:
            self._read(path)

    def __len__(self) -> int:
        return len(self._found)

    def get(self, digest: str) -> dict[str, Any] | None:
        return self._found.get(digest)

    def put(self, measured: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a question; it is on disk when this returns. Returns it as it will be read back, so
        that a resumed run ends in the same file."""
        line = json.dumps(measured, ensure_ascii=False, allow_nan=False)
        kept: dict[str, Any] = json.loads(line)
        self._found[kept["digest"]] = kept
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
        return kept

    def _begin(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(path.name + ".new")  # the header as a whole, or no file
        new.write_text(json.dumps(self._header) + "\n", encoding="utf-8")
        os.replace(new, path)

    def _read(self, path: Path) -> None:
        whole = path.read_bytes()
        end = whole.rfind(b"\n") + 1
        first, *rest = whole[:end].splitlines() or [b""]
        self._check(path, first)
        for number, line in enumerate(rest, 2):
            try:
                measured = json.loads(line)
                self._found[measured["digest"]] = measured
            except (ValueError, TypeError, KeyError) as error:
                raise InputError(
                    f"Line {number} of {path} isn't a measured question ({error}). Take it out, or "
                    f"start again with fresh=True (--fresh)."
                ) from error
        if end < len(whole):  # the last write was cut short
            with path.open("r+b") as file:
                file.truncate(end)

    def _check(self, path: Path, first: bytes) -> None:
        try:
            header = json.loads(first)
        except ValueError:
            header = None
        if not isinstance(header, dict):
            raise InputError(
                f"{path} isn't a file of measurements of an audit. Give another --out."
            )
        there, here = _flat(header), _flat(self._header)
        differ = [k for k in sorted({*there, *here}) if there.get(k) != here.get(k)]
        if differ:
            what = "; ".join(
                f"{k}: there {json.dumps(there.get(k))}, here {json.dumps(here.get(k))}"
                for k in differ
            )
            hint = ""
            if "swaps" in differ:
                hint = (
                    " A number of swaps of your own doesn't depend on how many records there are."
                )
            raise InputError(
                f"{path} holds measurements of another run ({what}). Give another --out, or start "
                f"again with fresh=True (--fresh), which overwrites them.{hint}"
            )


def _flat(header: Mapping[str, Any]) -> dict[str, Any]:
    """With each of the settings by its own name; what they came to goes before what was asked."""
    settings = header.get("settings")
    flat = {k: v for k, v in header.items() if k != "settings"}
    return {**settings, **flat} if isinstance(settings, Mapping) else dict(header)
