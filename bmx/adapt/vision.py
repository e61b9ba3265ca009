"""Families of image models of Hugging Face: their tensors, and keys of config.json.

Names are those of files, which differ from the names in memory. Source: files that transformers
5.24 writes, and the published ones of microsoft/resnet-50, google/vit-base-patch16-224,
facebook/deit-base-distilled-patch16-224 and openai/clip-vit-base-patch32.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bmx.adapt.families import ONLY, Architecture, Family
from bmx.adapt.layouts import AT, FEED, QKV, Rule, dense, norm, tower_blocks
from bmx.models.resnet import EXPANSION, ResNet
from bmx.models.vit import ViT

RESNET_CALL, VIT_CALL = 'bmx.models.resnet:ResNet', 'bmx.models.vit:ViT'


def _conv_norm(name: str, tensor: str) -> list[Rule]:
  """Returns the rules of a convolution and its batch norm, running statistics included."""
  of = f'{tensor}.normalization'
  return [
    Rule(f'{name}/conv/kernel', f'{tensor}.convolution.weight', 'ijcf', 'fcij'),
    *norm(f'{name}/norm', of),
    Rule(f'{name}/norm/mean', f'{of}.running_mean', 'd', 'd'),
    Rule(f'{name}/norm/var', f'{of}.running_var', 'd', 'd'),
  ]


_BLOCK = 'resnet.encoder.stages.*.layers.*'
_RESNET_BODY = [
  *_conv_norm('stem', 'resnet.embedder.embedder'),
  *_conv_norm('stage_*/block_*/layer_*', f'{_BLOCK}.layer.*'),
  *_conv_norm('stage_*/block_*/shortcut', f'{_BLOCK}.shortcut'),
]


def _vit_body(root: str) -> list[Rule]:
  """Returns the rules of ViT and DeiT; `root`: prefix of the tensors."""
  layer, embeddings = f'{root}.encoder.layer.*', f'{root}.embeddings'
  return [
    Rule('class_token', f'{embeddings}.cls_token', 'd', '11d'),
    Rule('distillation_token', f'{embeddings}.distillation_token', 'd', '11d'),
    Rule('position', f'{embeddings}.position_embeddings', 'pd', '1pd'),
    *dense('patch', f'{embeddings}.patch_embeddings.projection', 'ijcd', 'dcij', 'd'),
    *norm(f'{AT}_norm', f'{layer}.layernorm_before'),
    *(r for name in QKV
      for r in dense(f'{AT}/{name}', f'{layer}.attention.attention.{name}', 'dnh', '(nh)d',
                     '(nh)')),
    *dense(f'{AT}/out', f'{layer}.attention.output.dense', 'nhd', 'd(nh)', 'd'),
    *norm(f'{FEED}_norm', f'{layer}.layernorm_after'),
    *dense(f'{FEED}/up', f'{layer}.intermediate.dense', 'df', 'fd', 'f'),
    *dense(f'{FEED}/down', f'{layer}.output.dense', 'fd', 'df', 'd'),
    *norm('norm_out', f'{root}.layernorm'),
  ]  # fmt: skip


_TOWER = 'vision_model'
_PATCHES = [
  Rule('position', f'{_TOWER}.embeddings.position_embedding.weight', 'pd', 'pd'),
  *dense('patch', f'{_TOWER}.embeddings.patch_embedding', 'ijcd', 'dcij', 'd'),
  *tower_blocks(f'{_TOWER}.encoder.layers.*'),
  *norm('norm_out', f'{_TOWER}.post_layernorm'),
]
_CLIP_BODY = [
  Rule('class_token', f'{_TOWER}.embeddings.class_embedding', 'd', 'd'),
  *norm('norm_in', f'{_TOWER}.pre_layrnorm'),
  *_PATCHES,
]
_POOL, _MHA = f'{_TOWER}.head', f'{_TOWER}.head.attention'
_SIGLIP_BODY = [
  *_PATCHES,
  Rule('pooling/query', f'{_POOL}.probe', 'd', '11d'),
  # torch.nn.MultiheadAttention joins query, key and value along their outputs.
  *(r for i, name in enumerate(QKV) for r in (
    Rule(f'pooling/attention/{name}/kernel', f'{_MHA}.in_proj_weight', 'dnh', '(nh)d', i, 3, 0),
    Rule(f'pooling/attention/{name}/bias', f'{_MHA}.in_proj_bias', 'nh', '(nh)', i, 3))),
  *dense('pooling/attention/out', f'{_MHA}.out_proj', 'nhd', 'd(nh)', 'd'),
  *norm('pooling/norm', f'{_POOL}.layernorm'),
  *dense('pooling/feed_forward/up', f'{_POOL}.mlp.fc1', 'df', 'fd', 'f'),
  *dense('pooling/feed_forward/down', f'{_POOL}.mlp.fc2', 'fd', 'df', 'd'),
]  # fmt: skip

_DEPTHS, _SIZES = (3, 4, 6, 3), (256, 512, 1024, 2048)  # of a config.json without them


def _read_resnet(config: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
  """Reads stages and channels; appends a line for each value that bmx cannot reproduce."""
  kind = config.get('layer_type', 'bottleneck')
  depths, sizes = config.get('depths', _DEPTHS), config.get('hidden_sizes', _SIZES)
  stem = config.get('embedding_size', 64)
  if kind not in ('basic', 'bottleneck'):
    problems.append(f"layer_type={kind!r}: supported are 'basic', 'bottleneck'")
  if not _counts(depths):
    problems.append(f'depths={depths!r}: expected numbers of blocks, at least 1')
  first = sizes[0] if _counts(sizes) else 0
  least = EXPANSION if kind == 'bottleneck' else 1
  doubled = [first * 2**i for i in range(len(depths))] if _counts(depths) else []
  if not first or first % least or list(sizes) != doubled:
    problems.append(
      f'hidden_sizes={sizes!r}: expected a size for each of depths, each twice the one before, '
      f'multiples of {least}'
    )
  if not _counts([stem]):
    problems.append(f'embedding_size={stem!r}: expected int, at least 1')
  return {
    'block': kind, 'stages': tuple(depths) if _counts(depths) else (),
    'features': first // least, 'stem_features': stem,
  }  # fmt: skip


def _counts(values: Any) -> bool:
  listed = isinstance(values, list | tuple) and bool(values)
  return listed and all(type(n) is int and n > 0 for n in values)


def _write_resnet(model: ResNet) -> dict[str, Any]:
  block, stages = model.sizes
  first = model.features * (EXPANSION if block == 'bottleneck' else 1)
  return {
    'layer_type': block,
    'depths': list(stages),
    'hidden_sizes': [first * 2**i for i in range(len(stages))],
    'embedding_size': model.stem_features or model.features,
    'hidden_act': 'relu',
  }


RESNET = Family(
  'resnet', RESNET_CALL, 'resnet.', _RESNET_BODY, dense('head', 'classifier.1', 'dc', 'cd', 'c'),
  copies={},
  keys={},
  only=ONLY | {
    'hidden_act': ('relu',), 'downsample_in_first_stage': (False,),
    'downsample_in_bottleneck': (False,),
  },
  written={},
  classes=True,
  read=_read_resnet,
  write=_write_resnet,
)  # fmt: skip
_KEYS: dict[str, tuple[str, Any]] = {
  'image_size': ('image_size', 224), 'patch_size': ('patch_size', 16),
  'width': ('hidden_size', 768), 'depth': ('num_hidden_layers', 12),
  'heads': ('num_attention_heads', 12), 'mlp_dim': ('intermediate_size', 3072),
}  # fmt: skip
VIT = Family(
  'vit', VIT_CALL, 'vit.', _vit_body('vit'), dense('head', 'classifier', 'dc', 'cd', 'c'),
  copies={},
  keys=_KEYS | {
    'activation': ('hidden_act', 'gelu'), 'eps': ('layer_norm_eps', 1e-12),
    'dropout': ('hidden_dropout_prob', 0.0), 'qkv_bias': ('qkv_bias', True),
  },
  only=ONLY,
  written={'attention_probs_dropout_prob': 0.0},
  spare=re.compile(r'(vit|deit)\.(pooler\.|embeddings\.mask_token)'),
  classes=True,
)  # fmt: skip
DEIT = dataclasses.replace(VIT, model_type='deit', prefix='deit.', body=_vit_body('deit'))
CLIP = Family(
  'clip_vision_model', VIT_CALL, 'vision_model.', _CLIP_BODY,
  [Rule('head/kernel', 'visual_projection.weight', 'dc', 'cd')],
  copies={},
  keys=_KEYS | {
    'patch_size': ('patch_size', 32), 'num_outputs': ('projection_dim', 512),
    'activation': ('hidden_act', 'quick_gelu'), 'eps': ('layer_norm_eps', 1e-5),
  },
  only=ONLY,
  written={'attention_dropout': 0.0},
  fixed={'pre_norm': True, 'patch_bias': False, 'head_bias': False},
)  # fmt: skip


def published_gelu(model: Any) -> dict[str, Any]:
  """Returns the activation of a tower of SigLIP by the name of the published files."""
  return {'hidden_act': 'gelu_pytorch_tanh'} if model.activation == 'gelu' else {}


SIGLIP = Family(
  'siglip_vision_model', VIT_CALL, 'vision_model.', _SIGLIP_BODY, (),
  copies={},
  keys=_KEYS | {
    'num_outputs': ('hidden_size', 768), 'activation': ('hidden_act', 'gelu_pytorch_tanh'),
    'eps': ('layer_norm_eps', 1e-6),
  },
  only=ONLY | {'vision_use_head': (True,)},
  written={'attention_dropout': 0.0},
  fixed={'pool': 'attention', 'project': False},
  write=published_gelu,
)  # fmt: skip

_TEACHER = [
  *dense('head', 'cls_classifier', 'dc', 'cd', 'c'),
  *dense('distillation_head', 'distillation_classifier', 'dc', 'cd', 'c'),
]
VISION = {
  'ResNetForImageClassification': Architecture(RESNET),
  'ResNetModel': Architecture(RESNET, bare=True),
  'ViTForImageClassification': Architecture(VIT),
  'ViTModel': Architecture(VIT, bare=True),
  'DeiTForImageClassification': Architecture(DEIT, fixed={'distillation': 'token'}),
  'DeiTForImageClassificationWithTeacher': Architecture(
    DEIT, own=_TEACHER, fixed={'distillation': 'head'}
  ),
  'DeiTModel': Architecture(DEIT, bare=True, fixed={'distillation': 'token'}),
  'CLIPVisionModelWithProjection': Architecture(CLIP),
  'SiglipVisionModel': Architecture(SIGLIP, bare=True),
}
MODELS = (ResNet, ViT)


def family_of(model: ResNet | ViT) -> Family:
  """Returns the family whose members are most similar to a model."""
  if isinstance(model, ResNet):
    return RESNET
  if model.pool == 'attention':
    return SIGLIP
  if model.pre_norm:
    return CLIP
  return DEIT if model.distillation else VIT


def facts(model: ResNet | ViT, free: tuple[str, ...]) -> dict[str, Any]:
  """Returns the arguments that define a model, in a unique form, but for the `free` ones."""
  found = {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name not in free}
  if isinstance(model, ViT):
    return found | {'mlp_dim': model.mlp_dim or 4 * model.width}
  found['block'], found['stages'] = model.sizes
  found['stem_features'] = model.stem_features or model.features
  del found['depth']
  return found


def image(model: ResNet | ViT, params: Mapping[str, Any]) -> jax.ShapeDtypeStruct:
  """Returns an image that a model with these parameters reads: [1, I, J, C]."""
  if isinstance(model, ViT):
    side, kernel = model.image_size, params['patch']['kernel']
  else:
    side, kernel = 64, params['stem']['conv']['kernel']
  return jax.ShapeDtypeStruct((1, side, side, kernel.shape[2]), jnp.float32)
