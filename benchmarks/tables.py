"""Tables in Markdown, from benchmarks/results and docs/results.

What stands between `<!-- table: NAME -->` and `<!-- /table -->` is replaced by the table NAME.

python benchmarks/tables.py           rewrites README.md, docs/ and the model card
python benchmarks/tables.py --check   changes nothing, and fails when a table does not show the results
"""

import json
import re
import sys
from pathlib import Path

import acceleration
from formats import interval, markdown, precise

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    ROOT / "README.md",
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "training" / "weights").glob("*/README.md"),
)
RESULTS = ROOT / "benchmarks" / "results"
EVALUATION = ROOT / "docs" / "results" / "avatar.json"
COMPARISON = ROOT / "docs" / "results" / "comparison.json"
FEW_STEPS = ROOT / "docs" / "results" / "few_steps.json"
ABLATIONS = ROOT / "docs" / "results" / "ablations.json"
TABLE = re.compile(r"(?P<start><!-- table: (?P<name>[\w-]+) -->\n).*?(?P<stop><!-- /table -->)", re.DOTALL)


def latency(group: str) -> str:
    """One row for each benchmark of a group and one column for each backend: median and quartiles."""
    measured = json.loads((RESULTS / "avatar.json").read_text())
    cells = {(row["name"], row["backend"]): cell(row) for row in measured["results"] if row["group"] == group}
    names = list(dict.fromkeys(name for name, _ in cells))
    backends = list(dict.fromkeys(backend for _, backend in cells))
    rows = [(name, *(cells.get((name, backend), "") for backend in backends)) for name in names]
    return f"{markdown(('milliseconds', *backends), rows)}\n{footnote(measured['environment'])}\n"


def cell(row: dict) -> str:
    median, low, high = (precise(row[name]) for name in ("median_ms", "q1_ms", "q3_ms"))
    return f"**{median}** ({low}–{high})"


def footnote(environment: dict) -> str:
    libraries = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    machine = f"{environment['cpu']}, {environment['cores']} cores"
    return f"Median (quartiles). {machine}; {libraries}; commit {environment['commit'][:9]}."


def quality() -> str:
    """The embedded model on unseen people: mean and 95 % interval, beside real pictures in their place."""
    measured = json.loads(EVALUATION.read_text())
    columns = {kind: title for kind, title in COLUMNS.items() if kind in measured}
    rows = [
        (title, *(interval(measured[kind].get(name)) for kind in columns))
        for name, title in QUALITY.items()
        if name in measured["metrics"]
    ]
    return f"{markdown(('', *columns.values()), rows)}\n{sample(measured)}, 95 % intervals. {classes(measured)}\n"


def sample(measured: dict) -> str:
    """How many pictures of how many people, and how many of them identity is judged in; results from before there were
    judges have one picture of each."""
    people = measured.get("people", measured["pictures"])
    pictures = f"{measured['pictures']} pictures of " if people != measured["pictures"] else ""
    judged = measured.get("identity_judged")
    compared = f" (identity: {judged} pictures of those with another photograph)" if judged else ""
    return f"{pictures}{people} unseen people{compared}"


def classes(measured: dict) -> str:
    """A sentence for each metric by pose; results from before there were judges have one metric only."""
    found = measured["by_pose"]
    by_metric = found if "pose_pck10" in found else {"pose_pck10": found}
    listed = {
        name: ", ".join(f"{pose} {row['value']:.2f}" for pose, row in rows.items()) for name, rows in by_metric.items()
    }
    return " ".join(f"{BY_POSE[name]}: {values}." for name, values in listed.items())


def comparison() -> str:
    """The methods on the same people, prompts and noise, between what is possible and what is worth nothing."""
    return rows_of(json.loads(COMPARISON.read_text()))


def poses() -> str:
    """PCK@0.1 of each class of poses: the embedded model's, and of real pictures in the same poses."""
    measured = json.loads(COMPARISON.read_text())
    embedded = next(row for row in measured["rows"] if row["model"] == "embedded")
    columns = {"generated": embedded["by_pose"]} | {COLUMNS[kind]: found for kind, found in measured["by_pose"].items()}
    found = {title: by_pose["pose_pck10"] for title, by_pose in columns.items()}
    lines = [(pose, *(interval(of_pose[pose]) for of_pose in found.values())) for pose in found["generated"]]
    return markdown(("PCK@0.1", *found), lines) + "\n"


def few_steps() -> str:
    """The embedded model's four steps, the best of several pictures, and many guided steps."""
    return rows_of(json.loads(FEW_STEPS.read_text()))


def rows_of(measured: dict) -> str:
    """What `bolid-eval compare` wrote, as a table."""
    rows = measured["rows"]
    columns = {name: title for name, title in COMPARED.items() if name in rows[0]["metrics"]}
    lines = [
        (f"{MODELS.get(row['model'], row['model'])}, {sampled(row)}", *judged(row["metrics"], columns), pace(row))
        for row in rows
    ]
    beside = [(title, *judged(measured[kind], columns), "") for kind, title in BESIDE.items() if kind in measured]
    setup = measured["setup"]
    note = f"{sample(setup)}, the same for every row; 95 % intervals. {setup['machine']}; {commits(measured)}."
    return f"{markdown(('', *columns.values(), 's/image'), [*lines, *beside])}\n{note}\n"


def commits(measured: dict) -> str:
    """Of rows that were measured one after the other, all in order."""
    found = dict.fromkeys(row.get("commit", measured["setup"]["commit"])[:9] for row in measured["rows"])
    return f"commit{'s' if len(found) > 1 else ''} {', '.join(found)}"


def ablations() -> str:
    """BoLID without its parts, or with what it does without: what that changes, picture by picture."""
    measured = json.loads(ABLATIONS.read_text())
    first, *rows = measured["rows"]
    columns = {name: title for name, title in COMPARED.items() if name in first["metrics"]}
    lines = [(ABLATED[row["model"]], *(changed(row, name) for name in columns)) for row in rows]
    whole, setup = (MODELS[first["model"]], *judged(first["metrics"], columns)), measured["setup"]
    note = f"{sample(setup)}; 95 % intervals; commit {setup['commit'][:9]}."
    return f"{markdown(('', *columns.values()), [whole, *lines])}\n{note}\n"


def changed(row: dict, name: str) -> str:
    """The difference to the first row, in bold where its interval leaves out 0."""
    difference = row["minus_first_row"][name]
    low, high = difference["ci95"]
    text = f"{difference['value']:+.3f}"
    return f"{f'**{text}**' if low > 0 or high < 0 else text} ({low:+.3f} to {high:+.3f})"


def sampled(row: dict) -> str:
    """How a row's pictures were made."""
    guided = "" if row["guidance"] == 1 else f", guidance {row['guidance']:g}"
    pose = "" if row["pose_input"] else ", no pose"
    references = "" if row.get("references", 1) == 1 else f", up to {row['references']} references"
    best_of = "" if row.get("best_of", 1) == 1 else f", best of {row['best_of']}"
    return f"{row['steps']} steps{guided}{pose}{references}{best_of}"


def judged(metrics: dict, columns: dict[str, str]) -> list[str]:
    return [interval(metrics.get(name)) for name in columns]


def pace(row: dict) -> str:
    return f"{row['seconds_per_image']['value']:.2g}"


COLUMNS = {
    "metrics": "generated",
    "ceilings": "the reference itself",
    "autoencoded": "the reference, autoencoded",
    "floors": "somebody else",
}
BESIDE = {
    "ceilings": "*the reference itself*",
    "autoencoded": "*the reference, autoencoded*",
    "floors": "*somebody else*",
}
BY_POSE = {"pose_pck10": "PCK@0.1 by pose", "id_similarity": "Identity by pose"}
QUALITY = {
    "id_similarity": "identity: cosine with another photograph of the person (higher is better)",
    "id_top1": "identity: found first among 100 people",
    "pose_pck10": "pose kept: PCK@0.1 (higher is better)",
    "pose_pck05": "pose kept: PCK@0.05",
    "skeleton_pck10": "estimated skeleton followed: PCK@0.1",
    "clip_score": "prompt followed: CLIP score (higher is better)",
    "fd_judge_clip": "Frechet distance, CLIP features (lower is better)",
    "clothes_colour_distance": "clothes' mean colour, RGB distance (lower is better)",
}
MODELS = {
    "ip_adapter": "IP-Adapter",
    "ip_adapter_pose": "IP-Adapter + T2I-Adapter",
    "ip_adapter_beside_guider": "IP-Adapter trained beside the T2I-Adapter",
    "instantid": "InstantID",
    "pulid": "PuLID",
    "pulid_pose": "PuLID + T2I-Adapter",
    "bolid": "BoLID",
    "bolid_unlabelled": "BoLID without labels",
    "embedded": "BoLID, embedded",
    "embedded_2": "BoLID, embedded",
    "best_of_4": "BoLID, embedded",
    "guided25": "BoLID, its base guided",
}
ABLATED = {
    "bolid_no_words": "identity from pairs of pictures and colours, without words",
    "bolid_rec": "neither L_id nor L_CLIP",
    "bolid_no_id": "without L_id",
    "bolid_no_clip": "without L_CLIP",
    "bolid_words_then_pairs": "identity goes on from pairs after the words",
    "bolid_embedding": "with an identity-embedding loss",
    "bolid_aligned": "with PuLID's alignment",
    "bolid_k2": "gradient through the last 2 of 4 steps",
    "bolid_k4": "gradient through all 4 steps",
    "bolid_no_zeros": "without the 8 tokens of zeros",
    "bolid_5_tokens": "5 identity tokens instead of 16",
    "bolid_40_tokens": "40 identity tokens instead of 16",
    "bolid_one_view": "the whole picture instead of 5 crops",
    "bolid_frozen_guider": "pose guider not trained along",
}
COMPARED = {
    "fid": "FID ↓",
    "fd_judge_clip": "Frechet distance, CLIP ↓",
    "lpips": "LPIPS ↓",
    "perceptual_judge_identity": "perceptual distance ↓",
    "clothes_colour_distance": "clothes' colour distance ↓",
    "id_similarity": "ID similarity ↑",
    "id_top1": "found among 100 ↑",
    "pose_pck10": "POSE accuracy, PCK@0.1 ↑",
    "clip_score": "CLIP score ↑",
}
TABLES = {
    "quality": quality,
    "comparison": comparison,
    "poses": poses,
    "ablations": ablations,
    "few_steps": few_steps,
    "image": lambda: latency("image"),
    "graphs": lambda: latency("graphs"),
    "cpu": lambda: acceleration.cpu(RESULTS),
    "levers": lambda: acceleration.levers(RESULTS),
    "export": lambda: acceleration.export(RESULTS),
}


def update(text: str) -> str:
    """`text` with every marked table rewritten. Raises KeyError for a table nobody knows."""
    return TABLE.sub(lambda match: f"{match['start']}{TABLES[match['name']]()}{match['stop']}", text)


def main() -> None:
    stale = {path: text for path in DOCUMENTS if (text := update(path.read_text())) != path.read_text()}
    if stale and "--check" in sys.argv:
        sys.exit(f"{', '.join(path.name for path in stale)}: tables do not show the results: run `make tables`")
    for path, text in stale.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
