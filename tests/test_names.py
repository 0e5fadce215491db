"""Names shown, written into tables and found again."""

import contextlib
import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densecl.names import LIMIT, counted, few, from_cell, on_disk, printable, shown, to_cell

#: What names may hold: any character, and bytes that are no UTF-8 as Python carries them.
NAMES = st.text(st.characters() | st.sampled_from("\n\r\t\x1b\x85\u202e\u2028\ufeff\\'=+-@;＝" + "\udc80\udcff"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("photos/a b.jpg", "photos/a b.jpg"),
        ("C:\\photos\\a.jpg", "C:\\photos\\a.jpg"),
        ("日本 é ﬁ.jpg", "日本 é ﬁ.jpg"),
        ("a\nb\tc\r.jpg", r"a\nb\tc\r.jpg"),
        ("\x1b[2J\x07\x7f", r"\x1b[2J\x07\x7f"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
        ("a\u2028b\x85c\u200bd", r"a\u2028b\u0085c\u200bd"),
        (os.fsdecode(b"caf\xe9.jpg"), r"caf\xe9.jpg"),
        ("\U000e0001", r"\U000e0001"),
        ("", ""),
    ],
)
def test_names_are_shown_without_what_a_terminal_obeys(name, expected):
    assert shown(name) == expected


@given(NAMES)
def test_whatever_is_shown_can_be_printed(name):
    assert shown(name).isprintable()
    shown(name).encode()
    assert printable(name).replace("\n", "").isprintable()


def test_long_names_are_cut_in_the_middle():
    text = shown("/begin/" + "x" * 10**7 + "/end.jpg")
    assert len(text) == LIMIT
    assert text.startswith("/begin/") and text.endswith("/end.jpg") and "..." in text
    assert shown("x" * LIMIT) == "x" * LIMIT


def test_a_message_keeps_its_lines_and_its_length():
    assert printable("one\ntwo\x1b" + "x" * 1000) == "one\ntwo\\x1b" + "x" * 1000


@given(NAMES)
def test_a_cell_gives_its_text_back_and_is_no_formula(name):
    cell = to_cell(name)
    assert from_cell(cell) == name
    assert cell.isprintable()
    assert not any(part.startswith(tuple("=+-@＝＋－＠")) for part in cell.split(";"))


def test_cells_stay_as_they_are_where_they_can():
    assert to_cell("/photos/a-b (1)=2.jpg") == "/photos/a-b (1)=2.jpg"
    assert to_cell("=cmd|x") == r"\=cmd|x"


@pytest.mark.parametrize("there", ["NFC", "NFD"])
@pytest.mark.parametrize("asked", ["NFC", "NFD"])
def test_a_name_is_found_in_either_unicode_form(tmp_path, there, asked):
    path = unicodedata.normalize(there, f"{tmp_path}/Übung/café.jpg")
    os.makedirs(os.path.dirname(path))
    open(path, "w").close()
    found = on_disk(unicodedata.normalize(asked, path))
    assert os.path.samefile(found, path)
    mixed = f"{tmp_path}/{unicodedata.normalize(asked, 'Übung')}/{unicodedata.normalize('NFC', 'café.jpg')}"
    assert os.path.samefile(on_disk(mixed), path)
    with contextlib.chdir(tmp_path):
        assert os.path.samefile(on_disk(os.path.relpath(unicodedata.normalize(asked, path))), path)
    assert on_disk(f"{tmp_path}/Übung/cafe.jpg") == f"{tmp_path}/Übung/cafe.jpg"
    assert on_disk(f"{tmp_path}/Übung/thé.jpg") == f"{tmp_path}/Übung/thé.jpg"


def test_a_path_of_thousands_of_folders_is_none() -> None:
    for path in ("\u00e9/" * 1500, "\u00e9/" * 10**6):
        assert on_disk(path) == path


def test_a_number_with_its_noun() -> None:
    assert [counted(number, "step") for number in (0, 1, 2)] == ["0 steps", "1 step", "2 steps"]
    assert (counted(1, "class"), counted(3, "class"), counted("1", "epoch")) == ("1 class", "3 classes", "1 epoch")


def test_of_many_words_only_the_first_is_said() -> None:
    assert few(["a"]) == "a" and few(["a", "b", "c"]) == "a, b and c"
    assert few([f"{number}.png" for number in range(300)]) == "0.png and 299 others"
