"""Sizes of a language model around those of its recipe, and the one nearest a number."""

import dataclasses
import math
from typing import Any

from bmx.core.errors import InputError
from bmx.core.experiment import Experiment
from bmx.models.gpt import GPT
from bmx.plan import memory
from bmx.train.start import published_parameters
from bmx.train.state import state_spec

STRETCH = 1.6  # by which the depth may leave the recipe's ratio of width to depth


@dataclasses.dataclass(frozen=True)
class Sized:
  """A size of a recipe.

  Attributes:
    words: of the config that set it.
    parameters: exact, with embeddings, without padding.
  """

  words: dict[str, int]
  parameters: int


@dataclasses.dataclass
class Sizes:
  """Models like that of an experiment: the same size of a head, about as wide for their depth.

  Attributes:
    x: of the recipe, on any device.
  """

  x: Experiment

  def __post_init__(self) -> None:
    self.model: Any = memory.innermost(self.x.task).model
    if not isinstance(self.model, GPT):
      raise InputError(
        f'{type(self.model).__name__}: expected a decoder (bmx.models.gpt:GPT), as the scaling '
        'laws are of language models'
      )

  def nearest(self, parameters: float) -> Sized:
    """Returns the size whose number of parameters is nearest; depth is chosen after width.

    Raises InputError if the smallest model is larger.
    """
    heads = self._widest(parameters)
    deep = self._depth(heads)
    one, two = self._size(heads, deep), self._size(heads, deep + 1)
    layer = two.parameters - one.parameters
    least, most = math.ceil(deep / STRETCH), int(deep * STRETCH)
    wanted = deep + round((parameters - one.parameters) / layer)
    return self._size(heads, min(max(wanted, least, 1), most))

  def _widest(self, parameters: float) -> int:
    """Returns the most heads with which a model is not larger than asked for, by bisection."""
    group = self._group()
    low, high = group, 2 * group
    smallest = self._size(low, self._depth(low)).parameters
    if smallest > parameters:
      raise InputError(
        f'--budget: the law asks for {parameters:,.0f} parameters, and the smallest model of the '
        f'recipe has {smallest:,}; raise the budget, or use a smaller vocabulary'
      )
    while self._size(high, self._depth(high)).parameters <= parameters:
      low, high = high, 2 * high
    while high - low > group:
      middle = (low + high) // 2 // group * group
      fits = self._size(middle, self._depth(middle)).parameters <= parameters
      low, high = (middle, high) if fits else (low, middle)
    return low

  def _group(self) -> int:
    """Heads of the recipe that share keys."""
    return self.model.heads // self.model.kv_heads if self.model.kv_heads else 1

  def _depth(self, heads: int) -> int:
    return max(1, round(self.model.depth * heads / self.model.heads))

  def _size(self, heads: int, depth: int) -> Sized:
    model, share = self.model, heads / self.model.heads
    fields = {'heads': heads, 'depth': depth, 'width': model.width // model.heads * heads}
    if model.kv_heads:
      fields['kv_heads'] = heads // self._group()
    if model.mlp_dim:
      fields['mlp_dim'] = round(model.mlp_dim * share / 64) * 64 or 64
    words = {memory.word(self.x.task, name): value for name, value in fields.items()}
    task = memory.with_model(self.x.task, **fields)
    x = dataclasses.replace(self.x, task=task)
    return Sized(words, published_parameters(x, state_spec(x)))
