"""GPTQ and input scales against numpy, and what they are for: less error of the outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.compress.gptq import gptq, input_scales, output_error
from bmx.parallel import Layout, jit, make_mesh

LEVELS = 7  # of int4, on either side of zero


def scale_of(rows):
  return jnp.abs(rows).max(0) / LEVELS


def nearest(row, scale):
  return jnp.clip(jnp.round(row / jnp.where(scale > 0, scale, 1)), -LEVELS, LEVELS) * scale


def plain(w):
  """Rounds to the nearest levels of one scale for each output."""
  return jax.vmap(nearest, (0, None))(w, scale_of(w))


def compiled(fn):
  return jit(fn, Layout(make_mesh({'data': 1}, jax.devices()[:1])))


def problem(depth=24, width=5, seed=0):
  """Weights [D, F], and inputs [N, D] that are correlated and of unequal magnitude."""
  rng = np.random.default_rng(seed)
  mixed = rng.normal(size=(256, depth)) @ rng.normal(size=(depth, depth))
  x = mixed * np.exp(rng.normal(size=depth))
  return rng.normal(size=(depth, width)).astype(np.float32), x.astype(np.float32)


def plain_gptq(w, h, group):
  """The paper's algorithm 1, one column after another and in float64: w [D, F], h [D, D]."""
  w, h = w.astype(np.float64), h.astype(np.float64)
  dead = np.diag(h) == 0
  h[dead, dead], w[dead] = 1, 0
  damp = 0.01 * np.where(dead, 0, np.diag(h)).mean()
  u = np.linalg.cholesky(np.linalg.inv(h + damp * np.eye(len(h)))).T
  out, scales = np.zeros_like(w), []
  for i in range(len(w)):
    if i % group == 0:
      scale = np.abs(w[i : i + group]).max(0) / LEVELS
      scales.append(scale)
    safe = np.where(scale > 0, scale, 1)
    out[i] = np.clip(np.round(w[i] / safe), -LEVELS, LEVELS) * scale
    w[i:] -= np.outer(u[i, i:], (w[i] - out[i]) / u[i, i])
  return out, np.array(scales)


@pytest.mark.parametrize('group', [8, 24])
def test_it_is_algorithm_1_of_the_paper(group):
  w, x = problem()
  x[:, 3] = 0  # an input that is always zero
  h = x.T @ x
  run = compiled(lambda w, h: gptq(w, h, scale_of, nearest, group if group < len(w) else 0))
  rounded, scales = run(w, h)
  expected, known = plain_gptq(w, h, group)
  np.testing.assert_allclose(scales, known, rtol=2e-3)
  # A weight halfway between two levels may fall to either side in float32.
  assert np.mean(np.abs(rounded - expected) > 0.01) < 0.02
  assert not np.any(rounded[3])


def test_values_are_those_of_the_scales():
  w, x = problem()
  rounded, scales = gptq(w, x.T @ x, scale_of, nearest, 8)
  levels = np.asarray(rounded).reshape(3, 8, 5) / np.asarray(scales)[:, None]
  np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)
  assert np.abs(levels).max() <= LEVELS + 1e-4


def test_the_outputs_are_closer_than_after_plain_rounding():
  ratios = []
  for seed in range(5):
    w, x = problem(seed=seed)
    direct = plain(w)
    rounded, _ = gptq(w, x.T @ x, scale_of, nearest)
    ratios.append(np.square(x @ (rounded - w)).sum() / np.square(x @ (direct - w)).sum())
  assert max(ratios) < 0.7


@pytest.mark.parametrize('group', [0, 8])
def test_weights_of_zero_stay_zero(group):
  """Within a group and in later ones; the other weights still take the error."""
  w, x = problem()
  w[np.random.default_rng(1).random(w.shape) < 0.5] = 0
  h = x.T @ x
  run = compiled(lambda w, h: gptq(w, h, scale_of, nearest, group))
  rounded = np.asarray(run(w, h)[0])
  assert not rounded[w == 0].any()
  if not group:
    assert output_error(rounded - w, h) < 0.9 * output_error(plain(w) - w, h)


def test_output_error_is_that_of_the_outputs():
  w, x = problem()
  delta = 0.1 * w
  np.testing.assert_allclose(output_error(delta, x.T @ x), np.square(x @ delta).sum(), rtol=1e-4)


def test_input_scales_search_the_grid():
  w, x = problem()
  h = x.T @ x
  s = np.asarray(compiled(lambda w, h: input_scales(w, h, plain))(w, h))
  errors = []
  magnitude = np.sqrt(np.diag(h).astype(np.float64))
  for a in np.linspace(0, 1, 21):
    one = magnitude**a / np.sqrt((magnitude**a).max() * (magnitude**a).min())
    back = np.asarray(plain((w * one[:, None]).astype(np.float32))) / one[:, None]
    errors.append((np.square(x @ (back - w)).sum(), one))
  least, best = min(errors, key=lambda e: e[0])
  np.testing.assert_allclose(s, best, rtol=1e-3)
  assert least < 0.9 * errors[0][0]  # better than plain rounding, whose exponent is 0
