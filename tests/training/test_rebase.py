"""An adapter that goes along with its base."""

import pytest
import torch
from click.testing import CliRunner
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from bolid_training.cli import main
from bolid_training.model.adapter import Adapter, build_pose_guider
from bolid_training.model.checkpoint import build_unet
from bolid_training.model.config import AvatarConfig
from bolid_training.model.lightning import LORA_FILE
from bolid_training.rebase import rebase

CONFIG = AvatarConfig(unet_channels=(32, 32, 64), identity_net=True)


def write_base(folder, seed):
    torch.manual_seed(seed)
    unet = build_unet(CONFIG)
    unet.save_pretrained(folder)
    build_pose_guider(unet).save_pretrained(folder / "pose_guider")
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return [write_base(tmp_path_factory.mktemp("base") / "model", seed) for seed in (0, 1)]


def fresh_adapter(base):
    """As a stage begins: copies of the base's."""
    torch.manual_seed(2)
    adapter = Adapter(UNet2DConditionModel.from_pretrained(base), CONFIG)
    guider = load_file(base / "pose_guider" / "diffusion_pytorch_model.safetensors")
    adapter.pose_guider.load_state_dict(guider)
    return adapter


@pytest.fixture
def trained(bases, tmp_path):
    """An adapter that has learned something on the first base, in all its parts."""
    adapter = fresh_adapter(bases[0])
    torch.manual_seed(3)
    for parameter in adapter.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    adapter.save(tmp_path / "trained")
    return tmp_path / "trained"


def states(folder):
    return {file.relative_to(folder): load_file(file) for file in folder.rglob("*.safetensors")}


def test_what_was_learned_is_kept_and_what_was_copied_is_the_new_base_s(bases, trained, tmp_path):
    for name, base in zip(("old", "new"), bases, strict=True):
        fresh_adapter(base).save(tmp_path / name)
    rebase(trained, tmp_path / "moved", *bases)
    old, new, learned, moved = (states(tmp_path / name) for name in ("old", "new", "trained", "moved"))
    changed = 0
    for file, state in moved.items():
        for name, tensor in state.items():
            expected = learned[file][name] - old[file][name] + new[file][name]
            assert torch.allclose(tensor, expected, atol=1e-5), (file, name)
            changed += not torch.equal(tensor, learned[file][name])
    assert changed > 100


def test_a_student_keeps_its_lora(bases, trained, tmp_path):
    student = tmp_path / "student"
    student.mkdir()
    trained.rename(student / "adapter")
    save_file({"unet.x": torch.ones(2)}, student / LORA_FILE)
    before = states(student)
    rebase(student, tmp_path / "moved", *bases)
    assert (tmp_path / "moved" / LORA_FILE).read_bytes() == (student / LORA_FILE).read_bytes()
    identity = "adapter/identity.safetensors"
    key = "ip_adapter.1.to_k_ip.weight"
    after = {str(file): state for file, state in states(tmp_path / "moved").items()}
    assert not torch.equal(after[identity][key], {str(f): s for f, s in before.items()}[identity][key])


@pytest.mark.parametrize("what", ["no adapter", "no base", "another size", "out exists"])
def test_what_does_not_fit_is_one_clear_error_and_leaves_nothing(what, bases, trained, tmp_path):
    before, after = bases
    out = tmp_path / "moved"
    if what == "no adapter":
        (trained / "identity.safetensors").unlink()
    elif what == "no base":
        after = tmp_path / "nowhere"
    elif what == "another size":
        after = tmp_path / "wide"
        build_unet(AvatarConfig(unet_channels=(64, 64, 64))).save_pretrained(after)
    else:
        out.mkdir()
    expected = {
        "no adapter": "identity.safetensors is missing",
        "no base": "nowhere",
        "another size": "not of one size",
        "out exists": "exists",
    }[what]
    found = CliRunner().invoke(main, ["rebase", str(trained), str(out), "--before", str(before), "--after", str(after)])
    assert found.exit_code == 2
    assert expected in found.output.replace("\n", " ")
    assert not list(out.glob("*"))
    assert {path.name for path in tmp_path.iterdir()} <= {"trained", "moved", "wide"}
