"""quarantine.csv: the images that could not be used, and the limit at which a run stops because of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from densecl.errors import UserError
from densecl.files import append, lock, replacing
from densecl.images.pairs import ATTEMPTS, BadRecord
from densecl.names import counted, from_cell, shown, to_csv


class Quarantine:
    """The images that could not be used and why, one row each in quarantine.csv.

    The rows outlive the run, so a resumed run adds only what is new. All processes of a run on the same file system
    share the file: each takes a lock, reads what others have added, then appends. A row is written with one call. Half
    a row, left by a crash, is removed when the file is next opened.

    A name may hold anything, so cells are written by `names.to_cell` and read back by `names.from_cell`. A newline
    becomes ``\\n``, a byte that is not UTF-8 ``\\xff``, a backslash is doubled, and one is put before what a
    spreadsheet would take for a formula.

    Args:
        path: of the file. It is made, with its header, when the first row is written.
        size: number of images in the source, of which the bad ones are a fraction.
        most: the largest fraction that may be bad.
    """

    HEADER = ("path", "reason")

    def __init__(self, path: Path | str, size: int, most: float = 0.05) -> None:
        self.path = Path(path)
        self.size = size
        self.most = most
        self._lock = self.path.with_name(f".{self.path.name}.lock")
        self._read = 0  # bytes of the file that are known
        self._rows: set[str] = set()  # names in the file
        self._met: dict[str, str] = {}  # bad images since the run began or was resumed, and why
        if self.path.exists():
            with lock(self._lock):
                self._read_new_rows()

    def told(self) -> str | None:
        """How many images could not be used so far, as the user is told; None if there is none."""
        if not self.path.exists():
            return None
        with lock(self._lock):
            self._read_new_rows()
        if not self._rows:
            return None
        return f"{len(self._rows)} of {counted(self.size, 'image')} could not be used: see {shown(self.path)}"

    def record(self, bad: Iterable[BadRecord]) -> None:
        """Write down the bad images of a batch.

        Raises:
            UserError: more of the images are bad than may be, or all replacements of one were.
        """
        bad = list(bad)
        if not bad:
            return
        self._met.update((record.name, record.reason) for record in bad)
        if any(name not in self._rows for name in self._met):
            self._append()
        hopeless = any(record.attempt == ATTEMPTS for record in bad)
        if hopeless or len(self._met) > self.most * self.size:
            name, reason = next(iter(self._met.items()))
            many = (
                f"an image and its {ATTEMPTS} replacements cannot be used ({len(self._met)} of {self.size} so far)"
                if hopeless
                else f"{len(self._met)} of {self.size} images cannot be used ({100 * self.most:.3g}% is the limit)"
            )
            more = min(1.0, max(0.2, 2 * self.most))
            then = "" if hopeless else f". To do without them: --max-bad-images {more:g}"
            raise UserError(f"{many}: see {shown(self.path)}. The first: {shown(name)}: {shown(reason)}{then}")

    def _append(self) -> None:
        with lock(self._lock):
            self._met.update(self._read_new_rows())
            new = {name: reason for name, reason in self._met.items() if name not in self._rows}
            text = to_csv(new.items())
            if self._read:
                append(self.path, text)
            else:
                text = to_csv([self.HEADER]) + text
                with replacing(self.path) as file:
                    file.write(text)
            self._read += len(text)
            self._rows.update(new)

    def _read_new_rows(self) -> dict[str, str]:
        """The rows that others have added since the last look. Call it only while holding the lock."""
        if not self.path.exists():
            return {}
        with self.path.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            content = self.path.read_bytes()[: self._read + whole]
            with replacing(self.path) as file:
                file.write(content)
        rows = csv.reader(io.StringIO(text[:whole].decode("utf-8", "surrogateescape"), newline=""))
        found = {from_cell(row[0]): from_cell(row[1]) for row in rows if len(row) == 2 and tuple(row) != self.HEADER}
        self._read += whole
        self._rows.update(found)
        return found
