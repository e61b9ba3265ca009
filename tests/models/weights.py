"""Weights that need no compiled initialiser, and whose every bias and scale matters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bmx.core import tree
from bmx.parallel.sharding import unbox

KEY = jax.random.PRNGKey(0)

# The same HLO, without LLVM's optimisation: a third of the time to compile.
jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def shapes(model, *inputs, **options):
  """The abstract variables of a linen model."""
  init = lambda key, *x: model.init(key, *x, **options)
  return unbox(jax.eval_shape(init, KEY, *inputs))


def drawn(abstract, seed=0, scale=0.1):
  """Normal numbers of these shapes; scales around 1, variances positive."""
  random = np.random.default_rng(seed)

  def draw(name, leaf):
    x = scale * random.normal(size=leaf.shape)
    x = 1 + x if name.endswith('scale') else np.exp(x) if name.endswith('var') else x
    return jnp.asarray(x, leaf.dtype)

  return tree.map_named(draw, abstract)


def variables(model, *inputs, seed=0, scale=0.1, **options):
  return drawn(shapes(model, *inputs, **options), seed, scale)
