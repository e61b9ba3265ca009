"""Distillation: terms against numpy, any task, any layout, a teacher that never moves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bmx.adapt.lora import LoRA
from bmx.compress.distill import Distill
from bmx.compress.divergence import hidden_error, kl, relation_error
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.types import Noise
from bmx.models.bert import BERT, Classifier, Pretraining, Tagger
from bmx.models.gpt import GPT
from bmx.models.mlp import MLP
from bmx.parallel import Layout, jit, make_mesh, unbox
from bmx.tasks.classification import BinaryClassification, Classification
from bmx.tasks.encoder import MaskedLM, TextClassification, TokenClassification
from bmx.tasks.language import CausalLM
from bmx.tasks.question_answering import QuestionAnswering
from bmx.tasks.regression import Regression
from bmx.train.gradients import Accumulate, Gradient
from bmx.train.state import plan_state
from bmx.train.step import make_train_step

NOISE = Noise(jax.random.PRNGKey(3), jnp.int32(0))
RANDOM = np.random.default_rng(0)
V, T, B = 32, 8, 8


def layout(devices=1, **mesh):
  return Layout(make_mesh(mesh, jax.devices()[:devices]))


def gpt(width=16, depth=1, **words):
  return GPT(V, T, width=width, depth=depth, heads=2, **words)


def texts(b=B):
  ids = RANDOM.integers(5, V, (b, T + 1)).astype(np.int32)
  weights = (RANDOM.random((b, T)) < 0.8).astype(np.float32)
  return {'tokens': ids[:, :-1], 'targets': ids[:, 1:], 'weights': weights}


def softmax(x):
  e = np.exp(np.float64(x) - np.max(x, -1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def numpy_kl(teacher, student, t=1.0):
  p, q = softmax(np.float64(teacher) / t), softmax(np.float64(student) / t)
  return t * t * (p * (np.log(p) - np.log(q))).sum(-1)


def init(task, batch):
  """Random variables of the shapes that the task gives: quicker than its own."""
  shapes = unbox(jax.eval_shape(lambda b: task.init(NOISE, b), batch))
  return jax.tree.map(lambda x: RANDOM.normal(0.2, 0.5, x.shape).astype('f'), shapes)


def loss_of(task, variables, batch, train=True):
  return jit(lambda v, b: task.loss(v, b, NOISE, train=train), layout())(variables, batch)


def called(model, variables, *inputs):
  return np.asarray(jit(model.apply, layout())(variables, *inputs))


def test_kl_has_a_temperature():
  a, b = RANDOM.normal(size=(2, 4, 7)) * 3
  for t in (1.0, 2.5):
    np.testing.assert_allclose(kl(jnp.float32(a), jnp.float32(b), t), numpy_kl(a, b, t), rtol=1e-5)


def test_kl_is_that_of_torch(torch):
  a, b = np.float32(RANDOM.normal(size=(2, 4, 7)) * 3)
  log = torch.nn.functional.log_softmax
  x, y = log(torch.tensor(b) / 2, -1), log(torch.tensor(a) / 2, -1)
  expected = torch.nn.functional.kl_div(x, y, reduction='none', log_target=True).sum(-1) * 4
  np.testing.assert_allclose(kl(jnp.array(a), jnp.array(b), 2.0), expected.numpy(), rtol=1e-4)
  grad = jax.grad(lambda s: kl(jnp.array(a), s, 2.0).sum())(jnp.array(b))
  leaf = torch.tensor(b, requires_grad=True)
  torch.nn.functional.kl_div(log(leaf / 2, -1), y, reduction='sum', log_target=True).mul(
    4
  ).backward()
  np.testing.assert_allclose(grad, leaf.grad.numpy(), atol=1e-5)


def numbers(**more):
  x, weights = RANDOM.normal(size=(B, 6)).astype('f'), np.ones(B, 'f')
  weights[3:5] = 0, 0.5
  return {'x': x, 'weights': weights, **more}


def test_tasks_of_examples_against_numpy():
  """Of each task: its own loss plus the weighted divergence, from logits of the bare models."""
  label = RANDOM.integers(0, 2, B).astype(np.int32)

  def both(logits):
    return np.concatenate([0 * logits, logits], -1)

  cases = [
    (Classification, 2, {'label': label}, lambda a, b: numpy_kl(a, b, 3.0)),
    (BinaryClassification, 1, {'label': label}, lambda a, b: numpy_kl(both(a), both(b), 3.0)),
    (Regression, 2, {'y': np.ones((B, 2), 'f')}, lambda a, b: np.square(a - b).mean(-1)),
  ]
  for kind, outputs, targets, expected in cases:
    batch = numbers(**targets)
    inner = kind(MLP(outputs, (8,)))
    task = Distill(inner, MLP(outputs, (12, 5)), temperature=3.0, task_coef=0.5, kl_coef=2.0)
    variables = init(task, batch)
    found = loss_of(task, variables, batch)
    own = {'params': variables['params']}
    logits = [
      called(task.teacher, variables['teacher'], batch['x']),
      called(inner.model, own, batch['x']),
    ]
    values = (expected(*logits) * batch['weights']).sum()
    plain = loss_of(inner, own, batch)
    np.testing.assert_allclose(found.metrics['kl'], [values, batch['weights'].sum()], rtol=1e-4)
    np.testing.assert_allclose(found.sum, 0.5 * plain.sum + 2 * values, rtol=1e-4)
    assert float(found.count) == batch['weights'].sum()
    assert float(loss_of(task, variables, batch, False).sum) == float(plain.sum)


def test_tasks_of_tokens_against_numpy():
  encoder = lambda width: BERT(V, T, width=width, depth=1, heads=2, dropout=0.0)
  batch = texts() | {'segment_ids': np.ones((B, T), np.int32)}
  row = {'weights': np.arange(B).astype('f'), 'first': np.zeros(B, np.int32),
         'last': np.zeros(B, np.int32), 'context': np.ones((B, T), np.int32)}  # fmt: skip
  row['context'][:, 4:] = 0
  cases = [
    (CausalLM, gpt(), gpt(24, 2), batch, lambda out: out),
    (TokenClassification, Tagger(encoder(16), 4), Tagger(encoder(24), 4),
     batch | {'targets': batch['targets'] % 4}, lambda out: out),
    (QuestionAnswering, Tagger(encoder(16), 2), Tagger(encoder(24), 2), batch | row,
     lambda out: np.swapaxes(out[:, :4], 1, 2)),
  ]  # fmt: skip
  for kind, student, teacher, rows, read in cases:
    task = Distill(kind(student), teacher, temperature=2.0)
    variables = init(task, rows)
    inputs = task.innermost.inputs(rows)
    a = called(teacher, variables['teacher'], *inputs)
    b = called(student, {'params': variables['params']}, *inputs)
    each = numpy_kl(read(a), read(b), 2.0)
    each = each.mean(-1) if each.shape != rows['weights'].shape else each
    found = loss_of(task, variables, rows).metrics['kl']
    np.testing.assert_allclose(found[0], (each * rows['weights']).sum(), rtol=2e-4)


def test_masked_tokens_and_the_next_sentence():
  """A teacher equal to the student has no divergence, another one has, of both heads."""
  model = lambda width, n: Pretraining(BERT(V, T, width=width, depth=n, heads=2, dropout=0.0), True)
  batch = texts() | {'next': np.zeros(B, np.int32), 'weights': np.ones(B, 'f')}
  task = Distill(MaskedLM(model(16, 1)), model(16, 1))
  variables = init(task, batch)
  same = {**variables, 'teacher': {'params': variables['params']}}
  assert abs(float(loss_of(task, same, batch).metrics['kl'][0])) < 1e-4
  assert float(loss_of(task, variables, batch).metrics['kl'][0]) > 1e-3
  shift = lambda k, x: x + np.arange(2, dtype='f') if k == 'next/bias' else x
  moved = tree.map_named(shift, variables['params'])
  found = loss_of(task, {**same, 'params': moved}, batch).metrics['kl']
  assert float(found[0]) > 0.1


def test_chunks_of_logits_change_nothing(monkeypatch):
  """Values and gradients, with other paddings of the vocabulary in student and teacher."""
  task = Distill(CausalLM(gpt(), chunks=4), gpt(24, 2, vocab_pad=8), kl_coef=3.0)
  batch = texts()
  variables = init(task, batch)
  result = []
  for limit in (8192, 1):
    monkeypatch.setattr('bmx.tasks.language.CHUNKED_VOCAB', limit)
    assert bool(task.innermost.loss_method) == (limit == 1)
    grads = jit(Gradient(task), layout())(variables, batch, NOISE)
    result.append((grads.metrics['kl'], flat(grads.sum)))
  np.testing.assert_allclose(result[1][0], result[0][0], rtol=1e-5)
  np.testing.assert_allclose(result[1][1], result[0][1], atol=2e-5)


def flat(params):
  return np.concatenate([np.ravel(x) for x in jax.tree.leaves(jax.device_get(params))])


def matched(scan=False, **words):
  words = {'hidden': {'block_0': 'block_1', 'norm_out': 'norm_out'}, 'hidden_coef': 0.5,
           'attention': {'block_1': 'block_2'}, 'relation_heads': 4, **words}  # fmt: skip
  return Distill(CausalLM(gpt(16, 2, scan=scan)), gpt(24, 3, scan=scan), **words)


def test_hidden_states_against_numpy():
  task, batch = matched(), texts()
  variables = init(task, batch)
  assert {k for k in tree.named(variables['params']) if k.startswith('distill')} == {
    'distill/block_0/projection', 'distill/norm_out/projection'
  }  # fmt: skip
  found = loss_of(task, variables, batch)
  student = {'params': task.merged_params(variables)}
  assert 'distill' not in student['params']
  paths = (r'block_\d$', 'norm_out$', '(query|key|value)$')
  own, other = (
    jit(
      lambda v, t=t: t.forward(v, batch, NOISE, train=False, capture=paths)[0].captured, layout()
    )(v)
    for t, v in ((task.inner, student), (task.teacher_task, variables['teacher']))
  )
  projections = variables['params']['distill']
  real, rows = batch['weights'] > 0, batch['weights'].sum(1)

  def mean(error):
    return (error * real).sum(1) / np.maximum(real.sum(1), 1)

  expected = 0
  for name, a, b in (('block_0', 'stack/block_0', 'stack/block_1'), ('norm_out',) * 3):
    x = np.asarray(own[a]) @ np.asarray(projections[name]['projection'])
    expected += mean(np.square(x - np.asarray(other[b])).mean(-1)) / 2
  np.testing.assert_allclose(found.metrics['hidden'][0], (expected * rows).sum(), rtol=1e-4)

  def relation(x):
    x = np.asarray(x).reshape(B, T, 4, -1).transpose(0, 2, 1, 3)
    scores = x @ x.swapaxes(-1, -2) / x.shape[-1] ** 0.5
    same = real[:, None, :, None] == real[:, None, None, :]
    return np.where(same, scores, -1e30)

  expected = 0
  for part in ('query', 'key', 'value'):
    a = relation(own[f'stack/block_1/attention/{part}'])
    b = relation(other[f'stack/block_2/attention/{part}'])
    p, q = softmax(b), softmax(a)
    each = (p * (np.log(np.maximum(p, 1e-30)) - np.log(np.maximum(q, 1e-30)))).sum(-1)
    expected += mean(each.mean(1)) / 3
  np.testing.assert_allclose(found.metrics['attention'][0], (expected * rows).sum(), rtol=1e-4)
  terms = found.metrics
  total = terms['task_loss'][0] + terms['kl'][0] + 0.5 * terms['hidden'][0] + terms['attention'][0]
  np.testing.assert_allclose(found.sum, total, rtol=1e-5)


def test_the_teacher_gets_no_gradient_and_the_student_does():
  task, batch = matched(), texts()
  variables = init(task, batch)

  loss = lambda v: task.loss(v, batch, NOISE, train=True).sum
  grads = jit(jax.grad(loss), layout())(variables)
  assert not np.abs(flat(grads['teacher'])).any()
  assert all(np.abs(flat(g)).any() for k, g in tree.named(grads['params']).items())


def stacked(params):
  """Parameters of a scanned stack, from those of one without."""
  blocks = [params['stack'][f'block_{i}'] for i in range(len(params['stack']))]
  return {**params, 'stack': {'blocks': jax.tree.map(lambda *x: jnp.stack(x), *blocks)}}


@pytest.mark.nightly
def test_a_scan_is_a_loop():
  batch, task, scanned = texts(), matched(), matched(scan=True)
  variables = init(task, batch)
  params, teacher = variables['params'], variables['teacher']['params']
  given = {'params': stacked(params), 'teacher': {'params': stacked(teacher)}}
  found = [loss_of(task, variables, batch).metrics, loss_of(scanned, given, batch).metrics]
  for name in ('kl', 'hidden', 'attention'):
    np.testing.assert_allclose(found[1][name], found[0][name], rtol=1e-4)


@pytest.mark.nightly
def test_a_student_on_eight_devices_is_that_on_one():
  """Accumulated, averaged, scanned; data 8, and fsdp 4 × model 2."""
  task, batch, tx = matched(scan=True), texts(16), optax.sgd(0.2)
  spec = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}
  results = []
  for where, steps in ((layout(), 1), (layout(8, data=8), 2), (layout(8, fsdp=4, model=2), 2)):
    plan = plan_state(task, tx, spec, where, ema=0.9)
    step = make_train_step(
      Accumulate(Gradient(task), steps, 16), tx, ema=0.9, constant=task.constant
    )
    step = jit(step, where, out_shardings=(plan.shardings, None))
    state = plan.create()
    teacher = jax.device_get(state.collections['teacher'])
    for _ in range(2):
      state, metrics = step(state, batch)
    jax.tree.map(
      np.testing.assert_array_equal, jax.device_get(state.collections['teacher']), teacher
    )
    results.append((flat(state.ema['params']), flat(metrics)))
  for found in results[1:]:
    for a, b in zip(found, results[0], strict=True):
      assert np.linalg.norm(a - b) < 3e-6 * np.linalg.norm(b)


def test_a_padded_row_counts_nothing():
  x, y = jnp.ones((2, T, 4)), jnp.zeros((2, T, 4))
  batch = {'weights': np.zeros((2, T), 'f')}
  assert not np.asarray(hidden_error(x, y, batch)).any()
  heads = jnp.array(RANDOM.normal(size=(2, T, 2, 2)))
  assert not np.asarray(relation_error(heads, heads, 2, batch)).any()


@pytest.mark.parametrize(('change', 'message'), [
  ({'teacher': GPT(V + 1, T, width=16, depth=1, heads=2)}, r'teacher: expected vocab_size=32.*33'),
  ({'temperature': 0.0}, 'temperature=0.0: expected'),
  ({'kl_coef': 0.0}, 'kl_coef=0: expected above 0 without pairs'),
  ({'hidden': {'block_7': 'block_0'}}, "hidden: 'block_7' of the student: expected the path"),
  ({'hidden': {'block_0': 'query'}}, "hidden: 'query' of the teacher.*found stack/block_0/att"),
  ({'attention': {'block_0': 'block_0'}, 'relation_heads': 5}, 'relation_heads=5: expected a div'),
  ({'hidden': {'block_0': 'block_0/attention/query'}}, 'expected outputs that differ in'),
])  # fmt: skip
def test_bad_words(change, message):
  words = {'teacher': gpt(24, 2)} | change
  with pytest.raises(InputError, match=message):
    task = Distill(CausalLM(gpt()), **words)
    jax.eval_shape(lambda v: task.loss(v, texts(), NOISE, train=True), init(task, texts()))


def test_a_teacher_of_other_classes():
  with pytest.raises(InputError, match='teacher: expected num_outputs=3.*found 4'):
    Distill(
      TextClassification(Classifier(BERT(V, T, 8, 1, 2), 3)), Classifier(BERT(V, T, 8, 1, 2), 4)
    )


@pytest.mark.nightly
def test_adapters_of_a_student_learn_from_the_teacher():
  """The base does not move; the other order would lose the divergence and is refused."""
  batch, tx = texts(), optax.adam(1e-2)
  inner = LoRA(CausalLM(gpt(16, 2, scan=True)), rank=2)
  task = Distill(inner, gpt(24, 2), task_coef=0.0)
  spec = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}
  plan = plan_state(task, tx, spec, layout())
  assert set(plan.plain) == {'embed', 'norm_out', 'position', 'stack'}
  assert set(task.constant) == {'teacher', 'frozen'}
  step = jit(make_train_step(Gradient(task), tx, constant=task.constant), layout())
  teacher = init(task.teacher_task, batch)
  state, kl = plan.create({f'teacher/{k}': v for k, v in tree.named(teacher).items()}), []
  frozen = jax.device_get(state.collections)
  for _ in range(12):
    state, metrics = step(state, batch)
    kl.append(float(metrics['kl'][0] / metrics['kl'][1]))
  assert kl[-1] < 0.95 * kl[0]
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.collections), frozen)
  with pytest.raises(InputError, match=r'nest them the other way, Distill\(LoRA\(...\)\)'):
    LoRA(Distill(CausalLM(gpt()), gpt()))
