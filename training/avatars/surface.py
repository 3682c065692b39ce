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
        starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes)])
        vertices = np.concatenate([mesh.vertices for mesh in meshes]).astype(np.float32)
        self.faces = np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts)])
        self.parts = np.concatenate([mesh.parts for mesh in meshes])
        self._corners = vertices[self.faces]
        self._normals = np.concatenate([_corner_normals(mesh) for mesh in meshes])
        self._colors = np.concatenate([mesh.colors for mesh in meshes])
        self._meshes = meshes
        self._face_starts = np.cumsum([0, *(len(mesh.faces) for mesh in meshes)])
        self._scene = rtcore_scene.EmbreeScene()
        mesh_construction.TriangleMesh(self._scene, self._corners)

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
        corners = self._corners[hits.triangles]
        flat = normalized(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
        smooth = normalized((self._normals[hits.triangles] * hits.weights[:, :, None]).sum(1))
        side = np.where((flat * directions).sum(1, keepdims=True) > 0, -1, 1).astype(np.float32)
        return flat * side, smooth * side

    def albedo(self, hits: Hits) -> np.ndarray:
        """Linear RGB [R, 3], textures applied."""
        colors = (self._colors[self.faces[hits.triangles]] * hits.weights[:, :, None]).sum(1)
        owner = np.searchsorted(self._face_starts, hits.triangles, side="right") - 1
        for index, mesh in enumerate(self._meshes):
            if mesh.texture is None or mesh.coordinates is None:
                continue
            here = np.flatnonzero(owner == index)
            corners = mesh.coordinates[mesh.faces[hits.triangles[here] - self._face_starts[index]]]
            colors[here] = mesh.texture((corners * hits.weights[here, :, None]).sum(1), colors[here])
        return colors

    def _run(self, origins: np.ndarray, directions: np.ndarray, limits: np.ndarray | None, **options):
        rays = (np.ascontiguousarray(origins, np.float32), np.ascontiguousarray(directions, np.float32))
        return self._scene.run(*rays, limits, **options)


def _corner_normals(mesh: Mesh) -> np.ndarray:
    """Normals [F, 3, 3] at the corners of every face."""
    if mesh.smooth:
        return vertex_normals(mesh.vertices, mesh.faces)[mesh.faces]
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    return np.repeat(normalized(np.cross(b - a, c - a))[:, None], 3, axis=1)
