"""bolid_sdk/clip_tokenizer.py against the tokenizers library, on the embedded file and on one of CLIP's size."""

import json
import random
import unicodedata
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import CLIPTokenizer

from bolid_export.package import save_tokenizer
from bolid_sdk.clip_tokenizer import ClipTokenizer
from bolid_sdk.errors import BundleError
from bolid_sdk.prompt import PromptTokenizer
from bolid_training.model.checkpoint import train_tokenizer

EMBEDDED = Path(__file__).parents[2] / "engines" / "avatar" / "tokenizer.json"
CLIP_ENTRIES, TRAINED_ENTRIES = 49_408, 4_096
LENGTH, PAD_ID = 77, 7
SYLLABLES = ["ka", "lo", "mi", "ru", "ten", "sha", "é", "ü", "ю", "шка", "λο", "ς", "人", "漢字", "です", "한", "א"]
SIGNS = "!?.,;:-…'<|>😀👩🏽‍🦰"
PIECES = (
    *SYLLABLES, *SIGNS, "sitting", "Red", "sofa", "<|endoftext|>", "<|startoftext|>", "<|EndOfText|>",
    "<person>", "<PERSON>", "!!!", "'s", "'LL", "'''ve", "’s", "it's", "</w>", "İ", "ΟΔΟΣ", "ß", "ﬁ", "e\u0301",
    "a\u0323\u0301", "a\u0301\u0323", "ب", "\u0301", "한", "٣٤", "१२", "Ⅻ", "½", "2024", "\x1c", "\x1f",
    "\x85", "\u3000", "\u00a0", "\u200b",
    "\ufeff", "\t\r\n", "\0",
    "👨‍👩‍👧‍👦", "🇫🇷", "  ", " ", "_", "#", "\ufffd",
)  # fmt: skip


def known_to_both(character: str) -> bool:
    """Neither characters younger than Python's Unicode, nor marks that may be younger than the library's."""
    category = unicodedata.category(character)
    mark_of_late = category[0] == "M" and unicodedata.ucd_3_2_0.category(character) == "Cn"
    return category not in {"Cn", "Cs"} and not mark_of_late


def one_of_many(character: str) -> bool:
    """Private ones, and most of the letters without case that do not decompose."""
    category = unicodedata.category(character)
    return category == "Co" or (
        category == "Lo" and not unicodedata.decomposition(character) and ord(character) % 16 > 0
    )


CHARACTERS = st.characters(exclude_categories=["Cn", "Cs"]).filter(known_to_both)
TEXTS = st.lists(st.sampled_from(PIECES) | CHARACTERS, max_size=150).map("".join)


def shuffled(content):
    """Merges whose order is not the one in which their parts come about."""
    random.Random(0).shuffle(content["model"]["merges"])


def train_large(file: Path) -> Path:
    """A trained vocabulary, and merges of any two of its tokens up to CLIP's size."""
    chance = random.Random(0)
    words = ["".join(chance.choices(SYLLABLES, k=chance.randint(2, 6))) for _ in range(5_000)]
    signs = ["".join(chance.choices(SIGNS, k=chance.randint(2, 4))) for _ in range(1_000)]
    save_tokenizer(train_tokenizer([*words, *signs], TRAINED_ENTRIES), file)
    content = json.loads(file.read_text())
    vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
    assert len(vocabulary) == TRAINED_ENTRIES
    tokens = [token for token in vocabulary if not token.startswith("<|")]
    inner = [token for token in tokens if not token.endswith("</w>")]
    while len(vocabulary) < CLIP_ENTRIES:
        pair = [chance.choice(inner), chance.choice(tokens)]
        if "".join(pair) not in vocabulary:
            vocabulary["".join(pair)] = len(vocabulary)
            merges.append(pair)
    file.write_text(json.dumps(content))
    return file


def sdxl_second(file: Path) -> Path:
    """Of SDXL's kind, where "!" is the padding and so a special token; with words that somebody has added."""
    model = json.loads(EMBEDDED.read_text())["model"]
    tokenizer = CLIPTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], pad_token="!")
    tokenizer.add_tokens([AddedToken("<Person>", normalized=True), AddedToken("!!", normalized=False)])
    return save_tokenizer(tokenizer, file)


def changed(file: Path, change) -> Path:
    content = json.loads(EMBEDDED.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return file


@cache
def pair_of(file: Path):
    """Ours, and the library's that is to agree with it."""
    reference = Tokenizer.from_file(str(file))
    reference.enable_truncation(LENGTH)
    reference.no_padding()
    ours = PromptTokenizer(file, length=LENGTH, pad_id=PAD_ID)
    return SimpleNamespace(ours=ours, reference=reference)


@pytest.fixture(scope="module", params=["embedded", "shuffled", "sdxl_second", "large"])
def both(request, tmp_path_factory):
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    make = {
        "embedded": lambda: EMBEDDED,
        "shuffled": lambda: changed(file, shuffled),
        "sdxl_second": lambda: sdxl_second(file),
        "large": lambda: train_large(file),
    }
    return pair_of(make[request.param]())


def expected_ids(encoding) -> list[int]:
    return encoding.ids + [PAD_ID] * (LENGTH - len(encoding.ids))


def expected_notices(reference, encoding) -> list[str]:
    if not encoding.overflowing:
        return []
    lost = reference.decode([id_ for part in encoding.overflowing for id_ in part.ids[1:-1]])
    # what transformers does behind the library's decode
    text = lost.replace("</w>", " ").strip()
    return [f"the prompt is longer than {LENGTH} tokens; this was left out: {text!r}"]


def assert_equal(both, text):
    found, encoding = both.ours(text), both.reference.encode(text)
    assert found.ids.tolist() == expected_ids(encoding)
    assert [notice.message for notice in found.notices] == expected_notices(both.reference, encoding)


@given(text=TEXTS)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example("")
@example("a woman, walking on the beach; it's 10 o'clock")
@example("<|startoftext|>a <|endoftext|> b<|EndOfText|>!<|STARTOFTEXT|>!!")
@example("a red sofa, " * 2_000)
@example("e\u0301漢" * 1_000)
@example("x<|endoftext|>" * 100)
@example("<Person>" * 100)
def test_ids_and_notices_are_the_librarys(both, text):
    assert_equal(both, text)


def test_one_endless_word_takes_no_quadratic_work(both):
    chance = random.Random(1)
    assert_equal(both, "".join(chance.choices(SYLLABLES, k=20_000)))


def test_every_character_is_normalised_and_split_as_in_the_library():
    """Twice behind a letter: a letter stays with it, two numbers part, two signs do not. Of ideographs every 16th."""
    ours, reference = ClipTokenizer(EMBEDDED), Tokenizer.from_file(str(EMBEDDED))
    characters = [chr(code) for code in range(0xF0000) if known_to_both(chr(code)) and not one_of_many(chr(code))]
    assert len(characters) > 20_000
    for start in range(0, len(characters), 1_000):
        text = " ".join(f"a{character}{character}" for character in characters[start : start + 1_000])
        assert ours.encode(text) == reference.encode(text, add_special_tokens=False).ids


def test_sdxl_pads_with_the_exclamation_mark_and_takes_it_literally(tmp_path):
    tokenizer = ClipTokenizer(sdxl_second(tmp_path / "tokenizer.json"))
    exclamation = json.loads(EMBEDDED.read_text())["model"]["vocab"]["!"]
    assert tokenizer.encode("a!") == [*tokenizer.encode("a"), exclamation]
    assert ClipTokenizer(EMBEDDED).encode("a!")[-1] != exclamation


def test_merges_of_older_files_are_read(tmp_path):
    def as_text(content):
        content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]

    older = ClipTokenizer(changed(tmp_path / "tokenizer.json", as_text))
    text = "a man sitting on a red sofa"
    assert older.encode(text) == ClipTokenizer(EMBEDDED).encode(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model"].update(type="WordPiece"), "model type is 'WordPiece', expected 'BPE'"),
        (lambda c: c["model"].update(end_of_word_suffix=None), "end_of_word_suffix is None, expected '</w>'"),
        (lambda c: c["model"].update(dropout=0.1), "dropout is 0.1"),
        (lambda c: c.update(normalizer=None), "normalizer is None"),
        (lambda c: c["normalizer"]["normalizers"].pop(), "normalizers is .*'NFC'"),
        (lambda c: c["normalizer"]["normalizers"][0].update(type="NFKC"), "1 type is 'NFKC', expected 'NFC'"),
        (lambda c: c["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": r"\w+"}), r"Regex is '\\\\w\+'"),
        (lambda c: c["pre_tokenizer"]["pretokenizers"][1].update(type="Whitespace"), "2 type is 'Whitespace'"),
        (lambda c: c["post_processor"].update(type="TemplateProcessing"), "is 'TemplateProcessing'"),
        (lambda c: c["added_tokens"][0].update(lstrip=True), "startoftext.* lstrip is True"),
    ],
)  # fmt: skip
def test_other_tokenizers_are_refused_by_what_they_are(tmp_path, change, message):
    with pytest.raises(BundleError, match=f"not a tokenizer of CLIP's kind: .*{message}"):
        ClipTokenizer(changed(tmp_path / "tokenizer.json", change))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["model"]["merges"].append(["nothing", "known"]),
        lambda c: c["model"]["merges"].append(["a", "b", "c"]),
        lambda c: c["model"].update(unk_token="<unk>"),
        lambda c: c.pop("added_tokens"),
        lambda c: c["post_processor"].pop("cls"),
    ],
)
def test_inconsistent_files_are_explained(tmp_path, change):
    with pytest.raises(BundleError, match=r"tokenizer\.json is no tokenizer .*export the bundle again"):
        ClipTokenizer(changed(tmp_path / "tokenizer.json", change))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_files_that_are_no_tokenizer_are_explained(tmp_path, content):
    file = tmp_path / "tokenizer.json"
    file.write_bytes(content)
    with pytest.raises(BundleError, match="is no tokenizer"):
        ClipTokenizer(file)
    with pytest.raises(BundleError, match="is no tokenizer"):
        ClipTokenizer(tmp_path / "absent.json")
