"""Every stage on a handful of rendered people: it trains, continues, and the parts make one checkpoint."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from bolid_training.assemble import assemble_checkpoint, keep_stages, unpack_checkpoint
from bolid_training.avatars.dataset import write_dataset
from bolid_training.avatars.description import TOLD
from bolid_training.avatars.shards import Settings
from bolid_training.loop import LoopOptions, train
from bolid_training.model.adapter import PART_EMBEDDING
from bolid_training.model.checkpoint import load_checkpoint
from bolid_training.model.config import AvatarConfig
from bolid_training.model.lightning import LORA_FILE, PREFIX
from bolid_training.precision import autocast
from bolid_training.recipes.avatar import STAGES
from bolid_training.stages import lightning
from bolid_training.stages.clip_text import clip_folder
from bolid_training.stages.contrast import GAINS
from bolid_training.stages.energy import LOOKS, SHARE, WEIGHTS
from bolid_training.stages.tasks import build_task

pytestmark = pytest.mark.slow
TINY = AvatarConfig(
    text_layers=1, vision_layers=2, pose_width=32, pose_layers=1, unet_channels=(32, 32, 64), vae_width=16
)

AUTOENCODER = "diffusion_pytorch_model.safetensors"
# a checkpoint holds the base's text encoder, not CLIP's, the adapter's pose guider, not the base's, and no temperature
REPLACED = {"clip": ("clip.text_model", "clip.logit_scale"), "unet": ("pose_guider",)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    write_dataset(folder, Settings(identities=40, views=2, size=128, seed=0), workers=1)
    return folder


@pytest.fixture(scope="module", autouse=True)
def few_trajectories():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lightning, "CHUNKS", 1)
        patch.setattr(lightning, "CHUNK", 8)
        yield


@pytest.fixture(scope="module")
def runs(data, few_trajectories, tmp_path_factory):
    """All stages, two steps each."""
    runs = tmp_path_factory.mktemp("runs")
    for name in STAGES:
        train(build_task(name, data, runs, config=TINY), options(runs / name))
    return runs


def options(out, **changes):
    base = LoopOptions(out=out, steps=2, batch_size=4, learning_rate=1e-4, validate_every=2)
    return replace(base, **changes)


def test_stages_write_sheets_and_metrics(runs):
    for name in STAGES:
        assert (runs / name / "validation.jsonl").exists()
        assert name in ("clip", "clip_text") or list((runs / name / "sheets").glob("*.png"))


def test_assembled_checkpoint_holds_what_the_stages_trained(runs, tmp_path):
    assemble_checkpoint(runs, tmp_path, TINY)
    checkpoint = load_checkpoint(tmp_path)
    unet = UNet2DConditionModel.from_pretrained(runs / "unet" / "model")
    weight, expected = checkpoint.unet.conv_in.weight, unet.conv_in.weight
    assert (weight - expected).abs().max() < 1e-3  # float16 on disk
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors")) < 40e6


def test_a_checkpoint_samples_as_its_lightning_was_trained_to(runs, data, tmp_path):
    assemble_checkpoint(runs, tmp_path, TINY)
    checkpoint = load_checkpoint(tmp_path)
    assert (checkpoint.config.steps, checkpoint.config.guidance) == (lightning.STEPS, 1.0)
    task = build_task("lightning", data, runs, config=TINY)
    task.load(runs / "clothes" / "model")
    fused, base = checkpoint.unet.conv_in.weight, task.module.frozen[0].conv_in
    expected = base.base_layer.weight + base.get_delta_weight("default")
    assert not torch.equal(expected, base.base_layer.weight)
    assert (fused - expected).abs().max() < 1e-3  # float16 on disk


def test_the_guided_model_reads_the_adapters_tokens_as_its_text(runs, tmp_path):
    """Whatever was trained: keys and values far from the text's make it visible."""
    for name in ("clip", "vae", "pose", "unet", "lightning"):
        (tmp_path / name).symlink_to(runs / name)
    far = tmp_path / "adapter" / "model"
    shutil.copytree(runs / "adapter" / "model", far)
    weights = load_file(far / "identity.safetensors")
    save_file({n: w + ("ip_adapter" in n) for n, w in weights.items()}, far / "identity.safetensors")
    assemble_checkpoint(tmp_path, tmp_path / "out", TINY, guided=True)
    checkpoint = load_checkpoint(tmp_path / "out")
    assert (checkpoint.config.steps, checkpoint.config.guidance) == (TINY.steps, TINY.guidance)
    base = UNet2DConditionModel.from_pretrained(runs / "unet" / "model")
    for name, processor in checkpoint.unet.attn_processors.items():
        if name.endswith("attn2.processor"):
            text = base.get_submodule(name.removesuffix(".processor"))
            for branch in (processor.identity, processor.image):
                assert (branch.to_k_ip.weight - text.to_k.weight).abs().max() < 1e-3  # float16 on disk
                assert (branch.to_v_ip.weight - text.to_v.weight).abs().max() < 1e-3
    part = checkpoint.adapter.identity_encoder.part_embedding
    assert (part - weights[PART_EMBEDDING]).abs().max() < 1e-3


def test_an_unpacked_checkpoint_is_what_the_stages_had_written(runs, data, tmp_path):
    assemble_checkpoint(runs, tmp_path / "checkpoint", TINY)
    unpack_checkpoint(tmp_path / "checkpoint", tmp_path / "runs")
    others = {"clip_text", "vae", "reid", "words", "refine", "contrast", "energy", "guider", "clothes"}
    becomes = {name: name for name in set(STAGES) - others} | {"decoder": "vae"}
    for name, unpacked in becomes.items():
        task, again = (build_task(name, data, runs, config=TINY) for _ in range(2))
        task.load(runs / name / "model")
        again.load(tmp_path / "runs" / unpacked / "model")
        expected = task.module.state_dict()
        found = again.module.state_dict()
        same = [key for key in expected if not key.startswith(REPLACED.get(name, ()))]
        assert all((expected[key] - found[key]).abs().max() < 2e-3 for key in same)


def test_the_decoder_goes_on_alone_and_is_what_draws(runs, tmp_path):
    before, after = (load_file(runs / name / "model" / AUTOENCODER) for name in ("vae", "decoder"))
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"decoder"}
    assemble_checkpoint(runs, tmp_path, TINY)
    drawn = load_checkpoint(tmp_path).vae.state_dict()
    assert all((drawn[name] - after[name]).abs().max() < 1e-3 for name in after)  # float16 on disk
    assert not all(torch.equal(drawn[name], before[name].half().float()) for name in before)


def test_refinement_begins_with_the_student_and_moves_all_of_it(runs, data):
    task = build_task("refine", data, runs, config=TINY)
    batch = task.batch(np.random.default_rng(0), 4)
    with autocast():
        losses = task.losses(task.module, batch | {"keep_pose": torch.ones(4, dtype=torch.bool)})
    assert losses["anchor"] < 1e-6
    assert all(losses[name] > 1e-6 for name in ("keypoints", "colours"))
    losses["loss"].backward()
    adapter = task.module.adapter
    for module in (task.module.lora, adapter.identity_encoder, adapter.pose_guider):
        assert any(p.grad is not None and p.grad.any() for p in module.parameters())


def test_contrast_begins_with_the_refined_student_and_moves_its_first_guesses_by_the_lora_alone(runs, data):
    task = build_task("contrast", data, runs, config=TINY)
    refined, begun = load_file(runs / "refine" / "model" / LORA_FILE), get_peft_model_state_dict(task.module.frozen[0])
    assert all(torch.equal(begun[name.removeprefix(PREFIX)], weight) for name, weight in refined.items())
    with autocast():
        losses = task.losses(task.module, task.batch(np.random.default_rng(0), 8))
    assert all((losses[f"step_{i + 1}"] > 1e-4) == (gain != 1) for i, gain in enumerate(GAINS))
    losses["loss"].backward()
    assert any(p.grad is not None and p.grad.any() for p in task.module.lora.parameters())
    assert all(p.grad is None for p in task.module.adapter.parameters())
    before, after = (load_adapter(runs / name / "model" / "adapter") for name in ("refine", "contrast"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_energy_stage_draws_every_condition_twice_and_moves_all_of_the_contrasted_student(runs, data):
    task = build_task("energy", data, runs, config=TINY)
    begun = get_peft_model_state_dict(task.module.frozen[0])
    contrasted = load_file(runs / "contrast" / "model" / LORA_FILE)
    assert all(torch.equal(begun[name.removeprefix(PREFIX)], weight) for name, weight in contrasted.items())
    batch = task.batch(np.random.default_rng(0), 4)
    assert all(len(value) == 4 for value in batch.values())
    same = {name for name, value in batch.items() if torch.equal(*value.chunk(2))}
    assert same == set(batch) - {"noise"}
    with autocast():
        losses = task.losses(task.module, batch | {"keep_pose": torch.ones(4, dtype=torch.bool)})
    assert set(losses) == {"loss", *LOOKS, *WEIGHTS}
    losses["loss"].backward()
    adapter = task.module.adapter
    for module in (task.module.lora, adapter.identity_encoder, adapter.pose_guider):
        assert any(p.grad is not None and p.grad.any() for p in module.parameters())
    assert not any(p.grad is not None for p in task.before.parameters())


def test_the_energy_stage_writes_a_mean_of_the_students_before_and_after(runs, data, tmp_path):
    task = build_task("energy", data, runs, config=TINY)
    with torch.no_grad():
        for parameter in task.module.parameters():
            parameter.add_(1)
    task.save(tmp_path)
    before = load_file(runs / "contrast" / "model" / LORA_FILE)
    assert all((w - before[n] - SHARE).abs().max() < 1e-3 for n, w in load_file(tmp_path / LORA_FILE).items())
    adapter = load_adapter(runs / "contrast" / "model" / "adapter")
    assert all((w - adapter[n] - SHARE).abs().max() < 1e-3 for n, w in load_adapter(tmp_path / "adapter").items())


def test_the_guider_alone_learns_where_keypoints_are_through_all_steps(runs, data):
    task = build_task("guider", data, runs, config=TINY)
    written = load_adapter(runs / "energy" / "model" / "adapter")
    begun = task.module.adapter.pose_guider.state_dict()
    assert all(torch.equal(begun[n.split()[1]], w) for n, w in written.items() if n.startswith("pose_guider"))
    with autocast():
        batch = task.batch(np.random.default_rng(0), 4) | {"keep_pose": torch.tensor([True, True, True, False])}
        losses = task.losses(task.module, batch)
        _, steps = task.module(batch)
    assert len(steps) == lightning.STEPS
    assert losses["anchor"] < 1e-6 < losses["positions"]
    losses["loss"].backward()
    moved = {name.split(".")[1] for name, p in task.module.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"pose_guider"}
    # nobody who was told no pose is asked for one
    alone = {name: value[:3] for name, value in batch.items()}
    pictures = torch.rand(4, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(task.position_loss(pictures, batch), task.position_loss(pictures[:3], alone))


def test_clothes_are_read_anew_and_the_other_tokens_and_nobody_stay(runs, data):
    task = build_task("clothes", data, runs, config=TINY)
    written = load_adapter(runs / "guider" / "model" / "adapter")
    begun = task.module.adapter.pose_guider.state_dict()
    assert all(torch.equal(begun[n.split()[1]], w) for n, w in written.items() if n.startswith("pose_guider"))
    batch = task.batch(np.random.default_rng(0), 4)
    again = task.batch(np.random.default_rng(1), 4)
    assert not torch.equal(batch["states"], again["states"])
    assert (len(batch["patch_tokens"]), len(batch["states"])) == (5, 4)
    assert torch.equal(batch["patch_tokens"][-1], task.null.expand(5, -1, -1))
    losses = task.losses(task.module, batch)
    assert losses["kept"] == losses["nobody"] == 0 < losses["words"]
    losses["loss"].backward()
    moved = {name.split(".")[1] for name, p in task.module.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"identity_encoder"}


def load_adapter(folder):
    return {
        f"{file.relative_to(folder)} {name}": tensor
        for file in folder.rglob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def test_words_are_taught_to_the_identity_encoder_alone_and_the_adapter_begins_there(runs, data):
    task = build_task("words", data, runs, config=TINY)
    batch = task.batch(np.random.default_rng(0), 64)
    nobody = (batch["patch_tokens"] == task.null).flatten(1).all(1)
    nothing = task.encode_text([""])[0, 1 : 1 + batch["states"].shape[1]]
    assert 0 < nobody.sum() < 32
    assert all(torch.equal(state, nothing) for state in batch["states"][nobody])
    assert not any(torch.equal(state, nothing) for state in batch["states"][~nobody])
    task.losses(task.module, batch)["loss"].backward()
    assert {name.split(".")[1] for name, p in task.module.named_parameters() if p.grad is not None} == {
        "identity_encoder"
    }
    begun = build_task("adapter", data, runs, config=TINY).module.adapter.identity_encoder.state_dict()
    task.load(runs / "words" / "model")
    taught = task.module.adapter.identity_encoder.state_dict()
    assert all(torch.equal(begun[name], taught[name]) for name in taught)


def test_what_words_leave_unexplained_is_measured_on_validation_people(runs, data, tmp_path):
    task = build_task("words", data, runs, config=TINY)
    found = task.validate(tmp_path / "sheet.png")
    with torch.no_grad():
        task.module.adapter.identity_encoder.resampler.norm_out.bias.add_(10)
    worse = task.validate(tmp_path / "sheet.png")
    assert all(worse[name] > found[name] for name in ("unexplained", *(f"unexplained_{told}" for told in TOLD)))


def test_a_base_goes_on_with_the_text_encoder_in_whose_states_words_were_taught(runs, data, tmp_path):
    for name in ("clip", "vae"):
        (tmp_path / name).symlink_to(runs / name)
    first, later = (build_task("unet", data, folder, config=TINY).module for folder in (tmp_path, runs))
    learns = [{p.requires_grad for p in module.text_encoder.parameters()} for module in (first, later)]
    assert learns == [{True}, {False}]
    assert all(p.requires_grad for p in later.unet.parameters())


def test_kept_stages_let_another_machine_go_on(runs, data, tmp_path):
    keep_stages(["clip", "vae"], runs, tmp_path)
    assert load_file(tmp_path / "vae" / "model" / AUTOENCODER).popitem()[1].dtype is torch.half
    train(build_task("unet", data, tmp_path, config=TINY), options(tmp_path / "unet"))
    assert (tmp_path / "unet" / "model" / "config.json").exists()
    with pytest.raises(FileNotFoundError, match="bolid-train stage adapter"):
        keep_stages(["adapter"], tmp_path, tmp_path / "out")


def test_the_text_tower_is_brought_to_an_image_tower_that_stays(runs):
    clip, aligned = (load_file(runs / name / "model" / "model.safetensors") for name in ("clip", "clip_text"))
    moved = {key.split(".")[0] for key in clip if not torch.equal(clip[key], aligned[key])}
    assert {"text_model"} <= moved <= {"text_model", "text_projection", "logit_scale"}
    assert clip_folder(runs) == runs / "clip_text" / "model"


def test_the_adapter_leaves_the_base_frozen_and_what_words_have_taught(runs, data):
    task = build_task("adapter", data, runs, config=TINY)
    before = {name: tensor.clone() for name, tensor in task.module.frozen[0].state_dict().items()}
    guider = {name: tensor.clone() for name, tensor in task.module.adapter.pose_guider.state_dict().items()}
    train(task, options(runs / "again", steps=3, learning_rate=1e-2))
    trained = task.module.adapter.pose_guider.state_dict()
    assert any(not torch.equal(guider[name], trained[name]) for name in guider)
    after = task.module.frozen[0].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if ".processor." not in name)
    assert all(torch.equal(before[name], after[name]) for name in before if ".processor.identity" in name)
    words, again = (load_file(runs / run / "model" / "identity.safetensors") for run in ("words", "again"))
    assert all(torch.equal(words[name], tensor) for name, tensor in again.items())
