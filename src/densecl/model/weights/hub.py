"""timm's weights from a network: whether they can be had here, and otherwise what to bring from another machine."""

from __future__ import annotations

from typing import Any

import huggingface_hub

#: Seconds to wait for an answer of the hub.
PATIENCE = 10.0


def can_be_had(said: dict[str, Any]) -> bool:
    """Whether the weights that timm's configuration of a model names are here already, or a network is.

    Args:
        said: the model's `pretrained_cfg`.
    """
    hub = said.get("hf_hub_id")
    return not hub or is_cached(hub) or answers()


def what_to_bring(said: dict[str, Any]) -> str | None:
    """The file, in words. None if timm has no weights of the model."""
    hub, url = said.get("hf_hub_id"), said.get("url")
    return f"the file model.safetensors of {hub} (Hugging Face)" if hub else str(url) if url else None


def answers() -> bool:
    """Whether the hub can be reached. To ask first is quicker, because its client tries many times."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    try:
        huggingface_hub.utils.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=PATIENCE)
    except Exception:  # of whatever library the client uses
        return False
    return True


def is_cached(hub: str) -> bool:
    names = ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(huggingface_hub.try_to_load_from_cache(hub, name), str) for name in names)
