"""All triangles of a scene: what a ray hits, and the hit's normal and color."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from embreex import mesh_construction, rtcore_scene

from bolid_training.avatars.mesh import Mesh, normalized, vertex_normals


@dataclass(frozen=True, kw_only=True)
class Hits:
    """The R rays that hit: their indices, triangles [R], distances [R] and barycentric weights [R, 3]."""

    rays: np.ndarray
    triangles: np.ndarray
    distances: np.ndarray
    weights: np.ndarray


class Surface:
    """Triangles of several meshes behind one ray caster."""

    def __init__(self, meshes: Sequence[Mesh]) -> None:
        starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes[:-1])])
        vertices = np.concatenate([mesh.vertices for mesh in meshes]).astype(np.float32)
        self.faces = np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts, strict=True)]).astype(
            np.int32
        )
        self.parts = np.concatenate([mesh.parts for mesh in meshes])
        self._vertices = vertices
        self._normals = np.concatenate([vertex_normals(mesh.vertices, mesh.faces) for mesh in meshes])
        self._smooth = np.repeat([mesh.smooth for mesh in meshes], [len(mesh.faces) for mesh in meshes])
        self._colors = np.concatenate([mesh.colors for mesh in meshes])
        self._meshes = meshes
        self._face_starts = np.cumsum([0, *(len(mesh.faces) for mesh in meshes)])
        self._scene = rtcore_scene.EmbreeScene()
        mesh_construction.TriangleMesh(self._scene, vertices, self.faces)

    def intersect(self, origins: np.ndarray, directions: np.ndarray) -> Hits:
        """Nearest hits of rays [R, 3] with unit directions [R, 3]."""
        out = self._run(origins, directions, None, query="INTERSECT", output=True)
        rays = np.flatnonzero(out["primID"] >= 0)
        u, v = out["u"][rays], out["v"][rays]
        return Hits(
            rays=rays,
            triangles=out["primID"][rays],
            distances=out["tfar"][rays],
            weights=np.stack([1 - u - v, u, v], 1),
        )

    def blocked(self, origins: np.ndarray, directions: np.ndarray, distance: float = 1e6) -> np.ndarray:
        """Whether anything is within `distance` metres along each ray, bool [R]."""
        limits = np.full(len(origins), distance, np.float32)
        return self._run(origins, directions, limits, query="OCCLUDED") >= 0

    def hidden(self, eye: np.ndarray, points: np.ndarray, tolerance: float) -> np.ndarray:
        """Whether something is in front of each point [N, 3], more than `tolerance` metres before it; bool [N]."""
        offsets = np.asarray(points, np.float32) - eye
        distances = np.sqrt((offsets * offsets).sum(1))
        hits = self.intersect(np.broadcast_to(eye, offsets.shape), offsets / distances[:, None])
        hidden = np.zeros(len(offsets), bool)
        hidden[hits.rays] = hits.distances < distances[hits.rays] - tolerance
        return hidden

    def normals(self, hits: Hits, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Unit normals of face and of shading, both [R, 3], on the side the ray comes from."""
        faces = self.faces[hits.triangles]
        a, b, c = (self._vertices[faces[:, corner]] for corner in range(3))
        flat = normalized(_cross(b - a, c - a))
        smooth = np.where(
            self._smooth[hits.triangles, None], normalized(_mixed(self._normals, faces, hits.weights)), flat
        )
        flat *= np.where(np.einsum("ri,ri->r", flat, directions) > 0, -1, 1).astype(np.float32)[:, None]
        # The two sides may disagree at silhouettes; the face decides.
        smooth *= np.where(np.einsum("ri,ri->r", smooth, flat) < 0, -1, 1).astype(np.float32)[:, None]
        return flat, smooth

    def albedo(self, hits: Hits) -> np.ndarray:
        """Linear RGB [R, 3], textures applied."""
        colors = _mixed(self._colors, self.faces[hits.triangles], hits.weights)
        owner = np.searchsorted(self._face_starts, hits.triangles, side="right") - 1
        for index, mesh in enumerate(self._meshes):
            if mesh.texture is None or mesh.coordinates is None:
                continue
            here = np.flatnonzero(owner == index)
            faces = mesh.faces[hits.triangles[here] - self._face_starts[index]]
            colors[here] = mesh.texture(_mixed(mesh.coordinates, faces, hits.weights[here]), colors[here])
        return colors

    def _run(self, origins: np.ndarray, directions: np.ndarray, limits: np.ndarray | None, **options):
        rays = (np.ascontiguousarray(origins, np.float32), np.ascontiguousarray(directions, np.float32))
        return self._scene.run(*rays, limits, **options)


def _mixed(values: np.ndarray, faces: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Values [V, C] interpolated in faces [R, 3] by barycentric weights [R, 3]."""
    mixed = values[faces[:, 0]] * weights[:, :1]
    mixed += values[faces[:, 1]] * weights[:, 1:2]
    mixed += values[faces[:, 2]] * weights[:, 2:]
    return mixed


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """np.cross for [R, 3], several times faster."""
    return np.stack(
        [
            a[:, 1] * b[:, 2] - a[:, 2] * b[:, 1],
            a[:, 2] * b[:, 0] - a[:, 0] * b[:, 2],
            a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0],
        ],
        1,
    )
