"""Recipes: the table, and each method's module and losses on random networks of the stages' sizes."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.embeddings import MultiIPAdapterImageProjection
from safetensors.torch import load_file
from transformers import CLIPModel

from bolid_training.assemble import assemble_checkpoint
from bolid_training.avatars.parts import Part
from bolid_training.cli import main
from bolid_training.data import People, pixels
from bolid_training.losses import cosine_loss
from bolid_training.model.adapter import PART_EMBEDDING, Adapter
from bolid_training.model.body_encoder import build_identity_encoder
from bolid_training.model.checkpoint import (
    build_clip,
    build_feature_extractor,
    build_unet,
    build_vae,
    byte_tokenizer,
    clip_parts,
    load_checkpoint,
)
from bolid_training.model.config import AvatarConfig
from bolid_training.model.identity_net import build_identity_net
from bolid_training.model.pose_estimator import build_pose_estimator, load_pose_estimator
from bolid_training.model.sampling import seeded_noise
from bolid_training.recipes.methods import (
    ABLATIONS,
    CONTROLS,
    METHODS,
    RECIPES,
    Branch,
    Phase,
    Recipe,
    Weights,
    recipe_config,
)
from bolid_training.stages.adapter import AdapterTask
from bolid_training.stages.method import MethodTask, few_step_unet, warn_of_strangers
from bolid_training.stages.reid import build_reid

TINY = AvatarConfig(
    image_size=64,
    latent_channels=4,
    text_width=64,
    text_layers=1,
    vision_layers=2,
    vision_size=32,
    clip_projection=32,
    unet_channels=(32, 32, 64),
    vae_width=8,
    pose_width=32,
    pose_layers=1,
    resampler_width=64,
)

SEEN = {"style": "photo", "captions": ["a person walking on a beach"], "attributes": {"person": None}}


def people(count=12):
    """Two pictures of each of some people: noise with a body's labels."""
    rng = np.random.default_rng(0)
    parts = np.zeros((count, 64, 64), np.uint8)
    parts[:, 20:40, 20:40] = Part.UPPER
    points = rng.uniform(0.2, 0.8, (count, 12, 3)).astype(np.float32)
    points[..., 2] = 2
    return People(
        images=rng.integers(256, size=(count, 64, 64, 3), dtype=np.uint8),
        parts=parts,
        keypoints=points,
        identity=np.arange(count, dtype=np.int32) // 2,
        metadata=[SEEN] * count,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What the stages before the adapter leave, with random weights."""
    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("runs"), byte_tokenizer()
    clip, unet = build_clip(TINY, tokenizer), build_unet(TINY)
    for part in (clip, tokenizer, build_feature_extractor(TINY)):
        part.save_pretrained(folder / "clip" / "model")
    build_vae(TINY).save_pretrained(folder / "vae" / "model")
    build_pose_estimator(TINY.pose_size, TINY.pose_width, TINY.pose_layers).save(folder / "pose" / "model")
    unet.save_pretrained(folder / "unet" / "model")
    clip_parts(clip)["text_encoder"].save_pretrained(folder / "unet" / "model" / "text_encoder")
    adapter = Adapter(unet, TINY)
    adapter.pose_guider.save_pretrained(folder / "unet" / "model" / "pose_guider")
    adapter.save(folder / "words" / "model")
    build_reid().save_pretrained(folder / "reid" / "model")
    return folder


BRANCH_LOSSES = ("keypoints", "heatmaps", "clip", "embedding", "semantic", "layout")
EVERYTHING = Weights(colour=1, keypoints=1, heatmaps=1, clip=1, embedding=1, semantic=0.6, layout=0.1)
BRANCH = Branch(steps=2, samples=3, share=1.0, distilled=False)


def task(runs, recipe):
    torch.manual_seed(0)
    made = MethodTask(TINY, people(), people(4), runs, replace(recipe, branch=BRANCH))
    made.reach(1.0)
    return made


@pytest.fixture(scope="module")
def everything(runs):
    recipe = Recipe(name="everything", phases=(Phase(until=1.0, weights=EVERYTHING),), identity_net=True)
    return task(runs, recipe)


def gradients(task, loss):
    """The parameters that a loss reaches, by name."""
    task.module.zero_grad()
    loss.backward(retain_graph=True)
    return {n for n, p in task.module.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def test_the_four_methods_and_an_ablation_of_every_loss_are_there():
    assert list(METHODS) == ["bolid", "ip_adapter", "instantid", "pulid"]
    assert all(recipe.name == name for name, recipe in RECIPES.items())
    bolid = METHODS["bolid"]
    from_pairs = ABLATIONS["bolid_no_words"]
    for name, loss, whole in (
        ("bolid_no_id", "keypoints", bolid),
        ("bolid_no_clip", "clip", bolid),
        ("bolid_unlabelled", "colour", from_pairs),
    ):
        assert not any(getattr(phase.weights, loss) for phase in RECIPES[name].phases)
        assert replace(RECIPES[name].losses, **{loss: getattr(whole.losses, loss)}) == whole.losses
    assert not ABLATIONS["bolid_rec"].losses.branch


def test_a_control_is_its_method_beside_the_guider_that_it_is_shown_with(runs, tmp_path):
    beside = [name for name in CONTROLS if name.endswith("_beside_guider")]
    assert beside
    for name in beside:
        method = METHODS[name.removesuffix("_beside_guider")]
        assert CONTROLS[name] == replace(method, name=name, pose_guider="frozen")
        made = task(runs, CONTROLS[name])
        reached = gradients(made, made.losses(made.module, made.batch(np.random.default_rng(3), 4))["loss"])
        assert any("identity_encoder" in parameter for parameter in reached)
        assert not any("pose_guider" in parameter for parameter in reached)
        made.save(tmp_path)
        guider, own = (
            load_file(folder / "diffusion_pytorch_model.safetensors")
            for folder in (runs / "unet" / "model" / "pose_guider", tmp_path / "pose_guider")
        )
        assert all(torch.equal(guider[key], own[key]) for key in guider)


@pytest.mark.parametrize("name", [*METHODS, *CONTROLS])
def test_the_committed_adapters_are_of_these_recipes_and_of_the_committed_base(name):
    avatar, model = Path("training/weights/avatar"), Path("training/weights/methods") / name / "model"
    unet = UNet2DConditionModel.from_pretrained(avatar / "unet", torch_dtype=torch.float32)
    adapter = Adapter(unet, config := recipe_config(AvatarConfig(), RECIPES[name]))
    adapter.load(model)
    assert all(parameter.isfinite().all() for parameter in adapter.parameters())
    patches = torch.randn(2, config.parts, 17, config.patch_width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        somebody, another = adapter.identity_encoder(patches, torch.arange(config.parts).expand(2, -1))
    assert (somebody - another).abs().mean() > 0.01


def test_phases_follow_the_share_of_steps_done():
    recipe = METHODS["bolid"]
    assert not recipe.at(0).branch
    assert (recipe.at(0.6).keypoints, recipe.at(0.6).clip) == (1.0, 0.0)
    assert recipe.at(0.99).clip > 0
    assert recipe.at(1.0) == recipe.losses
    with pytest.raises(ValueError, match="rising shares"):
        Recipe(name="x", phases=(Phase(until=0.5, weights=Weights()),))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_a_step_and_trains_what_it_is_made_of(runs, name, tmp_path):
    made = task(runs, METHODS[name])
    batch = made.batch(np.random.default_rng(3), 4)
    losses = made.losses(made.module, batch)
    assert all(torch.isfinite(value) for value in losses.values())
    reached = gradients(made, losses["loss"])
    # BoLID's identity is what words have taught
    assert any("identity_encoder" in parameter for parameter in reached) == (name != "bolid")
    assert any("layers.0.identity.to_k_ip" in parameter for parameter in reached) == (name != "bolid")
    assert any("image_projector" in parameter for parameter in reached) == ("image_patch_tokens" in batch)
    assert any("pose_guider" in parameter for parameter in reached) == (name == "bolid")
    assert any("identity_net" in parameter for parameter in reached) == (name == "instantid")
    assert batch["patch_tokens"].shape[1] % METHODS[name].parts == 0
    made.save(tmp_path)
    assert (PART_EMBEDDING in load_file(tmp_path / "identity.safetensors")) == (name == "bolid")
    assert (tmp_path / "identity_net").is_dir() == (name == "instantid")
    expected = {loss for loss, weight in vars(METHODS[name].losses).items() if weight}
    assert losses.keys() - {"loss", "mse"} == expected
    total = sum(getattr(METHODS[name].losses, loss) * losses[loss].item() for loss in expected)
    assert losses["loss"].item() == pytest.approx(total, rel=1e-5)


def test_every_loss_of_the_branch_reaches_the_adapter(everything):
    losses = everything.losses(everything.module, everything.batch(np.random.default_rng(0), 4))
    for loss in BRANCH_LOSSES:
        reached = gradients(everything, losses[loss])
        assert any("identity_encoder" in parameter for parameter in reached), loss
        assert any("identity.to_v_ip" in parameter for parameter in reached), loss
    frozen = [everything.vae, everything.clip, everything.pose_estimator, everything.image_encoder]
    assert not any(parameter.requires_grad for network in frozen for parameter in network.parameters())


def test_dropped_conditions_bind_no_loss(everything):
    batch = everything.batch(np.random.default_rng(0), 4)
    batch |= {f"keep_{name}": torch.zeros(4, dtype=torch.bool) for name in ("identity", "text", "pose")}
    losses = everything.losses(everything.module, batch)
    assert all(losses[name] == 0 for name in BRANCH_LOSSES)
    assert losses["rec"] > 0


def test_l_clip_is_transformers_own_cosine(everything, runs):
    """On pictures at the encoder's size, against CLIPModel's similarity."""
    batch, clip = everything.batch(np.random.default_rng(0), 4), CLIPModel.from_pretrained(runs / "clip" / "model")
    seen = pixels(people().images[:3])
    small = torch.nn.functional.interpolate(seen, (32, 32), mode="bilinear", antialias=True)
    inputs = everything.extractor(
        [(p.permute(1, 2, 0) / 2 + 0.5).numpy() for p in small], return_tensors="pt", do_rescale=False, do_resize=False
    )
    ids = everything.tokenizer(
        ["a person walking on a beach"] * 3, padding="max_length", max_length=77, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        reference = clip(pixel_values=inputs["pixel_values"], input_ids=ids)
        expected = 1 - (reference.image_embeds * reference.text_embeds).sum(-1).mean()
        found = cosine_loss(everything.embed_image(seen), everything.embed_text(["a person walking on a beach"] * 3))
    assert found == pytest.approx(float(expected), abs=1e-5)
    assert batch["text_embeds"].shape == (3, 32)


def test_the_branch_without_gradient_steps_of_its_own_is_the_guided_loop_at_guidance_one(everything):
    """`draw` with guidance 1 and the branch are the same pictures from the same noise."""
    batch = everything.batch(np.random.default_rng(0), 3)
    batch["keep_pose"] = torch.ones(3, dtype=torch.bool)
    batch.pop("image_patch_tokens", None)
    batch["branch_noise"] = seeded_noise((3, 4, 8, 8))
    with torch.no_grad():
        found = everything.module(batch)["latents"]
        doubled = {
            name: torch.cat([torch.zeros_like(batch[name]), batch[name]])
            for name in ("patch_tokens", "encoder_hidden_states", "parts")
        }
        expected = everything.draw(doubled, batch["skeleton"], steps=2, guidance=1.0)
    assert (found - expected).abs().max() < (1e-5 if not torch.is_autocast_enabled("cpu") else 1e-2)


def test_a_fresh_identity_net_adds_nothing_and_pools_with_as_many_heads_as_the_unet():
    torch.manual_seed(0)
    unet = build_unet(AvatarConfig(text_width=128, unet_channels=(32, 32, 32)))
    net = build_identity_net(unet)
    assert net.add_embedding.pool.num_heads == unet.add_embedding.pool.num_heads == 2
    sample, tokens = torch.randn(1, 8, 8, 8), torch.randn(1, 16, 128)
    with torch.no_grad():
        assert (net.add_embedding(tokens) == unet.add_embedding(tokens)).all()
        down, mid = net(sample, torch.tensor([500]), tokens, torch.rand(1, 3, 64, 64), return_dict=False)
    assert mid.abs().max() == 0
    assert all(residual.abs().max() == 0 for residual in down)


def test_an_identity_net_is_saved_as_a_controlnet_and_sees_the_skeleton(everything, tmp_path):
    net = everything.module.adapter.identity_net
    for parameter in net.parameters():
        parameter.data += 0.01
    everything.save(tmp_path)
    again = ControlNetModel.from_pretrained(tmp_path / "identity_net").eval()
    state = net.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    batch = everything.batch(np.random.default_rng(0), 4)
    batch["keep_pose"] = torch.ones(4, dtype=torch.bool)
    with torch.no_grad():
        attention = everything.module.attention(batch)
        seen = everything.module.predict(batch, attention)
        black = everything.module.predict(batch | {"skeleton": torch.zeros_like(batch["skeleton"])}, attention)
    assert (seen - black).abs().max() > 1e-4
    everything.load(tmp_path)


@pytest.mark.parametrize("words", [True, False])
def test_without_a_recipe_the_adapter_trains_and_draws_as_with_l_rec_alone(runs, words, monkeypatch, tmp_path):
    """And the colours, if no words were taught. Two loops, diffusers' scheduler here and the branch's own DDIM there,
    draw the same validation pictures."""
    if not words:
        monkeypatch.setattr(AdapterTask, "begins_with", None)
    only = (Phase(until=1.0, weights=Weights(colour=1)),)
    recipe = ABLATIONS["bolid_rec"] if words else replace(ABLATIONS["bolid_no_words"], phases=only)
    config = replace(TINY, zero_tokens=recipe.zero_tokens)
    plain, method = AdapterTask(config, people(), people(4), runs), task(runs, recipe)
    method.module.load_state_dict(plain.module.state_dict())
    losses, same = (made.losses(made.module, made.batch(np.random.default_rng(0), 4)) for made in (plain, method))
    assert losses.keys() == {"loss", "mse"} | (set() if words else {"colour"})
    assert same["loss"].item() == pytest.approx(losses["loss"].item(), rel=1e-5)
    with torch.no_grad():
        errors = [made.validate(tmp_path / "sheet.png")["colour_error"] for made in (plain, method)]
    assert errors[0] == pytest.approx(errors[1], abs=1e-4)


def test_a_recipe_begins_with_the_words_of_its_own_budget_of_tokens(runs, tmp_path):
    taught = load_file(runs / "words" / "model" / "identity.safetensors")
    with_words, without = (task(runs, RECIPES[name]) for name in ("bolid", "bolid_no_words"))
    for made, same in ((with_words, True), (without, False)):
        made.save(tmp_path)
        begun = load_file(tmp_path / "identity.safetensors")
        assert torch.equal(begun["image_proj.latents"], taught["image_proj.latents"]) is same
    with pytest.raises(FileNotFoundError, match="stage words --recipe bolid_5_tokens"):
        task(runs, RECIPES["bolid_5_tokens"])
    with pytest.raises(ValueError, match="not from the whole picture"):
        replace(RECIPES["bolid"], parts=1)
    with pytest.raises(ValueError, match="nothing to teach"):
        replace(RECIPES["bolid_no_words"], identity="words")


def test_pairs_may_go_on_where_words_have_begun(runs):
    made = task(runs, RECIPES["bolid_words_then_pairs"])
    reached = gradients(made, made.losses(made.module, made.batch(np.random.default_rng(0), 4))["loss"])
    assert any("identity_encoder" in parameter for parameter in reached)
    assert any("layers.0.identity.to_k_ip" in parameter for parameter in reached)


def test_what_does_not_fit_a_recipe_is_a_usage_error(runs, tmp_path):
    run = CliRunner().invoke
    for arguments, message in (
        (["unet", "--recipe", "bolid"], "a method of the stage `adapter`"),
        (["words", "--recipe", "pulid"], "does not begin with `stage words`"),
        (["adapter", "--pose-guider", "off"], "name one with --recipe"),
    ):
        result = run(main, ["stage", *arguments, "--runs", str(tmp_path)])
        assert result.exit_code == 2
        assert message in result.output
    for arguments, message in (
        (["--few-steps"], "name one with --recipe"),
        (["--recipe", "bolid", "--guided"], "without a --recipe"),
        (["--recipe", "ip_adapter", "--pose-scale", "1.4"], "ip_adapter has only with --guider"),
    ):
        result = run(main, ["assemble", *arguments, "--runs", str(tmp_path)])
        assert result.exit_code == 2
        assert message in " ".join(result.output.replace("│", " ").split())
    with pytest.raises(FileNotFoundError, match="stage lightning"):
        few_step_unet(runs)


def test_the_pose_estimator_of_the_branch_is_the_one_of_the_pose_stage(everything, runs):
    again = load_pose_estimator(runs / "pose" / "model").eval()
    seen = pixels(people().images[:1])
    resized = torch.nn.functional.interpolate(seen, (96, 96), mode="bilinear", antialias=True)
    with torch.no_grad():
        assert (everything._see(seen)[0] - again(resized)[0]).abs().max() < 1e-5


def test_whole_pictures_are_read_one_by_one_as_diffusers_reads_several_for_one_ip_adapter():
    torch.manual_seed(0)
    encoder = build_identity_encoder(parts=1, embed_dim=64, output_dim=32, width=64, tokens=4)
    patches = torch.randn(2, 3, 5, 64)
    with torch.no_grad():
        found = encoder(patches, torch.zeros(2, 3, dtype=torch.long))
        # what diffusers does with image_embeds [B, pictures, P, D]
        layer = MultiIPAdapterImageProjection([encoder.resampler])
        expected = layer([patches])[0].flatten(1, 2)
    assert found.shape == (2, 12, 32)
    assert (found - expected).abs().max() < 1e-6


def test_a_method_is_assembled_with_its_own_sizes_and_with_the_bases_guider_if_asked_for(runs, tmp_path):
    (folder := task(runs, METHODS["ip_adapter"])).save(runs / "ip_adapter" / "model")
    for use, guided in (("off", False), ("frozen", True)):
        assemble_checkpoint(runs, tmp_path / use, TINY, replace(METHODS["ip_adapter"], pose_guider=use))
        checkpoint = load_checkpoint(tmp_path / use)
        assert (checkpoint.adapter.pose_guider is not None) == guided
        assert (checkpoint.config.parts, checkpoint.config.pose_guider) == (1, guided)
    key = checkpoint.adapter.layers[0].identity.to_k_ip.weight
    assert (key - folder.module.adapter.layers[0].identity.to_k_ip.weight).abs().max() < 1e-3
    with pytest.raises(FileNotFoundError, match="pulid"):
        assemble_checkpoint(runs, tmp_path / "none", TINY, METHODS["pulid"])


def test_a_clip_that_knows_no_captions_is_pointed_out(everything):
    assert everything.retrieval() == 0.25  # of four equal captions one is found
    with pytest.warns(UserWarning, match="L_CLIP would mislead"):
        warn_of_strangers(0.02)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_strangers(0.5)
