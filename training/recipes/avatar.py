"""The avatar at 128 x 128: numbers for two CPU cores."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class StageRecipe:
    steps: int
    batch_size: int
    learning_rate: float
    optimizer: Literal["adamw", "muon"] = "adamw"
    warmup: int = 100
    ema_decay: float = 0.999
    validate_every: int = 500


STAGES = {
    "clip": StageRecipe(steps=800, batch_size=64, learning_rate=1e-3),
    "vae": StageRecipe(steps=6000, batch_size=4, learning_rate=1e-3, ema_decay=0.998, validate_every=1000),
    "pose": StageRecipe(steps=16000, batch_size=32, learning_rate=1e-3, ema_decay=0.998, validate_every=1000),
    "decoder": StageRecipe(steps=1500, batch_size=8, learning_rate=4e-4, ema_decay=0.99, validate_every=300),
    "unet": StageRecipe(steps=12000, batch_size=16, learning_rate=6e-4, optimizer="muon", validate_every=1000),
    "clip_text": StageRecipe(steps=400, batch_size=128, learning_rate=5e-4, ema_decay=0.98, validate_every=100),
    "reid": StageRecipe(steps=2000, batch_size=64, learning_rate=1e-3, ema_decay=0.998),
    "words": StageRecipe(
        steps=6000, batch_size=32, learning_rate=1e-3, optimizer="muon", ema_decay=0.998, validate_every=750
    ),
    "adapter": StageRecipe(steps=6000, batch_size=16, learning_rate=6e-4, validate_every=1000),
    "lightning": StageRecipe(steps=450, batch_size=64, learning_rate=5e-4, ema_decay=0.995, validate_every=150),
    "refine": StageRecipe(steps=170, batch_size=16, learning_rate=2e-4, warmup=17, ema_decay=0.98, validate_every=40),
    "contrast": StageRecipe(steps=120, batch_size=16, learning_rate=2e-4, warmup=10, ema_decay=0.97, validate_every=40),
    "energy": StageRecipe(steps=150, batch_size=16, learning_rate=2.5e-4, warmup=15, ema_decay=0.97, validate_every=40),
    "guider": StageRecipe(steps=200, batch_size=16, learning_rate=5e-4, warmup=15, ema_decay=0.97, validate_every=40),
    "clothes": StageRecipe(
        steps=1200, batch_size=32, learning_rate=6e-4, optimizer="muon", ema_decay=0.99, validate_every=100
    ),
}

JUDGES = {
    "judge_identity": StageRecipe(steps=1200, batch_size=64, learning_rate=1e-3, ema_decay=0.998),
    "judge_pose": StageRecipe(steps=2000, batch_size=32, learning_rate=1e-3, ema_decay=0.998),
    "judge_clip": StageRecipe(steps=1000, batch_size=64, learning_rate=1e-3),
}
