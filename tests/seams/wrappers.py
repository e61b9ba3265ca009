"""Throw-away tasks, wrappers and gradients that prove the seams: each as a user would write it."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.core import tree
from bmx.core.metrics import weighted
from bmx.core.types import Facts, Grads, Out
from bmx.parallel import named
from bmx.parallel.sharding import is_named
from bmx.tasks.common import BaseTask, Wrapper
from bmx.train.gradients import GradWrapper


@dataclasses.dataclass(frozen=True)
class LoRA(Wrapper):
  """Low-rank adapters of query and value kernels over a frozen base (Hu et al. 2022)."""

  rank: int = 2

  @property
  def constant(self):
    return ('frozen', *self.inner.constant)

  def init(self, noise, batch):
    variables = dict(self.inner.init(noise, batch))
    base, adapters = variables.pop('params'), {}
    for name, box in tree.named(base, is_leaf=is_named).items():
      if name.endswith(('query/kernel', 'value/kernel')):
        lead = box.names[:1] if box.names[0] == 'layers' else ()
        layers, width = box.value.shape[: len(lead)], box.value.shape[len(lead)]
        out = box.value[(0,) * (len(lead) + 1)].size
        key = noise.fold(len(adapters)).key
        normal = named(nn.initializers.normal(0.02), (*lead, 'embed', None))
        zeros = named(nn.initializers.zeros_init(), (*lead, None, None))
        adapters[f'{name}/a'] = normal(key, (*layers, width, self.rank), jnp.float32)
        adapters[f'{name}/b'] = zeros(key, (*layers, self.rank, out), jnp.float32)
    return {**variables, 'params': tree.nested(adapters), 'frozen': base}

  def merged_params(self, variables):
    adapters = tree.named(variables['params'])

    def one(name, base):
      if f'{name}/a' not in adapters:
        return base
      return base + (adapters[f'{name}/a'] @ adapters[f'{name}/b']).reshape(base.shape)

    return tree.map_named(one, variables['frozen'])

  def take(self, variables, given):
    return {**variables, 'frozen': given}

  def forward(self, variables, batch, noise, *, train, method='loss', **apply):
    inner = {k: v for k, v in variables.items() if k != 'frozen'}
    inner['params'] = self.merged_params(variables)
    return self.inner.forward(inner, batch, noise, train=train, method=method, **apply)


@dataclasses.dataclass(frozen=True)
class Distill(Wrapper):
  """The student's loss plus the KL divergence from a frozen teacher (Hinton et al. 2015)."""

  teacher: Any = None

  @property
  def constant(self):
    return ('teacher', *self.inner.constant)

  @property
  def sources(self):
    return {**self.inner.sources, 'teacher': ('', self.teacher)}

  def init(self, noise, batch):
    return {**self.inner.init(noise, batch), 'teacher': self.teacher.init(noise.fold(7), batch)}

  def forward(self, variables, batch, noise, *, train, method='loss', **apply):
    own = {k: v for k, v in variables.items() if k != 'teacher'}
    out, new = self.inner.forward(own, batch, noise, train=train, method=method, **apply)
    if method != 'loss':
      return out, new
    teacher, _ = self.teacher.forward(variables['teacher'], batch, noise, train=False)
    return out._replace(value=(out.value, teacher.value)), new

  def score(self, out, batch, *, train):
    student, teacher = out
    total, count, metrics = self.inner.score(student, batch, train=train)
    log = jax.nn.log_softmax(teacher.astype(jnp.float32))
    each = (jnp.exp(log) * (log - jax.nn.log_softmax(student.astype(jnp.float32)))).sum(-1)
    kl = weighted(each, batch['weights'])
    return total + kl[0], count, metrics | {'kl': kl}


@dataclasses.dataclass(frozen=True)
class ClipEach(GradWrapper):
  """Sums the gradients of single examples, each clipped to norm 1; a constant divides them."""

  batch_size: int
  clip: float = 1.0

  def __call__(self, variables, batch, noise):
    from bmx.parallel import vmap_examples

    def one(example):
      grads = self.inner(variables, jax.tree.map(lambda x: x[None], example), noise)
      norm = jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(grads.sum)))
      factor = jnp.minimum(1.0, self.clip / jnp.maximum(norm, 1e-12))
      return jax.tree.map(lambda g: g * factor, grads.sum), grads.metrics

    grads, metrics = vmap_examples(one)(batch)
    add = lambda tree: jax.tree.map(lambda x: x.sum(0), tree)
    return Grads(add(grads), jnp.float32(self.batch_size), add(metrics), {})


class Generator(nn.Module):
  """Noise -> points in the plane."""

  @nn.compact
  def __call__(self, z):
    return nn.Dense(2, name='out')(nn.relu(nn.Dense(16, name='in')(z)))


class Discriminator(nn.Module):
  """Points -> logit of being real."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(1, name='out')(nn.relu(nn.Dense(16, name='in')(x)))[:, 0]


class Pair(nn.Module):
  """Both networks of a GAN, as one model."""

  facts = Facts()

  def setup(self):
    self.generator, self.discriminator = Generator(), Discriminator()

  def __call__(self, x, z, *, train=False):
    fake = self.generator(z)
    return self.discriminator(x), self.discriminator(fake), fake


@dataclasses.dataclass(frozen=True)
class GAN(BaseTask):
  """A two-network task: non-saturating losses, each network's gradient stopped at the other."""

  model: nn.Module = dataclasses.field(default_factory=Pair)
  constant = ()
  averaged = ('batch_stats',)
  coupling = 'none'
  labels_for_metrics = ()

  @property
  def sources(self):
    return {}

  def init(self, noise, batch):
    return self.model.init(noise.key, batch['x'], batch['z'])

  def prepare(self, batch, noise, *, train):
    return batch | {'z': jax.random.normal(noise.key, batch['z'].shape)}

  def forward(self, variables, batch, noise, *, train, method='loss', **apply):
    params, stop = variables['params'], jax.lax.stop_gradient
    real, fake, points = self.model.apply(
      {'params': {**params, 'generator': stop(params['generator'])}}, batch['x'], batch['z']
    )
    judged = self.model.apply(
      {'params': {**params, 'discriminator': stop(params['discriminator'])}}, batch['x'], batch['z']
    )[1]
    return Out({'real': real, 'fake': fake, 'judged': judged, 'points': points}, {}, {}), {}

  def score(self, out, batch, *, train):
    d = jax.nn.softplus(-out['real']) + jax.nn.softplus(out['fake'])
    g = jax.nn.softplus(-out['judged'])
    d_loss, g_loss = weighted(d, batch['weights']), weighted(g, batch['weights'])
    metrics = {'discriminator_loss': d_loss, 'generator_loss': g_loss}
    return d_loss[0] + g_loss[0], d_loss[1], metrics

  def postprocess(self, out, batch):
    return {'prediction': out['points']}

  def merged_params(self, variables):
    return variables['params']

  def take(self, variables, given):
    return {**variables, 'params': given}

  def validate(self, metadata):
    pass
