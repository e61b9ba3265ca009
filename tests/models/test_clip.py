"""CLIP: published counts, and what the embedding of a text depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core import tree
from bmx.core.errors import InputError
from bmx.models.clip import CLIP, TextTower
from bmx.models.mlp import MLP
from bmx.models.vit import ViT
from tests.models.weights import jit, shapes, variables

OF_CLIP = {'pre_norm': True, 'patch_bias': False, 'head_bias': False, 'activation': 'quick_gelu',
           'eps': 1e-5}  # fmt: skip
TEXT = TextTower(20, 7, 5, end_token=9, width=12, depth=2, heads=2)


# Radford et al. 2021; the numbers of the published files of B/32 and L/14.
@pytest.mark.parametrize(('image', 'text', 'count'), [
  ({'patch_size': 32}, {}, 151_277_313),
  ({'patch_size': 14, 'width': 1024, 'depth': 24, 'heads': 16, 'num_outputs': 768},
   {'width': 768, 'heads': 12, 'num_outputs': 768}, 427_616_513),
])  # fmt: skip
def test_published_counts(image, text, count):
  towers = (
    ViT(**{'num_outputs': 512, **OF_CLIP, **image}),
    TextTower(
      **{'vocab_size': 49_408, 'max_seq_len': 77, 'num_outputs': 512, 'end_token': 49_407, **text}
    ),
  )
  found = shapes(CLIP(*towers), jnp.zeros((1, 224, 224, 3)), jnp.zeros((1, 77), jnp.int32))
  assert tree.count(found['params']) == count


def test_tokens_behind_the_first_end_change_nothing():
  """Nor does the length of the row; the token before it does."""
  params = variables(TEXT, jnp.zeros((1, 7), jnp.int32), scale=0.5)
  apply = jit(TEXT.apply)
  rows = jnp.array([[3, 4, 9, 0, 0, 0, 0], [3, 4, 9, 5, 9, 1, 2], [3, 5, 9, 0, 0, 0, 0]])
  padded, noisy, other = np.asarray(apply(params, rows))
  np.testing.assert_allclose(padded, noisy, rtol=1e-6)
  np.testing.assert_allclose(apply(params, rows[:1, :3])[0], padded, rtol=1e-5, atol=1e-6)
  assert np.abs(padded - other).max() > 1e-3


def test_embeddings_have_length_1_and_scale_is_the_inverse_temperature():
  model = CLIP(ViT(5, 8, 4, width=12, depth=1, heads=2), TEXT, 0.25, bias=True, initial_bias=-3.0)
  image, tokens = jnp.ones((2, 8, 8, 3)), jnp.array([[9, 0], [3, 9], [4, 9]])
  params = model.init(jax.random.PRNGKey(0), image, tokens)
  out = model.apply(params, image, tokens)
  for rows, n in ((out.image, 2), (out.text, 3)):
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), np.ones(n), rtol=1e-6)
  assert (float(out.scale), float(out.bias)) == (pytest.approx(4.0), -3.0)
  alone = model.apply(params, tokens=tokens)
  np.testing.assert_array_equal(alone.text, out.text)
  assert alone.image is None


@pytest.mark.parametrize(('call', 'message'), [
  (lambda: CLIP(MLP(4), TEXT).init(jax.random.PRNGKey(0), jnp.ones((1, 3)), jnp.array([[9]])),
   'image.num_outputs=4, text.num_outputs=5: expected one size'),
  (lambda: shapes(TEXT.clone(end_token=20), jnp.zeros((1, 7), jnp.int32)), 'end_token=20: expec'),
  (lambda: shapes(TEXT, jnp.zeros((1, 8), jnp.int32)), 'longer than the model'),
  (lambda: shapes(CLIP(MLP(5), TEXT)), 'expected images, texts or both'),
  (lambda: shapes(CLIP(MLP(5), TEXT, 0.0), None, jnp.array([[9]])), 'temperature=0.0: expected'),
])  # fmt: skip
def test_mistakes_are_named(call, message):
  with pytest.raises(InputError, match=message):
    call()
