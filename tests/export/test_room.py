"""Too little memory or disk is one message before the work, and a disk that fills up in the middle leaves nothing."""

import errno
import resource
from collections import namedtuple
from contextlib import contextmanager

import pytest
from click.testing import CliRunner

import bolid_export.plan  # noqa: F401 - takes its functions from `room` before tests replace them
from bolid_export import cli, room
from bolid_export.cli import main
from bolid_export.pipeline import Target, export_bundle
from bolid_export.room import MemoryShortageError, available_memory, existing, require_disk, require_memory
from bolid_export.scratch import scratch_folder
from bolid_sdk.errors import OutputError

Usage = namedtuple("Usage", "free")
MEMINFO = "MemTotal:       24105100 kB\nMemFree:         1000 kB\nMemAvailable:       3000 kB\n"


def system(root, files):
    """A root folder with these files in it."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_without_cgroups_the_system_says_what_is_available(tmp_path):
    assert available_memory(system(tmp_path, {"proc/meminfo": MEMINFO})) == 3000 * 1024
    assert available_memory(tmp_path / "elsewhere") is None


def test_a_container_of_version_2_says_less(tmp_path):
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/b/memory.max": "max\n",
        "sys/fs/cgroup/a/b/memory.current": "100\n",
        "sys/fs/cgroup/a/memory.max": "1000\n",
        "sys/fs/cgroup/a/memory.current": "900\n",
        "sys/fs/cgroup/a/memory.stat": "active_file 7\ninactive_file 50\n",
    }
    assert available_memory(system(tmp_path, files)) == 1000 - 900 + 50


def test_a_container_of_version_1_says_less(tmp_path):
    """Its own name is not to be found inside of it; the mount is its cgroup."""
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/docker/1234\n0::/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1500000\n",
        "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 300000\n",
    }
    assert available_memory(system(tmp_path, files)) == 800000
    (tmp_path / "sys/fs/cgroup/memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert available_memory(tmp_path) == 3000 * 1024


def test_memory_that_is_held_already_is_not_needed_again(tmp_path):
    files = {"proc/meminfo": MEMINFO, "proc/self/status": "VmRSS:  9999 kB\nRssAnon:  500 kB\n"}
    root = system(tmp_path, files)
    require_memory(3500 * 1024, root)
    with pytest.raises(MemoryShortageError, match=r"needs about 0.01 GB of memory, .*0.00 GB can .*--ignore-memory"):
        require_memory(6000 * 1024, root)
    require_memory(1 << 60, tmp_path / "where nobody says")


def test_this_machine_is_read():
    assert available_memory() is None or 10**6 < available_memory() < 10**14


def test_what_goes_to_one_disk_adds_up(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "disk_usage", lambda folder: Usage(100))
    wanted = {tmp_path / "a": 60, tmp_path / "b" / "c": 40}
    require_disk(wanted)
    with pytest.raises(OutputError, match=r"needs .* of disk in .*TMPDIR"):
        require_disk(wanted | {tmp_path: 1})
    assert existing(tmp_path / "b" / "c") == tmp_path


@pytest.fixture
def started(monkeypatch):
    """Exports that were started."""
    targets = []
    monkeypatch.setattr(cli, "_export", lambda source, target, as_json: targets.append(target))
    return targets


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_too_little_memory_ends_an_export_unless_it_is_ignored(model_folder, tmp_path, monkeypatch, started):
    monkeypatch.setattr(room, "available_memory", lambda root: 1000)
    monkeypatch.setattr(room, "held_memory", lambda root: 0)
    options = ("--model", model_folder, "-o", tmp_path / "out")
    result = run(*options, "--force")
    assert (result.exit_code, result.stderr.count("\n"), started) == (2, 1, []), result.output
    assert "go on with --ignore-memory" in result.stderr
    assert run(*options, "--ignore-memory").exit_code == 0
    assert len(started) == 1


def test_too_little_disk_ends_every_export(model_folder, tmp_path, monkeypatch, started):
    monkeypatch.setattr(room, "disk_usage", lambda folder: Usage(1000))
    result = run("--model", model_folder, "-o", tmp_path / "out", "--force", "--ignore-memory")
    assert (result.exit_code, result.stderr.count("\n"), started) == (2, 1, [])
    assert "0.00 GB are free" in result.stderr


@contextmanager
def largest_file(size):
    """No file can grow beyond `size` bytes, as on a disk that is full then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_leaves_nothing_behind(source, tmp_path):
    """A graph's file is half written when there is no more room for it."""
    stages = []
    with (
        largest_file(20_000),
        pytest.raises(OutputError, match=r"cannot write to .*: File too large.*another disk with -o"),
    ):
        export_bundle(source, Target(folder=tmp_path / "out", precision="fp32", licence="none"), stages.append)
    assert stages[-1] == "tracing text_encoder"
    assert list(tmp_path.rglob("*")) == []


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(FileNotFoundError), scratch_folder(tmp_path / "out") as folder:
        (folder / "none").read_text()
    with pytest.raises(OutputError, match="No space left"), scratch_folder(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
