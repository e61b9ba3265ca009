"""Whisper of Hugging Face: tensors, keys of config.json and generation_config.json.

Source: modeling_whisper.py, generation_whisper.py and configuration_whisper.py of transformers
5.24, and the published files of openai/whisper-tiny and openai/whisper-tiny.en.
"""

from collections.abc import Mapping
from typing import Any

from bmx.adapt.families import ONLY, Architecture, Family
from bmx.adapt.layouts import QKV, Rule, dense, norm
from bmx.adapt.seq2seq import refuse
from bmx.models.whisper import Whisper

# Keys of generation_config.json that decide how a transcript is written.
GENERATED = (
  'decoder_start_token_id', 'forced_decoder_ids', 'suppress_tokens', 'begin_suppress_tokens',
  'lang_to_id', 'task_to_id', 'language', 'task', 'no_timestamps_token_id', 'return_timestamps',
)  # fmt: skip
OPEN = None  # place of the language in the ids that a transcript begins with, where it is detected
SIDES = ('encoder', 'decoder')


def _attention(name: str, tensor: str) -> list[Rule]:
  return [
    *(r for x in QKV
      for r in dense(f'{name}/{x}', f'{tensor}.{x[0]}_proj', 'dnh', '(nh)d', '(nh)')),
    *dense(f'{name}/out', f'{tensor}.out_proj', 'nhd', 'd(nh)', 'd'),
  ]  # fmt: skip


def _side(side: str) -> list[Rule]:
  at, layer = f'{side}/stack/block_*', f'model.{side}.layers.*'
  cross = [
    *_attention(f'{at}/cross_attention', f'{layer}.encoder_attn'),
    *norm(f'{at}/cross_attention_norm', f'{layer}.encoder_attn_layer_norm'),
  ]
  return [
    Rule(f'{side}/position', f'model.{side}.embed_positions.weight', 'pd', 'pd'),
    *_attention(f'{at}/attention', f'{layer}.self_attn'),
    *norm(f'{at}/attention_norm', f'{layer}.self_attn_layer_norm'),
    *(cross if side == 'decoder' else []),
    *dense(f'{at}/feed_forward/up', f'{layer}.fc1', 'df', 'fd', 'f'),
    *dense(f'{at}/feed_forward/down', f'{layer}.fc2', 'fd', 'df', 'd'),
    *norm(f'{at}/feed_forward_norm', f'{layer}.final_layer_norm'),
    *norm(f'{side}/norm_out', f'model.{side}.layer_norm'),
  ]


_CONVOLUTIONS = [
  rule
  for i in range(2)  # a kernel of bmx has a second dimension of 1, that of columns
  for rule in dense(f'encoder/conv_{i}', f'model.encoder.conv{i + 1}', 'kxcf', '(fx)ck', 'f')
]


def merged(config: Mapping[str, Any], generation: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a config.json with the keys of its generation_config.json.

  transformers reads them there alone, but for `forced_decoder_ids`.
  """
  kept = {k: v for k, v in config.items() if k not in GENERATED or k == 'forced_decoder_ids'}
  given = {k: v for k, v in generation.items() if v is not None}
  return kept | given


def _read(config: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
  refuse(config, problems, but=GENERATED)
  if config.get('return_timestamps'):
    problems.append('return_timestamps=True: supported are texts without times; set false')
  begin, languages = _begin(config, problems)
  return {
    'begin': begin,
    'languages': languages,
    'suppressed': _ids('suppress_tokens', config, problems),
    'begin_suppressed': _ids('begin_suppress_tokens', config, problems),
  }


def _begin(
  config: Mapping[str, Any], problems: list[str]
) -> tuple[tuple[int, ...], dict[str, int]]:
  """Returns the ids that a transcript begins with, and the languages to detect, as transformers."""
  start, known, tasks = (config.get(k) for k in ('decoder_start_token_id', 'lang_to_id',
                                                 'task_to_id'))  # fmt: skip
  language, task, last = (config.get(k) for k in ('language', 'task', 'no_timestamps_token_id'))
  if type(start) is not int or start < 0:
    problems.append(f'decoder_start_token_id={start!r}: expected an id')
  named = task is not None or language is not None
  ids: list[Any] = [start, *([] if named else _forced(config, problems))]
  if language is not None or (known and (len(ids) < 2 or ids[1] is OPEN)):
    ids[1:2] = [_language(language, known or {}, problems) if language is not None else OPEN]
  elif OPEN in ids:
    problems.append('forced_decoder_ids: the language is open; set language="en", with lang_to_id, '
                    'in generation_config.json')  # fmt: skip
  if named and tasks:
    ids = [i for i in ids if i not in tasks.values()]
    ids.append(tasks.get(task or 'transcribe'))
    if ids[-1] is None:
      problems.append(f'task={task!r}: expected one of {", ".join(tasks)}')
  if last is not None and ids[-1] != last:
    ids.append(last)
  found: dict[str, int] = dict(known or {}) if OPEN in ids[1:2] else {}
  return tuple(i for i in ids if i is not OPEN), found


def _forced(config: Mapping[str, Any], problems: list[str]) -> list[Any]:
  """Returns the ids of `forced_decoder_ids`, [[1, ID], [2, ID], ...]; None is an open language."""
  given = config.get('forced_decoder_ids') or []
  pairs = all(isinstance(x, list) and len(x) == 2 for x in given)
  if not pairs or [i for i, _ in given] != list(range(1, len(given) + 1)):
    problems.append(f'forced_decoder_ids={given!r}: expected [[1, ID], [2, ID], ...]')
    return []
  return [token for _, token in given]


def _language(language: Any, known: Mapping[str, int], problems: list[str]) -> int | None:
  """Returns the id of a language, 'en' or '<|en|>'."""
  name = str(language).lower()
  found = known.get(name, known.get(f'<|{name}|>'))
  if found is None:
    shown = ', '.join(list(known)[:8]) or 'lang_to_id, which is missing'
    problems.append(f'language={language!r}: expected one of {shown}')
  return found


def _ids(key: str, config: Mapping[str, Any], problems: list[str]) -> tuple[int, ...]:
  given = config.get(key) or []
  if not isinstance(given, list) or any(type(i) is not int or i < 0 for i in given):
    problems.append(f'{key}={given!r}: expected ids')
    return ()
  return tuple(given)


def _write(model: Whisper) -> dict[str, Any]:
  language = [OPEN] if model.languages else []
  forced = [list(pair) for pair in enumerate([*language, *model.begin[1:]], 1)]
  found: dict[str, Any] = {
    'decoder_start_token_id': model.begin[0],
    'forced_decoder_ids': forced or None,
    'suppress_tokens': list(model.suppressed) or None,
    'begin_suppress_tokens': list(model.begin_suppressed) or None,
    'is_encoder_decoder': True,
  }
  return found | ({'lang_to_id': dict(model.languages)} if model.languages else {})


WHISPER = Family(
  'whisper', 'bmx.models.whisper:Whisper', '',
  [
    Rule('decoder/embed/table', 'model.decoder.embed_tokens.weight', 'vd', 'vd'),
    *_CONVOLUTIONS, *(rule for side in SIDES for rule in _side(side)),
  ],
  (),
  copies={'proj_out.weight': 'model.decoder.embed_tokens.weight'},
  keys={
    'vocab_size': ('vocab_size', None), 'max_seq_len': ('max_target_positions', 448),
    'max_source_len': ('max_source_positions', 1500), 'width': ('d_model', None),
    'depth': ('decoder_layers', None), 'heads': ('decoder_attention_heads', None),
    'mlp_dim': ('decoder_ffn_dim', None), 'encoder_depth': ('encoder_layers', None),
    'encoder_heads': ('encoder_attention_heads', None),
    'encoder_mlp_dim': ('encoder_ffn_dim', None),
    'activation': ('activation_function', 'gelu'), 'dropout': ('dropout', 0.0),
  },
  only=ONLY | {
    'scale_embedding': (False,), 'tie_word_embeddings': (True,), 'apply_spec_augment': (False,),
    'encoder_layerdrop': (0, 0.0), 'decoder_layerdrop': (0, 0.0),
  },
  written={'attention_dropout': 0.0, 'activation_dropout': 0.0},
  sides=True,
  read=_read,
  write=_write,
)  # fmt: skip
SPEECH = {'WhisperForConditionalGeneration': Architecture(WHISPER)}


def facts(model: Whisper) -> dict[str, Any]:
  """Returns the arguments that define a model and have several spellings, in a unique form."""
  mlp_dim = model.mlp_dim or 4 * model.width
  return {
    'mlp_dim': mlp_dim,
    'encoder_mlp_dim': model.encoder_mlp_dim or mlp_dim,
    'encoder_depth': model.encoder_depth or model.depth,
    'encoder_heads': model.encoder_heads or model.heads,
    'begin': tuple(model.begin),
    'languages': dict(model.languages),
    'suppressed': tuple(model.suppressed),
    'begin_suppressed': tuple(model.begin_suppressed),
  }


def complete(config: dict[str, Any], model: Whisper, params: Mapping[str, Any]) -> None:
  """Adds to a written config.json the bands, and ids of padding and begin that it lacks.

  Those of published files are the end of text; transformers has defaults beyond a small vocabulary.
  """
  config['num_mel_bins'] = mels(params)
  end = config.get('eos_token_id', model.begin[0])
  end = end[0] if isinstance(end, list) else end
  for key in ('pad_token_id', 'bos_token_id', 'eos_token_id'):
    config.setdefault(key, end)


def mels(params: Mapping[str, Any]) -> int:
  """Returns the bands of the features that a model with these parameters reads."""
  return params['encoder']['conv_0']['kernel'].shape[-2]
