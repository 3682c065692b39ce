"""What an export starts from: a diffusers folder and adapter files."""

from bolid_export.sources.adapters import replace_adapters
from bolid_export.sources.checkpoints import Source, default_checkpoint, open_source
from bolid_export.sources.sizes import model_sizes

__all__ = ["Source", "default_checkpoint", "model_sizes", "open_source", "replace_adapters"]
