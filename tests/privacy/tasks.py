"""Small tasks, batches and layouts of the tests of privacy."""

import jax
import jax.numpy as jnp
import numpy as np

from bmx.core.types import Noise
from bmx.models.gpt import GPT
from bmx.models.mlp import MLP
from bmx.parallel import Layout, make_mesh
from bmx.tasks.classification import Classification
from bmx.tasks.language import CausalLM

SECRET = jnp.array([1, 2], jnp.uint32)
NOISE = Noise(jax.random.PRNGKey(3), jnp.int32(0), SECRET)


def layout(devices=1, **mesh):
  return Layout(make_mesh(mesh, jax.devices()[:devices]))


def spec(batch):
  return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}


def classifier():
  return Classification(MLP(3, (8,), dropout=0.0))


def rows(n=16):
  random = np.random.default_rng(0)
  return {
    'x': random.normal(size=(n, 6)).astype(np.float32),
    'label': random.integers(0, 3, n).astype(np.int32),
    'weights': np.ones(n, np.float32),
  }


def language():
  return CausalLM(GPT(32, 8, width=32, depth=2, heads=2, scan=True))


def tokens(n=16):
  ids = np.random.default_rng(0).integers(0, 32, (n, 9)).astype(np.int32)
  return {'tokens': ids[:, :-1], 'targets': ids[:, 1:], 'weights': np.ones((n, 8), np.float32)}


def flat(tree):
  return np.concatenate([np.ravel(x) for x in jax.tree.leaves(jax.device_get(tree))])
