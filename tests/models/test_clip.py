"""CLIP: published counts, and what the embedding of a text depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core import tree
from bmx.core.errors import InputError
from bmx.models.clip import CLIP, BagOfTokens, TextTower
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


def test_bag_of_tokens_sums_the_vectors_of_a_text():
  """In any order, the end included; training leaves out tokens, never the end."""
  tower = BagOfTokens(20, 7, 5, end_token=9, dropout=0.5, vocab_pad=4)
  rows = jnp.array([[3, 4, 9, 0, 9], [4, 3, 9, 3, 3]])
  params = variables(tower, rows)
  table = np.asarray(params['params']['embed']['table'])
  assert table.shape == (24, 5)
  expected = table[[3, 4, 9]].sum(0)
  np.testing.assert_allclose(tower.apply(params, rows), [expected] * 2, rtol=1e-5, atol=1e-6)
  draws = tower.apply(params, jnp.tile(rows[:1], (64, 1)), train=True,
                      rngs={'dropout': jax.random.PRNGKey(0)})  # fmt: skip
  kinds = [table[[9, *some]].sum(0) for some in ((), (3,), (4,), (3, 4))]
  nearest = np.abs(np.asarray(draws)[:, None] - np.array(kinds)).max(-1)
  assert nearest.min(1).max() <= 1e-5
  assert set(nearest.argmin(1)) == {0, 1, 2, 3}


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
  (lambda: shapes(TEXT.clone(pool='last'), jnp.zeros((1, 7), jnp.int32)), 'expected causal=False'),
  (lambda: shapes(TEXT.clone(pool='mean'), jnp.zeros((1, 7), jnp.int32)), "pool='mean': expected"),
  (lambda: shapes(BagOfTokens(9, 7, 5, 9), jnp.zeros((1, 7), jnp.int32)), 'end_token=9: expected'),
  (lambda: shapes(BagOfTokens(9, 7, 5, 8), jnp.zeros((1, 8), jnp.int32)), 'longer than the model'),
  (lambda: shapes(TEXT, jnp.zeros((1, 8), jnp.int32)), 'longer than the model'),
  (lambda: shapes(CLIP(MLP(5), TEXT)), 'expected images, texts or both'),
  (lambda: shapes(CLIP(MLP(5), TEXT, 0.0), None, jnp.array([[9]])), 'temperature=0.0: expected'),
])  # fmt: skip
def test_mistakes_are_named(call, message):
  with pytest.raises(InputError, match=message):
    call()
