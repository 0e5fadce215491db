"""The page itself: one file of HTML with all that it shows, which loads nothing from elsewhere.

Names come from strangers' files. Jinja escapes all that is put into the page, after `names.printable` has taken out
what a reader's eyes or program would obey, such as marks that reverse the direction of writing. The page's own program
puts words into it as text only. A Content-Security-Policy forbids all programs but the two whose hashes it names, and
every address outside the page.
"""

from __future__ import annotations

import base64
import datetime
import functools
import gzip
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from densecl.names import printable
from densecl.progress import duration
from densecl.reporting.curves import curves
from densecl.reporting.facts import (
    complete,
    different_settings,
    next_commands,
    settings_of,
    steps_done,
    steps_in_all,
    stopped_early,
    what_was_run,
)
from densecl.reporting.moments import read_moments
from densecl.reporting.results import shown_evaluation
from densecl.reporting.run_files import RunFiles
from densecl.verdicts.record import read_record
from densecl.verdicts.table import verdicts
from densecl.verdicts.verdict import Verdict
from densecl.version import __version__

#: The page's own files.
PAGE = Path(__file__).parent / "page"

#: Where no verdict is due.
NO_GAIN = "No verdict: nothing unusual was seen, and no gain that is more than noise. Train longer."
NOT_YET = "No verdict yet: too little of this run is known."

SCRIPTS = ("curves.js", "views.js", "moments.js", "page.js")


def make_page(runs: Sequence[RunFiles], *, watch: str = "") -> bytes:
    """The page of one run, or of several side by side.

    Args:
        runs: at least one.
        watch: not empty: the page asks its server now and then, and loads itself anew when the answer is another.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE),
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["flags"] = _with_flags
    moments = [(run, read_moments(run.folder / "moments", share=len(runs))) for run in runs]
    drawn = [{"name": run.name, **moment} for run, moment in moments if moment is not None]
    found = curves(runs)
    data = {"runs": [{"name": run.name} for run in runs], "curves": found, "moments": drawn, "watch": watch}
    program = "".join(["(() => {\n'use strict';\n", *((PAGE / name).read_text("utf-8") for name in SCRIPTS), "})();"])
    packed, plotly_hash = _plotly() if found else ("", "")
    described = [_described(run) for run in runs]
    context = {
        "policy": _policy([_hash(program), *([plotly_hash] if plotly_hash else [])], live=bool(watch)),
        "title": runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        "style": Markup((PAGE / "page.css").read_text("utf-8")),
        "live": bool(watch),
        "headline": described[0]["headline"] if len(runs) == 1 else None,
        "no_verdict": described[0]["no_verdict"],
        "tiles": _tiles(runs[0]) if len(runs) == 1 else [],
        "several": len(runs) > 1,
        "runs": described,
        "differences": different_settings(runs) if len(runs) > 1 else [],
        "charts": bool(found),
        "moments": max((len(each["moments"]) for each in drawn), default=0),
        "version": __version__,
        "written": datetime.datetime.now().strftime("%Y-%m-%d %H:%M"),
        "data": Markup(_json(data)),
        "plotly": Markup(packed),
        "program": Markup(program),
    }
    context["sections"] = _sections(context)
    return environment.get_template("page.html").render(context).encode()


def _sections(context: dict[str, Any]) -> list[tuple[str, str]]:
    runs = context["runs"]
    there = {
        "verdicts": "Verdicts",
        "run": "The run",
        "curves": "Curves" if context["charts"] else "",
        "seen": "What it sees" if context["moments"] else "",
        "views": "Augmentation" if context["moments"] else "",
        "quarantine": "Quarantine" if any(run["bad"] for run in runs) else "",
        "evaluation": "Evaluation" if any(run["evaluations"] for run in runs) else "",
        "commands": "What to type next",
    }
    return [(place, name) for place, name in there.items() if name]


def _described(run: RunFiles) -> dict[str, Any]:
    """What the page says of a run in words."""
    found = verdicts(read_record(run.folder))
    seconds = run.metrics[-1].get("seconds") if run.metrics else None
    rate = run.metrics[-1].get("images_per_second") if run.metrics else None
    done = steps_done(run)
    return {
        "name": run.name,
        "verdicts": found,
        "headline": _headline(found),
        "no_verdict": NO_GAIN if len(run.watched) > 1 else NOT_YET,
        "match": _match(run)[0],
        "steps": "" if done is None else f"{done:,}",
        "time": "" if seconds is None else duration(seconds),
        "rate": "" if rate is None else f"{rate:.3g}",
        "facts": what_was_run(run),
        "settings": settings_of(run),
        "log": "\n".join(run.log_tail[-40:]),
        "damage": run.damage,
        "bad": run.bad,
        "bad_count": run.bad_count,
        "evaluations": [shown_evaluation(one) for one in run.evaluations],
        "commands": next_commands(run),
    }


def _headline(found: Sequence[Verdict]) -> Verdict | None:
    """The one that says most, of those that still hold: what is wrong, else what is right."""
    holding = [verdict for verdict in found if verdict.until is None]
    order = ("fault", "warning", "good", "note")
    return min(holding, key=lambda verdict: order.index(verdict.level), default=None)


def _tiles(run: RunFiles) -> list[dict[str, str]]:
    """The numbers that stand first."""
    tiles = []
    probes = [row["probe"] for row in run.watched if "probe" in row]
    if probes:
        tiles.append(_tile("Probe on your labels", _change(probes, "{:.1f}"), "%", "mIoU"))
    match, chance = _match(run)
    if match:
        tiles.append(_tile("Match accuracy", match, "%", f"chance {chance} %" if chance else ""))
    ranks = [row["effective_rank"] for row in run.watched if "effective_rank" in row]
    if ranks:
        tiles.append(_tile("Effective rank", _change(ranks, "{:.3g}")))
    done, total = steps_done(run), steps_in_all(run)
    if done is not None:
        note = "complete" if complete(run) else f"of {total:,}" if total else ""
        note = f"{note}, stopped early".removeprefix(", ") if stopped_early(run) else note
        tiles.append(_tile("Steps", f"{done:,}", note=note))
    if run.metrics and "seconds" in run.metrics[-1]:
        tiles.append(_tile("Training time", duration(run.metrics[-1]["seconds"])))
    if run.metrics and "images_per_second" in run.metrics[-1]:
        tiles.append(_tile("Speed", f"{run.metrics[-1]['images_per_second']:.3g}", "images/s", "last"))
    return tiles


def _tile(name: str, value: str, unit: str = "", note: str = "") -> dict[str, str]:
    return {"name": name, "value": value, "unit": unit, "note": note}


def _match(run: RunFiles) -> tuple[str, str]:
    """How the match accuracy changed, and its chance level, in percent."""
    rows = [row for row in run.watched if "match_accuracy" in row]
    if not rows:
        return "", ""
    chance = rows[-1].get("match_chance")
    found = _change([100 * row["match_accuracy"] for row in rows], "{:.1f}")
    return found, "" if chance is None else f"{100 * chance:.1f}"


def _change(values: Sequence[float], form: str) -> str:
    first, last = form.format(values[0]), form.format(values[-1])
    return last if len(values) == 1 else f"{first} → {last}"


# --- what goes into the file ----------------------------------------------------------------------------------------


def _json(data: Any) -> str:
    """JSON that cannot end the element in which it stands, and whose words hold nothing that a reader would obey."""
    text = json.dumps(_printable(data), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {name: _printable(one) for name, one in value.items()}
    return [_printable(one) for one in value] if isinstance(value, list) else value


def _with_flags(text: str) -> Any:
    """A text whose flags, such as --workers, stay on one line."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"--[a-z][a-z-]*", r'<span class="flag">\g<0></span>', str(escape(printable(text)))))


def _hash(program: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(program.encode()).digest()).decode()}'"


def _policy(hashes: Sequence[str], *, live: bool) -> str:
    """Only the programs of these hashes run; pictures are in the page; nothing is asked for elsewhere."""
    asks = "connect-src 'self'; " if live else ""
    return (
        f"default-src 'none'; script-src {' '.join(hashes)}; style-src 'unsafe-inline'; img-src data:; {asks}"
        "base-uri 'none'; form-action 'none'"
    )


@functools.cache
def _plotly() -> tuple[str, str]:
    """Plotly's program, compressed and as text, and its hash for the policy."""
    from plotly.offline import get_plotlyjs

    program = get_plotlyjs()
    packed = gzip.compress(program.encode(), compresslevel=6, mtime=0)
    return base64.b64encode(packed).decode(), _hash(program)
