"""The page, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from densecl.names import shown
from densecl.reporting.report import report
from tests.reporting import browser as browsers
from tests.reporting.browser import Browser
from tests.reporting.runs import make_run

HOSTILE = "a</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>\"&quot;\u202egpj.\x1b[2J"

DRAWN = "document.querySelectorAll('.main-svg').length > 0"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if browsers.found() is None:
        pytest.skip("there is no chromium on this machine")
    opened = Browser()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(make_run(tmp_path_factory.mktemp("runs") / "mine"))


def painted(browser: Browser, selector: str) -> str:
    """What the first such canvas shows."""
    return browser.run(f"document.querySelector({selector!r}).toDataURL()")


def text_of(browser: Browser, name: str) -> str:
    return browser.run(f"document.getElementById({name!r}).textContent")


def move_slider(browser: Browser, to: int) -> None:
    browser.run(
        f"(() => {{ const slider = document.getElementById('moment'); slider.value = {to};"
        " slider.dispatchEvent(new Event('input')); })()"
    )


def open_page(browser: Browser, page: Path, *, width: int, dark: bool) -> None:
    """Opens it from disk, and looks whether all is there that is always there."""
    browser.open(page.as_uri(), width=width, dark=dark, touch=width < 400)
    browser.wait_for(DRAWN)
    assert browser.complaints == []
    assert browser.asked == [page.as_uri()]
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("document.documentElement.dataset.theme") == ("dark" if dark else "light")
    paper = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) < 200) == dark
    assert browser.run("[...document.images].every((one) => one.complete && one.naturalWidth > 0)")
    assert browser.run("document.querySelectorAll('.plot .main-svg').length") > 10


def test_on_a_phone_in_the_dark(browser: Browser, page: Path) -> None:
    open_page(browser, page, width=390, dark=True)
    columns = browser.run("getComputedStyle(document.querySelector('.charts')).gridTemplateColumns")
    assert len(columns.split()) == 1
    assert page.stat().st_size < 3_000_000


def test_the_page_can_be_used(browser: Browser, page: Path) -> None:
    open_page(browser, page, width=1280, dark=False)
    titles = browser.run("[...document.querySelectorAll('h2')].map((one) => one.textContent).join()")
    assert titles == "Verdicts,The run,Curves,What it sees,The augmentation,Quarantine,Evaluation,What to type next"

    # Hover: the values at a step.
    x, y = browser.middle(".plot")
    browser.move(x - 30, y)
    browser.move(x, y)
    browser.wait_for("document.querySelector('.plot .hoverlayer').textContent.includes('step 50')")
    assert "mIoU" in browser.run("document.querySelector('.plot .hoverlayer').textContent")

    # The slider shows the last moment first. Earlier ones have other matches and other colors.
    assert text_of(browser, "when") == "step 100"
    late = painted(browser, "#pairs canvas"), painted(browser, "#cells canvas")
    assert "100.0 %" in text_of(browser, "judged")  # features without noise find every cell
    # A line in every chart stands at the slider's step, and the images lie below their views.
    marked = "JSON.stringify([...document.querySelectorAll('.plot')].map((plot) => plot.layout.shapes[0].x0))"
    charts = browser.run("document.querySelectorAll('.plot').length")
    browser.wait_for(f"{marked} === '[{','.join(['100'] * charts)}]'")
    assert browser.run("document.querySelectorAll('.plot .shapelayer path').length") == charts
    ratio = browser.run("document.querySelector('.pair .frames').getBoundingClientRect().toJSON()")
    assert ratio["width"] / ratio["height"] == pytest.approx(1.6, abs=0.05)
    assert "left: 100 × 70 px at 10, 20" in browser.run("document.querySelector('.pair .origin').textContent")

    move_slider(browser, 0)
    browser.wait_for(f"{marked} === '[{','.join(['0'] * charts)}]'")
    assert text_of(browser, "when") == text_of(browser, "marked") == "step 0"
    early = painted(browser, "#pairs canvas"), painted(browser, "#cells canvas")
    assert early[0] != late[0] and early[1] != late[1]
    assert "100.0 %" not in text_of(browser, "judged")

    # A click on a cell: how like it the others are. In the mirrored view the nearest one is the same place.
    move_slider(browser, 2)
    browser.click(".cell > div", 0)
    assert browser.run("document.getElementById('cells').classList.contains('asking')")
    assert float(browser.run("document.querySelectorAll('.cell figcaption')[1].textContent")) > 0.98
    assert float(browser.run("document.querySelectorAll('.cell figcaption')[3].textContent")) < 0.9
    assert "really lies" in text_of(browser, "asked")
    browser.click("#clear")
    assert painted(browser, "#cells canvas") == late[1]

    # Light and dark.
    curve = "document.querySelector('.plot .main-svg .scatterlayer path.js-line').style.stroke"
    light = browser.run(curve)
    browser.click("#theme")
    assert browser.run("document.documentElement.dataset.theme") == "dark"
    browser.wait_for(f"{curve} !== {light!r}")

    browser.click("#play")
    browser.wait_for("document.getElementById('when').textContent === 'step 50'")
    browser.click("#play")
    assert browser.complaints == []


def test_names_are_text(browser: Browser, tmp_path: Path) -> None:
    name = HOSTILE.replace("/", "∕")  # a folder's name has no slash
    runs = [make_run(tmp_path / name, name=HOSTILE), make_run(tmp_path / "other", learning_rate=0.2)]
    page = report(runs)
    assert page == runs[0] / "report-of-several.html"
    browser.open(page.as_uri())
    browser.wait_for(DRAWN)
    x, y = browser.middle(".plot")
    browser.move(x - 30, y)
    browser.move(x, y)
    browser.wait_for("document.querySelector('.plot .hoverlayer').textContent.includes('step 50')")
    assert browser.run("typeof window.hacked") == "undefined"
    assert browser.run("document.querySelectorAll('img[src=x], .hoverlayer a').length") == 0
    assert browser.complaints == []
    assert browser.asked == [page.as_uri()]
    text = browser.run("document.body.textContent")
    for mark in "\u202e\x1b":
        assert mark not in text
    shown_name = shown(HOSTILE)
    assert browser.run("document.querySelector('#quarantine td').textContent") == shown_name
    assert browser.run("document.querySelector('.pair .origin b').title") == shown_name
    assert browser.run("document.querySelector('#run-legend .name').textContent") == shown(name)
    assert f"{shown_name} is better." in text
    assert "<img src=x" in browser.run("document.querySelector('.plot .hoverlayer').textContent")

    # Two runs: the setting that differs, and a curve of each, which can be hidden.
    assert browser.run("[...document.querySelectorAll('#runs tbody th')].map((one) => one.textContent).join()") == (
        "data,learning_rate"
    )
    curves = "document.querySelector('.plot').querySelectorAll('.scatterlayer path.js-line').length"
    assert browser.run(curves) == 2
    browser.click("#run-legend input")
    browser.wait_for(f"{curves} === 1")
