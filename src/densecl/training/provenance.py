"""What the result of a run says of where it comes from (`model.weights.result.PROVENANCE`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from densecl.choices import ITSELF, UNKNOWN_LICENSE
from densecl.config.recipe import Resolved
from densecl.config.teacher import distills_alone, teaches_itself
from densecl.images.sources import ImageSource
from densecl.training.guidance import Guides
from densecl.version import __version__


def provenance(resolved: Resolved, source: ImageSource, guides: Guides) -> dict[str, str]:
    """All but the steps, which change as the run goes on."""
    alone = distills_alone(resolved)
    said = {
        "method": "distillation" if alone else resolved.method,
        **({} if alone else {"dense_weight": f"{resolved.dense_weight:g}"}),
        "image_size": str(resolved.image_size),
        "images": str(len(source)),
        "data_fingerprint": source.fingerprint(),
        "densecl_version": __version__,
    }
    if resolved.init is not None:
        said["init"] = Path(resolved.init).name  # its folders are nobody's business
        if resolved.init_license is not None:  # (that of a run of an older version, which did not ask)
            said["license"] = resolved.init_license
    if guides.teacher is not None:
        said["teacher"] = ITSELF if teaches_itself(resolved) else guides.teacher.network.name
        said["teacher_license"] = resolved.teacher_license or UNKNOWN_LICENSE
    return said


def after(steps: int, said: Mapping[str, str]) -> dict[str, str]:
    """... and after how many steps."""
    return {**said, "steps": str(steps)}
