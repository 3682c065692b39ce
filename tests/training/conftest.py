"""Tiny judges, pictures of people and a network that sees them.

And a start without accelerate's settings, which it keeps in the process, for each module's tests.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image, ImageDraw

from bolid_training.avatars.shards import png
from bolid_training.judges.clip import ClipJudge
from bolid_training.judges.config import JudgeConfig, clip_sizes
from bolid_training.judges.identity import build_identity_judge
from bolid_training.judges.panel import Judges
from bolid_training.judges.pose import build_pose_judge
from bolid_training.model.checkpoint import build_clip, build_feature_extractor, byte_tokenizer, clip_parts
from bolid_training.model.config import AvatarConfig

POSE = [
    *([0.58, 0.3, 2], [0.42, 0.3, 2], [0.6, 0.42, 2], [0.4, 0.42, 2], [0.6, 0.52, 2], [0.4, 0.52, 2]),
    *([0.55, 0.55, 2], [0.45, 0.55, 2], [0.55, 0.7, 2], [0.45, 0.7, 2], [0.55, 0.85, 1], [0.45, 0.85, 0]),
]


@pytest.fixture(autouse=True, scope="module")
def fresh_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def visible_gpu(monkeypatch):
    """PyTorch says that there is a GPU, to processes that have not decided on a device yet."""
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def judge_config() -> JudgeConfig:
    return JudgeConfig(
        identity_size=32,
        identity_widths=(8, 8, 16, 16),
        identity_depths=(1, 1, 1, 1),
        identity_embedding=8,
        pose_size=64,
        pose_widths=(8, 8, 16, 16),
        pose_depths=(1, 1, 1, 1),
        pose_head=8,
        clip=replace(clip_sizes(), text_width=64, text_layers=1, vision_layers=1, vision_size=32, vision_patch=16),
    )


@pytest.fixture(scope="session")
def judges(judge_config) -> Judges:
    """With random weights."""
    tokenizer = byte_tokenizer()
    clip = ClipJudge(
        model=build_clip(judge_config.clip, tokenizer).eval(),
        tokenizer=tokenizer,
        feature_extractor=build_feature_extractor(judge_config.clip),
    )
    return Judges(
        identity=build_identity_judge(judge_config).eval(), pose=build_pose_judge(judge_config).eval(), clip=clip
    )


@pytest.fixture(scope="session")
def image_encoder(tmp_path_factory):
    """A CLIP's, 128 wide, with five tokens of 32 x 32 pixels."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("encoder") / "clip"
    sizes = AvatarConfig(text_width=128, text_layers=1, vision_layers=2, vision_size=32, vision_patch=16)
    clip_parts(build_clip(sizes, byte_tokenizer()))["image_encoder"].save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Four people in three pictures each, of several shapes; keypoints are given. One file is no picture."""
    folder, lines = tmp_path_factory.mktemp("people"), []
    for person in range(4):
        for number, size in enumerate([(64, 96), (96, 64), (64, 64)]):
            image = Image.new("RGB", size, (60 * number, 90, 120))
            ImageDraw.Draw(image).rectangle((size[0] * 0.4, 20, size[0] * 0.6, 60), (60 * person, 200, 50))
            name = f"person{person}/{number}.png"
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(png(np.asarray(image)))
            lines.append({"file_name": name, "text": f"standing {number}", "keypoints": POSE})
    (folder / "person0" / "broken.png").write_text("not a picture")
    lines.append({"file_name": "person0/broken.png", "text": "broken", "keypoints": POSE})
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder
