"""What an export starts from: a diffusers folder or a single file, adapters, LoRAs, and parts from elsewhere."""

from bolid_export.sources.checkpoints import PREDICTION_TYPES, Choices, Source, default_checkpoint, open_source
from bolid_export.sources.loras import Lora
from bolid_export.sources.model import Model
from bolid_export.sources.sizes import model_sizes

__all__ = [
    "PREDICTION_TYPES",
    "Choices",
    "Lora",
    "Model",
    "Source",
    "default_checkpoint",
    "model_sizes",
    "open_source",
]
