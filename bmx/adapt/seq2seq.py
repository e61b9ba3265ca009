"""Families of encoder-decoders of Hugging Face: Marian, BART and T5.

Source: modeling_*.py and configuration_*.py of transformers 5.24, and the published files of
Helsinki-NLP/opus-mt-de-en, facebook/bart-base, t5-small and google/flan-t5-small.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bmx.adapt.families import ACTIVATIONS, ONLY, Architecture, Family
from bmx.adapt.layouts import QKV, Rule, dense, norm
from bmx.models.seq2seq import Seq2Seq

CALL = 'bmx.models.seq2seq:Seq2Seq'
SIDES = ('encoder', 'decoder')
# Keys of config.json that change what `generate` of transformers writes, and which bmx lacks.
REFUSED = (
  'min_length', 'no_repeat_ngram_size', 'encoder_no_repeat_ngram_size', 'repetition_penalty',
  'num_beam_groups', 'diversity_penalty', 'suppress_tokens', 'begin_suppress_tokens',
)  # fmt: skip


# Those, and the ones that bmx reads, of generation_config.json.
GENERATED = (*REFUSED, 'decoder_start_token_id', 'forced_bos_token_id', 'bad_words_ids')


def _attention(name: str, tensor: str, letters: bool = False) -> list[Rule]:
  """Returns the rules of an attention; `letters`: T5's names."""
  end, out = ('', 'o') if letters else ('_proj', 'out_proj')
  return [
    *(r for x in QKV
      for r in dense(f'{name}/{x}', f'{tensor}.{x[0]}{end}', 'dnh', '(nh)d', '(nh)')),
    *dense(f'{name}/out', f'{tensor}.{out}', 'nhd', 'd(nh)', 'd'),
  ]  # fmt: skip


def _bart_side(side: str) -> list[Rule]:
  at, layer = f'{side}/stack/block_*', f'model.{side}.layers.*'
  cross = [
    *_attention(f'{at}/cross_attention', f'{layer}.encoder_attn'),
    *norm(f'{at}/cross_attention_norm', f'{layer}.encoder_attn_layer_norm'),
  ]
  return [
    Rule(f'{side}/position', f'model.{side}.embed_positions.weight', 'pd', 'pd'),
    *norm(f'{side}/norm', f'model.{side}.layernorm_embedding'),
    *_attention(f'{at}/attention', f'{layer}.self_attn'),
    *norm(f'{at}/attention_norm', f'{layer}.self_attn_layer_norm'),
    *(cross if side == 'decoder' else []),
    *dense(f'{at}/feed_forward/up', f'{layer}.fc1', 'df', 'fd', 'f'),
    *dense(f'{at}/feed_forward/down', f'{layer}.fc2', 'fd', 'df', 'd'),
    *norm(f'{at}/feed_forward_norm', f'{layer}.final_layer_norm'),
  ]


def _t5_side(side: str) -> list[Rule]:
  at, block = f'{side}/stack/block_*', f'{side}.block.*.layer'
  last = 2 if side == 'decoder' else 1
  feed = f'{block}.{last}.DenseReluDense'
  cross = [
    *_attention(f'{at}/cross_attention', f'{block}.1.EncDecAttention', letters=True),
    *norm(f'{at}/cross_attention_norm', f'{block}.1.layer_norm'),
  ]
  first = f'{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight'
  return [
    Rule(f'{side}/relative', first, 'rn', 'rn'),
    *_attention(f'{at}/attention', f'{block}.0.SelfAttention', letters=True),
    *norm(f'{at}/attention_norm', f'{block}.0.layer_norm'),
    *(cross if side == 'decoder' else []),
    *dense(f'{at}/feed_forward/gate', f'{feed}.wi_0', 'df', 'fd', 'f'),
    *dense(f'{at}/feed_forward/down', f'{feed}.wo', 'fd', 'df', 'd'),
    *norm(f'{at}/feed_forward_norm', f'{block}.{last}.layer_norm'),
    *norm(f'{side}/norm_out', f'{side}.final_layer_norm'),
  ]


def _t5_up(tensor: str) -> list[Rule]:
  """Returns the rules of the projection that a gate multiplies, or that stands alone."""
  return [
    rule
    for side, last in zip(SIDES, (1, 2), strict=True)
    for rule in dense(
      f'{side}/stack/block_*/feed_forward/up',
      f'{side}.block.*.layer.{last}.DenseReluDense.{tensor}', 'df', 'fd', 'f',
    )
  ]  # fmt: skip


TABLE = 'decoder/embed/table'
BART_BODY = [
  Rule(TABLE, 'model.shared.weight', 'vd', 'vd'),
  Rule('decoder/bias', 'final_logits_bias', 'v', '1v'),
  *(rule for side in SIDES for rule in _bart_side(side)),
]
T5_BODY = [
  Rule(TABLE, 'shared.weight', 'vd', 'vd'),
  *(rule for side in SIDES for rule in _t5_side(side)),
]


def _begin(config: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
  """Reads the ids that generation begins with, and that it never writes."""
  start = config.get('decoder_start_token_id')
  start = config.get('pad_token_id') if start is None and config['model_type'] == 't5' else start
  if type(start) is not int or start < 0:
    problems.append(f'decoder_start_token_id={start!r}: expected an id')
    start = 0
  forced = config.get('forced_bos_token_id')
  begin = (start,) if forced is None else (start, forced)
  never = config.get('bad_words_ids') or []
  if not isinstance(never, list) or any(not isinstance(x, list) or len(x) != 1 for x in never):
    problems.append(f'bad_words_ids={never!r}: supported are single ids, such as [[58100]]')
    never = []
  refuse(config, problems)
  return {'begin': begin, 'suppressed': tuple(x[0] for x in never)}


def refuse(config: Mapping[str, Any], problems: list[str], but: Sequence[str] = ()) -> None:
  """Appends a line for each key of `REFUSED`, `but` for some, that would change a text."""
  neutral = {'min_length': (0, None), 'repetition_penalty': (1, None), 'num_beam_groups': (1, None)}
  for key in REFUSED:
    if key not in but and config.get(key) not in (*neutral.get(key, ()), 0, 0.0, None):
      problems.append(f'{key}={config[key]!r}: not supported; remove the key to do without it')


def _read_bart(config: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
  other = config.get('decoder_vocab_size')
  if other not in (None, config.get('vocab_size')):
    problems.append(f'decoder_vocab_size={other!r}: supported is vocab_size')
  return _begin(config, problems) | {'scaled_embed': bool(config.get('scale_embedding', False))}


def _write_bart(model: Seq2Seq) -> dict[str, Any]:
  marian = model.positions != 'learned'  # its targets begin with padding
  return (
    _written(model)
    | {'scale_embedding': model.scaled_embed}
    | ({'pad_token_id': model.begin[0]} if marian else {})
  )


def _written(model: Seq2Seq) -> dict[str, Any]:
  """Returns the keys of how a text begins and ends."""
  found: dict[str, Any] = {'decoder_start_token_id': model.begin[0], 'is_encoder_decoder': True}
  found['forced_eos_token_id'] = None
  found['forced_bos_token_id'] = model.begin[1] if len(model.begin) > 1 else None
  if model.suppressed:
    found['bad_words_ids'] = [[i] for i in model.suppressed]
  return found


_BART_KEYS: dict[str, tuple[str, Any]] = {
  'vocab_size': ('vocab_size', None), 'max_seq_len': ('max_position_embeddings', 1024),
  'width': ('d_model', None), 'depth': ('decoder_layers', None),
  'heads': ('decoder_attention_heads', 16), 'mlp_dim': ('decoder_ffn_dim', 4096),
  'encoder_depth': ('encoder_layers', None), 'encoder_heads': ('encoder_attention_heads', 16),
  'encoder_mlp_dim': ('encoder_ffn_dim', 4096), 'activation': ('activation_function', 'gelu'),
  'dropout': ('dropout', 0.1), 'tied': ('tie_word_embeddings', True),
}  # fmt: skip
BART = Family(
  'bart', CALL, '', BART_BODY, [Rule('decoder/head/table', 'lm_head.weight', 'vd', 'vd')],
  copies={
    'model.encoder.embed_tokens.weight': 'model.shared.weight',
    'model.decoder.embed_tokens.weight': 'model.shared.weight',
    'lm_head.weight': 'model.shared.weight',
  },
  keys=_BART_KEYS,
  only=ONLY | {
    'is_decoder': (False,), 'normalize_before': (False,),
    'add_final_layer_norm': (False,), 'normalize_embedding': (True,),
  },
  written={'attention_dropout': 0.0, 'activation_dropout': 0.0},
  fixed={'positions': 'learned', 'first_position': 2, 'post_norm': True, 'embed_norm': True,
         'norm_out': False, 'head_bias': True, 'eps': 1e-5},
  sides=True,
  read=_read_bart,
  write=_write_bart,
)  # fmt: skip
MARIAN = dataclasses.replace(
  BART,
  model_type='marian',
  only=BART.only | {
    'share_encoder_decoder_embeddings': (True,), 'normalize_embedding': (False,),
    'static_position_embeddings': (True,),
  },
  spare=re.compile(r'model\.(en|de)coder\.embed_positions\.weight'),
  fixed={**BART.fixed, 'positions': 'sinusoidal_halves', 'first_position': 0, 'embed_norm': False},
)  # fmt: skip


def _read_t5(config: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
  kind = config.get('feed_forward_proj') or 'relu'
  gated, _, name = str(kind).rpartition('-')
  name = 'gelu_new' if kind == 'gated-gelu' else name
  if gated not in ('', 'gated') or name not in ACTIVATIONS:
    problems.append(f'feed_forward_proj={kind!r}: expected relu, gelu, gated-gelu, gated-silu, ...')
  tied = config.get('tie_word_embeddings') is not False
  for key in (
    'num_layers',
    *['num_decoder_layers'] * (config.get('num_decoder_layers') is not None),
  ):
    if type(config.get(key)) is not int or config[key] < 1:
      problems.append(f'{key}={config.get(key)!r}: expected int, at least 1')
  return _begin(config, problems) | {
    'gated': bool(gated),
    'activation': ACTIVATIONS.get(name, 'relu'),
    'tied': tied,
    'scaled_head': tied,  # as transformers 5 reads it
    'relative_distance': config.get('relative_attention_max_distance') or 128,
    'encoder_depth': config.get('num_layers') or 0,
    'depth': config.get('num_decoder_layers') or config.get('num_layers') or 0,
  }


def _write_t5(model: Seq2Seq) -> dict[str, Any]:
  name = next((k for k, v in ACTIVATIONS.items() if v == model.activation), '')
  kind = 'gelu' if model.gated and name == 'gelu_new' else name
  return _written(model) | {
    'feed_forward_proj': f'gated-{kind}' if model.gated else kind,
    'relative_attention_max_distance': model.relative_distance,
    'num_layers': model.encoder_depth or model.depth,
    'num_decoder_layers': model.depth,
    'tie_word_embeddings': model.tied,
    'pad_token_id': model.begin[0],
  }


T5 = Family(
  't5', CALL, '', [*T5_BODY, *_t5_up('wi')],
  [Rule('decoder/head/table', 'lm_head.weight', 'vd', 'vd')],
  copies={
    'encoder.embed_tokens.weight': 'shared.weight',
    'decoder.embed_tokens.weight': 'shared.weight',
    'lm_head.weight': 'shared.weight',
  },
  keys={
    'vocab_size': ('vocab_size', None), 'width': ('d_model', None), 'heads': ('num_heads', None),
    'head_dim': ('d_kv', 64), 'mlp_dim': ('d_ff', None),
    'relative_buckets': ('relative_attention_num_buckets', 32),
    'eps': ('layer_norm_epsilon', 1e-6), 'dropout': ('dropout_rate', 0.1),
  },
  only=ONLY | {'is_decoder': (False,)},
  written={},
  fixed={'positions': 'relative', 'norm': 'rms', 'bias': False, 'scaled_attention': False},
  sides=True,
  read=_read_t5,
  write=_write_t5,
)  # fmt: skip
SEQ2SEQ = {
  'MarianMTModel': Architecture(MARIAN),
  'BartForConditionalGeneration': Architecture(BART),
  'T5ForConditionalGeneration': Architecture(T5, gated=_t5_up('wi_1')),
}


def is_gated(model: Any) -> bool:
  """Returns whether a model is an encoder-decoder whose feed-forward layers are gated."""
  return isinstance(model, Seq2Seq) and model.gated


def seq2seq_facts(model: Seq2Seq) -> dict[str, Any]:
  """Returns the arguments that define a model and have several spellings, in a unique form."""
  relative, mlp_dim = model.positions == 'relative', model.mlp_dim or 4 * model.width
  return {
    'mlp_dim': mlp_dim,
    'encoder_mlp_dim': model.encoder_mlp_dim or mlp_dim,
    'encoder_depth': model.encoder_depth or model.depth,
    'encoder_heads': model.encoder_heads or model.heads,
    'max_source_len': model.max_source_len or model.max_seq_len,
    'relative_buckets': model.relative_buckets if relative else 0,
    'relative_distance': model.relative_distance if relative else 0,
    'theta': model.theta if model.positions == 'rotary' else 0.0,
    'begin': tuple(model.begin),
    'suppressed': tuple(model.suppressed),
  }
