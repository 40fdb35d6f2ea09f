"""Maps of directions in the plane. The only importer of umap."""

import warnings

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.errors import require


def umap_plane(rows: Float[Tensor, "points d"], *, seed: int, neighbours: int = 15) -> Float[Tensor, "points 2"]:
    """UMAP by cosine distance (McInnes, Healy, Melville 2018), on one thread, so that the seed decides the map.

    Args:
        neighbours: how many near points shape the map; UMAP's own default.

    Raises:
        UserError: no more points than neighbours.
    """
    require(len(rows) > neighbours, f"a map with {neighbours} neighbours needs more points, got {len(rows)}")
    import umap

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*n_jobs value.*")
        reducer = umap.UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1)
        plane = reducer.fit_transform(rows.numpy())
    return torch.from_numpy(np.asarray(plane, np.float32))
