"""Stored outputs of a teacher: the divergence of the online teacher, for the rows it has read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.compress.distill import Distill
from bmx.compress.divergence import top_kl
from bmx.compress.offline import DistillStored, store
from bmx.core.errors import InputError
from bmx.core.types import Noise
from bmx.data.taught import Taught
from bmx.parallel import unbox
from bmx.tasks.regression import Regression
from tests.compress.test_distill import RANDOM, loss_of, numpy_kl, softmax

NOISE = Noise(jax.random.PRNGKey(3), jnp.int32(0))


def test_the_rest_of_the_classes_is_one_class():
  a, b, t = *RANDOM.normal(size=(2, 5, 9)) * 2, 1.5
  p, q = softmax(a / t), softmax(b / t)
  ids = np.argsort(-p, -1)[:, :3]
  pick = lambda x: np.take_along_axis(x, ids, -1)
  joined = lambda x: np.concatenate([pick(x), 1 - pick(x).sum(-1, keepdims=True)], -1)
  expected = t * t * (joined(p) * (np.log(joined(p)) - np.log(joined(q)))).sum(-1)
  found = top_kl(jnp.array(ids), jnp.array(np.log(pick(p)), 'f'), jnp.array(b, 'f'), t)
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  every = np.broadcast_to(np.arange(9), (5, 9))
  found = top_kl(jnp.array(every), jnp.array(np.log(p), 'f'), jnp.array(b, 'f'), t)
  np.testing.assert_allclose(found, numpy_kl(a, b, t), rtol=1e-4)


def config(name, *words):
  return recipes.load(f'{name}:tiny', ['mesh.data=1', 'steps=4', *words])[0]


def build(c):
  return experiment.build(c, 'run', jax.devices()[:1])


def compared(c, folder, k):
  """Divergences of a batch: of the online teacher, and of stored outputs."""
  task = c.task.to_dict()
  teacher = build(c)
  shapes = unbox(jax.eval_shape(lambda: teacher.task.init(NOISE, _rows(teacher))))
  fill = lambda: jax.tree.map(lambda x: RANDOM.normal(0, 0.3, x.shape).astype('f'), shapes)
  variables, student = fill(), fill()
  store(teacher, variables, str(folder), k, 2.0)
  c.data = {'call': 'bmx.data.taught:Taught', 'inner': c.data.to_dict(), 'folder': str(folder)}
  c.eval = {}
  c.task = {'call': 'bmx.compress.offline:DistillStored', 'inner': task, 'temperature': 2.0}
  made = build(c)
  rows = _rows(made)
  stored = loss_of(made.task, student, rows).metrics['kl']
  online = Distill(made.task.inner, made.task.model, temperature=2.0)
  both = {**student, 'teacher': variables}
  return stored, loss_of(online, both, rows).metrics['kl'], made


def _rows(made):
  numbers = made.data.indices(0)[0]
  return jax.tree.map(jnp.asarray, made.data.rows(numbers, np.arange(len(numbers))))


def test_all_classes_are_the_online_teacher(tmp_path):
  c = config('digits_mlp', 'data.crop=0', 'task.model.dropout=0.0')
  stored, online, made = compared(c, tmp_path / 'outputs', 10)
  np.testing.assert_allclose(stored, online, rtol=1e-4)
  with pytest.raises(InputError, match='temperature=1.0: expected 2.0, that of the stored outputs'):
    DistillStored(made.task.inner, 1.0).validate(made.data.metadata)
  with pytest.raises(InputError, match='data: expected outputs of a teacher; wrap the training'):
    rows = {k: v for k, v in _rows(made).items() if 'teacher' not in k}
    jax.eval_shape(
      lambda v: made.task.loss(v, rows, NOISE, train=True), made.task.init(NOISE, rows)
    )
  c.data.inner.crop = 1
  with pytest.raises(InputError, match='expected the row that the teacher of .* has read'):
    _rows(build(c))
  c.data.inner.split = 'test'
  with pytest.raises(InputError, match='expected the outputs of 360 examples, found those of 1437'):
    build(c)


def test_tokens_in_chunks(tmp_path, monkeypatch):
  (tmp_path / 'a.txt').write_text('to be or not to be, that is the question\n' * 30)
  words = [f'data.path={tmp_path}/a.txt', 'data.train=False', 'task.model.depth=1']
  c = config('gpt_char', *words, 'length=16', 'batch_size=4', 'task.model.width=16')
  monkeypatch.setattr('bmx.tasks.language.CHUNKED_VOCAB', 1)
  stored, online, _ = compared(c, tmp_path / 'outputs', 256)
  np.testing.assert_allclose(stored, online, rtol=1e-3)


def test_other_tasks_and_folders(tmp_path):
  with pytest.raises(InputError, match='Regression: expected one of Classification, TokenClass'):
    DistillStored(Regression(build(config('digits_mlp')).task.model))
  with pytest.raises(InputError, match='expected the stored outputs of a teacher, which'):
    Taught(build(config('digits_mlp')).data.examples, str(tmp_path))
