"""Names and layouts of tensors, of Hugging Face and of bmx.

Source: modeling_*.py and configuration_*.py of transformers 5.24, and the published files of gpt2,
bert-base-uncased, roberta-base, distilbert-base-uncased, Llama 3 and Qwen 2.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

Sizes = Mapping[str, int]  # label of a dimension -> its size
Ranges = Mapping[str, tuple[int, int]]  # label -> [start, stop)


@dataclasses.dataclass(frozen=True)
class Rule:
  """A parameter, and the tensor that holds it. A dimension is a letter.

  Attributes:
    name: of the parameter, '*' for each number of a layer.
    tensor: name of the tensor, likewise.
    dims: the parameter's dimensions, 'dnh'; 'v', the vocabulary, may be padded.
    stored: the tensor's dimensions; brackets join those that it flattens, '(nh)d'; '1' is one of
      size 1 that the parameter lacks.
    part: index of the parameter among the equal `parts` of a dimension of the tensor.
    parts: number of these.
    along: that dimension, the last by default.
  """

  name: str
  tensor: str
  dims: str
  stored: str
  part: int = 0
  parts: int = 1
  along: int = -1

  @property
  def groups(self) -> list[str]:
    """The labels that each dimension of the tensor joins; '' for one of size 1."""
    found = re.findall(r'\((\w+)\)|(\w)', self.stored)
    return [several or one.replace('1', '') for several, one in found]

  def shape(self, sizes: Sizes) -> list[int]:
    """Returns the shape of the whole tensor."""
    shape = [math.prod(sizes[x] for x in group) for group in self.groups]
    if shape:  # not that of a scalar
      shape[self.along] *= self.parts
    return shape

  def cut(self, sizes: Sizes, ranges: Ranges) -> list[slice]:
    """Returns the block of the tensor that holds these ranges of the parameter."""
    return [self._cut(group, sizes, ranges) for group in self.groups]

  def _cut(self, group: str, sizes: Sizes, ranges: Ranges) -> slice:
    if not group:
      return slice(0, 1)
    inner = math.prod(sizes[x] for x in group[1:])
    before = self.part * sizes[group[0]] if group == self.groups[self.along] else 0
    start, stop = ranges[group[0]]
    return slice((before + start) * inner, (before + stop) * inner)

  def load(self, block: np.ndarray, sizes: Sizes, ranges: Ranges) -> np.ndarray:
    """Rearranges [layers, *block of `cut`] to [layers, *ranges of the parameter], as a view."""
    order, cut = ''.join(self.groups), {group[0] for group in self.groups if group}
    size = [ranges[x][1] - ranges[x][0] if x in cut else sizes[x] for x in order]
    rest = [slice(None) if x in cut else slice(*ranges[x]) for x in order]
    block = block.reshape(len(block), *size)[(slice(None), *rest)]
    return block.transpose(0, *(1 + order.index(x) for x in self.dims))

  def save(self, value: np.ndarray) -> np.ndarray:
    """Rearranges a parameter to its part of the tensor, as a view if possible."""
    sizes = dict(zip(self.dims, value.shape, strict=True))
    value = value.transpose([self.dims.index(x) for x in ''.join(self.groups)])
    return value.reshape([math.prod(sizes[x] for x in group) for group in self.groups])


def norm(name: str, tensor: str) -> list[Rule]:
  """Returns the rules of scale and bias of a norm."""
  return [
    Rule(f'{name}/scale', f'{tensor}.weight', 'd', 'd'),
    Rule(f'{name}/bias', f'{tensor}.bias', 'd', 'd'),
  ]


def dense(name: str, tensor: str, kernel: str, stored: str, bias: str, *part: int) -> list[Rule]:
  """Returns the rules of a dense layer; `bias`: its dimensions in the file."""
  return [
    Rule(f'{name}/kernel', f'{tensor}.weight', kernel, stored, *part),
    Rule(f'{name}/bias', f'{tensor}.bias', bias.strip('()'), bias, *part),
  ]


QKV = ('query', 'key', 'value')
AT, FEED = 'stack/block_*/attention', 'stack/block_*/feed_forward'  # and the norms of each


def tower_blocks(layer: str) -> list[Rule]:
  """Returns the rules of the blocks of a tower of CLIP or SigLIP; `layer`: prefix of a block."""
  return [
    *norm(f'{AT}_norm', f'{layer}.layer_norm1'),
    *(r for name in QKV
      for r in dense(f'{AT}/{name}', f'{layer}.self_attn.{name[0]}_proj', 'dnh', '(nh)d', '(nh)')),
    *dense(f'{AT}/out', f'{layer}.self_attn.out_proj', 'nhd', 'd(nh)', 'd'),
    *norm(f'{FEED}_norm', f'{layer}.layer_norm2'),
    *dense(f'{FEED}/up', f'{layer}.mlp.fc1', 'df', 'fd', 'f'),
    *dense(f'{FEED}/down', f'{layer}.mlp.fc2', 'fd', 'df', 'd'),
  ]  # fmt: skip


H = 'transformer.h.*'
GPT2_BODY = [
  Rule('embed/table', 'transformer.wte.weight', 'vd', 'vd'),
  Rule('position', 'transformer.wpe.weight', 'pd', 'pd'),
  *norm(f'{AT}_norm', f'{H}.ln_1'),
  *(r for i, name in enumerate(QKV)
    for r in dense(f'{AT}/{name}', f'{H}.attn.c_attn', 'dnh', 'd(nh)', '(nh)', i, 3)),
  *dense(f'{AT}/out', f'{H}.attn.c_proj', 'nhd', '(nh)d', 'd'),
  *norm(f'{FEED}_norm', f'{H}.ln_2'),
  *dense(f'{FEED}/up', f'{H}.mlp.c_fc', 'df', 'df', 'f'),
  *dense(f'{FEED}/down', f'{H}.mlp.c_proj', 'fd', 'fd', 'd'),
  *norm('norm_out', 'transformer.ln_f'),
]  # fmt: skip

L = 'model.layers.*'
LLAMA_BODY = [
  Rule('embed/table', 'model.embed_tokens.weight', 'vd', 'vd'),
  *norm(f'{AT}_norm', f'{L}.input_layernorm'),
  *(r for name in QKV
    for r in dense(f'{AT}/{name}', f'{L}.self_attn.{name[0]}_proj', 'dnh', '(nh)d', '(nh)')),
  Rule(f'{AT}/query_norm/scale', f'{L}.self_attn.q_norm.weight', 'h', 'h'),
  Rule(f'{AT}/key_norm/scale', f'{L}.self_attn.k_norm.weight', 'h', 'h'),
  *dense(f'{AT}/out', f'{L}.self_attn.o_proj', 'nhd', 'd(nh)', 'd'),
  *norm(f'{FEED}_norm', f'{L}.post_attention_layernorm'),
  *dense(f'{FEED}/gate', f'{L}.mlp.gate_proj', 'df', 'fd', 'f'),
  *dense(f'{FEED}/up', f'{L}.mlp.up_proj', 'df', 'fd', 'f'),
  *dense(f'{FEED}/down', f'{L}.mlp.down_proj', 'fd', 'df', 'd'),
  *norm('norm_out', 'model.norm'),
]  # fmt: skip

GPT_HEADS = [Rule('head/table', 'lm_head.weight', 'vd', 'vd')]


def bert_body(root: str) -> list[Rule]:
  """Returns the rules of BERT's and RoBERTa's encoder; `root`: prefix of the tensors."""
  layer = f'{root}.encoder.layer.*'
  return [
    Rule('embed/table', f'{root}.embeddings.word_embeddings.weight', 'vd', 'vd'),
    Rule('position', f'{root}.embeddings.position_embeddings.weight', 'pd', 'pd'),
    Rule('type', f'{root}.embeddings.token_type_embeddings.weight', 'td', 'td'),
    *norm('norm', f'{root}.embeddings.LayerNorm'),
    *(r for name in QKV
      for r in dense(f'{AT}/{name}', f'{layer}.attention.self.{name}', 'dnh', '(nh)d', '(nh)')),
    *dense(f'{AT}/out', f'{layer}.attention.output.dense', 'nhd', 'd(nh)', 'd'),
    *norm(f'{AT}_norm', f'{layer}.attention.output.LayerNorm'),
    *dense(f'{FEED}/up', f'{layer}.intermediate.dense', 'df', 'fd', 'f'),
    *dense(f'{FEED}/down', f'{layer}.output.dense', 'fd', 'df', 'd'),
    *norm(f'{FEED}_norm', f'{layer}.output.LayerNorm'),
    *dense('pooler', f'{root}.pooler.dense', 'de', 'ed', 'e'),
  ]  # fmt: skip


def distilbert_body() -> list[Rule]:
  """Returns the rules of DistilBERT's encoder."""
  layer = 'distilbert.transformer.layer.*'
  return [
    Rule('embed/table', 'distilbert.embeddings.word_embeddings.weight', 'vd', 'vd'),
    Rule('position', 'distilbert.embeddings.position_embeddings.weight', 'pd', 'pd'),
    *norm('norm', 'distilbert.embeddings.LayerNorm'),
    *(r for x in QKV
      for r in dense(f'{AT}/{x}', f'{layer}.attention.{x[0]}_lin', 'dnh', '(nh)d', '(nh)')),
    *dense(f'{AT}/out', f'{layer}.attention.out_lin', 'nhd', 'd(nh)', 'd'),
    *norm(f'{AT}_norm', f'{layer}.sa_layer_norm'),
    *dense(f'{FEED}/up', f'{layer}.ffn.lin1', 'df', 'fd', 'f'),
    *dense(f'{FEED}/down', f'{layer}.ffn.lin2', 'fd', 'df', 'd'),
    *norm(f'{FEED}_norm', f'{layer}.output_layer_norm'),
  ]  # fmt: skip


BERT_HEADS = [
  *dense('transform', 'cls.predictions.transform.dense', 'de', 'ed', 'e'),
  *norm('norm', 'cls.predictions.transform.LayerNorm'),
  Rule('bias', 'cls.predictions.bias', 'v', 'v'),
  *dense('next', 'cls.seq_relationship', 'dc', 'cd', 'c'),
  *dense('head', 'classifier', 'dc', 'cd', 'c'),
]
ROBERTA_HEADS = [
  *dense('transform', 'lm_head.dense', 'de', 'ed', 'e'),
  *norm('norm', 'lm_head.layer_norm'),
  Rule('bias', 'lm_head.bias', 'v', 'v'),
  *dense('head', 'classifier', 'dc', 'cd', 'c'),
]
# RoBERTa's head of classification has a pooler of its own.
ROBERTA_CLASSIFIER = [
  *dense('encoder/pooler', 'classifier.dense', 'de', 'ed', 'e'),
  *dense('head', 'classifier.out_proj', 'dc', 'cd', 'c'),
]
DISTILBERT_HEADS = [
  *dense('transform', 'vocab_transform', 'de', 'ed', 'e'),
  *norm('norm', 'vocab_layer_norm'),
  Rule('bias', 'vocab_projector.bias', 'v', 'v'),
  *dense('encoder/pooler', 'pre_classifier', 'de', 'ed', 'e'),
  *dense('head', 'classifier', 'dc', 'cd', 'c'),
]
ANSWERS = dense('head', 'qa_outputs', 'dc', 'cd', 'c')
