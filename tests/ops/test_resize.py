"""Resized grids are PyTorch's."""

import jax.numpy as jnp
import numpy as np
import pytest

from bmx.ops.resize import bicubic


@pytest.mark.parametrize(('old', 'new'), [
  ((14, 14), (24, 24)), ((16, 16), (7, 7)), ((2, 3), (5, 4)), ((1, 4), (3, 9)), ((5, 5), (5, 5)),
])  # fmt: skip
def test_bicubic_is_torchs(torch, old, new):
  x = np.random.default_rng(0).normal(size=(*old, 3)).astype(np.float32)
  theirs = torch.nn.functional.interpolate(
    torch.tensor(x).permute(2, 0, 1)[None], size=new, mode='bicubic', align_corners=False
  )[0]
  ours = bicubic(jnp.asarray(x), *new)
  np.testing.assert_allclose(ours, theirs.permute(1, 2, 0).numpy(), rtol=0, atol=1e-5)
