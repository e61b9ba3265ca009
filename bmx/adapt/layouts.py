"""Names and layouts of tensors, and keys of config.json, of Hugging Face and of bmx.

Source: modeling_*.py and configuration_*.py of transformers 5.24, and the published files of gpt2,
bert-base-uncased, roberta-base, Llama 3 and Qwen 2.
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
    dims: the parameter's dimensions, 'dnh'; 'v', the vocabulary, may be padded.
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
    """Of the whole tensor."""
    shape = [math.prod(sizes[x] for x in group) for group in self.groups]
    return [*shape[:-1], shape[-1] * self.parts]

  def cut(self, sizes: Sizes, ranges: Ranges) -> list[slice]:
    """The block of the tensor that holds these ranges of the parameter."""
    return [self._cut(group, sizes, ranges) for group in self.groups]

  def _cut(self, group: str, sizes: Sizes, ranges: Ranges) -> slice:
    inner = math.prod(sizes[x] for x in group[1:])
    before = self.part * sizes[group[0]] if group == self.groups[-1] else 0
    start, stop = ranges[group[0]]
    return slice((before + start) * inner, (before + stop) * inner)

  def load(self, block: np.ndarray, sizes: Sizes, ranges: Ranges) -> np.ndarray:
    """[layers, *what `cut` says] -> [layers, *the ranges of the parameter], a view."""
    order, cut = ''.join(self.groups), {group[0] for group in self.groups}
    size = [ranges[x][1] - ranges[x][0] if x in cut else sizes[x] for x in order]
    rest = [slice(None) if x in cut else slice(*ranges[x]) for x in order]
    block = block.reshape(len(block), *size)[(slice(None), *rest)]
    return block.transpose(0, *(1 + order.index(x) for x in self.dims))

  def save(self, value: np.ndarray) -> np.ndarray:
    """The parameter -> its part of the tensor, a view where one is possible."""
    sizes = dict(zip(self.dims, value.shape, strict=True))
    value = value.transpose([self.dims.index(x) for x in ''.join(self.groups)])
    return value.reshape([math.prod(sizes[x] for x in group) for group in self.groups])


def _norm(name: str, tensor: str) -> list[Rule]:
  return [
    Rule(f'{name}/scale', f'{tensor}.weight', 'd', 'd'),
    Rule(f'{name}/bias', f'{tensor}.bias', 'd', 'd'),
  ]


def _dense(name: str, tensor: str, kernel: str, stored: str, bias: str, *part: int) -> list[Rule]:
  """`bias`: as the file stores it."""
  return [
    Rule(f'{name}/kernel', f'{tensor}.weight', kernel, stored, *part),
    Rule(f'{name}/bias', f'{tensor}.bias', bias.strip('()'), bias, *part),
  ]


QKV = ('query', 'key', 'value')
AT, FEED = 'stack/block_*/attention', 'stack/block_*/feed_forward'  # and the norms of each

H = 'transformer.h.*'
GPT2_BODY = [
  Rule('embed/table', 'transformer.wte.weight', 'vd', 'vd'),
  Rule('position', 'transformer.wpe.weight', 'pd', 'pd'),
  *_norm(f'{AT}_norm', f'{H}.ln_1'),
  *(r for i, name in enumerate(QKV)
    for r in _dense(f'{AT}/{name}', f'{H}.attn.c_attn', 'dnh', 'd(nh)', '(nh)', i, 3)),
  *_dense(f'{AT}/out', f'{H}.attn.c_proj', 'nhd', '(nh)d', 'd'),
  *_norm(f'{FEED}_norm', f'{H}.ln_2'),
  *_dense(f'{FEED}/up', f'{H}.mlp.c_fc', 'df', 'df', 'f'),
  *_dense(f'{FEED}/down', f'{H}.mlp.c_proj', 'fd', 'fd', 'd'),
  *_norm('norm_out', 'transformer.ln_f'),
]  # fmt: skip

L = 'model.layers.*'
LLAMA_BODY = [
  Rule('embed/table', 'model.embed_tokens.weight', 'vd', 'vd'),
  *_norm(f'{AT}_norm', f'{L}.input_layernorm'),
  *(r for name in QKV
    for r in _dense(f'{AT}/{name}', f'{L}.self_attn.{name[0]}_proj', 'dnh', '(nh)d', '(nh)')),
  *_dense(f'{AT}/out', f'{L}.self_attn.o_proj', 'nhd', 'd(nh)', 'd'),
  *_norm(f'{FEED}_norm', f'{L}.post_attention_layernorm'),
  *_dense(f'{FEED}/gate', f'{L}.mlp.gate_proj', 'df', 'fd', 'f'),
  *_dense(f'{FEED}/up', f'{L}.mlp.up_proj', 'df', 'fd', 'f'),
  *_dense(f'{FEED}/down', f'{L}.mlp.down_proj', 'fd', 'df', 'd'),
  *_norm('norm_out', 'model.norm'),
]  # fmt: skip

GPT_HEADS = [Rule('head/table', 'lm_head.weight', 'vd', 'vd')]


def _bert_body(root: str) -> list[Rule]:
  layer = f'{root}.encoder.layer.*'
  return [
    Rule('embed/table', f'{root}.embeddings.word_embeddings.weight', 'vd', 'vd'),
    Rule('position', f'{root}.embeddings.position_embeddings.weight', 'pd', 'pd'),
    Rule('type', f'{root}.embeddings.token_type_embeddings.weight', 'td', 'td'),
    *_norm('norm', f'{root}.embeddings.LayerNorm'),
    *(r for name in QKV
      for r in _dense(f'{AT}/{name}', f'{layer}.attention.self.{name}', 'dnh', '(nh)d', '(nh)')),
    *_dense(f'{AT}/out', f'{layer}.attention.output.dense', 'nhd', 'd(nh)', 'd'),
    *_norm(f'{AT}_norm', f'{layer}.attention.output.LayerNorm'),
    *_dense(f'{FEED}/up', f'{layer}.intermediate.dense', 'df', 'fd', 'f'),
    *_dense(f'{FEED}/down', f'{layer}.output.dense', 'fd', 'df', 'd'),
    *_norm(f'{FEED}_norm', f'{layer}.output.LayerNorm'),
    *_dense('pooler', f'{root}.pooler.dense', 'de', 'ed', 'e'),
  ]  # fmt: skip


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
# Tensors beside a body, and those of them that a model without that head does without.
HEADS = re.compile(r'(lm_head|cls|classifier)\.')
SPARE = re.compile(r'(lm_head|cls|classifier|bert\.pooler|roberta\.pooler)\.')


@dataclasses.dataclass(frozen=True)
class Family:
  """Architectures that share a body.

  Attributes:
    prefix: of the body's tensors; a file of the body alone may lack it.
    copies: tensors that repeat another one where the table is tied.
    tied_head: prefix of the tensors of the head that is tied.
    keys: argument in bmx -> (key of config.json, default of a missing one; None: required).
    fixed: arguments in bmx that all members have.
    only: key of config.json -> the values that bmx can follow, the usual one first.
    written: keys that a config.json needs besides, lest transformers take defaults that are not so.
    spare: matches tensors that need not be taken.
  """

  model_type: str
  call: str
  prefix: str
  body: Sequence[Rule]
  heads: Sequence[Rule]
  copies: Mapping[str, str]
  keys: dict[str, tuple[str, Any]]
  only: dict[str, tuple[Any, ...]]
  written: Mapping[str, Any]
  tied_head: str = ''
  fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  spare: re.Pattern[str] = re.compile(r'(?!)')

  def rules(self, wrapped: bool) -> dict[str, Rule]:
    """By name in bmx; `wrapped`: the body's begin with 'encoder/'."""
    under = 'encoder/' if wrapped else ''
    return {r.name: r for r in self.heads} | {under + r.name: r for r in self.body}


_ONLY: dict[str, tuple[Any, ...]] = {'pruned_heads': ({},), 'quantization_config': ()}
_TOKENS: dict[str, Any] = {'bos_token_id': None, 'eos_token_id': None}
GPT2 = Family(
  'gpt2', 'bmx.models.gpt:GPT', 'transformer.', GPT2_BODY, GPT_HEADS,
  copies={'lm_head.weight': 'transformer.wte.weight'},
  keys={
    'vocab_size': ('vocab_size', None), 'max_seq_len': ('n_positions', None),
    'width': ('n_embd', None), 'depth': ('n_layer', None), 'heads': ('n_head', None),
    'mlp_dim': ('n_inner', 0),
    'activation': ('activation_function', 'gelu_new'), 'eps': ('layer_norm_epsilon', 1e-5),
    'dropout': ('resid_pdrop', 0.1), 'tied': ('tie_word_embeddings', True),
  },
  only=_ONLY | {
    'scale_attn_weights': (True,), 'scale_attn_by_inverse_layer_idx': (False,),
    'add_cross_attention': (False,),
  },
  written=_TOKENS | {'attn_pdrop': 0.0},
)  # fmt: skip

_KEYS: dict[str, tuple[str, Any]] = {
  'vocab_size': ('vocab_size', None), 'max_seq_len': ('max_position_embeddings', None),
  'width': ('hidden_size', None), 'depth': ('num_hidden_layers', None),
  'heads': ('num_attention_heads', None), 'mlp_dim': ('intermediate_size', None),
}  # fmt: skip
QWEN2 = Family(
  'qwen2', 'bmx.models.gpt:GPT', 'model.', LLAMA_BODY, GPT_HEADS,
  copies={'lm_head.weight': 'model.embed_tokens.weight'},
  keys=_KEYS | {
    'kv_heads': ('num_key_value_heads', 0), 'head_dim': ('head_dim', 0),
    'activation': ('hidden_act', 'silu'), 'eps': ('rms_norm_eps', 1e-6),
    'tied': ('tie_word_embeddings', False),
  },
  only=_ONLY | {'use_sliding_window': (False,), 'layer_types': ('full_attention',)},
  written=_TOKENS | {'attention_dropout': 0.0},
  fixed={'positions': 'rotary', 'norm': 'rms', 'gated': True, 'bias': False, 'qkv_bias': True},
)  # fmt: skip
LLAMA = dataclasses.replace(
  QWEN2,
  model_type='llama',
  keys=QWEN2.keys | {
    'qkv_bias': ('attention_bias', False), 'out_bias': ('attention_bias', False),
    'mlp_bias': ('mlp_bias', False),
  },
  only=_ONLY,
)  # fmt: skip
BERT = Family(
  'bert', 'bmx.models.bert:BERT', 'bert.', _bert_body('bert'), BERT_HEADS,
  copies={
    'cls.predictions.decoder.weight': 'bert.embeddings.word_embeddings.weight',
    'cls.predictions.decoder.bias': 'cls.predictions.bias',
  },
  keys=_KEYS | {
    'types': ('type_vocab_size', 2), 'activation': ('hidden_act', 'gelu'),
    'eps': ('layer_norm_eps', 1e-12), 'dropout': ('hidden_dropout_prob', 0.1),
  },
  only=_ONLY | {
    'position_embedding_type': ('absolute',), 'is_decoder': (False,),
    'add_cross_attention': (False,), 'tie_word_embeddings': (True,),
  },
  written=_TOKENS | {'pad_token_id': 0, 'attention_probs_dropout_prob': 0.0},
  tied_head='cls.predictions.',
  spare=SPARE,
)  # fmt: skip
ROBERTA = dataclasses.replace(
  BERT,
  model_type='roberta',
  prefix='roberta.',
  body=_bert_body('roberta'),
  heads=ROBERTA_HEADS,
  copies={
    'lm_head.decoder.weight': 'roberta.embeddings.word_embeddings.weight',
    'lm_head.decoder.bias': 'lm_head.bias',
  },
  tied_head='lm_head.',
  keys=BERT.keys | {'first_position': ('pad_token_id', 1)},
)

PRETRAINING, CLASSIFIER = 'bmx.models.bert:Pretraining', 'bmx.models.bert:Classifier'
MASKED = {'call': PRETRAINING, 'next_sentence': False}


@dataclasses.dataclass(frozen=True)
class Architecture:
  """A name in config.json: a family, the part around its body, further conditions; `bare`: its
  tensors have no prefix."""

  family: Family
  head: Mapping[str, Any] | None = None
  only: dict[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
  bare: bool = False


ARCHITECTURES = {
  'GPT2LMHeadModel': Architecture(GPT2),
  'LlamaForCausalLM': Architecture(LLAMA),
  'Qwen2ForCausalLM': Architecture(QWEN2),
  'BertModel': Architecture(BERT, bare=True),
  'BertForMaskedLM': Architecture(BERT, MASKED),
  'BertForPreTraining': Architecture(BERT, MASKED | {'next_sentence': True}),
  'BertForSequenceClassification': Architecture(BERT, {'call': CLASSIFIER}),
  'RobertaModel': Architecture(ROBERTA, bare=True),
  'RobertaForMaskedLM': Architecture(ROBERTA, MASKED, {'hidden_act': ('gelu',)}),
}

# transformers' names of functions -> ours; the first of each is the one that is written.
ACTIVATIONS = {
  'gelu_new': 'gelu', 'gelu_pytorch_tanh': 'gelu', 'gelu': 'gelu_exact', 'relu': 'relu',
  'silu': 'silu', 'swish': 'silu', 'sigmoid': 'sigmoid', 'tanh': 'tanh',
}  # fmt: skip
