"""Families and architectures of Hugging Face: their tensors, and keys of config.json.

Source: modeling_*.py and configuration_*.py of transformers 5.24, and the published files of gpt2,
bert-base-uncased, roberta-base, distilbert-base-uncased, Llama 3, Mistral, Qwen 2 and Qwen 3.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bmx.adapt.layouts import (
  ANSWERS,
  BERT_HEADS,
  DISTILBERT_HEADS,
  GPT2_BODY,
  GPT_HEADS,
  LLAMA_BODY,
  ROBERTA_CLASSIFIER,
  ROBERTA_HEADS,
  Rule,
  bert_body,
  distilbert_body,
)

# Tensors beside a body, and those of them that a model without that head does without.
_HEADS = r'(lm_head|cls|vocab_\w+|\w*classifier|qa_outputs|visual_projection'
HEADS = re.compile(rf'{_HEADS})\.')
SPARE = re.compile(rf'{_HEADS}|bert\.pooler|roberta\.pooler)\.')


@dataclasses.dataclass(frozen=True)
class Family:
  """Architectures that share a body.

  Attributes:
    model_type: of config.json.
    call: class of the body in bmx.
    prefix: of the body's tensors; a file of the body alone may lack it.
    body: rules of the body.
    heads: rules of the heads.
    copies: tensors that repeat another one if the table is tied.
    missing: key -> value of a config.json without it, if that differs from the value of null.
    tied_head: prefix of the tensors of the head that is tied.
    keys: argument in bmx -> (key of config.json, default of a missing one; None: required).
    fixed: arguments in bmx that all members have.
    only: key of config.json -> the supported values, the usual one first.
    written: further keys of a written config.json, whose defaults in transformers differ.
    aliases: other key -> the key whose value it replaces, as `attribute_map` in transformers.
    rates: further keys that hold the rate of dropout.
    spare: matches tensors that may remain unused.
    classes: whether the outputs of the body are the classes of `id2label`.
    sides: whether the body itself has an encoder and a decoder.
    read: (config.json, problems to append to) -> further arguments in bmx.
    write: model -> further keys of a written config.json.
    parts: argument in bmx that is a model of its own -> (object of config.json, its family).
    shared: key of config.json that holds for all `parts` -> default of a missing one.
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
  missing: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
  rates: tuple[str, ...] = ()
  spare: re.Pattern[str] = re.compile(r'(?!)')
  classes: bool = False
  sides: bool = False
  read: Callable[[Mapping[str, Any], list[str]], dict[str, Any]] | None = None
  write: Callable[[Any], dict[str, Any]] | None = None
  parts: Mapping[str, tuple[str, 'Family']] = dataclasses.field(default_factory=dict)
  shared: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def rules(self, wrapped: bool) -> dict[str, Rule]:
    """Returns the rules by parameter name; `wrapped`: those of the body begin with 'encoder/'."""
    under = 'encoder/' if wrapped and not self.sides else ''
    return {r.name: r for r in self.heads} | {under + r.name: r for r in self.body}


ONLY: dict[str, tuple[Any, ...]] = {'pruned_heads': ({},), 'quantization_config': ()}
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
  only=ONLY | {
    'scale_attn_weights': (True,), 'scale_attn_by_inverse_layer_idx': (False,),
    'add_cross_attention': (False,),
  },
  written=_TOKENS | {'attn_pdrop': 0.0},
  aliases={
    'hidden_size': 'n_embd', 'num_hidden_layers': 'n_layer', 'num_attention_heads': 'n_head',
    'max_position_embeddings': 'n_positions',
  },
  rates=('embd_pdrop',),
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
  only=ONLY | {'use_sliding_window': (False,), 'layer_types': ('full_attention',)},
  written=_TOKENS | {'attention_dropout': 0.0},
  missing={'num_key_value_heads': 32},
  fixed={'positions': 'rotary', 'norm': 'rms', 'gated': True, 'bias': False, 'qkv_bias': True},
)  # fmt: skip
LLAMA = dataclasses.replace(
  QWEN2,
  model_type='llama',
  keys=QWEN2.keys | {
    'qkv_bias': ('attention_bias', False), 'out_bias': ('attention_bias', False),
    'mlp_bias': ('mlp_bias', False),
  },
  only=ONLY,
  missing={},
)  # fmt: skip
MISTRAL = dataclasses.replace(
  QWEN2,
  model_type='mistral',
  keys=QWEN2.keys | {'window': ('sliding_window', 0)},
  only=ONLY,
  missing={'num_key_value_heads': 8, 'sliding_window': 4096},
  fixed={**QWEN2.fixed, 'qkv_bias': False},
)
QWEN3 = dataclasses.replace(
  QWEN2,
  model_type='qwen3',
  keys=QWEN2.keys | {
    'qkv_bias': ('attention_bias', False), 'out_bias': ('attention_bias', False),
  },
  missing={'num_key_value_heads': 32, 'head_dim': 128},
  fixed={**QWEN2.fixed, 'qk_norm': True},
)  # fmt: skip
BERT = Family(
  'bert', 'bmx.models.bert:BERT', 'bert.', bert_body('bert'), BERT_HEADS,
  copies={
    'cls.predictions.decoder.weight': 'bert.embeddings.word_embeddings.weight',
    'cls.predictions.decoder.bias': 'cls.predictions.bias',
  },
  keys=_KEYS | {
    'types': ('type_vocab_size', 2), 'activation': ('hidden_act', 'gelu'),
    'eps': ('layer_norm_eps', 1e-12), 'dropout': ('hidden_dropout_prob', 0.1),
  },
  only=ONLY | {
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
  body=bert_body('roberta'),
  heads=ROBERTA_HEADS,
  copies={
    'lm_head.decoder.weight': 'roberta.embeddings.word_embeddings.weight',
    'lm_head.decoder.bias': 'lm_head.bias',
  },
  tied_head='lm_head.',
  keys=BERT.keys | {'first_position': ('pad_token_id', 1)},
)
CAMEMBERT = dataclasses.replace(ROBERTA, model_type='camembert')
XLM_ROBERTA = dataclasses.replace(ROBERTA, model_type='xlm-roberta')
DISTILBERT = Family(
  'distilbert', BERT.call, 'distilbert.', distilbert_body(), DISTILBERT_HEADS,
  copies={'vocab_projector.weight': 'distilbert.embeddings.word_embeddings.weight'},
  keys={
    'vocab_size': ('vocab_size', None), 'max_seq_len': ('max_position_embeddings', None),
    'width': ('dim', None), 'depth': ('n_layers', None), 'heads': ('n_heads', None),
    'mlp_dim': ('hidden_dim', None), 'activation': ('activation', 'gelu'),
    'dropout': ('dropout', 0.1),
  },
  only=ONLY | {'tie_word_embeddings': (True,), 'tie_weights_': (True,)},
  # Files hold the table of positions, whether it was drawn or computed.
  written=_TOKENS | {'pad_token_id': 0, 'attention_dropout': 0.0, 'sinusoidal_pos_embds': False},
  tied_head='vocab_projector.',
  fixed={'types': 0, 'eps': 1e-12, 'pooler_activation': 'relu'},
  aliases={'hidden_size': 'dim', 'num_hidden_layers': 'n_layers', 'num_attention_heads': 'n_heads'},
  rates=('qa_dropout', 'seq_classif_dropout'),
  spare=SPARE,
)  # fmt: skip

PRETRAINING, CLASSIFIER = 'bmx.models.bert:Pretraining', 'bmx.models.bert:Classifier'
TAGGER = 'bmx.models.bert:Tagger'
MASKED = {'call': PRETRAINING, 'next_sentence': False}


@dataclasses.dataclass(frozen=True)
class Architecture:
  """A name in config.json.

  Attributes:
    family: of its body.
    head: the part around the body.
    only: further conditions, as those of the family.
    bare: whether its tensors have no prefix.
    own: rules of its head, instead of the family's.
    fixed: arguments in bmx that all members have.
    gated: rules of a model whose feed-forward layers are gated, if they differ.
  """

  family: Family
  head: Mapping[str, Any] | None = None
  only: dict[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
  bare: bool = False
  own: Sequence[Rule] = ()
  fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  gated: Sequence[Rule] = ()

  def rules(self, wrapped: bool, gated: bool = False) -> dict[str, Rule]:
    """See `Family.rules`; `gated`: whether the feed-forward layers of the model are."""
    more = self.gated if gated else ()
    return self.family.rules(wrapped) | {r.name: r for r in (*self.own, *more)}


TEXT = {
  'GPT2LMHeadModel': Architecture(GPT2),
  'LlamaForCausalLM': Architecture(LLAMA),
  'Qwen2ForCausalLM': Architecture(QWEN2),
  'MistralForCausalLM': Architecture(MISTRAL),
  'Qwen3ForCausalLM': Architecture(QWEN3),
  'BertModel': Architecture(BERT, bare=True),
  'BertForMaskedLM': Architecture(BERT, MASKED),
  'BertForPreTraining': Architecture(BERT, MASKED | {'next_sentence': True}),
  'BertForSequenceClassification': Architecture(BERT, {'call': CLASSIFIER}),
  'BertForTokenClassification': Architecture(BERT, {'call': TAGGER}),
  'BertForQuestionAnswering': Architecture(BERT, {'call': TAGGER}, own=ANSWERS),
  'DistilBertModel': Architecture(DISTILBERT, bare=True),
  'DistilBertForMaskedLM': Architecture(DISTILBERT, MASKED),
  'DistilBertForSequenceClassification': Architecture(DISTILBERT, {'call': CLASSIFIER}),
  'DistilBertForTokenClassification': Architecture(DISTILBERT, {'call': TAGGER}),
  'DistilBertForQuestionAnswering': Architecture(DISTILBERT, {'call': TAGGER}, own=ANSWERS),
}
for _name, _family in {
  'Roberta': ROBERTA,
  'Camembert': CAMEMBERT,
  'XLMRoberta': XLM_ROBERTA,
}.items():
  TEXT |= {
    f'{_name}Model': Architecture(_family, bare=True),
    f'{_name}ForMaskedLM': Architecture(_family, MASKED, {'hidden_act': ('gelu',)}),
    f'{_name}ForSequenceClassification': Architecture(
      _family, {'call': CLASSIFIER}, own=ROBERTA_CLASSIFIER
    ),
    f'{_name}ForTokenClassification': Architecture(_family, {'call': TAGGER}),
    f'{_name}ForQuestionAnswering': Architecture(_family, {'call': TAGGER}, own=ANSWERS),
  }

# transformers' names of functions -> ours; the first of each is the one that is written.
ACTIVATIONS = {
  'gelu_new': 'gelu', 'gelu_pytorch_tanh': 'gelu', 'gelu': 'gelu_exact', 'relu': 'relu',
  'silu': 'silu', 'swish': 'silu', 'sigmoid': 'sigmoid', 'tanh': 'tanh', 'quick_gelu': 'quick_gelu',
}  # fmt: skip
