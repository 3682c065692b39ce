"""Bundles: written whole, opened with checks, and never trusted."""

import errno
import json
import os
import shutil
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bolid_sdk.built_engine import BuiltEngine, EngineKey
from bolid_sdk.bundle import Bundle, open_bundle, write_bundle
from bolid_sdk.errors import BundleError, OutputError
from bolid_sdk.generator import Generator
from bolid_sdk.manifest import Manifest


@pytest.fixture
def copy(tiny_bundle, tmp_path):
    return shutil.copytree(tiny_bundle.path, tmp_path / "copy")


def edit(folder, change):
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_what_is_written_is_read(tiny_bundle):
    again = Bundle.open(tiny_bundle.path)
    assert again == tiny_bundle
    again.verify_hashes()
    assert again.manifest.capabilities == ("pose_estimation", "pose", "image_prompt", "caching", "encode")
    assert Manifest.from_dict(again.manifest.to_dict()) == again.manifest


def test_an_existing_folder_is_kept_unless_asked(tiny_bundle, tiny_files, copy):
    with pytest.raises(OutputError, match="exists already"):
        write_bundle(copy, tiny_bundle.manifest, tiny_files)
    (copy / "old").write_text("old")
    assert write_bundle(copy, tiny_bundle.manifest, tiny_files, overwrite=True).digest == tiny_bundle.digest
    assert not (copy / "old").exists()
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_files_that_are_given_up_are_linked(tiny_bundle, tiny_files, tmp_path):
    """Gigabytes need not be written twice; a file system without links gets copies."""
    source = {name: tmp_path / name for name in tiny_files}
    for name, file in tiny_files.items():
        source[name].parent.mkdir(parents=True, exist_ok=True)
        source[name].write_bytes(file.read_bytes())
    for link in (True, False):
        bundle = write_bundle(tmp_path / f"bundle-{link}", tiny_bundle.manifest, source, link=link)
        assert {bundle.file(name).samefile(file) for name, file in source.items()} == {link}
        assert bundle.digest == tiny_bundle.digest


def test_where_links_are_refused_files_are_copied(tiny_bundle, tiny_files, tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    write_bundle(tmp_path / "bundle", tiny_bundle.manifest, tiny_files, link=True).verify_hashes()


def test_a_failed_write_leaves_nothing(tiny_bundle, tiny_files, tmp_path):
    files = {name: path for name, path in tiny_files.items() if name != "denoiser.onnx"}
    with pytest.raises(BundleError, match="not listed under files"):
        write_bundle(tmp_path / "new", tiny_bundle.manifest, files)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema=99), "schema 99"),
        (lambda m: m.pop("sizes"), "sizes"),
        (lambda m: m.update(colour="red"), "colour"),
        (lambda m: m["sizes"].update(context_width=32), "expected float32"),
        (lambda m: m["sizes"].pop("image_size"), "image_size"),
        (lambda m: m["graphs"].pop("denoiser"), "no graph 'denoiser'"),
        (lambda m: m["graphs"].update(magic=m["graphs"]["denoiser"]), "unknown"),
        (lambda m: m["graphs"]["denoiser"]["inputs"].pop(), "denoiser has the inputs"),
        (lambda m: m["graphs"]["denoiser"]["inputs"][0].update(dtype="float16"), "float16"),
        (lambda m: m["graphs"]["denoiser"]["inputs"][0].update(shape=[1, 4, 8, 8]), "expected float32"),
        (lambda m: m["files"].pop("tokenizer.json"), "not listed"),
        (lambda m: m.update(tokenizer_2={"file": "tokenizer.json", "pad_id": 1}), "2 tokenizers for 1 inputs"),
        (lambda m: m["sizes"].update(token_inputs=2), "text_encoder has the inputs"),
        (lambda m: m["sizes"].update(pooled_width=8), "text_encoder has the outputs"),
        (lambda m: m["sizes"].update(time_ids=6), "denoiser has the inputs"),
        (lambda m: m["sizes"].update(pose_divisors=[1]), "do not fit 2 pose features"),
        (lambda m: m["files"]["tokenizer.json"].update(bytes=1), "has .* bytes"),
        (lambda m: m["files"].update({"absent.onnx": {"bytes": 1, "sha256": "0"}}), "missing"),
        (
            lambda m: m["files"]["tokenizer.json"].update(bytes="3"),
            r"files\['tokenizer.json'\] has bytes='3'; expected a",
        ),
        (lambda m: m["files"]["tokenizer.json"].update(sha256=5), "has sha256=5; expected text"),
        (lambda m: m["sizes"].update(native_width="64"), "sizes has native_width='64'; expected a whole number"),
        (lambda m: m["sizes"].update(native_width=64.0), "native_width=64.0; expected a whole number"),
        (lambda m: m["sizes"].update(native_width=10**400), "native_width=10{400}; expected a whole number"),
        (lambda m: m["sizes"].update(native_height=True), "native_height=True; expected a whole number"),
        (lambda m: m["sizes"].update(native_height=0), "native_height is 0; expected at least 1"),
        (lambda m: m["sizes"].update(vae_factor=0), "vae_factor is 0; expected at least 1"),
        (lambda m: m["sizes"].update(vae_factor=7), "size_step 32 is no multiple of vae_factor 7"),
        (lambda m: m["sizes"].update(size_step=-32), "size_step is -32; expected at least 1"),
        (lambda m: m["noise_schedule"].update(prediction_type="wish"), "prediction type"),
        (
            lambda m: m["noise_schedule"].update(num_train_timesteps="5"),
            "num_train_timesteps='5'; expected a whole num",
        ),
        (lambda m: m["noise_schedule"].update(beta_start="a"), "noise_schedule has beta_start='a'; expected a finite"),
        (lambda m: m["noise_schedule"].update(beta_start=10**400), "expected a finite number"),
        (lambda m: m["noise_schedule"].update(beta_end=float("nan")), "beta_end=nan; expected a finite number"),
        (
            lambda m: m["noise_schedule"].update(timestep_scaling=float("inf")),
            "timestep_scaling=inf; expected a finite",
        ),
        (lambda m: m["noise_schedule"].update(trained_betas=["a"]), "trained_betas are not all numbers"),
        (lambda m: m.update(pose_threshold=float("nan")), "pose_threshold=nan; expected a finite number"),
        (lambda m: m.update(pose_threshold="0.3"), "pose_threshold='0.3'; expected a finite number"),
        (lambda m: m.update(pose_threshold=1.5), "pose_threshold is 1.5; expected a number from 0 to 1"),
        (lambda m: m.update(pose_threshold=-0.1), "pose_threshold is -0.1; expected"),
        (lambda m: m["tokenizer"].update(pad_id="a"), "tokenizer has pad_id='a'; expected a whole number"),
        (lambda m: m.update(precision=[]), r"precision=\[\]; expected text"),
        (lambda m: m["sampling"].update(steps=0), "steps=0"),
        (lambda m: m.update(image_mean=[0.5]), "unusable"),
        (lambda m: m.update(graphs=[]), "unusable"),
    ],
)
def test_a_wrong_manifest_is_explained(copy, change, message):
    edit(copy, change)
    with pytest.raises(BundleError, match=message):
        Bundle.open(copy)


@pytest.mark.parametrize("values", [{"beta_start": 0, "beta_end": 1}, {"trained_betas": [0, 0.5]}])
def test_whole_numbers_are_numbers(copy, values):
    edit(copy, lambda m: m["noise_schedule"].update(values))
    edit(copy, lambda m: m.update(pose_threshold=1))
    assert Bundle.open(copy).manifest.pose_threshold == 1.0


def test_a_vae_factor_that_is_not_the_graphs_is_named(copy, reference):
    """No signature has it: their sides are dynamic."""
    edit(copy, lambda m: m["sizes"].update(vae_factor=4))
    with pytest.raises(
        BundleError, match=r"pose guider gave features \[6, 8, 8\]; vae_factor .* \[6, 16, 16\]: export"
    ):
        Generator(copy, backend="onnxruntime", threads=1)(reference, "walking")


def test_a_manifest_nested_without_end_is_no_json(copy):
    (copy / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(BundleError, match="is not valid JSON"):
        Bundle.open(copy)


@pytest.mark.parametrize("name", ["/etc/hostname", "../outside", "a/../../outside", "..\\outside", "C:\\x", ""])
def test_no_path_leaves_the_folder(copy, name):
    edit(copy, lambda m: m["files"].update({name: {"bytes": 1, "sha256": "0"}}))
    with pytest.raises(BundleError, match="inside it"):
        Bundle.open(copy)


def test_no_link_leaves_the_folder(copy, tmp_path):
    outside = (copy / "denoiser.onnx").rename(tmp_path / "outside.onnx")
    (copy / "denoiser.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="link out of"):
        Bundle.open(copy)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_flipped_byte_is_found(tiny_bundle, tmp_path_factory, data):
    name = data.draw(st.sampled_from(sorted(tiny_bundle.manifest.files)))
    folder = shutil.copytree(tiny_bundle.path, tmp_path_factory.mktemp("flip") / "bundle")
    content = bytearray((folder / name).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(content)
    with pytest.raises(BundleError, match="changed after export"):
        Bundle.open(folder).verify_hashes()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_truncated_manifest_is_an_explained_error(tiny_bundle, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("cut")
    content = (tiny_bundle.path / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(content[: data.draw(st.integers(0, len(content) - 3))])
    with pytest.raises(BundleError):
        Bundle.open(folder)


def test_other_folders_are_no_bundles(tmp_path):
    with pytest.raises(BundleError, match="it has no manifest"):
        Bundle.open(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(BundleError, match="no JSON object"):
        Bundle.open(tmp_path)


def test_a_damaged_graph_is_named(tiny_bundle, make_bundle, tiny_files, tmp_path):
    from bolid_sdk.backends import open_backend

    for name, content in {"empty": b"", "noise": bytes(range(256))}.items():
        (tmp_path / name).write_bytes(content)
        bundle = make_bundle({**tiny_files, "vae_decoder.onnx": tmp_path / name})
        entry = bundle.manifest.graphs["vae_decoder"]
        with pytest.raises(BundleError, match="vae_decoder"):
            open_backend().load(bundle.file(entry.file), entry.spec)


def test_a_graph_of_another_signature_is_named(make_bundle, tiny_files):
    from bolid_sdk.backends import open_backend

    bundle = make_bundle({**tiny_files, "vae_decoder.onnx": tiny_files["vae_encoder.onnx"]})
    entry = bundle.manifest.graphs["vae_decoder"]
    with pytest.raises(BundleError, match="the manifest promises"):
        open_backend().load(bundle.file(entry.file), entry.spec)


def test_without_an_embedded_bundle_one_has_to_be_given(monkeypatch):
    monkeypatch.setattr("bolid_sdk.bundle.default_bundle_path", lambda: None)
    with pytest.raises(BundleError, match="pass the folder"):
        open_bundle()


def engine_key(bundle, graph="denoiser"):
    sha256 = tuple(bundle.manifest.files[file].sha256 for file in bundle.manifest.graphs[graph].files)
    return EngineKey(
        graph_sha256=sha256,
        shapes={"sample": ((1, 4, 8, 8), (1, 4, 8, 8), (4, 4, 8, 8))},
        precision=bundle.manifest.precision,
        runtime="tensorrt-rtx 1.7.1",
        compute_capabilities=("8.9",),
    )


@pytest.fixture
def with_engine(tiny_bundle, tiny_files, tmp_path):
    (tmp_path / "plan").write_bytes(b"plan")
    engine = BuiltEngine(file="tensorrt-rtx/denoiser.engine", key=engine_key(tiny_bundle), build={"seconds": 1.5})
    graphs = dict(tiny_bundle.manifest.graphs)
    graphs["denoiser"] = replace(graphs["denoiser"], engines={"tensorrt-rtx": engine})
    files = {**tiny_files, engine.file: tmp_path / "plan"}
    return write_bundle(tmp_path / "built", replace(tiny_bundle.manifest, graphs=graphs), files)


def test_built_engines_are_part_of_a_bundle(with_engine, tiny_bundle):
    engine = Bundle.open(with_engine.path).manifest.graphs["denoiser"].engines["tensorrt-rtx"]
    assert engine.key == engine_key(tiny_bundle)
    assert engine.build == {"seconds": 1.5}
    assert with_engine.file(engine.file).read_bytes() == b"plan"
    assert with_engine.manifest.files[engine.file].bytes == 4


def test_bundles_without_engines_have_the_manifest_they_always_had(tiny_bundle):
    assert all("engines" not in graph for graph in tiny_bundle.manifest.to_dict()["graphs"].values())


def test_manifests_from_before_sdxl_are_read(copy):
    """Sizes without the names that SDXL brought: those of a model that has nothing of it."""
    manifest = Bundle.open(copy).manifest
    added = ("token_inputs", "pooled_width", "time_ids", "pose_divisors")
    edit(copy, lambda m: [m["sizes"].pop(name) for name in added])
    assert Bundle.open(copy).manifest == manifest
    assert not {"tokenizer_2", "zero_unconditional"} & set(manifest.to_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda engine: engine.update(precision="int8"), "has the key"),
        (lambda engine: engine.update(file="tensorrt-rtx/other.engine"), "not listed under files"),
        (lambda engine: engine.update(shapes={"sample": [[1], [1]]}), "unusable"),
        (lambda engine: engine.pop("runtime"), "runtime"),
    ],
)
def test_a_manifest_with_unusable_engines_is_refused(with_engine, change, message):
    edit(with_engine.path, lambda m: change(m["graphs"]["denoiser"]["engines"]["tensorrt-rtx"]))
    with pytest.raises(BundleError, match=message):
        Bundle.open(with_engine.path)


def test_an_engine_of_another_graph_is_refused(with_engine):
    edit(with_engine.path, lambda m: m["files"]["denoiser.onnx"].update(sha256="0" * 64))
    with pytest.raises(BundleError, match=r"denoiser.engine was built for something else: graph_sha256 is .* export"):
        Bundle.open(with_engine.path)


@pytest.mark.parametrize(
    "change",
    [
        {"graph_sha256": ("0" * 64,)},
        {"shapes": {"sample": ((1, 4, 8, 8), (1, 4, 8, 8), (2, 4, 8, 8))}},
        {"precision": "int8"},
        {"runtime": "tensorrt-rtx 1.8.0"},
        {"compute_capabilities": ("8.9", "12.0")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_key_changes_with_each_of_its_parts(tiny_bundle, change):
    key = engine_key(tiny_bundle)
    other = replace(key, **change)
    assert other.digest != key.digest
    (name,) = change
    with pytest.raises(BundleError, match=f"{name} is .*, expected .*; export the bundle again"):
        key.require(other, "denoiser.engine")
