"""Branching vessels and airways inside the lungs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from app.phantom.space import Field, Mask, Point, Points, Space

_PATH_WEIGHT = 0.35
"""Weight of the way to the root against the length of a new branch: between star and shortest net."""
_MURRAY = 2.7
"""Exponent of Murray's law: 3 for laminar flow; less gives stronger trunks, as on real chest CTs."""


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """A rooted tree of straight branches.

    Parameters
    ----------
    nodes : ndarray, shape (n, 3)
        Points x, y, z; the first is the root.
    parents : ndarray of int, shape (n,)
        Index of each node's parent, always smaller than its own; -1 for the root.
    radii : ndarray, shape (n,)
        Radius in mm of the branch that ends in the node.
    """

    nodes: Points
    parents: npt.NDArray[np.intp]
    radii: npt.NDArray[np.float64]

    def draw(self, space: Space, share: Field, widen: float = 0.0) -> None:
        """Raise ``share`` by the branches, their radii widened by ``widen`` mm."""
        for node, parent, radius in zip(self.nodes[1:], self.parents[1:], self.radii[1:], strict=True):
            space.draw_segment(share, self.nodes[parent], node, float(radius) + widen)


def grow_tree(
    space: Space, lung: Mask, root: Point, *, leaves: int, leaf_radius: float, rng: np.random.Generator
) -> Tree:
    """Grow a tree from the hilum to random places of a lung.

    Each place is joined to the node that gives the shortest branch plus weighted way to the root
    (Cuntz et al. 2010, doi:10.1371/journal.pcbi.1000877); radii follow Murray's law.
    """
    candidates = space.points(lung)
    ends = candidates[rng.choice(len(candidates), leaves, replace=False)]
    ends = ends[np.argsort(np.linalg.norm(ends - np.array(root), axis=1))]
    nodes = np.concatenate([np.array([root]), np.zeros((2 * leaves, 3))])
    parents = np.full(len(nodes), -1, dtype=np.intp)
    way = np.zeros(len(nodes))
    count = 1
    for end in ends:
        lengths = np.linalg.norm(nodes[:count] - end, axis=1)
        start = int(np.argmin(lengths + _PATH_WEIGHT * way[:count]))
        length = float(lengths[start])
        bend = (nodes[start] + end) / 2 + rng.normal(0.0, 0.08 * length, 3)
        for point in (bend, end):
            nodes[count], parents[count] = point, start
            way[count] = way[start] + length / 2
            start, count = count, count + 1
    return Tree(nodes, parents, _radii(parents, leaf_radius))


def _radii(parents: npt.NDArray[np.intp], leaf_radius: float) -> npt.NDArray[np.float64]:
    """Return radii whose cubes add up at each fork."""
    cubes = np.zeros(len(parents))
    for node in range(len(parents) - 1, 0, -1):
        cubes[node] = cubes[node] or leaf_radius**_MURRAY
        cubes[parents[node]] += cubes[node]
    return np.asarray(cubes ** (1.0 / _MURRAY))
