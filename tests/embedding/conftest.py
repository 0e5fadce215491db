"""To make a network takes longer than everything else here, so each is made once."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from densecl.embedding import embed as verb
from densecl.evaluation.weights import Weights, open_weights

NETWORKS: dict[Any, Any] = {}


@pytest.fixture(autouse=True)
def networks_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    make = Weights.backbone
    monkeypatch.setattr(verb, "open_weights", lambda names, backbone: opened(str(names[0]), backbone))

    def kept(weights: Weights, *arguments: Any, **named: Any) -> Any:
        key = weights.name, arguments, *named.items()
        if key not in NETWORKS:
            NETWORKS[key] = make(weights, *arguments, **named)
        return NETWORKS[key]

    monkeypatch.setattr(Weights, "backbone", kept)


@functools.cache
def opened(name: str, backbone: str | None) -> list[Weights]:
    return open_weights([name], backbone)
