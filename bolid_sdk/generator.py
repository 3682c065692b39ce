"""Pictures of one particular person: identify, condition, denoise, decode."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar, Unpack

import numpy as np
from PIL import Image

from bolid_sdk.backends import open_backend
from bolid_sdk.best_of import pose_agreements
from bolid_sdk.bundle import Bundle, open_bundle
from bolid_sdk.conditioning import Conditioner
from bolid_sdk.errors import InputError, Notice
from bolid_sdk.graphs import Graphs
from bolid_sdk.identity import Identity, References, identify
from bolid_sdk.images import FloatArray, from_signed, open_image
from bolid_sdk.loras import Lora, Loras, LoraSource, LoraStack
from bolid_sdk.orthogonal import orthogonality
from bolid_sdk.pose import Pose, detect_pose
from bolid_sdk.prompt import check_prompt
from bolid_sdk.request import (
    REFERENCE,
    Options,
    PoseChoice,
    ResolvedOptions,
    read_face_pose,
    read_pose,
    require_capability,
    require_loras,
    resolve_options,
)
from bolid_sdk.result import Result, Step, Timings
from bolid_sdk.sampling import LoopState, NoiseSource, check_finite, denoise
from bolid_sdk.schedule import SamplerTable

Person: TypeAlias = Identity | References
T = TypeVar("T")

UNPLACED = Notice(
    code="face_unplaced",
    message="InstantID's pictures need a place for the face; give its five keypoints, eyes, nose and mouth corners, as "
    "pose=",
)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A call after its pictures have been read: one entry for each picture to draw, `best_of` for each to keep."""

    prompts: tuple[str, ...]
    people: tuple[Identity, ...]
    poses: tuple[Pose | None, ...]
    pose_notices: tuple[Notice, ...]
    image_tokens: FloatArray | None
    options: ResolvedOptions
    table: SamplerTable
    loras: LoraStack
    timings: Timings


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """Some pictures of a job, conditioned, ready to be denoised together."""

    job: _Job
    prompts: tuple[str, ...]
    poses: tuple[Pose | None, ...]
    seeds: tuple[int, ...]
    notices: tuple[tuple[Notice, ...], ...]
    conditioning: dict[str, FloatArray]


class Generator:
    """Makes pictures with one bundle on one device. Safe to share between threads.

    `bundle` is a bundle's folder, by default the embedded avatar model. `backend` names a library (None: the best that
    is installed and works), `device` is "auto", "cpu", "cuda" or "cuda:N", `threads` limits CPU threads. Up to
    `max_batch` pictures are denoised together. Raises BundleError and BackendError.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | None = None,
        *,
        backend: str | None = None,
        device: str = "auto",
        threads: int | None = None,
        max_batch: int = 8,
    ) -> None:
        if max_batch < 1:
            raise InputError(f"max_batch={max_batch} is unusable; expected at least 1")
        self.bundle: Bundle = open_bundle(bundle)
        self._backend = open_backend(backend, device, threads, built=self.bundle.manifest.engine_backends)
        self._graphs = Graphs(self.bundle, self._backend)
        self._conditioner = Conditioner(self.bundle, self._graphs)
        self._loras = Loras(self.bundle.manifest.sizes)
        self._max_batch = max_batch

    @property
    def backend(self) -> str:
        """Library, version and device in use."""
        return self._backend.description

    def warm_up(self) -> None:
        """Loads every graph now instead of at its first use."""
        names = [name for name in self.bundle.manifest.graphs if name != "vae_encoder"]
        self._graphs.preload(names)
        for name in names:
            self._graphs[name]

    def identify(self, references: References) -> Identity:
        """Encodes a person from one or several pictures, to be used for any number of prompts.

        A bundle of IP-Adapter FaceID or InstantID takes face embeddings instead, float [D] or [references, D], one of
        PuLID a Face or several.

        Raises ImageError, PersonNotFoundError, SeveralPeopleError.
        """
        self._graphs.preload(["pose_estimator", "image_encoder", "identity_encoder"])
        return identify(self._graphs, self.bundle, references)

    def load_lora(self, file: LoraSource) -> Lora:
        """Reads a LoRA file once, for any number of requests: `generator(person, prompt, loras=[(lora, 0.7)])`.

        A .safetensors file of diffusers, kohya or PEFT (its adapter_config.json beside it). The weight is a request's;
        so nothing stays behind. Raises InputError.
        """
        require_loras(self.bundle.manifest)
        return self._loras.load(file)

    def __call__(self, person: Person, prompt: str, **options: Unpack[Options]) -> Result:
        """One picture of `person` (reference pictures or an Identity). Options: see `Options`. Raises BolidError."""
        return self.batch([(person, prompt)], **options)[0]

    def batch(self, requests: Sequence[tuple[Person, str]], **options: Unpack[Options]) -> list[Result]:
        """A picture for each (person, prompt), with the same options. Equal seeds give equal pictures in any batch."""
        job = self._start(requests, options)
        results: dict[int, Result] = {}
        for part in self._parts(job):
            plan = self._plan(job, part)
            *_, last = self._denoise(plan)
            results |= zip(part[:: job.options.best_of], self._results(plan, last), strict=True)
        return [results[index] for index in sorted(results)]

    def stream(self, person: Person, prompt: str, **options: Unpack[Options]) -> Iterator[Step]:
        """Like a call, but yields each sampling step; leaving the loop cancels, the last step has the result."""
        job = self._start([(person, prompt)], options)
        plan = self._plan(job, range(len(job.prompts)))
        return (self._step(plan, state) for state in self._denoise(plan))

    def _start(self, requests: Sequence[tuple[Person, str]], options: Options) -> _Job:
        """Finds whatever is wrong with a request before the first graph runs, then reads its pictures."""
        manifest, timings = self.bundle.manifest, Timings()
        resolved = resolve_options(options, manifest, len(requests), self._max_batch)
        requests = [request for request in requests for _ in range(resolved.best_of)]
        table = resolved.sampling.table(manifest.noise_schedule)
        prompts = tuple(check_prompt(prompt) for _, prompt in requests)
        for person in {id(person): person for person, _ in requests}.values():
            if isinstance(person, Identity):
                person.check(self.bundle)
        image_prompt = None if resolved.image_prompt is None else open_image(resolved.image_prompt)
        read = read_face_pose if manifest.sizes.face_map else read_pose
        pose = REFERENCE if resolved.pose is REFERENCE else read(resolved.pose)
        loras = self._loras.stack(resolved.loras)
        require_capability(manifest, "pose_estimation", isinstance(pose, Image.Image))
        self._preload(requests, resolved, isinstance(pose, Image.Image))
        with timings.stage("identity"):
            people = self._people([person for person, _ in requests])
        with timings.stage("pose"):
            poses, pose_notices = self._poses(people, pose)
        with timings.stage("image_prompt"):
            image_tokens = None if image_prompt is None else self._conditioner.encode_image(image_prompt)
        return _Job(
            prompts=prompts,
            people=people,
            poses=poses,
            pose_notices=pose_notices,
            image_tokens=image_tokens,
            options=resolved,
            table=table,
            loras=loras,
            timings=timings,
        )

    def _preload(self, requests: Sequence[tuple[Person, str]], options: ResolvedOptions, finds_pose: bool) -> None:
        """Loads in the background what this call needs, the first needed first."""
        strangers = any(not isinstance(person, Identity) for person, _ in requests)
        prompted = options.image_prompt is not None
        nobody = options.sampling.branches == 2
        blank = nobody and self.bundle.manifest.encodes_nobody
        wanted = {
            "pose_estimator": strangers or finds_pose or options.best_of > 1,
            "image_encoder": strangers or blank or prompted,
            "identity_encoder": strangers or nobody,
            "denoiser": True,
            "denoiser_shallow": options.sampling.caching != "off",
            "text_encoder": True,
            "pose_guider": options.pose is not None,
            "image_projector": prompted,
            "vae_decoder": True,
        }
        self._graphs.preload(name for name, needed in wanted.items() if needed)

    def _people(self, people: Sequence[Person]) -> tuple[Identity, ...]:
        """Who appears in several requests is identified once."""
        known: dict[Hashable, Identity] = {}
        for person in people:
            if (key := _key(person)) not in known:
                known[key] = person if isinstance(person, Identity) else self.identify(person)
        return tuple(known[_key(person)] for person in people)

    def _poses(
        self, people: Sequence[Identity], pose: Pose | Image.Image | PoseChoice | None
    ) -> tuple[tuple[Pose | None, ...], tuple[Notice, ...]]:
        if isinstance(pose, PoseChoice):
            poses = tuple(person.pose for person in people)
            unplaced = self.bundle.manifest.sizes.face_map and None in poses
            return poses, (UNPLACED,) if unplaced else ()
        if not isinstance(pose, Image.Image):
            return (pose,) * len(people), ()
        manifest = self.bundle.manifest
        size = (manifest.sizes.pose_height, manifest.sizes.pose_width)
        estimator = self._graphs["pose_estimator"]
        found, notices = detect_pose(
            estimator, pose, size=size, threshold=manifest.pose_threshold, name="the pose picture"
        )
        return (found,) * len(people), notices

    def _parts(self, job: _Job) -> Iterator[Sequence[int]]:
        """The pictures that are drawn together, with all candidates of each: of people with equally many tokens."""
        together = self._max_batch // job.options.best_of * job.options.best_of
        alike: dict[int, list[int]] = {}
        for index, person in enumerate(job.people):
            alike.setdefault(len(person.tokens), []).append(index)
        for members in alike.values():
            yield from (members[start : start + together] for start in range(0, len(members), together))

    def _plan(self, job: _Job, part: Sequence[int]) -> _Plan:
        """Conditions the pictures `part` of a job."""
        options = job.options
        prompts, people, poses = _those(job.prompts, part), _those(job.people, part), _those(job.poses, part)
        branches, conditioner = options.sampling.branches, self._conditioner
        with job.timings.stage("text"):
            tokenized = conditioner.tokenize(prompts)
            text = conditioner.text(prompts, branches, job.loras)
        with job.timings.stage("pose"):
            features = conditioner.pose(poses, options.pose_scale, options.width, options.height, branches)
        with job.timings.stage("identity"):
            tokens = conditioner.identity([person.tokens for person in people], branches, options.num_zero)
        general = (*(Notice(code="device", message=text) for text in self._backend.notices), *job.pose_notices)
        return _Plan(
            job=job,
            prompts=prompts,
            poses=poses,
            seeds=_those(options.seeds, part),
            notices=tuple(
                (*general, *person.notices, *tokenized[prompt].notices)
                for person, prompt in zip(people, prompts, strict=True)
            ),
            conditioning={
                **text,
                **conditioner.size(options.size_conditioning, len(prompts), branches),
                "identity_tokens": tokens,
                "identity_scale": options.identity_scale,
                **({"orthogonality": orthogonality(options.ortho)} if self.bundle.manifest.sizes.vision_states else {}),
                **self._image_conditioning(job, len(people)),
                **features,
                **job.loras.of("denoiser"),
            },
        )

    def _image_conditioning(self, job: _Job, count: int) -> dict[str, FloatArray]:
        if "image_projector" not in self._graphs:
            return {}
        tokens = self._conditioner.image(job.image_tokens, count, job.options.sampling.branches)
        return {"image_tokens": tokens, "image_scale": job.options.image_scale}

    def _denoise(self, plan: _Plan) -> Iterator[LoopState]:
        sizes, options = self.bundle.manifest.sizes, plan.job.options
        shape = (sizes.latent_channels, options.height // sizes.vae_factor, options.width // sizes.vae_factor)
        noise = NoiseSource(seeds=plan.seeds, shape=shape)
        steps, caches = options.sampling.plan(), options.sampling.caching != "off"
        states = denoise(
            self._graphs["denoiser"],
            plan.job.table,
            options.sampling.guidance,
            plan.conditioning,
            noise,
            shallow=self._graphs["denoiser_shallow"] if caches else None,
            plan=steps,
        )
        while True:
            with plan.job.timings.stage("denoise"):
                state = next(states, None)
            if state is None:
                return
            yield state

    def _step(self, plan: _Plan, state: LoopState) -> Step:
        return Step(
            index=state.index + 1,
            total=plan.job.table.steps,
            _preview=lambda: self._decode(state.x0.numpy()[:1])[0],
            _result=lambda: self._results(plan, state)[0],
        )

    def _results(self, plan: _Plan, state: LoopState) -> list[Result]:
        """The finished pictures, of each one's candidates the best."""
        best_of = plan.job.options.best_of
        with plan.job.timings.stage("decode"):
            images = self._decode(state.sample.numpy())
        settings = plan.job.options.settings(self.bundle.manifest)
        agreements = [None] * len(images) if best_of == 1 else self._agreements(plan, images)
        drawn = [
            Result(
                image=image,
                prompt=prompt,
                seed=seed,
                sampling=plan.job.options.sampling,
                settings=settings,
                timings=plan.job.timings.seconds,
                bundle=self.bundle.manifest.name,
                digest=self.bundle.digest,
                backend=self.backend,
                warnings=notices,
                pose_agreement=agreement,
                loras=plan.job.loras.to_list(),
            )
            for image, prompt, seed, notices, agreement in zip(
                images, plan.prompts, plan.seeds, plan.notices, agreements, strict=True
            )
        ]
        groups = (drawn[start : start + best_of] for start in range(0, len(drawn), best_of))
        return [max(group, key=lambda result: result.pose_agreement or 0.0) for group in groups]

    def _agreements(self, plan: _Plan, images: Sequence[Image.Image]) -> list[float | None]:
        sizes, estimator = self.bundle.manifest.sizes, self._graphs["pose_estimator"]
        with plan.job.timings.stage("choice"):
            return pose_agreements(estimator, images, plan.poses, (sizes.pose_height, sizes.pose_width))

    def _decode(self, latents: FloatArray) -> list[Image.Image]:
        pixels = self._graphs["vae_decoder"].run({"latents": latents})["pixels"]
        check_finite(pixels, "the VAE decoder")
        return from_signed(np.asarray(pixels, np.float32))


def _those(values: Sequence[T], part: Sequence[int]) -> tuple[T, ...]:
    return tuple(values[index] for index in part)


def _key(person: Person) -> Hashable:
    """The same for the same files, by name, and for the same objects."""
    sources = person if isinstance(person, list | tuple) else [person]
    return tuple(os.fspath(source) if isinstance(source, str | os.PathLike) else id(source) for source in sources)
