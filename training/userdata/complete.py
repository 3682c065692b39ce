"""A model and the adapter that was trained on it as one diffusers folder."""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

from bolid_training.model.base import Base

TEMPORARY = ".partial"


def write_complete(base: Base, adapter: Path, pose_estimator: Path | None, out: Path) -> None:
    """Writes `out`, in place of an earlier one. Big files are hard links to the originals where the disk allows it."""
    partial = out.with_name(out.name + TEMPORARY)
    shutil.rmtree(partial, ignore_errors=True)
    folders = {part: base.folder / part for part in base.family.parts}
    folders |= {"image_encoder": base.image_encoder_folder, "adapter": adapter}
    poses = pose_estimator or base.folder / "pose_estimator"
    if poses.is_dir():
        folders["pose_estimator"] = poses
    for name, folder in folders.items():
        shutil.copytree(folder, partial / name, copy_function=_copy if name == "adapter" else _link)
    base.feature_extractor().save_pretrained(partial / "feature_extractor")
    shutil.copy2(base.folder / "model_index.json", partial / "model_index.json")
    (partial / "avatar.json").write_text(json.dumps(asdict(base.config), indent=2) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def _copy(source: str, target: str) -> str:
    return shutil.copy2(source, target)


def _link(source: str, target: str) -> str:
    """The adapter's own files change when training goes on; the model's do not."""
    try:
        os.link(Path(source).resolve(), target)
    except OSError:
        shutil.copy2(source, target)
    return target
