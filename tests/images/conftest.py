"""Listings are saved in a folder of the test, not in the user's."""

import pytest

from densecl.images import listing


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setattr(listing, "user_cache_path", lambda name: folder)
    return folder


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder
