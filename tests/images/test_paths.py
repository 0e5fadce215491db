"""Many paths in a few arrays."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densecl.images import paths
from densecl.images.paths import PathIndex, Strings, by_folder, in_order


@given(st.lists(st.binary(max_size=20), max_size=30))
def test_strings_come_out_as_they_went_in(strings):
    packed = Strings.pack(strings)
    assert [packed.get(i) for i in range(len(strings))] == strings


@given(st.sets(st.binary(min_size=1, max_size=8).filter(lambda name: b"\0" not in name)), st.integers(1, 5))
def test_merging_sorts(strings, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "CHUNK", chunk)
        assert list(in_order(iter(strings))) == sorted(strings)


def test_paths_of_a_list_by_folder(tmp_path):
    names = [b"b/2.jpg", b"a/1.jpg", b"b/1.jpg", b"../x.jpg", b"b/2.jpg", b"a/\xff.jpg"]
    listed = PathIndex.of(tmp_path / "list", names)
    found = by_folder(listed)
    expected = sorted({os.path.normpath(listed[index]) for index in range(len(listed))}, key=os.path.split)
    assert [found[index] for index in range(len(found))] == expected
    assert [found.folder_of(index) for index in range(5)] == [0, 1, 1, 2, 2]
