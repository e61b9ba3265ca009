"""Contrastive losses against loops and transformers; retrieval and zero-shot against numpy."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bmx.core.errors import InputError
from bmx.core.types import Noise
from bmx.data.batches import Batches
from bmx.data.images.captioned_digits import digits
from bmx.models.clip import CLIP, Pairs, TextTower
from bmx.models.mlp import MLP
from bmx.ops.ranks import ranks_of
from bmx.tasks import hits
from bmx.tasks.contrastive import Contrastive
from bmx.tasks.zeroshot import with_labels
from bmx.train.gradients import Accumulate, Gradient

TEXT = TextTower(66, 8, 6, end_token=3, width=8, depth=1, heads=2)
MODEL = CLIP(MLP(6, (8,)), TEXT)
TASK = Contrastive(MODEL)
SIGMOID = Contrastive(CLIP(MLP(6), TEXT, bias=True), kind='sigmoid')
NOISE = Noise(jax.random.PRNGKey(0), jnp.int32(0))
CAPTION = np.array([0, 1, 2, 0, 3, 1, 4, 5])
WEIGHTS = np.float32([1, 1, 1, 1, 0, 2, 1, 0])  # rows of padding, one of weight 2


def pairs(bias=None):
  random = np.random.default_rng(0)
  rows = random.normal(size=(2, 8, 6))
  image, text = (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)
  return Pairs(jnp.array(image), jnp.array(text), jnp.float32(3.0), bias)


def counted(i, j, masked):
  """Whether candidate j counts for query i."""
  return i == j or (WEIGHTS[j] > 0 and not (masked and CAPTION[i] == CAPTION[j]))


def softmax_oracle(out, masked):
  total = 0.0
  for a, b in ((out.image, out.text), (out.text, out.image)):
    logits = 3.0 * np.asarray(a, np.float64) @ np.asarray(b, np.float64).T
    for i in range(8):
      others = [logits[i, j] for j in range(8) if counted(i, j, masked)]
      total += WEIGHTS[i] * (np.log(np.exp(others).sum()) - logits[i, i]) / 2
  return total


def sigmoid_oracle(out, masked):
  logits = 3.0 * np.asarray(out.image, np.float64) @ np.asarray(out.text, np.float64).T - 1.5
  total = 0.0
  for i, j in itertools.product(range(8), range(8)):
    if counted(i, j, masked):
      total += WEIGHTS[i] * np.log1p(np.exp(-logits[i, j] if i == j else logits[i, j]))
  return total


@pytest.mark.parametrize('masked', [True, False])
@pytest.mark.parametrize('kind', ['softmax', 'sigmoid'])
def test_the_loss_is_that_of_loops(kind, masked):
  """Padding is not a negative, nor (if masked) another row with the same caption."""
  out = pairs(jnp.float32(-1.5) if kind == 'sigmoid' else None)
  task = dataclasses.replace(SIGMOID if kind == 'sigmoid' else TASK, mask_duplicates=masked)
  total, count, metrics = task.score(out, {'weights': WEIGHTS, 'caption': CAPTION}, train=True)
  oracle = sigmoid_oracle if kind == 'sigmoid' else softmax_oracle
  assert float(total) == pytest.approx(oracle(out, masked), 1e-5)
  assert float(count) == WEIGHTS.sum() == 7
  assert metrics['scale'][0] / metrics['scale'][1] == 3
  best = [
    max(
      (j for j in range(8) if counted(i, j, masked)), key=lambda j, i=i: out.image[i] @ out.text[j]
    )
    for i in range(8)
  ]
  share = sum(w for w, i, j in zip(WEIGHTS, range(8), best, strict=True) if i == j) / 7
  assert metrics['image_accuracy'][0] / metrics['image_accuracy'][1] == pytest.approx(share)


def test_duplicates_matter():
  """Two pairs with one caption: masked, the loss is that of perfect retrieval."""
  same = jnp.eye(6)[jnp.array([0, 0, 1])]
  out = Pairs(same, same, jnp.float32(100.0), None)
  batch = {'weights': np.ones(3, np.float32), 'caption': np.array([7, 7, 8])}
  assert float(TASK.score(out, batch, train=True)[0]) < 1e-6
  plain = dataclasses.replace(TASK, mask_duplicates=False)
  assert float(plain.score(out, batch, train=True)[0]) == pytest.approx(2 * np.log(2), 1e-5)


@pytest.mark.parametrize('kind', ['softmax', 'sigmoid'])
def test_the_loss_is_that_of_transformers(kind):
  torch = pytest.importorskip('torch')
  pytest.importorskip('transformers')
  from transformers.models.clip.modeling_clip import image_text_contrastive_loss

  out = pairs(jnp.float32(-1.5) if kind == 'sigmoid' else None)
  batch = {'weights': np.ones(8, np.float32), 'caption': np.arange(8)}
  task = SIGMOID if kind == 'sigmoid' else TASK
  total, count, _ = task.score(out, batch, train=True)
  image, text = (torch.tensor(np.asarray(x)) for x in (out.image, out.text))
  logits = 3.0 * text @ image.T
  if kind == 'softmax':
    expected = image_text_contrastive_loss(logits)
  else:  # modeling_siglip.py, SiglipModel.forward
    signs = -torch.ones_like(logits) + 2 * torch.eye(8)
    expected = -torch.nn.functional.logsigmoid(signs * (logits - 1.5)).sum(-1).mean()
  assert float(total / count) == pytest.approx(float(expected), 1e-5)


def test_the_scale_is_bounded_after_each_update():
  """As published: the parameter is at most log 100, whatever the optimizer says."""
  tx = dataclasses.replace(TASK, max_scale=100.0).transform(optax.sgd(1.0), 10)
  params = {'logit_scale': jnp.float32(4.0), 'image': {'logit_scale_of': jnp.float32(4.0)}}
  state = tx.init(params)
  for expected in (np.log(100), np.log(100) - 0.5):
    change = -3.0 if expected == np.log(100) else 0.5
    updates, state = tx.update(jax.tree.map(lambda x, c=change: x * 0 + c, params), state, params)
    params = optax.apply_updates(params, updates)
    assert float(params['logit_scale']) == pytest.approx(expected, 1e-6)
  assert float(params['image']['logit_scale_of']) == 6.5


def test_ranks_are_those_of_loops():
  random = np.random.default_rng(1)
  image, text = random.normal(size=(2, 30, 5)).astype(np.float32)
  caption = random.integers(0, 20, 30)
  text = text[caption]  # equal captions have one embedding
  rows = {'image': image, 'text': text, 'caption': caption}
  ranks = {'image': [], 'text': []}
  for i in range(30):
    own = image[i] @ text[i]
    wrong = {c for j, c in enumerate(caption) if image[i] @ text[j] >= own} - {caption[i]}
    ranks['image'].append(len(wrong))
    best = max(text[i] @ image[j] for j in range(30) if caption[j] == caption[i])
    ranks['text'].append(sum(text[i] @ image[j] >= best for j in range(30)
                             if caption[j] != caption[i]))  # fmt: skip
  for of, expected in ranks.items():
    np.testing.assert_array_equal(hits.ranks(rows, of), expected)
  for name, of, k in (('image_to_text', 'image', 1), ('image_to_text', 'image', 10),
                      ('text_to_image', 'text', 1), ('text_to_image', 'text', 10)):  # fmt: skip
    metric = {f'{name}_recall_at_{k}': fn for fn in [getattr(hits, f'{name}_recall_at_{k}')]}
    assert metric.popitem()[1](rows) == np.mean(np.array(ranks[of]) < k)


def test_equal_embeddings_are_not_a_hit():
  rows = {'image': np.ones((20, 3)), 'text': np.ones((20, 3)), 'caption': np.arange(20)}
  assert hits.image_to_text_recall_at_10(rows) == hits.text_to_image_recall_at_1(rows) == 0


def test_chance_is_the_mean_over_random_orders():
  caption = np.array([0, 0, 0, 1, 2, 2, 3, 4])
  rows = {'caption': caption}
  random = np.random.default_rng(0)
  for k, metric in ((1, hits.chance_recall_at_1), (10, hits.chance_recall_at_10)):
    found = []
    for _ in range(4000):
      order = random.permutation(8)[:k]
      found.append(np.mean([(caption[order] == c).any() for c in caption]))
      texts = random.permutation(5)[:k]
      found.append(np.mean([c in texts for c in caption]))
    assert metric(rows) == pytest.approx(np.mean(found), abs=0.01)
  assert hits.chance_recall_at_10(rows) == 1


def test_blocks_of_queries_are_the_whole(monkeypatch):
  random = np.random.default_rng(0)
  given = random.normal(size=(9, 3)), np.arange(9), random.normal(size=(7, 3)), np.arange(7)
  whole = ranks_of(*given)
  monkeypatch.setattr('bmx.ops.ranks.BLOCK', 2)
  np.testing.assert_array_equal(ranks_of(*given), whole)


@pytest.fixture(scope='module')
def shown():
  """A model that has learned nothing, on the held-out digits: task, variables, split, rows."""
  train, valid = digits(), digits(split='valid', train=False)
  model = MODEL.clone(text=TEXT.clone(vocab_size=train.metadata['vocab_size']))
  task = Contrastive(model)
  task.validate(train.metadata)
  data = Batches(valid, 48, train=False)
  batch = valid.rows(np.arange(48), np.arange(48))
  task.check_rows(batch, np.arange(48))
  variables = task.init(NOISE, batch)
  return task, variables, data, batch


def test_the_report_shows_hits(shown):
  task, variables, data, batch = shown
  rows = {k: np.asarray(v) for k, v in task.predict(variables, batch, NOISE).items()}
  sections = task.illustrate(rows | {'caption': batch['caption']}, data)
  assert [s.title for s in sections] == ['Images of a caption', 'Captions of an image']
  texts = data.examples.texts
  for section in sections:
    assert texts[0] in section.html and section.html.count('<img') >= hits.QUERIES
  share = np.mean(hits.ranks(rows | {'caption': batch['caption']}, 'text') < hits.BEST)
  assert f'{100 * share:.1f} % of 48 queries' in sections[0].html


def test_a_label_is_the_nearest_text(shown):
  task, variables, data, batch = shown
  labels, templates = ('one above two', 'three above four', 'nine'), ('{}', '{} above one')
  named = with_labels(task, labels, templates, data.examples.state())
  out = named.predict(variables, batch, NOISE)
  texts = [t.replace('{}', x) for x in labels for t in templates]
  tokens = data.examples.tokenizer
  rows = [tokens.encodings([t], special=True)[0].ids for t in texts]
  ids = np.stack([np.pad(r, (0, 8 - len(r))) for r in rows])
  found = task.model.apply(variables, jnp.asarray(batch['image']), jnp.asarray(ids))
  mean = np.asarray(found.text).reshape(3, 2, -1).mean(1)
  logits = np.asarray(found.scale * found.image) @ (mean / np.linalg.norm(mean, axis=1)[:, None]).T
  np.testing.assert_array_equal(out['prediction'], logits.argmax(1))
  np.testing.assert_allclose(out['probability'], jax.nn.softmax(logits), rtol=1e-4)
  lines = named.readable({k: np.asarray(v) for k, v in out.items()}, {})
  assert lines[0]['prediction'] == labels[int(logits[0].argmax())]
  assert set(lines[0]['probability']) == set(labels)


@pytest.mark.parametrize(('call', 'message'), [
  (lambda: Contrastive(MODEL, kind='triplet'), "kind='triplet': expected one of softmax, sigmoid"),
  (lambda: Contrastive(MODEL, max_scale=0), 'max_scale=0: expected'),
  (lambda: Contrastive(MLP(3)), 'task.model=MLP: expected bmx.models.clip:CLIP'),
  (lambda: Contrastive(MODEL, kind='sigmoid'), 'task.model.bias=False: expected True'),
  (lambda: Contrastive(SIGMOID.model), 'a bias cancels in a softmax'),
  (lambda: TASK.validate({'vocab_size': 66, 'end_token': 2}), 'end_token=3: expected 2'),
  (lambda: TASK.check_rows({'tokens': np.array([[1, 3], [1, 2]])}, np.array([4, 5])),
   'tokens of example 5: expected end_token=3'),
  (lambda: TASK.check_rows({'tokens': np.array([[1, 66]])}, np.array([4])), 'tokens=66 of example'),
  (lambda: TASK.inputs({'positions': 0}), 'mesh.seq: expected 1'),
  (lambda: Accumulate(Gradient(TASK), 2, 8), 'grad.steps=2: .*GradCache'),
  (lambda: hits.recall({'image': 0}, 'image', 1), 'predictions lack text, caption'),
  (lambda: with_labels(TASK, ('a',), ('{}',), {}), 'at least two different texts'),
  (lambda: with_labels(TASK, ('a', 'b'), ('x',), {}), r"predict.templates=\('x',\): expected {}"),
  (lambda: with_labels(TASK, ('a', 'b'), (), {}), r'predict.templates=\(\): expected'),
  (lambda: with_labels(Gradient(TASK), ('a', 'b'), ('{}',), {}), 'expected a run of images'),
])  # fmt: skip
def test_mistakes_are_named(call, message):
  with pytest.raises(InputError, match=message):
    call()
