"""The few-step student: its targets against diffusers' scheduler, its LoRA file against diffusers' own loader."""

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from bolid_training.model.adapter import Adapter
from bolid_training.model.checkpoint import build_scheduler, build_unet
from bolid_training.model.config import AvatarConfig
from bolid_training.model.lightning import LORA_FILE, STEPS, fuse_lora
from bolid_training.model.sampling import sample_latents, sampling_states, seeded_noise
from bolid_training.stages.lightning import TEACHER_STEPS, LightningUNet, step_target

TINY = AvatarConfig(unet_channels=(32, 32, 64))


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    student = LightningUNet(build_unet(TINY), TINY).eval()
    for parameter in student.lora.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return student


def conditions(count):
    tokens = torch.randn(count, 77, TINY.text_width, generator=torch.Generator().manual_seed(1))
    return {"encoder_hidden_states": tokens, "attention": {}}


@pytest.mark.parametrize("step", range(STEPS))
def test_the_target_takes_diffusers_scheduler_where_the_teacher_arrived(step):
    scheduler, shape = build_scheduler(TINY), (2, TINY.latent_channels, 4, 4)
    sample, end = torch.randn(shape), torch.randn(shape)
    target = step_target(scheduler, sample, end, torch.full((2,), step))["target"]
    scheduler.set_timesteps(STEPS)
    found = scheduler.step(target, scheduler.timesteps[step], sample).prev_sample
    assert (found - end).abs().max() < 2e-4


def test_every_third_state_of_the_teacher_is_where_a_step_of_the_student_begins():
    scheduler = build_scheduler(TINY)
    scheduler.set_timesteps(TEACHER_STEPS)
    teacher = scheduler.timesteps[:: TEACHER_STEPS // STEPS].tolist()
    scheduler.set_timesteps(STEPS)
    assert scheduler.timesteps.tolist() == teacher


def test_without_guidance_one_branch_is_what_two_equal_branches_are():
    unet, noise = build_unet(TINY).eval(), seeded_noise((2, TINY.latent_channels, 8, 8))
    once = conditions(2)
    twice = {**once, "encoder_hidden_states": torch.cat([once["encoder_hidden_states"]] * 2)}
    alone = sample_latents(unet, build_scheduler(TINY), noise, steps=3, guidance=1.0, **once)
    guided = sample_latents(unet, build_scheduler(TINY), noise, steps=3, guidance=5.0, **twice)
    assert (alone - guided).abs().max() < 1e-4
    states = list(sampling_states(unet, build_scheduler(TINY), noise, steps=3, guidance=1.0, **once))
    assert len(states) == 4
    assert torch.equal(states[0], noise)
    assert torch.equal(states[-1], alone)


def test_only_the_lora_and_the_adapter_are_trained(student):
    trained = {id(parameter) for parameter in student.parameters() if parameter.requires_grad}
    expected = {id(p) for module in (student.lora, student.adapter) for p in module.parameters()}
    assert trained == expected
    base = {name: p for name, p in student.frozen[0].named_parameters() if "base_layer" in name or "norm" in name}
    assert base
    assert not any(parameter.requires_grad for parameter in base.values())


def test_the_file_is_a_lora_for_diffusers_and_fuses_to_what_the_student_computes(student, tmp_path):
    from peft import get_peft_model_state_dict

    unet = student.frozen[0]
    StableDiffusionPipeline.save_lora_weights(tmp_path, get_peft_model_state_dict(unet), weight_name=LORA_FILE)
    torch.manual_seed(0)
    base = build_unet(TINY).eval()
    state, networks = StableDiffusionPipeline.lora_state_dict(tmp_path)
    loaded = UNet2DConditionModel.from_config(base.config).eval()
    loaded.load_state_dict(base.state_dict())
    StableDiffusionPipeline.load_lora_into_unet(state, networks, loaded)
    # fused sums are rounded to float16, as a merged checkpoint is saved
    loaded.fuse_lora()
    loaded.unload_lora()
    loaded.half().float()
    fuse_lora(base, tmp_path / LORA_FILE)

    inputs = (seeded_noise((2, TINY.latent_channels, 8, 8)), 500, conditions(2)["encoder_hidden_states"])
    with torch.no_grad():
        fused, expected = base(*inputs).sample, loaded(*inputs).sample
        plain = build_unet(TINY).eval()(*inputs).sample
    assert (fused - expected).abs().max() < 1e-4 < (fused - plain).abs().max()
    assert not any("lora" in name for name in base.state_dict())
    adapted = Adapter(base, TINY)  # the fused UNet takes the adapter's attention like any other
    assert len(adapted.layers) == len(student.adapter.layers)
