"""Layers cut from the body's surface: the stuff tight garments, hair caps and beards are made of."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from bolid_training.avatars.anatomy import Anatomy
from bolid_training.avatars.mesh import Mesh, Texture, vertex_normals


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Something worn or grown, in the rest pose: n vertices that follow the bones by `weights` [n, B]."""

    vertices: np.ndarray
    weights: sparse.csr_matrix
    faces: np.ndarray
    colors: np.ndarray
    parts: np.ndarray
    texture: Texture | None = None
    coordinates: np.ndarray | None = None

    def mesh(self, posed: np.ndarray) -> Mesh:
        """The mesh once its vertices are posed."""
        return Mesh(
            vertices=posed,
            faces=self.faces,
            colors=self.colors,
            parts=self.parts,
            texture=self.texture,
            coordinates=self.coordinates,
        )


@dataclass(frozen=True, kw_only=True)
class Shell:
    """A cut-out of the body's surface with clean edges; every vertex is a mix of body vertices."""

    mix: sparse.csr_matrix  # [n, V]
    weights: sparse.csr_matrix  # [n, B]
    smoother: sparse.csr_matrix  # [n, n], averages neighbours
    faces: np.ndarray  # int32 [F, 3]
    template: np.ndarray  # float32 [n, 3], coordinates in the average body

    def draped(self, body: np.ndarray, offsets: np.ndarray, *, smoothing: int) -> np.ndarray:
        """The layer over rest vertices [V, 3], smoothed and lifted along its normals by `offsets` [n] metres."""
        surface = self.mix @ body
        for _ in range(smoothing):
            surface = self.smoother @ surface
        return surface + vertex_normals(surface, self.faces) * offsets[:, None]


def cut(
    anatomy: Anatomy, covered: Callable[[np.ndarray], np.ndarray], candidates: np.ndarray, *, soften: int = 2
) -> Shell:
    """The part of the body where covered(template) > 0, cut exactly at zero.

    `candidates` bool [V] are vertices that may be covered at all; `soften` evens out the bone weights, as cloth does.
    """
    field = np.where(candidates, covered(anatomy.template), -1.0).astype(np.float32)
    faces, mix = _clip(anatomy.faces[candidates[anatomy.faces].all(1)], field)
    smoother = _smoother(faces, mix.shape[0])
    weights = mix @ anatomy.weights
    for _ in range(soften):
        weights = smoother @ weights
    return Shell(
        mix=mix,
        weights=sparse.csr_matrix(weights, dtype=np.float32),
        smoother=smoother,
        faces=faces,
        template=mix @ anatomy.template,
    )


def _clip(faces: np.ndarray, field: np.ndarray) -> tuple[np.ndarray, sparse.csr_matrix]:
    """Faces where field > 0, triangles on the border cut at zero; and the mix of old vertices each new one is."""
    inside = field[faces] > 0
    whole = faces[inside.all(1)]
    kept, points = [whole], []
    count = len(field)
    for corner in range(3):
        turned, flags = np.roll(faces, -corner, 1), np.roll(inside, -corner, 1)
        only = turned[flags[:, 0] & ~flags[:, 1] & ~flags[:, 2]]
        missing = turned[~flags[:, 0] & flags[:, 1] & flags[:, 2]]
        for triangles, is_tip in ((only, True), (missing, False)):
            first = count + sum(map(len, points)) + np.arange(len(triangles))
            second = first + len(triangles)
            points += [triangles[:, [0, 1]], triangles[:, [0, 2]]]
            if is_tip:
                kept.append(np.stack([triangles[:, 0], first, second], 1))
            else:
                kept.append(np.stack([first, triangles[:, 1], triangles[:, 2]], 1))
                kept.append(np.stack([first, triangles[:, 2], second], 1))
    edges = np.sort(np.concatenate(points), 1)
    unique, inverse = np.unique(edges, axis=0, return_inverse=True)
    all_faces = np.concatenate(kept)
    cut_points = all_faces >= count
    all_faces[cut_points] = count + inverse.ravel()[all_faces[cut_points] - count]
    used, compact = np.unique(all_faces, return_inverse=True)
    a, b = field[unique[:, 0]], field[unique[:, 1]]
    share = a / (a - b)
    rows = np.concatenate([np.arange(count), *2 * [count + np.arange(len(unique))]])
    columns = np.concatenate([np.arange(count), unique[:, 0], unique[:, 1]])
    values = np.concatenate([np.ones(count), 1 - share, share]).astype(np.float32)
    mix = sparse.csr_matrix((values, (rows, columns)), (count + len(unique), count))
    return compact.reshape(-1, 3).astype(np.int32), mix[used]


def _smoother(faces: np.ndarray, count: int) -> sparse.csr_matrix:
    """Averages each vertex with its neighbours, half and half; border vertices with those on the border only."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    unique, uses = np.unique(np.sort(edges, 1), axis=0, return_counts=True)
    border = np.zeros(count, bool)
    border[unique[uses == 1]] = True
    both = np.concatenate([unique, unique[:, ::-1]])
    on_border = np.concatenate([uses, uses]) == 1
    both = both[~border[both[:, 0]] | on_border]
    links = sparse.csr_matrix((np.ones(len(both), np.float32), (both[:, 0], both[:, 1])), (count, count))
    degree = np.maximum(np.asarray(links.sum(1)).ravel(), 1)
    alone = np.asarray(links.sum(1)).ravel() == 0
    smoother = sparse.diags((0.5 / degree).astype(np.float32)) @ links + sparse.diags(
        np.where(alone, 1, 0.5).astype(np.float32)
    )
    return sparse.csr_matrix(smoother, dtype=np.float32)
