"""Two small states with different arrays."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

STATE: dict[str, Any] = {'step': jnp.array(7, jnp.int32), 'params': {'w': jnp.linspace(-1.0, 1.0, 10_000)}}
NEWER: dict[str, Any] = jax.tree.map(lambda leaf: np.asarray(leaf) + 1, STATE)
