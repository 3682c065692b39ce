"""Folders as hubs hold them: several formats of one network, parts that nobody exports."""

import json
import shutil

import pytest
import torch

from bolid_export.package import noise_schedule
from bolid_export.sources import Choices, open_source
from bolid_export.sources.diffusers_folder import load_folder
from bolid_sdk.errors import InputError


@pytest.fixture
def snapshot(sd15_folder, tmp_path):
    """Weights as a variant only, pickles beside them, and a safety checker."""
    folder = shutil.copytree(sd15_folder, tmp_path / "snapshot")
    for file in list(folder.rglob("*.safetensors")):
        file.with_suffix(".bin").write_bytes(b"a pickle")
        file.rename(file.with_suffix(".fp16.safetensors"))
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "model.safetensors").write_bytes(b"whatever")
    return folder


def test_variants_are_found_and_pickles_passed_over(snapshot, sd15_folder):
    found, expected = load_folder(snapshot), load_folder(sd15_folder)
    for name in ("unet", "vae", "text_encoder"):
        states = [dict(getattr(base, name).state_dict()) for base in (found, expected)]
        torch.testing.assert_close(*states, rtol=0, atol=0)


def test_only_what_was_read_is_in_the_hashes(snapshot, image_encoder_folder, ip_adapters):
    source = open_source(snapshot, [ip_adapters["base"]], Choices(image_encoder=image_encoder_folder))
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in source.hashes
    assert not [name for name in source.hashes if name.endswith(".bin") or "safety_checker" in name]


def test_the_schedule_is_the_published_one_whatever_its_sampler(sd15_folder, image_encoder_folder, ip_adapters):
    """PNDM's file says nothing of clipping, which DDIM would do by default and a linear sampler cannot."""
    source = open_source(sd15_folder, [ip_adapters["base"]], Choices(image_encoder=image_encoder_folder))
    schedule, published = (
        noise_schedule(source.checkpoint),
        json.loads((sd15_folder / "scheduler" / "scheduler_config.json").read_text()),
    )
    assert published["_class_name"] == "PNDMScheduler"
    assert (schedule.beta_start, schedule.beta_end, schedule.steps_offset) == (0.00085, 0.012, 1)
    assert not source.checkpoint.scheduler.config.clip_sample


def test_an_autoencoder_of_another_class_is_refused(snapshot):
    config = snapshot / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "VQModel"}))
    with pytest.raises(InputError, match="VAE of class VQModel; expected AutoencoderKL or AutoencoderTiny"):
        load_folder(snapshot)
