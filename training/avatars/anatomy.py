"""The parametric body: rest shapes, skinning weights and keypoints of anny, kept as arrays.

anny's mesh spends most of its triangles on eyelids, ears, teeth and toes; here it is thinned out to what a small
picture can show. The keypoints stay exact.
"""

from dataclasses import dataclass, fields
from functools import cache, lru_cache

import anny
import numpy as np
import torch
from anny.models.phenotype import phenotype_blendshape_weights
from embreex import mesh_construction, rtcore_scene
from scipy import sparse

from bolid_training.avatars.mesh import normalized
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
    kept, faces, regression = _thinned()
    weights = model.vertex_bone_weights.numpy()[kept]
    indices = model.vertex_bone_indices.numpy()[kept]
    rows = np.repeat(np.arange(len(weights)), weights.shape[1])
    shape = (len(weights), len(model.bone_labels))
    return Anatomy(
        template=model.template_vertices.numpy()[kept].astype(np.float32),
        faces=faces,
        weights=_csr(sparse.coo_matrix((weights.ravel(), (rows, indices.ravel())), shape)),
        dominant=indices[np.arange(len(weights)), weights.argmax(1)],
        bones={name: index for index, name in enumerate(model.bone_labels)},
        parents=tuple(int(parent) for parent in model.bone_parents),
        heads=model.template_bone_heads.numpy().astype(np.float32),
        keypoints=_csr(regression),
    )


@cache
def _blendshapes() -> torch.Tensor:
    """Displacements of vertices, then bone heads: float32 [shapes, (V + B) * 3]."""
    model = _model()
    both = torch.cat([model.blendshapes[:, _thinned()[0]], model.bone_heads_blendshapes], 1)
    return both.flatten(1).float().contiguous()


@lru_cache(maxsize=32)
def rest(build: Build) -> Rest:
    """The body of that build in anny's rest pose, arms and legs spread."""
    model, shared = _model(), anatomy()
    values = {field.name: getattr(build, field.name) for field in fields(Build)}
    phenotype = torch.tensor([[values.get(label, 0.5) for label in model.phenotype_labels]], dtype=model.dtype)
    with torch.no_grad():
        coefficients = phenotype_blendshape_weights(
            phenotype,
            model.phenotype_labels,
            model.anchors,
            model.stacked_phenotype_blend_shapes_mask,
            extrapolate=False,
        )
        coefficients = (coefficients @ model.phenotype_blendshape_projection).float()
        offsets = (coefficients @ _blendshapes()).numpy().reshape(-1, 3)
    count = len(shared.template)
    return Rest(vertices=shared.template + offsets[:count], heads=shared.heads + offsets[count:])


@cache
def _thinned() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices [V] of the vertices that stay, faces int32 [F, 3] over them, keypoint regression [12, V].

    Vertices of one bone in one cell of a grid become one of them; faces nobody can see go.
    """
    model = _model()
    points, faces = model.template_vertices.numpy(), model.faces.numpy()
    bone = model.vertex_bone_indices.numpy()[np.arange(len(points)), model.vertex_bone_weights.numpy().argmax(1)]
    cells = _cell_sizes(points, [model.bone_labels[index] for index in bone])
    keys = np.c_[bone, np.floor(points / cells[:, None] + 0.5)].astype(np.int64)
    _, first, cluster = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    faces = first[cluster.ravel()][faces[_visible(points, faces)]]
    solid = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    faces = faces[solid]
    regression = anny.KeypointsRegressor.coco(model, labels=list(KEYPOINTS)).regression_weights.numpy()
    kept = np.union1d(faces.ravel(), np.flatnonzero(regression.any(0)))
    return kept, np.searchsorted(kept, faces).astype(np.int32), regression[:, kept]


def _cell_sizes(points: np.ndarray, bones: list[str]) -> np.ndarray:
    """Edge of the grid cell of each vertex, metres: finest where a portrait shows it, next to nothing elsewhere."""
    sizes = np.full(len(points), 1e-5)
    for prefixes, size in ((("head",), 0.009), (("finger", "metacarpal", "wrist"), 0.011), (("foot", "toe"), 0.02)):
        sizes[[name.startswith(prefixes) for name in bones]] = size
    x, y, z = np.abs(points).T[0], points[:, 1], points[:, 2]
    features = (y < -0.09) & (z > 0.63) & (z < 0.765) & (x < 0.06)
    return np.where(features, np.minimum(sizes, 0.0038), sizes)


def _visible(points: np.ndarray, faces: np.ndarray, directions: int = 24) -> np.ndarray:
    """Whether a ray from the face's centre gets away, in any of evenly spread directions; bool [F]."""
    corners = points[faces].astype(np.float32)
    normals = normalized(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
    scene = rtcore_scene.EmbreeScene()
    mesh_construction.TriangleMesh(scene, corners)
    centres = (corners.mean(1) + 1e-4 * normals).astype(np.float32)
    index = np.arange(directions)
    z, turn = 1 - (2 * index + 1) / directions, np.pi * (1 + 5**0.5) * index  # Fibonacci sphere
    spread = np.stack([np.sqrt(1 - z * z) * np.cos(turn), np.sqrt(1 - z * z) * np.sin(turn), z], 1)
    visible = np.zeros(len(faces), bool)
    for direction in spread.astype(np.float32):
        open_side = np.flatnonzero(~visible & (normals @ direction > 0))
        rays = np.ascontiguousarray(np.broadcast_to(direction, (len(open_side), 3)))
        visible[open_side] = scene.run(centres[open_side], rays, query="OCCLUDED") < 0
    return visible


def _csr(matrix) -> sparse.csr_matrix:
    result = sparse.csr_matrix(matrix, dtype=np.float32)
    result.eliminate_zeros()
    return result
