"""Each loss against a value worked out by hand or by other means, and its gradient as far as the adapter."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bolid_training.losses import (
    Recorded,
    cosine_loss,
    kept_mean,
    keypoint_loss,
    layout_alignment,
    recorded_queries,
    semantic_alignment,
)
from bolid_training.model.adapter import Adapter
from bolid_training.model.checkpoint import build_unet
from bolid_training.model.config import AvatarConfig
from bolid_training.model.pose_estimator import decode_heatmaps, draw_heatmaps

SMALL = AvatarConfig(text_width=64, unet_channels=(32, 32, 32), identity_tokens=4, image_tokens=2, resampler_width=64)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_keypoint_loss_is_the_sum_of_squared_distances_of_the_keypoints_that_are_seen():
    target = torch.full((2, 12, 3), 0.5)
    found = target.clone()
    found[0, 3, :2] += torch.tensor([0.3, 0.4])  # 0.25
    found[1, :, 0] += 0.1  # 12 * 0.01
    target[0, 5], found[0, 5] = 0, 7  # not seen
    assert keypoint_loss(found, target) == pytest.approx((0.25 + 0.12) / 2, abs=1e-6)
    assert keypoint_loss(found, target, torch.tensor([True, False])) == pytest.approx(0.25, abs=1e-6)
    assert keypoint_loss(found, target, torch.tensor([False, False])) == 0


def test_the_keypoint_loss_moves_a_heatmaps_peak_towards_the_target():
    """Gradient descent on the heatmaps, through the decoder: within its window, the peak arrives."""
    target = torch.cat([torch.full((1, 12, 2), 0.52), torch.ones(1, 12, 1)], -1)
    heatmaps = draw_heatmaps(torch.full((1, 12, 2), 0.48), 24, 24).requires_grad_()
    optimizer, losses = torch.optim.Adam([heatmaps], lr=0.01), []
    for _ in range(60):
        loss = keypoint_loss(decode_heatmaps(heatmaps), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(12 * 2 * 0.04**2, rel=0.05)
    assert losses[-1] < 0.02 * losses[0]


def test_cosine_loss_is_one_minus_the_cosine_of_rows():
    found, target = torch.tensor([[3.0, 0], [1, 1], [0, 2]]), torch.tensor([[1.0, 0], [2, 0], [0, -1]])
    assert cosine_loss(found, target) == pytest.approx((0 + 1 - 0.5**0.5 + 2) / 3, abs=1e-6)
    assert cosine_loss(found, target, torch.tensor([True, True, False])) == pytest.approx((1 - 0.5**0.5) / 2, abs=1e-6)
    parts = torch.stack([found, found.flip(1)], 1)  # rows of [B, V, D]
    expected = F.cosine_similarity(parts, target[:, None].expand_as(parts), dim=-1)
    assert cosine_loss(parts, target[:, None].expand_as(parts)) == pytest.approx(float(1 - expected.mean()), abs=1e-6)


def test_means_are_over_the_samples_that_are_kept():
    values = torch.tensor([1.0, 2, 6])
    assert kept_mean(values) == 3
    assert kept_mean(values, torch.tensor([True, False, True])) == 3.5


def recorded(heads, *pairs):
    return Recorded(queries=[q for q, _ in pairs], keys=[k for _, k in pairs], heads=[heads] * len(pairs))


def test_alignment_equals_loops_over_numpy():
    queries, others, keys = noise(2, 6, 8), noise(2, 6, 8, seed=1), noise(2, 3, 8, seed=2)
    small = noise(2, 4, 8, seed=3), noise(2, 4, 8, seed=4), keys
    with_id = recorded(2, (queries, keys), (small[0], keys))
    text_only = recorded(2, (others, keys), (small[1], keys))

    def by_hand(kind):
        layers = []
        for tid, t, k in ((queries, others, keys), small):
            values = []
            for b in range(2):
                for head in (slice(0, 4), slice(4, 8)):
                    first, second, key = (x[b, :, head].double().numpy() for x in (tid, t, k))
                    if kind == "semantic":
                        first, second = (_attend(key, x) for x in (first, second))
                    values.append(np.sqrt(((first - second) ** 2).sum(-1)).mean())
            layers.append(np.mean(values))
        return np.mean(layers)

    assert semantic_alignment(with_id, text_only) == pytest.approx(by_hand("semantic"), abs=1e-5)
    assert layout_alignment(with_id, text_only) == pytest.approx(by_hand("layout"), abs=1e-5)


def _attend(keys, queries):
    scores = np.exp(keys @ queries.T / 2)  # sqrt(4)
    return scores / scores.sum(1, keepdims=True) @ queries


def test_alignment_of_equals_is_zero_and_so_is_its_gradient():
    queries, keys = noise(1, 6, 8).requires_grad_(), noise(1, 3, 8, seed=1)
    with_id, text_only = recorded(2, (queries, keys)), recorded(2, (queries.detach(), keys))
    loss = semantic_alignment(with_id, text_only) + layout_alignment(with_id, text_only)
    loss.backward()
    assert loss == 0
    assert (queries.grad == 0).all()


@pytest.fixture(scope="module")
def adapted():
    torch.manual_seed(0)
    unet = build_unet(SMALL).requires_grad_(False)
    return unet, Adapter(unet, SMALL)


def test_queries_are_recorded_for_every_cross_attention_layer_and_the_gradient_reaches_the_adapter(adapted):
    unet, adapter = adapted
    sample, timestep, text = noise(2, 8, 8, 8), torch.tensor([300, 700]), noise(2, 77, 64)
    tokens = adapter.identity_encoder(noise(2, 1, 5, 64), torch.zeros(2, 1, dtype=torch.long))
    attention = {"identity_tokens": tokens, "identity_scale": torch.ones(len(adapter.layers))}
    with recorded_queries(unet) as with_id:
        unet(sample, timestep, text, cross_attention_kwargs=attention)
    with recorded_queries(unet) as text_only, torch.no_grad():
        unet(sample, timestep, text)
    unet(sample, timestep, text)  # is not recorded
    assert len(with_id.queries) == len(with_id.keys) == len(text_only.queries) == len(adapter.layers)
    layer = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    assert (with_id.keys[0] - layer.to_k(text)).abs().max() < 1e-6
    assert with_id.heads[0] == layer.heads
    # nothing has been said of the person before the first layer
    assert (with_id.queries[0] - text_only.queries[0]).abs().max() < 1e-6
    for loss in (semantic_alignment(with_id, text_only), layout_alignment(with_id, text_only)):
        assert loss > 0
        gradients = torch.autograd.grad(
            loss, [adapter.layers[0].identity.to_v_ip.weight, tokens], retain_graph=True, allow_unused=True
        )
        assert all(gradient.abs().sum() > 0 for gradient in gradients)
