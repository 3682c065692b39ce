"""The parametric body: rest shapes, skinning weights and keypoints of anny, kept as arrays."""

from dataclasses import dataclass, fields
from functools import cache, lru_cache

import anny
import numpy as np
import torch
from anny.models.phenotype import phenotype_blendshape_weights
from scipy import sparse

from bolid_training.avatars.people import Build

KEYPOINTS = tuple(
    f"{side}_{joint}" for joint in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle") for side in ("left", "right")
)


@dataclass(frozen=True, kw_only=True)
class Rest:
    """A body before posing: vertices float32 [V, 3] and bone heads float32 [B, 3], metres."""

    vertices: np.ndarray
    heads: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """What all bodies share. V vertices, F faces, B bones; the template is the average body, z up, facing -y."""

    template: np.ndarray  # float32 [V, 3]
    faces: np.ndarray  # int32 [F, 3]
    weights: sparse.csr_matrix  # [V, B], rows sum to 1
    dominant: np.ndarray  # int64 [V], bone of the largest weight
    bones: dict[str, int]
    parents: tuple[int, ...]  # of each bone, -1 for the root; parents come first
    heads: np.ndarray  # float32 [B, 3] of the template
    keypoints: sparse.csr_matrix  # [12, V]

    def of_bones(self, *prefixes: str) -> np.ndarray:
        """Vertices whose dominant bone's name starts with one of the prefixes, bool [V]."""
        chosen = [index for name, index in self.bones.items() if name.startswith(prefixes)]
        return np.isin(self.dominant, chosen)


@cache
def _model() -> anny.Anny:
    return anny.Anny()


@cache
def anatomy() -> Anatomy:
    """The shared arrays, loaded once a process."""
    model = _model()
    weights = model.vertex_bone_weights.numpy()
    indices = model.vertex_bone_indices.numpy()
    rows = np.repeat(np.arange(len(weights)), weights.shape[1])
    shape = (len(weights), len(model.bone_labels))
    regressor = anny.KeypointsRegressor.coco(model, labels=list(KEYPOINTS))
    return Anatomy(
        template=model.template_vertices.numpy().astype(np.float32),
        faces=model.faces.numpy().astype(np.int32),
        weights=_csr(sparse.coo_matrix((weights.ravel(), (rows, indices.ravel())), shape)),
        dominant=indices[np.arange(len(weights)), weights.argmax(1)],
        bones={name: index for index, name in enumerate(model.bone_labels)},
        parents=tuple(int(parent) for parent in model.bone_parents),
        heads=model.template_bone_heads.numpy().astype(np.float32),
        keypoints=_csr(regressor.regression_weights.numpy()),
    )


@cache
def _blendshapes() -> torch.Tensor:
    """Displacements of vertices, then bone heads: float32 [shapes, (V + B) * 3]."""
    model = _model()
    both = torch.cat([model.blendshapes, model.bone_heads_blendshapes], 1)
    return both.flatten(1).float().contiguous()


@lru_cache(maxsize=32)
def rest(build: Build) -> Rest:
    """The body of that build in anny's rest pose, arms and legs spread."""
    model, shared = _model(), anatomy()
    values = {field.name: getattr(build, field.name) for field in fields(Build)}
    phenotype = torch.tensor([[values.get(label, 0.5) for label in model.phenotype_labels]], dtype=model.dtype)
    with torch.no_grad():
        coefficients = phenotype_blendshape_weights(
            phenotype, model.phenotype_labels, model.anchors, model.stacked_phenotype_blend_shapes_mask, extrapolate=False
        )
        coefficients = (coefficients @ model.phenotype_blendshape_projection).float()
        offsets = (coefficients @ _blendshapes()).numpy().reshape(-1, 3)
    count = len(shared.template)
    return Rest(vertices=shared.template + offsets[:count], heads=shared.heads + offsets[count:])


def _csr(matrix) -> sparse.csr_matrix:
    result = sparse.csr_matrix(matrix, dtype=np.float32)
    result.eliminate_zeros()
    return result
