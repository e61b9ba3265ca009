"""Translation between config.json and the part of a recipe that builds the same model."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn

from bmx import config as recipes
from bmx.adapt import pairs, vision, whisper
from bmx.adapt.architectures import ARCHITECTURES
from bmx.adapt.families import (
  ACTIVATIONS,
  BERT,
  CLASSIFIER,
  DISTILBERT,
  GPT2,
  LLAMA,
  MISTRAL,
  PRETRAINING,
  QWEN2,
  QWEN3,
  ROBERTA,
  TAGGER,
  Family,
)
from bmx.adapt.meta import read_labels
from bmx.adapt.seq2seq import BART, MARIAN, T5, seq2seq_facts
from bmx.core.errors import InputError
from bmx.models import bert, clip
from bmx.models.gpt import GPT
from bmx.models.seq2seq import Seq2Seq
from bmx.models.whisper import Whisper
from bmx.ops.positions import ROPE_SCALING, rope_kind


def architecture(config: Mapping[str, Any]) -> str:
  """Returns the architecture of a config.json. Raises InputError if bmx does not know it."""
  names = config.get('architectures')
  for name in names[:1] if isinstance(names, list) else []:
    if name in list(ARCHITECTURES):
      return name
  raise InputError(f'architectures={names!r} is not one of {", ".join(ARCHITECTURES)}')


def translate(config: Mapping[str, Any]) -> dict[str, Any]:
  """Translates a config.json to the part of its model. Raises InputError: see `hub.part`."""
  name = architecture(config)
  found, problems = ARCHITECTURES[name], []
  family, head = found.family, found.head
  part = _body(family, config, found.only, problems) | dict(found.fixed)
  labels = len(read_labels(config)) or config.get('num_labels') or 2
  if problems:
    lines = '\n  '.join(dict.fromkeys(problems))
    raise InputError(f'bmx cannot reproduce this {name}:\n  {lines}')
  if 'first_position' in family.keys:
    part['first_position'] += 1  # the rows up to that of padding belong to no position
    part['max_seq_len'] -= part['first_position']
  if family.classes:
    part['num_outputs'] = labels
  if head is None:
    return part
  return {**head, 'encoder': part} | (
    {'num_outputs': labels} if head['call'] in (CLASSIFIER, TAGGER) else {}
  )


def _body(
  family: Family,
  config: Mapping[str, Any],
  only: Mapping[str, tuple[Any, ...]],
  problems: list[str],
) -> dict[str, Any]:
  """Returns the part of a body; appends a line for each value that bmx cannot reproduce."""
  config = {**family.missing, **config}
  config |= {key: config[alias] for alias, key in family.aliases.items() if alias in config}
  for key, allowed in {**family.only, **only}.items():
    value = config.get(key)
    values = value if isinstance(value, list) else [] if value is None else [value]
    if any(v not in allowed for v in values):
      problems.append(f'{key}={value!r}: supported is {", ".join(map(repr, allowed)) or "none"}')
  part: dict[str, Any] = {'call': family.call, **family.fixed}
  part |= family.read(config, problems) if family.read else {}
  for argument, (key, default) in family.keys.items():
    part[argument] = _value(config, argument, key, default, problems)
  if part.get('positions') == 'rotary':
    part |= _rope(config, problems)
  for argument, (key, inner) in family.parts.items():
    part[argument] = _inner(config, family, key, inner, problems)
  return part


def _inner(
  config: Mapping[str, Any], family: Family, key: str, inner: Family, problems: list[str]
) -> dict[str, Any]:
  """Returns the part of a model in a model. KEY_dict replaces KEY, as in transformers."""
  given = config.get(f'{key}_dict')
  given = config.get(key) if given is None else given
  given = {} if given is None else given
  if not isinstance(given, dict):
    problems.append(f'{key}={given!r}: expected an object')
    return {}
  shared = {k: v if config.get(k) is None else config[k] for k, v in family.shared.items()}
  lines: list[str] = []
  part = _body(inner, given | shared, {}, lines)
  problems += [f'{key}.{line}' for line in lines]
  return part


def _value(
  config: Mapping[str, Any], argument: str, key: str, default: Any, problems: list[str]
) -> Any:
  value = default if config.get(key) is None else config[key]
  if argument == 'activation':
    if value not in list(ACTIVATIONS):
      problems.append(f'{key}={value!r}: supported are {", ".join(ACTIVATIONS)}')
    return ACTIVATIONS.get(str(value))
  kind = int if default is None else type(default)
  whole = kind is int and config.get(key) is not None  # a default 0 leaves the number to the model
  least = 1 if (whole or default is None) and argument != 'first_position' else 0
  if type(value) not in ((int, float) if kind is float else (kind,)) or value < least:
    problems.append(f'{key}={value!r}: expected {kind.__name__}, at least {kind(least)}')
  return value


def _rope(config: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
  """Reads rotary positions: `rope_scaling` wins over `rope_parameters`, as in transformers 5.

  If the winner has no base, the config's `rope_theta` is the base; the original length is the
  config's `original_max_position_embeddings`, if it has one.
  """
  word = 'rope_scaling' if config.get('rope_scaling') else 'rope_parameters'
  given = config.get(word) or {}
  if not isinstance(given, dict):
    problems.append(f'{word}={given!r}: expected a mapping')
    given = {}
  rope = {
    'rope_theta': config.get('rope_theta') or 10_000.0,
    'original_max_position_embeddings': config.get('max_position_embeddings'),
    'partial_rotary_factor': config.get('partial_rotary_factor', 1.0),
  } | {k: v for k, v in given.items() if v is not None}  # fmt: skip
  kind = rope.pop('rope_type', rope.pop('type', 'default'))
  rope.pop('type', None)
  share = rope.pop('partial_rotary_factor')
  if share not in (None, 1):
    problems.append(f'partial_rotary_factor={share!r}: supported is 1.0')
  if config.get('original_max_position_embeddings') is not None:
    rope['original_max_position_embeddings'] = config['original_max_position_embeddings']
  if kind not in list(ROPE_SCALING):
    problems.append(
      f'{word}.rope_type={kind!r}: supported are {", ".join(map(repr, ROPE_SCALING))}'
    )
    return {}
  if kind == 'yarn':
    rope = {'factor': None, 'beta_fast': 32.0, 'beta_slow': 1.0, 'truncate': True} | rope
    rope |= _yarn(rope, config, problems)
  for key in ('rope_theta', *ROPE_SCALING[kind]):
    if type(rope.get(key)) not in (int, float) or not math.isfinite(rope[key]):
      problems.append(f'{word}.{key}={rope.get(key)!r}: expected float, such as 1.0')
    elif rope[key] <= 0 and key != 'truncate':
      problems.append(f'{word}.{key}={rope[key]!r}: expected above 0')
  known = list(dict.fromkeys(x for names in ROPE_SCALING.values() for x in names))
  for key in sorted(rope.keys() - {'rope_theta', *known, *MSCALES}):
    problems.append(f'{word}.{key}={rope[key]!r}: supported are rope_theta, {", ".join(known)}')
  scaling = {key: rope.get(key) for key in ROPE_SCALING[kind]}
  return {'theta': rope['rope_theta'], 'rope_scaling': scaling}


MSCALES = ('mscale', 'mscale_all_dim')  # `attention_factor` of yarn in DeepSeek's words


def _yarn(
  rope: Mapping[str, Any], config: Mapping[str, Any], problems: list[str]
) -> dict[str, Any]:
  """Computes the values that a config omits, as transformers does."""
  truncate, numbers = rope['truncate'], {k: rope.get(k) for k in ('attention_factor', *MSCALES)}
  if not isinstance(truncate, bool):
    problems.append(f'truncate={truncate!r}: expected bool')
  if any(type(x) not in (int, float) for x in numbers.values() if x is not None):
    problems.append(f'{numbers}: expected floats')
    return {}
  factor, longest = rope['factor'], config.get('max_position_embeddings')
  original = rope['original_max_position_embeddings']
  if factor is None and isinstance(longest, int) and isinstance(original, int | float) and original:
    factor = longest / original
  if not isinstance(factor, int | float):
    return {'truncate': float(bool(truncate))}
  longer = math.log(max(1.0, factor))

  def size(mscale: float) -> float:
    return 0.1 * mscale * longer + 1.0

  attention, one, all_dim = numbers.values()
  if attention is None:
    attention = size(one) / size(all_dim) if one and all_dim else size(1.0)
  return {'factor': factor, 'truncate': float(bool(truncate)), 'attention_factor': attention}


def describe(model: nn.Module, labels: Sequence[str] = (), name: str = '') -> dict[str, Any]:
  """Returns the config.json of a model; inverse of `translate`.

  Args:
    model: a GPT, a BERT, or one with a head; a Seq2Seq or a Whisper; a ResNet, a ViT or a CLIP.
    labels: names of classes or tags by number.
    name: of the architecture, one of those that fit the model; '' is the first.

  Raises:
    InputError: a model without an architecture of transformers; lists the differences from the
      most similar one.
  """
  core: Any = model.encoder if isinstance(model, bert.HEADED) else model
  family = _family(core)
  name = _architecture(model, family, name)
  config = {'architectures': [name], **_keys(family, core)}
  if isinstance(model, bert.Classifier | bert.Tagger) or family.classes:
    config |= _labels(labels or [f'LABEL_{i}' for i in range(model.num_outputs)], model.num_outputs)
  again = recipes.build(translate(config), name)
  same = _facts(again.encoder if isinstance(again, bert.HEADED) else again)
  lines = [f'{k}={v!r}: it has {same[k]!r}' for k, v in _facts(core).items() if v != same[k]]
  if lines:
    raise InputError('\n  '.join([f'the model is not a {name} of transformers:', *lines]))
  return config


def _keys(family: Family, core: Any) -> dict[str, Any]:
  """Returns the keys of config.json of a body; inverse of `_body`."""
  values = _facts(core)
  if 'dropout' in family.keys:
    values['dropout'] = core.dropout
  if 'activation' in family.keys:
    values['activation'] = next((k for k, v in ACTIVATIONS.items() if v == core.activation), '')
  if family is ROBERTA:
    values['max_seq_len'] += values['first_position']
    values['first_position'] -= 1
  config = {'model_type': family.model_type, **family.written}
  config |= {k: v[0] for k, v in family.only.items() if v and isinstance(v[0], bool)}
  config |= {key: values[argument] for argument, (key, _) in family.keys.items()}
  config |= dict.fromkeys(family.rates, values.get('dropout'))
  config |= family.write(core) if family.write else {}
  config |= {key: _keys(inner, getattr(core, k)) for k, (key, inner) in family.parts.items()}
  rotary = family.fixed.get('positions') == 'rotary'
  return config | (_rope_keys(core) if rotary else {})


def _labels(labels: Sequence[str], outputs: int) -> dict[str, Any]:
  if len(labels) != outputs or len(set(labels)) != outputs:
    raise InputError(f'labels={list(labels)}: expected {outputs} different names')
  return {
    'id2label': {str(i): name for i, name in enumerate(labels)},
    'label2id': {name: i for i, name in enumerate(labels)},
  }


def _rope_keys(core: GPT) -> dict[str, Any]:
  """Returns the keys of rotary positions, in the words of transformers 5 and of 4."""
  scaling: dict[str, Any] = dict(core.rope_scaling)
  if 'truncate' in scaling:
    scaling['truncate'] = bool(scaling['truncate'])
  rope = {'rope_type': rope_kind(scaling), **scaling}
  return {
    'rope_parameters': rope | {'rope_theta': core.theta},
    'rope_theta': core.theta,
    'rope_scaling': rope if scaling else None,
  }


def _family(core: Any) -> Family:
  if isinstance(core, vision.MODELS):
    return vision.family_of(core)
  if isinstance(core, Seq2Seq):
    return {'learned': BART, 'relative': T5}.get(core.positions, MARIAN)
  if isinstance(core, clip.CLIP):
    return pairs.family_of(core)
  if isinstance(core, Whisper):
    return whisper.WHISPER
  if isinstance(core, bert.BERT):
    if core.first_position:
      return ROBERTA
    return BERT if core.types else DISTILBERT
  if not isinstance(core, GPT):
    raise InputError(f'model={type(core).__name__}: expected one of {", ".join(ARCHITECTURES)}')
  if core.positions == 'learned':
    return GPT2
  if core.qk_norm:
    return QWEN3
  plain = core.bias or core.out_bias or not core.qkv_bias
  if core.window and plain:
    return MISTRAL
  return LLAMA if plain else QWEN2


def _architecture(model: Any, family: Family, wanted: str) -> str:
  kind = type(model).__name__
  head = {'call': f'bmx.models.bert:{kind}'} if isinstance(model, bert.HEADED) else None
  if isinstance(model, bert.Pretraining):
    head = {'call': PRETRAINING, 'next_sentence': model.next_sentence}
  names = {n: a for n, a in ARCHITECTURES.items()
           if a.family is family and not (family.classes and a.bare)}  # fmt: skip
  for name, known in names.items():
    alike = all(getattr(model, k) == v for k, v in known.fixed.items())
    if known.head == head and alike and wanted in ('', name):
      return name
  kind = f'{wanted} {head or kind}'.strip()
  raise InputError(f'{kind} of {family.model_type}: expected one of {", ".join(names)}')


# Arguments of training and computation, which do not change the function of the model.
FREE = (
  'dropout', 'vocab_pad', 'attention', 'scan', 'remat', 'microbatches', 'dtype', 'top_k',
  'capacity_factor', 'load_balance_coef', 'router_z_coef', 'parent', 'name', 'drop_path',
  'zero_init', 'momentum', 'groups', 'embed_stddev', 'kv_cache',
)  # fmt: skip


def _facts(core: Any) -> dict[str, Any]:
  """Returns the arguments that define a model, in a unique form."""
  if isinstance(core, vision.MODELS):
    return vision.facts(core, FREE)
  if isinstance(core, clip.CLIP):
    return pairs.facts(core, _facts)
  facts = {f.name: getattr(core, f.name) for f in dataclasses.fields(core) if f.name not in FREE}
  facts['mlp_dim'] = core.mlp_dim or 4 * core.width
  if isinstance(core, clip.TextTower):
    return facts | ({'end_token': -1} if core.pool == 'last' else {})
  if isinstance(core, Whisper):
    return facts | whisper.facts(core)
  facts['head_dim'] = core.head_dim or core.width // core.heads
  if isinstance(core, bert.BERT):
    return facts
  if isinstance(core, Seq2Seq):
    return facts | seq2seq_facts(core)
  rotary = core.positions == 'rotary'
  biases = {k: core.bias or getattr(core, k) for k in ('qkv_bias', 'out_bias', 'mlp_bias')}
  return facts | biases | {
    'bias': core.bias and core.norm == 'layer',
    'kv_heads': core.kv_heads or core.heads,
    'theta': core.theta if rotary else 0.0,
    'rope_scaling': {k: float(v) for k, v in core.rope_scaling.items()} if rotary else {},
  }  # fmt: skip
