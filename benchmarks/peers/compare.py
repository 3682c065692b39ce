"""Ours and its peers in turn on one machine: python benchmarks/peers/compare.py --budget MINUTES (README.md here)."""

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from operator import itemgetter
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import environments
import gated
from protocol import Request
from systems import DENOISER_GFLOP, HERE, RUNS, SESSIONS, TOKENS_GFLOP, Session, System

RESULTS = HERE.parent / "results" / "cpu.json"
LOGS = RUNS / "peers" / "logs"
MOST_ROUNDS, CASE_SECONDS = 7, 75.0
# Threads that wait for work may not take the processor from the system whose turn it is.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "0"}

Answer = dict[str, Any]


class PeerError(Exception):
    """A system that does not start, or stops."""


class Process:
    """A system that answers requests."""

    def __init__(self, system: System, session: Session) -> None:
        self.system, self.start = system, time.perf_counter()
        names = {"model": str(session.model), "bundle": str(RUNS / "bundles" / session.model.name)}
        arguments = [filled(argument, names) for argument in system.arguments]
        LOGS.mkdir(parents=True, exist_ok=True)
        self.log = LOGS / f"{system.name.replace(' ', '_').replace('/', '_')}.log"
        with self.log.open("wb") as log:
            self.child = subprocess.Popen(
                [interpreter(system), HERE / system.script, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **ENVIRONMENT},
            )
        self._answer()
        self.ready_seconds = time.perf_counter() - self.start

    def draw(self, request: Request) -> Answer:
        """Raises PeerError for what it cannot draw."""
        try:
            print(json.dumps(asdict(request)), file=self.child.stdin, flush=True)
        except OSError as error:
            raise PeerError(self._tail()) from error
        answer = self._answer()
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    def close(self) -> None:
        self.child.stdin.close()
        try:
            self.child.wait(20)
        except subprocess.TimeoutExpired:
            self.child.kill()

    def _answer(self) -> Answer:
        line = self.child.stdout.readline()
        if not line:
            raise PeerError(self._tail())
        return json.loads(line)

    def _tail(self) -> str:
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return (lines or ["it ended without a word"])[-1][:300]


def filled(argument: str, names: dict[str, str]) -> str:
    """JSON has braces of its own, so nothing but the names is replaced."""
    for name, value in names.items():
        argument = argument.replace(f"{{{name}}}", value)
    return argument


def interpreter(system: System) -> str:
    """Of the system's own environment, or this one. Raises PeerError."""
    if system.environment is None:
        return sys.executable
    if own := environments.python(system.environment):
        return str(own)
    if system.needs and all(importlib.util.find_spec(name) for name in system.needs):
        return sys.executable
    raise PeerError(f"not installed: python {HERE.name}/environments.py {system.environment}")


def measure(session: Session, end: float) -> Iterator[tuple[str, Answer, list[Answer]]]:
    """Each case's name, the processor's peak right before or after it, and each system's row, until time is over."""
    for case in session.cases:
        if time.perf_counter() > end:
            say("the budget is used up")
            return
        before = gemm()
        # new processes for each case: memory is that of this case alone
        with ExitStack() as stack:
            processes = [p for system in session.systems if (p := stack.enter_context(running(system, session)))]
            rows = measure_case(session, case, processes)
        name = f"{session.vae}, {case.size} px, {case.steps} steps, batch {case.batch}"
        peak = faster(before, gemm())
        yield name, peak, [with_fraction(row, peak) for row in rows]


@contextmanager
def running(system: System, session: Session) -> Iterator[Process | None]:
    try:
        process = Process(system, session)
    except PeerError as error:
        say(f"{system.name} is left out: {error}")
        yield None
        return
    try:
        yield process
    finally:
        process.close()


def measure_case(session: Session, case: Request, processes: Sequence[Process]) -> list[Answer]:
    """Everybody warms up, then they take turns: at least two rounds, seven if there is time."""
    warm = {process: answer for process in processes if (answer := attempt(process, case))}
    rounds: list[dict[Process, Answer]] = []
    start = time.perf_counter()
    while warm and (len(rounds) < 2 or (len(rounds) < MOST_ROUNDS and time.perf_counter() - start < CASE_SECONDS)):
        answers = {process: attempt(process, case) for process in warm}
        rounds.append({process: answer for process, answer in answers.items() if answer})
        # who stops half way is left out
        warm = {process: answer for process, answer in warm.items() if answers[process]}
    return [row(session, case, process, warm, rounds) for process in warm]


def prepare() -> None:
    """Starts every system once: peers convert the checkpoint when they first see it."""
    for session in SESSIONS:
        for system in session.systems:
            with running(system, session) as process:
                if process:
                    say(f"{system.name} ({session.vae}) is ready after {process.ready_seconds:.1f} s")


def attempt(process: Process, case: Request) -> Answer | None:
    try:
        return process.draw(case)
    except PeerError as error:
        say(f"{process.system.name} cannot draw {asdict(case)}: {error}")
        return None


def row(
    session: Session, case: Request, process: Process, warm: dict[Process, Answer], rounds: list[dict[Process, Answer]]
) -> Answer:
    """`ratio`: seconds of this system over those of the session's first, median and quartiles over the rounds."""
    first = next(iter(warm))
    seconds = [answers[process]["seconds"] / case.batch for answers in rounds]
    ratios = [answers[process]["seconds"] / answers[first]["seconds"] for answers in rounds]
    system, last = process.system, rounds[-1][process]
    result = {
        "system": system.name,
        "ours": system.ours,
        **gates(system, case),
        "conditions": system.conditions,
        "model": "sd15",
        "vae": session.vae,
        "size": case.size,
        "steps": case.steps,
        "batch": case.batch,
        "guidance": case.guidance,
        "seconds_per_image": round(median(seconds), 4),
        "spread": spread(seconds),
        "rounds": len(rounds),
        "ratio": round(median(ratios), 3),
        "ratio_spread": spread(ratios),
        "compared_with": first.system.name,
        "rss_mb": last["rss_mb"],
        "ready_seconds": round(process.ready_seconds, 2),
        "first_picture_seconds": round(warm[process]["seconds"], 2),
        **stages(system, case, [a[process] for a in rounds]),
    }
    say(
        f"{system.name:45} {session.vae:6} {case.size:4} px {case.steps:3} steps x {case.batch}  "
        f"{result['seconds_per_image']:8.3f} s  ratio {result['ratio']:6.2f}  {result['rss_mb']} MB"
    )
    return result


def gates(system: System, case: Request) -> dict[str, Any]:
    """`gated` by what levers.json says now, and what gated.py needs to ask it again; None for peers."""
    if system.applied is None:
        return {"gated": None}
    passed = gated.is_gated(
        system.applied, case.steps, case.guidance, gated.read_levers(), int8_passed=gated.read_int8_gate()
    )
    return {"gated": passed, "applied": asdict(system.applied)}


def stages(system: System, case: Request, answers: list[Answer]) -> dict[str, Any]:
    """Ours tells where the time went, hence what the bf16 denoiser reaches where every step runs all of it."""
    if system.applied is None or "stages" not in answers[0]:
        return {}
    found = {name: round(median(a["stages"][name] for a in answers), 4) for name in answers[-1]["stages"]}
    plan = system.applied.plan(case.steps, case.guidance)
    counted = case.size in DENOISER_GFLOP and (system.applied.backend, system.applied.precision) == ("openvino", "fp32")
    if not counted or not found.get("denoise") or not all(full for full, _ in plan):
        return {"stages": found}
    branches = [branches for _, branches in plan]
    work = case.batch * (DENOISER_GFLOP[case.size] * sum(branches) + TOKENS_GFLOP * max(branches))
    return {"stages": found, "denoiser_gflops": round(work / found["denoise"])}


def spread(values: list[float]) -> list[float]:
    """Quartiles."""
    low, _, high = quantiles(values, n=4, method="inclusive")
    return [round(low, 4), round(high, 4)]


def gemm() -> dict[str, float]:
    output = subprocess.run([sys.executable, HERE / "gemm.py"], check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output)


def faster(before: Answer, after: Answer) -> Answer:
    """What slows a product down does not lower the peak."""
    return {name: max(before[name], after[name]) for name in before}


def with_fraction(row: Answer, peak: Answer) -> Answer:
    """`denoiser_of_peak`: what the bf16 denoiser reaches of the processor's matrix products in the same minutes."""
    if "denoiser_gflops" not in row:
        return row
    return {**row, "denoiser_of_peak": round(row["denoiser_gflops"] / peak["bf16_gflops"], 3)}


def setup(load: float) -> dict[str, Any]:
    from bolid_training.evaluate.provenance import commit, cpu_name

    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(load, 2),
        "python": platform.python_version(),
        "commit": commit(),
        "environments": {name: str(bool(environments.python(name))) for name in environments.REQUIREMENTS},
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    from importlib.metadata import distributions

    wanted = {"torch", "diffusers", "transformers", "openvino", "onnxruntime", "numpy", "bolid-sdk"}
    return {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"] in wanted}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, default=60.0, help="minutes; a case that has begun is finished")
    parser.add_argument("--sessions", type=int, nargs="*", help="which of systems.SESSIONS, from 0 [all]")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--append", action="store_true", help="keep what OUT has and is not measured again")
    parser.add_argument("--prepare", action="store_true", help="convert what peers have to convert, measure nothing")
    given = parser.parse_args()
    if given.prepare:
        prepare()
        return
    end, about = time.perf_counter() + 60 * given.budget, setup(os.getloadavg()[0])
    document = {"setup": about, "gemm": {}, "rows": []}
    if given.append and given.out.exists():
        document |= json.loads(given.out.read_text()) | {"setup": about}
    for index, session in enumerate(SESSIONS):
        if time.perf_counter() > end or (given.sessions and index not in given.sessions):
            continue
        for name, peak, rows in measure(session, end):
            document["gemm"][name] = peak
            document["rows"] = merged(document["rows"], [{"session": index, **row} for row in rows])
            # after each case: whatever happens, what has been measured is there
            given.out.write_text(json.dumps(document, indent=2) + "\n")


def merged(kept: Sequence[Answer], rows: Sequence[Answer]) -> list[Answer]:
    """By session, without what `rows` measure again of `kept`.

    A session's ratios are of its own rounds, so a system that is in two of them has two rows.
    """
    measured = itemgetter("session", "system", "vae", "size", "steps", "batch", "guidance")
    again = set(map(measured, rows))
    return sorted([row for row in kept if measured(row) not in again] + list(rows), key=itemgetter("session"))


if __name__ == "__main__":
    main()
