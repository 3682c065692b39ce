"""Stage `words`: tokens are taught what the text encoder says, and are painted by the text's own keys and values."""

import numpy as np
import pytest
import torch

from bolid_training.model.checkpoint import build_clip, byte_tokenizer, clip_parts
from bolid_training.model.config import AvatarConfig
from bolid_training.stages.clip import tokenize
from bolid_training.stages.words import unexplained, word_states

CONFIG = AvatarConfig(text_width=64, text_layers=2, vision_layers=1, clip_projection=32)
TOLD = [
    [("noun", "a girl"), ("hair", "with a bald head"), ("", "wearing"), ("upper", "a red dress"), ("shoes", "boots")],
    [
        *[("noun", "an old man"), ("hair", "with short grey hair"), ("", "wearing"), ("upper", "a coat")],
        *[("lower", "blue jeans"), ("shoes", "white sneakers"), ("hat", "a cap")],
    ],
]


@pytest.fixture(scope="module")
def text():
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    return clip_parts(build_clip(CONFIG, tokenizer))["text_encoder"].eval(), tokenizer


@pytest.mark.parametrize(("name", "ends"), [("upper", (4, 4)), ("hair", (2, 2)), ("lower", (4, 5)), ("hat", (2, 7))])
def test_a_state_is_that_of_the_sentence_up_to_its_phrase(text, name, ends):
    """The encoder is causal: what follows a word does not change its state."""
    encoder, tokenizer = text
    told = ("upper", "lower", "noun", "hair", "shoes", "hat")
    found = word_states(encoder, tokenizer, TOLD)[:, told.index(name)]
    for phrases, end, state in zip(TOLD, ends, found, strict=True):
        sentence = " ".join(words for _, words in phrases[:end])
        last = len(tokenizer(sentence)["input_ids"]) - 2
        with torch.no_grad():
            expected = encoder(tokenize(tokenizer, [sentence]))[0][0, last]
        np.testing.assert_allclose(state, expected, atol=1e-5)


def test_who_says_the_same_of_everybody_explains_nothing():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(50, 6, 8, generator=generator) * torch.arange(1, 7)[:, None]
    spread = states.var(0, correction=0).mean(-1)
    mean = states.mean(0).repeat(3, 1)[:16].expand(50, -1, -1)
    torch.testing.assert_close(unexplained(mean, states, spread).mean(0), torch.ones(16))
    assert not unexplained(states.repeat(1, 3, 1)[:, :16], states, spread).any()
