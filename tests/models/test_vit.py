"""Vision transformers: positions, stochastic depth, layer scale, scan, and refused words."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.models.stack import unstacked
from bmx.models.vit import ViT, resized, sincos
from tests.models.weights import jit, shapes, variables

SMALL = {'image_size': 8, 'patch_size': 4, 'width': 12, 'depth': 3, 'heads': 2}
IMAGE = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)


def test_a_scan_is_a_loop():
  options = SMALL | {'layer_scale': 0.1}
  scanned, looped = ViT(5, **options, scan=True), ViT(5, **options)
  given = variables(scanned, IMAGE)
  expected = jit(scanned.apply)(given, IMAGE)
  found = jit(looped.apply)({'params': unstacked(given['params'])}, IMAGE)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_patches_are_read_row_by_row():
  """The first token sees the upper left patch alone, the second the upper right one."""
  model = ViT(5, **SMALL)
  given = variables(model, IMAGE)
  patches = lambda x: model.apply(given, x, method='patches')
  other = IMAGE.copy()
  other[:, :4, 4:] += 1
  changed = np.abs(patches(IMAGE) - patches(other)).max((0, 2)) > 1e-3
  assert changed.tolist() == [False, True, False, False]
  kernel, bias = (np.asarray(given['params']['patch'][k]) for k in ('kernel', 'bias'))
  expected = np.einsum('bijc,ijcd->bd', IMAGE[:, :4, 4:], kernel) + bias
  np.testing.assert_allclose(patches(IMAGE)[:, 1], expected, rtol=1e-4, atol=1e-5)


def test_without_positions_the_order_of_patches_does_not_matter():
  """A mean of patches with a table of zeros is a set; with fixed positions it is not."""
  flipped = np.concatenate([IMAGE[:, :, 4:], IMAGE[:, :, :4]], axis=2)
  learned = ViT(5, **SMALL, pool='mean')
  given = variables(learned, IMAGE)
  given['params']['position'] = jnp.zeros_like(given['params']['position'])
  same = [learned.apply(given, x) for x in (IMAGE, flipped)]
  np.testing.assert_allclose(*same, rtol=1e-4, atol=1e-6)
  fixed = ViT(5, **SMALL, pool='mean', positions='sincos')
  del given['params']['position']
  a, b = (fixed.apply(given, x) for x in (IMAGE, flipped))
  assert np.abs(a - b).max() > 1e-3


def test_fixed_positions_are_waves():
  """Chen et al. 2021, as big_vision's `posemb_sincos_2d` writes it, for 3 × 3 patches."""
  y, x = np.mgrid[:3, :3]
  omega = 1.0 / (10_000.0 ** (np.arange(4) / 3))
  y, x = (np.einsum('m,d->md', v.flatten(), omega) for v in (y, x))
  expected = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
  np.testing.assert_allclose(sincos(3, 16), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('scan', [False, True])
def test_stochastic_depth(scan):
  """Evaluation keeps all; training skips whole examples: the last block at the rate, the first 0.

  With three blocks and rate r, an example keeps both terms of a block with (1 - r_l)².
  """
  model, plain = (ViT(5, **SMALL, scan=scan, drop_path=p) for p in (0.8, 0.0))
  given = variables(plain, IMAGE, scale=0.3)
  rngs = {'dropout': jax.random.key(0)}
  np.testing.assert_array_equal(model.apply(given, IMAGE), plain.apply(given, IMAGE))
  np.testing.assert_allclose(
    plain.apply(given, IMAGE, train=True), plain.apply(given, IMAGE), rtol=1e-5, atol=1e-6
  )
  same = np.repeat(IMAGE[:1], 2000, axis=0)
  out = np.asarray(model.apply(given, same, train=True, rngs=rngs)).round(4)
  # Terms of block 1 are kept at rate 0.6, those of block 2 at 0.2: 16 combinations.
  assert len(np.unique(out, axis=0)) == 16
  most = np.unique(out, axis=0, return_counts=True)[1].max() / 2000
  assert abs(most - 0.6**2 * 0.8**2) < 0.04


def test_off_costs_nothing():
  """Without layer scale and stochastic depth, the training program is that of neither word."""
  given = shapes(ViT(5, **SMALL), IMAGE)
  model = ViT(5, **SMALL)
  text = str(jax.make_jaxpr(lambda v, x: model.apply(v, x, train=True))(given, IMAGE))
  assert not re.search('random|threefry', text)
  assert not re.search('attention_scale|feed_forward_scale', str(given))


def test_layer_scale_starts_small():
  model = ViT(5, **SMALL, layer_scale=1e-6)
  given = model.init(jax.random.key(0), IMAGE)
  x = model.apply(given, IMAGE, method='patches')
  stack = lambda m, x: m.stack(x, jnp.zeros(x.shape[:2], jnp.int32))[0]
  np.testing.assert_allclose(model.apply(given, x, method=stack), x, atol=1e-4)


def test_resized_tables_keep_the_tokens_before_the_patches(torch):
  table = np.random.default_rng(0).normal(size=(2 + 16, 6)).astype(np.float32)
  grid = torch.tensor(table[2:]).reshape(1, 4, 4, 6).permute(0, 3, 1, 2)
  theirs = torch.nn.functional.interpolate(grid, size=(7, 7), mode='bicubic', align_corners=False)
  found = resized(jnp.asarray(table), 2 + 49, 2)
  np.testing.assert_array_equal(found[:2], table[:2])
  expected = theirs.permute(0, 2, 3, 1).reshape(49, 6).numpy()
  np.testing.assert_allclose(found[2:], expected, atol=1e-5)
  with pytest.raises(InputError, match='square'):
    resized(jnp.asarray(table), 2 + 50, 2)


@pytest.mark.parametrize(('options', 'message'), [
  ({'pool': 'max'}, r"pool='max': expected one of 'class', 'mean', 'attention'"),
  ({'project': False}, r'num_outputs=5: expected width=\d+ with project=False'),
  ({'positions': 'rotary'}, r"positions='rotary': expected one of 'learned', 'sincos'"),
  ({'distillation': 'soft'}, r"distillation='soft': expected one of"),
  ({'distillation': 'head', 'pool': 'mean'}, r"pool='mean': expected 'class'"),
  ({'patch_size': 3}, r'image_size=8: expected a multiple of patch_size=3'),
  ({'width': 10, 'positions': 'sincos'}, r'width=10: expected a multiple of 4'),
  ({'drop_path': 1.0}, r'drop_path=1.0: expected 0 <= drop_path < 1'),
  ({'image_size': 16}, r'image_size=16: expected images \[B, 16, 16, C\], not \(4, 8, 8, 3\)'),
])  # fmt: skip
def test_refused_words(options, message):
  with pytest.raises(InputError, match=message):
    shapes(ViT(5, **SMALL | options), IMAGE)
