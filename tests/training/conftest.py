"""Tiny judges, and a start without accelerate's settings, which it keeps in the process, for each module's tests."""

from dataclasses import replace

import pytest
import torch
from accelerate.state import AcceleratorState

from bolid_training.judges.clip import ClipJudge
from bolid_training.judges.config import JudgeConfig, clip_sizes
from bolid_training.judges.identity import build_identity_judge
from bolid_training.judges.panel import Judges
from bolid_training.judges.pose import build_pose_judge
from bolid_training.model.checkpoint import build_clip, build_feature_extractor, byte_tokenizer


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
