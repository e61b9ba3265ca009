"""What Hugging Face calls what bmx has: names and layouts of tensors, keys of config.json.

Source: the modeling_*.py and configuration_*.py of transformers 5.24, and the published files of
gpt2, bert-base-uncased, roberta-base, Llama 3 and Qwen 2.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Sizes = Mapping[str, int]  # label of a dimension -> its size
Ranges = Mapping[str, tuple[int, int]]  # label -> [start, stop)


@dataclasses.dataclass(frozen=True)
class Rule:
  """A parameter, and the tensor that holds it. A dimension is a letter.

  Attributes:
    name: in bmx, '*' for the number of a layer.
    tensor: in the file, likewise.
    dims: the parameter's dimensions, 'dnh'; 'v' may be padded.
    stored: as the file has them, those that are one dimension there in brackets, '(nh)d'.
    part, parts: the file's last dimension is `parts` equal ones, and this is one of them.
  """

  name: str
  tensor: str
  dims: str
  stored: str
  part: int = 0
  parts: int = 1

  @property
  def groups(self) -> list[str]:
    return [several or one for several, one in re.findall(r'\((\w+)\)|(\w)', self.stored)]

  def shape(self, sizes: Sizes) -> list[int]:
    """Of the tensor."""
    shape = [math.prod(sizes[label] for label in group) for group in self.groups]
    return [*shape[:-1], shape[-1] * self.parts]

  def cut(self, sizes: Sizes, ranges: Ranges) -> list[slice]:
    """The least block of the tensor that holds these ranges of the parameter."""
    return [self._cut(group, sizes, ranges, last=group == self.groups[-1]) for group in self.groups]

  def _cut(self, group: str, sizes: Sizes, ranges: Ranges, last: bool) -> slice:
    inner = math.prod(sizes[label] for label in group[1:])
    start, stop = ranges[group[0]]
    before = self.part * sizes[group[0]] if last else 0
    return slice((before + start) * inner, (before + stop) * inner)

  def load(self, block: np.ndarray, sizes: Sizes, ranges: Ranges) -> np.ndarray:
    """[layers, *what `cut` says] -> [layers, *the ranges of the parameter], a view."""
    order, leads = ''.join(self.groups), {group[0] for group in self.groups}
    size = [np.ptp(ranges[x]) if x in leads else sizes[x] for x in order]
    part = [slice(None) if x in leads else slice(*ranges[x]) for x in order]
    block = block.reshape(len(block), *size)[(slice(None), *part)]
    return block.transpose(0, *(1 + order.index(x) for x in self.dims))

  def save(self, value: np.ndarray) -> np.ndarray:
    """The parameter -> its part of the tensor, a view where one is possible."""
    sizes = dict(zip(self.dims, value.shape, strict=True))
    value = value.transpose([self.dims.index(label) for label in ''.join(self.groups)])
    return value.reshape([math.prod(sizes[label] for label in group) for group in self.groups])


def _norm(name: str, tensor: str) -> list[Rule]:
  return [
    Rule(f'{name}/scale', f'{tensor}.weight', 'd', 'd'),
    Rule(f'{name}/bias', f'{tensor}.bias', 'd', 'd'),
  ]


def _dense(name: str, tensor: str, kernel: str, stored: str, bias: str, *part: int) -> list[Rule]:
  """`bias` as the file stores it."""
  flat = bias.strip('()')
  return [
    Rule(f'{name}/kernel', f'{tensor}.weight', kernel, stored, *part),
    Rule(f'{name}/bias', f'{tensor}.bias', flat, bias, *part),
  ]


BLOCK = 'stack/block_*'
PROJECTIONS = ('query', 'key', 'value')

GPT2_BODY = [
  Rule('embed/table', 'wte.weight', 'vd', 'vd'),
  Rule('position', 'wpe.weight', 'pd', 'pd'),
  *_norm(f'{BLOCK}/attention_norm', 'h.*.ln_1'),
  *(rule for i, name in enumerate(PROJECTIONS)
    for rule in _dense(
      f'{BLOCK}/attention/{name}', 'h.*.attn.c_attn', 'dnh', 'd(nh)', '(nh)', i, 3)),
  *_dense(f'{BLOCK}/attention/out', 'h.*.attn.c_proj', 'nhd', '(nh)d', 'd'),
  *_norm(f'{BLOCK}/feed_forward_norm', 'h.*.ln_2'),
  *_dense(f'{BLOCK}/feed_forward/up', 'h.*.mlp.c_fc', 'df', 'df', 'f'),
  *_dense(f'{BLOCK}/feed_forward/down', 'h.*.mlp.c_proj', 'fd', 'fd', 'd'),
  *_norm('norm_out', 'ln_f'),
]  # fmt: skip

LLAMA_BODY = [
  Rule('embed/table', 'embed_tokens.weight', 'vd', 'vd'),
  *_norm(f'{BLOCK}/attention_norm', 'layers.*.input_layernorm'),
  *(rule for name in PROJECTIONS
    for rule in _dense(f'{BLOCK}/attention/{name}', f'layers.*.self_attn.{name[0]}_proj',
                       'dnh', '(nh)d', '(nh)')),
  *_dense(f'{BLOCK}/attention/out', 'layers.*.self_attn.o_proj', 'nhd', 'd(nh)', 'd'),
  *_norm(f'{BLOCK}/feed_forward_norm', 'layers.*.post_attention_layernorm'),
  *_dense(f'{BLOCK}/feed_forward/gate', 'layers.*.mlp.gate_proj', 'df', 'fd', 'f'),
  *_dense(f'{BLOCK}/feed_forward/up', 'layers.*.mlp.up_proj', 'df', 'fd', 'f'),
  *_dense(f'{BLOCK}/feed_forward/down', 'layers.*.mlp.down_proj', 'fd', 'df', 'd'),
  *_norm('norm_out', 'norm'),
]  # fmt: skip

LAYER = 'encoder.layer.*'
BERT_BODY = [
  Rule('embed/table', 'embeddings.word_embeddings.weight', 'vd', 'vd'),
  Rule('position', 'embeddings.position_embeddings.weight', 'pd', 'pd'),
  Rule('type', 'embeddings.token_type_embeddings.weight', 'td', 'td'),
  *_norm('norm', 'embeddings.LayerNorm'),
  *(rule for name in PROJECTIONS
    for rule in _dense(f'{BLOCK}/attention/{name}', f'{LAYER}.attention.self.{name}',
                       'dnh', '(nh)d', '(nh)')),
  *_dense(f'{BLOCK}/attention/out', f'{LAYER}.attention.output.dense', 'nhd', 'd(nh)', 'd'),
  *_norm(f'{BLOCK}/attention_norm', f'{LAYER}.attention.output.LayerNorm'),
  *_dense(f'{BLOCK}/feed_forward/up', f'{LAYER}.intermediate.dense', 'df', 'fd', 'f'),
  *_dense(f'{BLOCK}/feed_forward/down', f'{LAYER}.output.dense', 'fd', 'df', 'd'),
  *_norm(f'{BLOCK}/feed_forward_norm', f'{LAYER}.output.LayerNorm'),
  *_dense('pooler', 'pooler.dense', 'de', 'ed', 'e'),
]  # fmt: skip

GPT_HEAD = [Rule('head/table', 'lm_head.weight', 'vd', 'vd')]
BERT_HEADS = [
  *_dense('transform', 'cls.predictions.transform.dense', 'de', 'ed', 'e'),
  *_norm('norm', 'cls.predictions.transform.LayerNorm'),
  Rule('bias', 'cls.predictions.bias', 'v', 'v'),
  *_dense('next', 'cls.seq_relationship', 'dc', 'cd', 'c'),
  *_dense('head', 'classifier', 'dc', 'cd', 'c'),
]
ROBERTA_HEADS = [
  *_dense('transform', 'lm_head.dense', 'de', 'ed', 'e'),
  *_norm('norm', 'lm_head.layer_norm'),
  Rule('bias', 'lm_head.bias', 'v', 'v'),
]

WORDS = 'embeddings.word_embeddings.weight'


@dataclasses.dataclass(frozen=True)
class Family:
  """Architectures that share a body.

  Attributes:
    prefix: of the body's tensors, where there is a head beside it.
    copies: tensors that repeat another one where the table is tied.
    heads_only: matches tensors that a model without that head does without.
    keys: argument in bmx -> (key of config.json, what a missing one means; None is an error).
    fixed: arguments in bmx that every member has.
    only: keys of config.json -> values that bmx can follow, the usual first.
    written: other keys that a config.json needs, since transformers would guess worse.
  """

  model_type: str
  call: str
  prefix: str
  body: Sequence[Rule]
  heads: Sequence[Rule]
  copies: Mapping[str, str]
  keys: Mapping[str, tuple[str, Any]]
  only: Mapping[str, tuple[Any, ...]]
  written: Mapping[str, Any]
  fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  heads_only: str = '$^'

  def rules(self, wrapped: bool) -> dict[str, Rule]:
    """By name in bmx; `wrapped` is a body under 'encoder/'."""
    under = 'encoder/' if wrapped else ''
    return {r.name: r for r in self.heads} | {under + r.name: r for r in self.body}


COMMON = {'pruned_heads': ({},), 'quantization_config': ()}
TOKENS = {'bos_token_id': None, 'eos_token_id': None}
GPT2 = Family(
  model_type='gpt2',
  call='bmx.models.gpt:GPT',
  prefix='transformer.',
  body=GPT2_BODY,
  heads=GPT_HEAD,
  copies={'lm_head.weight': 'wte.weight'},
  keys={
    'vocab': ('vocab_size', None),
    'length': ('n_positions', None),
    'width': ('n_embd', None),
    'depth': ('n_layer', None),
    'heads': ('n_head', None),
    'hidden': ('n_inner', 0),
    'activation': ('activation_function', 'gelu_new'),
    'epsilon': ('layer_norm_epsilon', 1e-5),
    'dropout': ('resid_pdrop', 0.1),
    'tied': ('tie_word_embeddings', True),
  },
  only=COMMON
  | {
    'scale_attn_weights': (True,),
    'scale_attn_by_inverse_layer_idx': (False,),
    'add_cross_attention': (False,),
  },
  written=TOKENS | {'attn_pdrop': 0.0},
)

_LLAMA_KEYS = {
  'vocab': ('vocab_size', None),
  'length': ('max_position_embeddings', None),
  'width': ('hidden_size', None),
  'depth': ('num_hidden_layers', None),
  'heads': ('num_attention_heads', None),
  'kv_heads': ('num_key_value_heads', 0),
  'head_size': ('head_dim', 0),
  'hidden': ('intermediate_size', None),
  'activation': ('hidden_act', 'silu'),
  'epsilon': ('rms_norm_eps', 1e-6),
  'tied': ('tie_word_embeddings', False),
}
_ROTARY = {'positions': 'rotary', 'norm': 'rms', 'gated': True, 'bias': False}
LLAMA = Family(
  model_type='llama',
  call='bmx.models.gpt:GPT',
  prefix='model.',
  body=LLAMA_BODY,
  heads=GPT_HEAD,
  copies={'lm_head.weight': 'embed_tokens.weight'},
  keys=_LLAMA_KEYS
  | {
    'qkv_bias': ('attention_bias', False),
    'out_bias': ('attention_bias', False),
    'mlp_bias': ('mlp_bias', False),
  },
  only=COMMON | {'partial_rotary_factor': (1.0,)},
  written=TOKENS | {'attention_dropout': 0.0},
  fixed=_ROTARY,
)
QWEN2 = dataclasses.replace(
  LLAMA,
  model_type='qwen2',
  keys=_LLAMA_KEYS,
  only=LLAMA.only | {'use_sliding_window': (False,), 'layer_types': ('full_attention',)},
  fixed=_ROTARY | {'qkv_bias': True},
)

BERT = Family(
  model_type='bert',
  call='bmx.models.bert:BERT',
  prefix='bert.',
  body=BERT_BODY,
  heads=BERT_HEADS,
  copies={
    'cls.predictions.decoder.weight': WORDS,
    'cls.predictions.decoder.bias': 'cls.predictions.bias',
  },
  keys={
    'vocab': ('vocab_size', None),
    'length': ('max_position_embeddings', None),
    'width': ('hidden_size', None),
    'depth': ('num_hidden_layers', None),
    'heads': ('num_attention_heads', None),
    'hidden': ('intermediate_size', None),
    'types': ('type_vocab_size', 2),
    'activation': ('hidden_act', 'gelu'),
    'epsilon': ('layer_norm_eps', 1e-12),
    'dropout': ('hidden_dropout_prob', 0.1),
  },
  only=COMMON
  | {
    'position_embedding_type': ('absolute',),
    'is_decoder': (False,),
    'add_cross_attention': (False,),
    'tie_word_embeddings': (True,),
  },
  written={'pad_token_id': 0, 'attention_probs_dropout_prob': 0.0},
  heads_only=r'(cls|lm_head|classifier|pooler)\.',
)
ROBERTA = dataclasses.replace(
  BERT,
  model_type='roberta',
  prefix='roberta.',
  heads=ROBERTA_HEADS,
  copies={'lm_head.decoder.weight': WORDS, 'lm_head.decoder.bias': 'lm_head.bias'},
  keys=BERT.keys | {'first_position': ('pad_token_id', 1)},
  written=TOKENS | {'attention_probs_dropout_prob': 0.0},
)


PRETRAINING, CLASSIFIER = 'bmx.models.bert:Pretraining', 'bmx.models.bert:Classifier'


@dataclasses.dataclass(frozen=True)
class Architecture:
  """A name in config.json: a family, the part around its body, what else that demands."""

  family: Family
  head: Mapping[str, Any] | None = None
  only: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
  bare: bool = False  # tensors have no prefix


ARCHITECTURES = {
  'GPT2LMHeadModel': Architecture(GPT2),
  'LlamaForCausalLM': Architecture(LLAMA),
  'Qwen2ForCausalLM': Architecture(QWEN2),
  'BertModel': Architecture(BERT, bare=True),
  'BertForMaskedLM': Architecture(BERT, {'call': PRETRAINING, 'next_sentence': False}),
  'BertForPreTraining': Architecture(BERT, {'call': PRETRAINING, 'next_sentence': True}),
  'BertForSequenceClassification': Architecture(BERT, {'call': CLASSIFIER}),
  'RobertaModel': Architecture(ROBERTA, bare=True),
  'RobertaForMaskedLM': Architecture(
    ROBERTA, {'call': PRETRAINING, 'next_sentence': False}, {'hidden_act': ('gelu',)}
  ),
}

# transformers' names of functions -> ours; the first of each is the one that is written.
ACTIVATIONS = {
  'gelu_new': 'gelu',
  'gelu_pytorch_tanh': 'gelu',
  'gelu': 'gelu_exact',
  'relu': 'relu',
  'silu': 'silu',
  'swish': 'silu',
  'sigmoid': 'sigmoid',
  'tanh': 'tanh',
}
LLAMA3 = ('factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings')
