"""A training step of `bolid-train fit` at Stable Diffusion 1.5's true size, with random weights: time and memory.

    python benchmarks/train_step.py                          512 x 512, batch 1, gradient checkpointing
    python benchmarks/train_step.py --channels 160 --size 256      half the width, for a try

UNet of 860 M, CLIP-H's 257 patch tokens of 1280 for five parts, IP-Adapter-Plus' Resamplers, a T2I-Adapter; bfloat16
where this machine is fast in it. As in a fit, latents, tokens and texts are given: their encoders are not in memory.
"""

import json
import platform
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from bolid_training.memory_estimate import estimate_memory, fake_batch
from bolid_training.model.base import Base
from bolid_training.model.config import AvatarConfig
from bolid_training.precision import fastest_precision
from bolid_training.stages.fit import FitModule, FitOptions

RESULTS = Path(__file__).parent / "results" / "train_step.json"
WIDTHS = (1, 2, 4, 4)


@click.command()
@click.option("--channels", default=320, show_default=True, help="Of the UNet's first level.")
@click.option("--size", default=512, show_default=True, help="Side of a picture in pixels.")
@click.option("--batch-size", default=1, show_default=True)
@click.option("--steps", default=3, show_default=True, help="Measured, after one to warm up.")
@click.option("--precision", type=click.Choice(["no", "bf16"]), help="[default: what is fast here]")
@click.option("--no-checkpointing", is_flag=True, help="Without gradient checkpointing.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(
    channels: int, size: int, batch_size: int, steps: int, precision: str | None, no_checkpointing: bool, out: Path
) -> None:
    """Measure and write OUT."""
    options = FitOptions(mixed_precision=precision or fastest_precision(), gradient_checkpointing=not no_checkpointing)
    setup = {
        "channels": channels,
        "size": size,
        "batch_size": batch_size,
        "precision": options.mixed_precision,
        "gradient_checkpointing": options.gradient_checkpointing,
    }
    with tempfile.TemporaryDirectory() as folder:
        base = write_base(Path(folder), channels, size)
        measured = {**estimated(base, options, batch_size), **measure(base, options, batch_size, steps)}
    result = {"setup": setup | machine(), **measured}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    click.echo(json.dumps(result, indent=2))


def write_base(folder: Path, channels: int, size: int) -> Base:
    """A base without weights: what `Base` reads of it here is the UNet's configuration."""
    from accelerate import init_empty_weights

    widths = tuple(channels * factor for factor in WIDTHS)
    with init_empty_weights():
        # everything else is diffusers' default, which is Stable Diffusion's
        unet = UNet2DConditionModel(
            sample_size=size // 8, block_out_channels=widths, cross_attention_dim=768, attention_head_dim=8
        )
    unet.save_config(folder / "unet")
    config = AvatarConfig(
        image_size=size,
        latent_channels=4,
        text_width=768,
        vision_width=1280,
        vision_size=224,
        vision_patch=14,
        resampler_width=768,
    )
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    return Base(folder=folder, image_encoder_folder=folder, config=config, scheduler=scheduler, adapter=None)


def estimated(base: Base, options: FitOptions, batch_size: int) -> dict[str, Any]:
    """What `bolid-train fit --dry-run` says beforehand."""
    memory = estimate_memory(base, options, batch_size)
    return {"estimate_gigabytes": {name: round(value, 3) for name, value in memory.items()}}


def measure(base: Base, options: FitOptions, batch_size: int, steps: int) -> dict[str, Any]:
    """Seconds of whole steps (forward, backward, AdamW, EMA apart), and the most memory this process ever held."""
    torch.manual_seed(0)
    libraries = peak_gigabytes()
    unet = base.random_unet(options.dtype)
    module = FitModule(unet, base.config, gradient_checkpointing=options.gradient_checkpointing)
    batch = random_batch(base, batch_size)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    built = peak_gigabytes()
    times = [seconds_of_step(module, batch, optimizer) for _ in range(1 + steps)]
    return {
        "parameters": {
            "frozen": sum(p.numel() for p in module.frozen[0].parameters() if not p.requires_grad),
            "trained": sum(p.numel() for p in trained),
        },
        "seconds_per_step": round(sorted(times[1:])[steps // 2], 3),
        "all_seconds": [round(taken, 3) for taken in times],
        "peak_rss_gigabytes": {
            "libraries": round(libraries, 3),
            "model_built": round(built, 3),
            "steps": round(peak_gigabytes(), 3),
        },
    }


def seconds_of_step(module: FitModule, batch: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> float:
    start = time.perf_counter()
    with torch.autocast("cpu", module.dtype, enabled=module.dtype != torch.float32):
        loss = (module(batch) - batch["sample"]).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def random_batch(base: Base, size: int) -> dict[str, Tensor]:
    """Normal noise wherever there are numbers to be."""
    torch.manual_seed(1)
    batch = fake_batch(base, size)
    return {name: torch.randn_like(t) if t.dtype == torch.float32 else t for name, t in batch.items()}


def peak_gigabytes() -> float:
    """Highest resident set so far; Linux counts in units of 1024 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def machine() -> dict[str, Any]:
    return {"threads": torch.get_num_threads(), "machine": platform.machine(), "torch": torch.__version__}


if __name__ == "__main__":
    main()
