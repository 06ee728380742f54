"""3x3 convolutions with 2.25 times fewer multiplications: F(2x2, 3x3) of Lavin and Gray 2016, arXiv:1509.09308.

The 2x2 outputs y of a 4x4 patch d and a 3x3 kernel g are

    y = A^T [(G g G^T) * (B^T d B)] A                                                                          (Eq. 8)

where * multiplies elementwise. Summed over the input channels, the multiplications of all tiles are 16 matrix products,
one per element of the patch. The matrices contain only 0, 1, -1 and 1/2, so the result differs from the direct sum only
by rounding: about 1e-6 of the largest value in float32.
"""

import jax
import jax.numpy as jnp
from jax import lax

_Four = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def _from_patch(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> _Four:
    """B^T along one axis."""
    return a - c, b + c, c - b, b - d


def _from_kernel(a: jax.Array, b: jax.Array, c: jax.Array) -> _Four:
    """G along one axis."""
    return a, (a + b + c) / 2, (a - b + c) / 2, c


def _to_outputs(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A^T along one axis."""
    return a + b + c, b - c - d


def _from_outputs(a: jax.Array, b: jax.Array) -> _Four:
    """A along one axis: the transpose of _to_outputs."""
    return a, a + b, a - b, -b


def _to_kernel(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> tuple[jax.Array, ...]:
    """G^T along one axis: the transpose of _from_kernel."""
    return a + (b + c) / 2, (b - c) / 2, (b + c) / 2 + d


def _tiles(x: jax.Array) -> tuple[int, int]:
    return (x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2


def _transformed_patches(x: jax.Array) -> jax.Array:
    """Computes B^T d B of the overlapping 4x4 patches, padded by one pixel: ``[N, H, W, C]`` to ``[16, tiles, C]``."""
    rows, columns = _tiles(x)
    below, right = 2 * rows - x.shape[1] + 1, 2 * columns - x.shape[2] + 1
    x = jnp.pad(x, ((0, 0), (1, below), (1, right), (0, 0)))
    patch = [[x[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2] for i in range(4)] for j in range(4)]
    half = [_from_patch(*column) for column in patch]
    whole = [element for row in zip(*half, strict=True) for element in _from_patch(*row)]
    # Without the barrier, the transform is recomputed for each product that reads it.
    return lax.optimization_barrier(jnp.stack(whole).reshape(16, -1, x.shape[3]))


def _transformed_outputs(dy: jax.Array) -> jax.Array:
    """Computes A dy A^T of the 2x2 tiles: ``[N, H, W, C]`` to ``[16, tiles, C]``."""
    rows, columns = _tiles(dy)
    dy = jnp.pad(dy, ((0, 0), (0, 2 * rows - dy.shape[1]), (0, 2 * columns - dy.shape[2]), (0, 0)))
    half = [_from_outputs(dy[:, 0::2, j::2], dy[:, 1::2, j::2]) for j in range(2)]
    whole = [element for row in zip(*half, strict=True) for element in _from_outputs(*row)]
    return lax.optimization_barrier(jnp.stack(whole).reshape(16, -1, dy.shape[3]))


def convolution(x: jax.Array, kernel: jax.Array, transposed: bool = False) -> jax.Array:
    """3x3 convolution with stride 1 and one pixel of padding.

    Args:
      x: ``[N, H, W, C]``.
      kernel: ``[3, 3, C, C_out]``.
      transposed: compute the convolution's input gradient instead; then x is ``[N, H, W, C_out]`` and the result
        ``[N, H, W, C]``.

    Returns:
      ``[N, H, W, C_out]``.
    """
    taps = kernel[::-1, ::-1] if transposed else kernel
    half = _from_kernel(*taps)
    transformed = lax.optimization_barrier(jnp.stack([e for row in half for e in _from_kernel(*row)]))
    contracted = 2 if transposed else 1
    products = lax.dot_general(_transformed_patches(x), transformed, (((2,), (contracted,)), ((0,), (0,))))
    rows, columns = _tiles(x)
    products = lax.optimization_barrier(products).reshape(4, 4, x.shape[0], rows, columns, -1)
    columns_done = [_to_outputs(*products[:, j]) for j in range(4)]
    tiles = jnp.stack([jnp.stack(_to_outputs(*row), 3) for row in zip(*columns_done, strict=True)], 2)
    return tiles.reshape(x.shape[0], 2 * rows, 2 * columns, -1)[:, : x.shape[1], : x.shape[2]]


def kernel_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """Computes ``[3, 3, C, C_out]`` by the transposed formula G^T [(B^T d B) * (A dy A^T)] G, summed over the tiles."""
    products = lax.dot_general(_transformed_patches(x), _transformed_outputs(dy), (((1,), (1,)), ((0,), (0,))))
    products = products.reshape(4, 4, x.shape[3], dy.shape[3])
    half = [_to_kernel(*products[:, j]) for j in range(4)]
    return jnp.stack([jnp.stack(_to_kernel(*row)) for row in zip(*half, strict=True)])
