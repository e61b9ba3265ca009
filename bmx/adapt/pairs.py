"""CLIP and SigLIP of Hugging Face: two towers in one folder, and keys of config.json.

Source: modeling_*.py and configuration_*.py of clip and siglip in transformers 5.24, and the
published file of openai/clip-vit-base-patch32.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax

from bmx.adapt import vision
from bmx.adapt.families import ONLY, Architecture, Family
from bmx.adapt.layouts import Rule, dense, norm, tower_blocks
from bmx.adapt.meta import Ids
from bmx.core.errors import InputError
from bmx.models import clip
from bmx.models.vit import ViT

LARGEST_ID = 2  # `eos_token_id` of old files, which transformers reads as the largest id of a text
_TOWER = 'text_model'
_BODY = [
  Rule('embed/table', f'{_TOWER}.embeddings.token_embedding.weight', 'vd', 'vd'),
  Rule('position', f'{_TOWER}.embeddings.position_embedding.weight', 'pd', 'pd'),
  *tower_blocks(f'{_TOWER}.encoder.layers.*'),
  *norm('norm_out', f'{_TOWER}.final_layer_norm'),
]


def _read_text(config: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
  """Reads the token that ends a text."""
  end, size = config.get('eos_token_id', 49_407), config.get('vocab_size', 49_408)
  if type(end) is not int or type(size) is not int or not 0 <= end < size:
    problems.append(f'eos_token_id={end!r}: expected one id below vocab_size={size!r}')
    return {}
  return {'end_token': size - 1 if end == LARGEST_ID else end}


def _write_text(model: clip.TextTower) -> dict[str, Any]:
  if model.end_token == LARGEST_ID:
    raise InputError(f'end_token={LARGEST_ID}: expected another id, as transformers reads it as '
                     'the largest of a text')  # fmt: skip
  return {'eos_token_id': model.end_token}


TEXT = Family(
  'clip_text_model', 'bmx.models.clip:TextTower', 'text_model.',
  [*_BODY, Rule('head/kernel', 'text_projection.weight', 'dc', 'cd')], (),
  copies={},
  keys={
    'vocab_size': ('vocab_size', 49_408), 'max_seq_len': ('max_position_embeddings', 77),
    'width': ('hidden_size', 512), 'depth': ('num_hidden_layers', 12),
    'heads': ('num_attention_heads', 8), 'mlp_dim': ('intermediate_size', 2048),
    'num_outputs': ('projection_dim', 512), 'activation': ('hidden_act', 'quick_gelu'),
    'eps': ('layer_norm_eps', 1e-5),
  },
  only=ONLY,
  written={'attention_dropout': 0.0, 'bos_token_id': None, 'pad_token_id': None},
  read=_read_text,
  write=_write_text,
)  # fmt: skip


def _read_siglip_text(config: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
  """Reads the size of the embedding, by default that of the hidden states."""
  width, size = config.get('hidden_size') or 768, config.get('projection_size')
  size = width if size is None else size
  if type(size) is not int or size < 1:
    problems.append(f'projection_size={size!r}: expected int, at least 1')
  return {'num_outputs': size}


SIGLIP_TEXT = Family(
  'siglip_text_model', TEXT.call, 'text_model.',
  [*_BODY, *dense('head', f'{_TOWER}.head', 'dc', 'cd', 'c')], (),
  copies={},
  keys={
    'vocab_size': ('vocab_size', 32_000), 'max_seq_len': ('max_position_embeddings', 64),
    'width': ('hidden_size', 768), 'depth': ('num_hidden_layers', 12),
    'heads': ('num_attention_heads', 12), 'mlp_dim': ('intermediate_size', 3072),
    'activation': ('hidden_act', 'gelu_pytorch_tanh'), 'eps': ('layer_norm_eps', 1e-6),
  },
  only=ONLY,
  written={'attention_dropout': 0.0, 'bos_token_id': None, 'eos_token_id': None,
           'pad_token_id': None},
  # The default ids lie beyond the default vocabulary; the tower reads none of them.
  fixed={'causal': False, 'pool': 'last', 'head_bias': True, 'end_token': -1},
  read=_read_siglip_text,
  write=lambda model: {'projection_size': model.num_outputs, **vision.published_gelu(model)},
)  # fmt: skip


def _inside(name: str, rules: Any) -> list[Rule]:
  return [dataclasses.replace(rule, name=f'{name}/{rule.name}') for rule in rules]


def _read(config: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
  """Reads the initial temperature, which matters where `logit_scale` is not read."""
  value = config.get('logit_scale_init_value')
  value = 2.6592 if value is None else value
  if type(value) not in (int, float) or not -80 < value < 80:
    problems.append(f'logit_scale_init_value={value!r}: expected a number, such as 2.6592')
    return {}
  return {'temperature': math.exp(-value)}


def _write(model: clip.CLIP) -> dict[str, Any]:
  return {
    'projection_dim': model.text.facts.num_outputs,
    'logit_scale_init_value': round(-math.log(model.temperature), 6),
  }


CLIP = Family(
  'clip', 'bmx.models.clip:CLIP', '',
  [
    *_inside('image', [*vision.CLIP.body, *vision.CLIP.heads]), *_inside('text', TEXT.body),
    Rule('logit_scale', 'logit_scale', '', ''),
  ],
  (),
  copies={},
  keys={},
  only=ONLY,
  written={},
  read=_read,
  write=_write,
  parts={'image': ('vision_config', vision.CLIP), 'text': ('text_config', TEXT)},
  shared={'projection_dim': 512},
)  # fmt: skip


SIGLIP = Family(
  'siglip', CLIP.call, '',
  [
    *_inside('image', vision.SIGLIP.body), *_inside('text', SIGLIP_TEXT.body),
    Rule('logit_scale', 'logit_scale', '', '1'), Rule('logit_bias', 'logit_bias', '', '1'),
  ],
  (),
  copies={},
  keys={},
  only=ONLY,
  written={},
  fixed={'bias': True, 'temperature': 0.1},
  parts={'image': ('vision_config', vision.SIGLIP), 'text': ('text_config', SIGLIP_TEXT)},
)  # fmt: skip


def family_of(model: clip.CLIP) -> Family:
  """Returns the family of CLIP or of SigLIP, by the image tower.

  Raises InputError for a tower of another kind.
  """
  if not isinstance(model.text, clip.TextTower):
    raise InputError(f'task.model.text={type(model.text).__name__}: expected a TextTower, as '
                     'transformers has no other')  # fmt: skip
  found = vision.family_of(model.image) if isinstance(model.image, ViT) else None
  if found is vision.SIGLIP:
    return SIGLIP
  if found is not vision.CLIP:
    raise InputError(f'task.model.image={type(model.image).__name__}: expected the ViT of a CLIP, '
                     'with pre_norm=True, patch_bias=False, head_bias=False; or that of a SigLIP, '
                     "with pool='attention', project=False")  # fmt: skip
  return CLIP


PAIRS = {'CLIPModel': Architecture(CLIP), 'SiglipModel': Architecture(SIGLIP)}


def facts(model: clip.CLIP, of: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
  """Returns the arguments that define both towers, in a unique form.

  Args:
    model: two towers.
    of: facts of a tower.
  """
  found = {f'image.{k}': v for k, v in of(model.image).items()}
  found |= {f'text.{k}': v for k, v in of(model.text).items()}
  return found | {'bias': model.bias}


def image_of(model: clip.CLIP, params: Any) -> jax.ShapeDtypeStruct:
  """Returns an image that a model with these parameters reads: [1, I, J, C]."""
  tower: Any = model.image
  return vision.image(tower, params['image'])


def complete(config: dict[str, Any], model: clip.CLIP, params: Any, ids: Ids) -> None:
  """Adds to a written config.json the channels of the images, and ids of the tokenizer."""
  image, text = config['vision_config'], config['text_config']
  image['num_channels'] = image_of(model, params).shape[-1]
  ended = model.text.pool == 'end'  # by an id that the model knows
  text |= {f'{k}_token_id': v for k, v in ids.items() if k != 'eos' or not ended}
  for key in ('bos', 'eos', 'pad'):
    config.pop(f'{key}_token_id', None)
