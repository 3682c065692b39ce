"""A user's pictures: what is read from folders and shards, what is left out and why, how pictures lie in the square."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image, ImageDraw

from bolid_sdk.errors import InputError, PersonNotFoundError, PoseError
from bolid_sdk.images import open_image
from bolid_training.userdata.entries import read_keypoints
from bolid_training.userdata.framing import person_frame
from bolid_training.userdata.poses import open_pose_finder
from bolid_training.userdata.reading import choose, find_entries, look

# shoulders, elbows, wrists, hips, knees, ankles of somebody who stands in the middle
STANDING = np.array(
    [
        *([0.58, 0.3, 1], [0.42, 0.3, 1], [0.6, 0.42, 1], [0.4, 0.42, 1], [0.6, 0.52, 1], [0.4, 0.52, 1]),
        *([0.55, 0.55, 1], [0.45, 0.55, 1], [0.55, 0.7, 1], [0.45, 0.7, 1], [0.55, 0.85, 1], [0.45, 0.85, 1]),
    ],
    np.float32,
)


class Finder:
    """Finds the same pose in every picture, but for those whose name says nobody."""

    def find(self, image, name):
        if "nobody" in name:
            raise PersonNotFoundError(f"no person found in {name}")
        return STANDING


def picture(width=40, height=60, colour="red"):
    return Image.new("RGB", (width, height), colour)


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def add(folder, name, caption="standing", image=None):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(png(image or picture()))
    if caption is not None:
        file.with_suffix(".txt").write_text(caption)


def write_tar(file, members):
    with tarfile.open(file, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def chosen(folder, *, single=False):
    entries, skipped = find_entries(folder)
    return choose(entries, [look(entry, Finder()) for entry in entries], skipped, single=single)


def test_sub_folders_are_people_and_texts_are_captions(tmp_path):
    for name in ("anna/1.png", "anna/deeper/2.png", "ben/1.jpg", "ben/2.jpeg"):
        add(tmp_path, name, f"caption of {name}")
    found = chosen(tmp_path)
    assert [entry.name for entry in found.entries] == ["anna/1.png", "anna/deeper/2.png", "ben/1.jpg", "ben/2.jpeg"]
    assert found.identities.tolist() == [0, 0, 1, 1]
    assert found.entries[1].captions == ("caption of anna/deeper/2.png",)
    assert (found.looks[0].width, found.looks[0].height) == (40, 60)


def test_metadata_as_hugging_faces_imagefolder(tmp_path):
    for name in ("1.png", "2.png", "3.png"):
        add(tmp_path, name, None)
    keypoints = STANDING.tolist()
    lines = [
        {"file_name": "1.png", "text": "sitting", "identity": 7, "keypoints": keypoints},
        {"file_name": "2.png", "captions": ["walking", " running "], "identity": 7},
        {"file_name": "3.png", "caption": "lying", "identity": 8},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    found = chosen(tmp_path)
    assert [entry.captions for entry in found.entries] == [("sitting",), ("walking", "running")]
    assert found.report()["skipped"] == {"3.png": "the only picture of its person"}
    (tmp_path / "metadata.jsonl").write_text('{"text": "no file"}')
    with pytest.raises(InputError, match=r"metadata.jsonl, line 1.*file_name"):
        find_entries(tmp_path)


def test_metadata_of_another_encoding_is_an_error(tmp_path):
    add(tmp_path, "1.png", None)
    (tmp_path / "metadata.jsonl").write_bytes('{"file_name": "1.png", "text": "im Café"}'.encode("latin-1"))
    with pytest.raises(InputError, match=r"metadata.jsonl is not UTF-8 .*; save it in that encoding"):
        find_entries(tmp_path)


def test_pictures_that_metadata_name_in_vain_are_left_out_and_named(tmp_path):
    add(tmp_path, "anna/1.png", None)
    add(tmp_path, "anna/2.heic", None)
    lines = [{"file_name": name, "text": "standing"} for name in ("1.png", "2.heic", "3.png")]
    (tmp_path / "anna" / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    entries, skipped = find_entries(tmp_path)
    assert [entry.name for entry in entries] == ["anna/1.png"]
    assert [each.name for each in skipped] == ["anna/2.heic", "anna/3.png"]
    assert all("metadata.jsonl names it, but there is no such picture" in each.reason for each in skipped)


def test_shards_of_webdataset(tmp_path):
    told = {"caption": "sitting", "identity": "anna", "keypoints": STANDING.tolist()}
    labels = Image.fromarray(np.full((60, 40), 4, np.uint8))
    members = {
        "0.png": png(picture(colour="blue")),
        "0.json": json.dumps(told).encode(),
        "0.parts.png": png(labels),
        "a/1.png": png(picture(colour="green")),
        "a/1.json": json.dumps({"captions": ["lying"], "identity": "anna"}).encode(),
        "2.jpg": png(picture()),
        "2.txt": b"alone",
        "3.txt": b"no picture",
    }
    write_tar(tmp_path / "000.tar", members)
    entries, _ = find_entries(tmp_path)
    assert [(entry.name, entry.captions) for entry in entries] == [
        ("000.tar/0", ("sitting",)),
        ("000.tar/a/1", ("lying",)),
        ("000.tar/2", ("alone",)),
    ]
    assert [entry.open().getpixel((0, 0)) for entry in entries[:2]] == [(0, 0, 255), (0, 128, 0)]
    assert np.asarray(entries[0].open_parts()).max() == 4
    found = chosen(tmp_path)
    assert len(found.entries) == 2
    assert found.identities.tolist() == [0, 0]


def test_null_says_nothing_of_who_it_is_or_in_which_style(tmp_path):
    told = {"caption": "standing", "identity": None, "style": None}
    write_tar(tmp_path / "0.tar", {"0.png": png(picture()), "0.json": json.dumps(told).encode()})
    names = ("anna/1.png", "ben/1.png", "ben/2.png")
    for name in names:
        add(tmp_path, name, None)
    lines = [{"file_name": name, "text": "standing", "identity": None} for name in names]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    entries, _ = find_entries(tmp_path)
    assert [entry.identity for entry in entries] == ["anna", "ben", "ben", "0.tar/0 (alone)"]
    assert {entry.style for entry in entries} == {"photo"}


def test_part_labels_in_colours_are_left_out_and_named(tmp_path):
    told = json.dumps({"caption": "standing", "identity": "anna"}).encode()
    members = {f"{i}.{kind}": data for i in range(3) for kind, data in (("png", png(picture())), ("json", told))}
    write_tar(tmp_path / "0.tar", members | {"1.parts.png": png(picture()), "2.parts.png": png(picture().convert("P"))})
    found = chosen(tmp_path)
    assert [entry.name for entry in found.entries] == ["0.tar/0", "0.tar/2"]
    reason = found.report()["skipped"]["0.tar/1"]
    assert "0.tar/1.parts.png has 3 channels (RGB); part labels have one" in reason


def test_a_compressed_or_broken_shard_is_an_error(tmp_path):
    (tmp_path / "000.tar").write_bytes(b"not a tar" * 100)
    with pytest.raises(InputError, match=r"000.tar is not an uncompressed tar"):
        find_entries(tmp_path)


def test_what_cannot_be_used_is_left_out_counted_and_named(tmp_path):
    for name in ("anna/1.png", "anna/2.png", "anna/3.png", "anna/nobody.png", "ben/1.png"):
        add(tmp_path, name)
    add(tmp_path, "anna/uncaptioned.png", None)
    damaged = tmp_path / "anna" / "2.png"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 40, 3), np.uint8))
    damaged.write_bytes(png(noise)[:2000])
    add(tmp_path, "anna/text.png")
    (tmp_path / "anna" / "text.png").write_text("not a picture")
    report = chosen(tmp_path).report()
    assert (report["pictures"], report["people"]) == (2, 1)
    reasons = report["skipped"]
    assert reasons.keys() == {
        *("anna/2.png", "anna/nobody.png", "anna/uncaptioned.png", "anna/text.png", "ben/1.png"),
    }
    assert "damaged" in reasons["anna/2.png"] or "cannot be read" in reasons["anna/2.png"]
    assert "not a picture" in reasons["anna/text.png"]
    assert "no person found" in reasons["anna/nobody.png"]
    assert reasons["anna/uncaptioned.png"] == "no caption"


def test_a_single_picture_is_its_own_partner_only_if_asked(tmp_path):
    add(tmp_path, "anna/1.png")
    add(tmp_path, "beside.png")
    with pytest.raises(InputError, match=r"no person has two pictures \(2 pictures of 2 people\).*--single"):
        chosen(tmp_path)
    assert len(chosen(tmp_path, single=True).entries) == 2


def test_a_sketch_is_drawn_from_a_photograph_never_the_other_way_round(tmp_path):
    styles = {"a": ("photo", "sketch"), "b": ("sketch", "sketch")}
    sample = lambda person, style: json.dumps({"caption": "x", "identity": person, "style": style}).encode()  # noqa: E731
    told = [(person, style) for person, both in styles.items() for style in both]
    members = {f"{i}.json": sample(*each) for i, each in enumerate(told)}
    write_tar(tmp_path / "0.tar", members | {f"{i}.png": png(picture()) for i in range(4)})
    assert [entry.name for entry in chosen(tmp_path).entries] == ["0.tar/0", "0.tar/1"]


def test_nothing_to_train_on_is_a_clear_error(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        find_entries(tmp_path / "missing")
    with pytest.raises(InputError, match=r"holds no pictures; expected folders"):
        find_entries(tmp_path)
    add(tmp_path, "anna/nobody.png", None)
    with pytest.raises(InputError, match=r"none of the 1 pictures .* has a caption"):
        find_entries(tmp_path)
    add(tmp_path, "anna/nobody.png", "a caption")
    with pytest.raises(InputError, match=r"none of the pictures can be used: anna/nobody.png: no person found"):
        chosen(tmp_path)


def test_keypoints_by_confidence_or_by_visibility():
    assert read_keypoints(STANDING[:, :2].tolist())[:, 2].tolist() == [1.0] * 12
    confident = STANDING.copy()
    confident[0, 2] = 0.25
    assert np.array_equal(read_keypoints(confident.tolist()), confident)
    visible = STANDING.copy()
    visible[:3, 2] = (0, 1, 2)
    assert read_keypoints(visible.tolist())[:3, 2] == pytest.approx([0, 0.6, 1])
    with pytest.raises(PoseError, match=r"expected \[12, 2\] or \[12, 3\]"):
        read_keypoints([[0.5, 0.5]])
    with pytest.raises(PoseError, match="confidence in"):
        read_keypoints(np.concatenate([STANDING[:, :2], np.full((12, 1), 3)], 1).tolist())


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (256, 256), (400, 100), (90, 400)])
def test_a_keypoint_stays_on_its_pixel(size):
    """A white dot at a keypoint of the picture is found where the square has the keypoint."""
    width, height = size
    image = Image.new("RGB", size)
    x, y = STANDING[6, :2] * size
    ImageDraw.Draw(image).ellipse((x - 3, y - 3, x + 3, y + 3), "white")
    frame = person_frame(width, height, STANDING)
    bright = frame.cut(image, 128).astype(float).mean(-1)
    bright[bright < 200] = 0  # not the grey of the border
    rows, columns = np.mgrid[:128, :128] + 0.5
    found = np.array([(bright * columns).sum(), (bright * rows).sum()]) / bright.sum() / 128
    assert np.abs(found - frame.to_frame(STANDING)[6, :2]).max() < 0.01
    assert min(size) <= frame.side <= max(size)


def test_the_square_has_the_whole_body_and_grey_counts_for_nothing():
    frame = person_frame(100, 400, STANDING)
    points = frame.to_frame(STANDING)
    assert ((points[:, :2] > 0) & (points[:, :2] < 1)).all()
    inside, cut = frame.inside(64), frame.cut(picture(100, 400, "red"), 64)
    grey = (cut == 127).all(-1)
    assert grey.any()
    assert np.array_equal(grey, inside < 0.5)
    assert inside.mean() == pytest.approx(100 / frame.side, abs=0.01)


def test_labels_are_cut_as_the_picture_is():
    labels = np.zeros((200, 300), np.uint8)
    labels[50:150, 100:200] = 4
    frame = person_frame(300, 200, STANDING)
    colour = frame.cut(Image.fromarray(np.repeat(labels[..., None] * 50, 3, 2)), 100)[..., 0]
    cut = frame.cut_labels(Image.fromarray(labels), 100)
    assert set(np.unique(cut)) == {0, 4}
    assert ((cut == 4) == (colour > 100)).mean() > 0.98


def test_the_models_own_pose_network_and_the_embedded_one_agree(root):
    """One by PyTorch, the other by the runtime's engine; the embedded one is made of the same weights."""
    image = open_image(root / "examples" / "ref.png")
    embedded = open_pose_finder(root / "examples", None, None)
    own = open_pose_finder(root / "training" / "weights" / "avatar", None, None)
    expected = embedded.find(image, "ref.png")
    assert np.abs(own.find(image, "ref.png") - expected)[expected[:, 2] > 0.5].max() < 0.01
    with pytest.raises(PersonNotFoundError, match=r"no person found in blank"):
        embedded.find(picture(128, 128, "grey"), "blank")
