"""What each method trains, and with which losses: BoLID, those it is compared with, and BoLID without its parts.

Base, data, steps, batch and learning rate are the same for all (`recipes.avatar.STAGES["adapter"]`). Who begins with
`stage words` takes fewer steps, so that all take about as long (the Makefile's `comparison`).
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from bolid_sdk.contracts import PARTS
from bolid_training.model.config import AvatarConfig

PoseGuiderUse = Literal["trained", "frozen", "off"]
IdentitySource = Literal["words", "words, pairs", "pairs"]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Of each loss in the sum that is minimised; a loss of weight 0 is not computed.

    rec: L_rec (eq. 2), weighted by the person. colour: the reference's colours, told from the identity tokens.
    On the lightning branch: keypoints: L_id (eq. 3). heatmaps: KL divergence of the 12 heatmaps from the target's,
    which also pulls from afar. clip: L_CLIP (eq. 4). embedding: 1 - cos of the person's embedding, by the network of
    `stage reid`. semantic, layout: PuLID's alignment.
    """

    rec: float = 1.0
    colour: float = 0.0
    keypoints: float = 0.0
    heatmaps: float = 0.0
    clip: float = 0.0
    embedding: float = 0.0
    semantic: float = 0.0
    layout: float = 0.0

    @property
    def alignment(self) -> bool:
        return bool(self.semantic or self.layout)

    @property
    def branch(self) -> bool:
        """Whether the lightning branch is needed."""
        return self.alignment or bool(self.keypoints or self.heatmaps or self.clip or self.embedding)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """`weights` up to this share of the steps."""

    until: float
    weights: Weights


@dataclass(frozen=True, kw_only=True)
class Branch:
    """The lightning branch: pictures in `steps` steps, gradient through the last `gradient_steps` of them.

    `samples` of a batch are drawn, in `share` of the steps. `distilled`: by the few-step UNet of `stage lightning`,
    else by the base itself.
    """

    steps: int = 4
    gradient_steps: int = 1
    samples: int = 4
    share: float = 0.5
    distilled: bool = True


@dataclass(frozen=True, kw_only=True)
class Drops:
    """Shares of samples that lose all conditions `together`, or one alone; and of steps without an image prompt."""

    together: float = 0.08
    identity: float = 0.06
    text: float = 0.06
    pose: float = 0.06
    image: float = 0.05


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One method.

    `parts`: what the person is read from: 5 crops of body, head, torso, legs and feet, or 1, which is the whole of a
    picture. `identity`: what teaches the identity encoder and its keys and values: `stage words`, after which they are
    left alone; words first and the recipe's losses then; or these losses alone. `identity_tokens`: the budget of
    all parts together; of whole pictures, each one's. `zero_tokens`: of zeros beside them (PuLID's NUM_ZERO), for
    attention that has nobody to look at. `identity_net`: InstantID's, a ControlNet on the skeleton map
    whose text is the identity tokens. `pose_guider`: the base's, trained along, frozen, or not used in training.
    """

    name: str
    phases: tuple[Phase, ...]
    parts: int = 5
    identity: IdentitySource = "pairs"
    identity_tokens: int = 16
    zero_tokens: int = 0
    identity_net: bool = False
    pose_guider: PoseGuiderUse = "trained"
    branch: Branch = field(default_factory=Branch)
    drops: Drops = field(default_factory=Drops)

    def __post_init__(self) -> None:
        if self.parts not in (1, PARTS):
            raise ValueError(f"recipe {self.name}: {self.parts} parts; expected {PARTS} crops or 1, the whole picture")
        if self.words and self.parts != PARTS:
            raise ValueError(f"recipe {self.name}: words are taught from {PARTS} crops, not from the whole picture")
        if self.identity == "words" and any(phase.weights.colour for phase in self.phases):
            raise ValueError(f"recipe {self.name}: colours have nothing to teach where words alone teach identity")
        ends = [phase.until for phase in self.phases]
        if not ends or ends != sorted(ends) or ends[-1] != 1.0:
            raise ValueError(f"recipe {self.name}: phases end at {ends}; expected rising shares of the steps up to 1")

    @property
    def words(self) -> bool:
        """Whether it begins with the identity tokens that `stage words` has taught."""
        return self.identity != "pairs"

    @property
    def losses(self) -> Weights:
        """The last phase's."""
        return self.phases[-1].weights

    def at(self, share: float) -> Weights:
        """The weights after `share` of the steps, in [0, 1]."""
        return next((phase.weights for phase in self.phases if share < phase.until), self.losses)


def _phases(first: Weights, second: Weights, third: Weights) -> tuple[Phase, ...]:
    """Most steps learn from pairs; what needs a finished picture comes when the pictures show somebody."""
    return (Phase(until=0.6, weights=first), Phase(until=0.8, weights=second), Phase(until=1.0, weights=third))


def _only(weights: Weights) -> tuple[Phase, ...]:
    return (Phase(until=1.0, weights=weights),)


def _without(recipe: Recipe, name: str, **weights: float) -> Recipe:
    """The recipe with some losses' weights replaced wherever they were not zero."""

    def changed(phase: Phase) -> Phase:
        present = {loss: weight for loss, weight in weights.items() if getattr(phase.weights, loss)}
        return replace(phase, weights=replace(phase.weights, **present))

    return replace(recipe, name=name, phases=tuple(changed(phase) for phase in recipe.phases))


def _with(recipe: Recipe, name: str, **weights: float) -> Recipe:
    """The recipe with further losses in its last phase."""
    last = replace(recipe.phases[-1], weights=replace(recipe.losses, **weights))
    return replace(recipe, name=name, phases=(*recipe.phases[:-1], last))


REC = Weights()
BOLID = Recipe(
    name="bolid",
    identity="words",
    zero_tokens=8,
    phases=_phases(REC, Weights(keypoints=1.0), Weights(keypoints=1.0, clip=0.1)),
)
# where pairs teach identity, the reference's colours are a nearer target for it
FROM_PAIRS = replace(
    BOLID,
    name="bolid_no_words",
    identity="pairs",
    phases=_phases(
        Weights(colour=1.0), Weights(colour=1.0, keypoints=1.0), Weights(colour=1.0, keypoints=1.0, clip=0.1)
    ),
)
WORDS_THEN_PAIRS = replace(FROM_PAIRS, name="bolid_words_then_pairs", identity="words, pairs")
METHODS = {
    recipe.name: recipe
    for recipe in (
        BOLID,
        Recipe(name="ip_adapter", phases=_only(REC), parts=1, pose_guider="off"),
        Recipe(name="instantid", phases=_only(REC), parts=1, identity_net=True, pose_guider="off"),
        Recipe(
            name="pulid",
            phases=_phases(REC, Weights(embedding=1.0), Weights(embedding=1.0, semantic=0.6, layout=0.1)),
            parts=1,
            pose_guider="off",
        ),
    )
}
CONTROLS = {
    recipe.name: recipe
    for recipe in (
        # what a method that was trained without poses is shown with, from its first step
        replace(METHODS["ip_adapter"], name="ip_adapter_beside_guider", pose_guider="frozen"),
        # BoLID without what the other methods do not get: labels of identity, as words or as colours
        _without(FROM_PAIRS, "bolid_unlabelled", colour=0.0),
    )
}
ABLATIONS = {
    recipe.name: recipe
    for recipe in (
        replace(BOLID, name="bolid_rec", phases=_only(REC)),
        FROM_PAIRS,
        WORDS_THEN_PAIRS,
        replace(FROM_PAIRS, name="bolid_one_view", parts=1),
        replace(BOLID, name="bolid_no_zeros", zero_tokens=0),
        replace(BOLID, name="bolid_5_tokens", identity_tokens=5),
        replace(BOLID, name="bolid_40_tokens", identity_tokens=40),
        replace(BOLID, name="bolid_k2", branch=replace(BOLID.branch, gradient_steps=2)),
        replace(BOLID, name="bolid_k4", branch=replace(BOLID.branch, gradient_steps=4)),
        replace(BOLID, name="bolid_frozen_guider", pose_guider="frozen"),
        _without(BOLID, "bolid_no_id", keypoints=0.0),
        _without(BOLID, "bolid_no_clip", clip=0.0),
        _with(WORDS_THEN_PAIRS, "bolid_embedding", embedding=1.0),
        _with(WORDS_THEN_PAIRS, "bolid_aligned", semantic=0.6, layout=0.1),
    )
}
RECIPES = METHODS | CONTROLS | ABLATIONS


def words_run(recipe: Recipe | None) -> str:
    """The run in which `stage words` teaches the recipe's identity encoder: one for each budget of tokens."""
    return "words" if recipe is None or recipe.identity_tokens == BOLID.identity_tokens else f"words_{recipe.name}"


def recipe_config(config: AvatarConfig, recipe: Recipe) -> AvatarConfig:
    """The sizes of a model that is trained by the recipe."""
    return replace(
        config,
        parts=recipe.parts,
        identity_tokens=recipe.identity_tokens,
        zero_tokens=recipe.zero_tokens,
        identity_net=recipe.identity_net,
        pose_guider=recipe.pose_guider != "off",
    )
