"""Requests and answers in the shape of OpenAI's completions API: plain values, without a network.

A key that is not honored is refused by name: an answer never ignores part of its request.
"""

import dataclasses
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from bmx.core.errors import InputError
from bmx.serve.apierror import ApiError, bad, unknown_model
from bmx.serve.sample import Sampling
from bmx.serve.text import Options

MAX_STOPS, MAX_CHOICES = 4, 16
MAX_INTEGER = 2**31 - 1
LARGEST = 1e30  # of a number that the device computes with in float32
# Keys that ask for nothing where they have this value.
NEUTRAL = {
  'presence_penalty': 0, 'frequency_penalty': 0, 'logit_bias': {}, 'echo': False, 'suffix': None,
  'tools': [], 'functions': [], 'top_logprobs': 0, 'best_of': 1,
  'response_format': {'type': 'text'}, 'parallel_tool_calls': True,
}  # fmt: skip
IGNORED = ('user', 'metadata', 'store', 'service_tier')  # labels of the caller, not of the answer
SHARED = (
  'model', 'max_tokens', 'temperature', 'top_p', 'top_k', 'repetition_penalty', 'n', 'stop', 'seed',
  'stream', 'stream_options', 'logprobs',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Asked:
  """A request after its checks.

  Attributes:
    model: name of one of the served models.
    prompts: texts, or lists of token ids; of a chat none.
    messages: of a chat; () of a completion.
    choices: answers for each prompt.
    max_new_tokens: 0: as many as fit.
    sampling: how tokens are drawn.
    stop: texts that end an answer.
    seed: of the draws; -1: another one for each request.
    stream: whether the answer comes in parts.
    usage: whether the last part of a stream counts tokens.
    logprobs: whether tokens come with their log-probabilities.
  """

  model: str
  prompts: tuple[str | tuple[int, ...], ...]
  messages: tuple[Mapping[str, str], ...]
  choices: int
  max_new_tokens: int
  sampling: Sampling
  stop: tuple[str, ...]
  seed: int
  stream: bool
  usage: bool
  logprobs: bool


def read_request(body: Any, *, chat: bool, served: Sequence[str], defaults: Options) -> Asked:
  """Checks the body of a request.

  Args:
    body: the JSON value.
    chat: of /v1/chat/completions, else of /v1/completions.
    served: names of the models; the first answers requests that name none.
    defaults: values of keys that the request lacks.

  Raises:
    ApiError: 400 or 404, naming the key.
  """
  if not isinstance(body, dict):
    raise ApiError(400, 'expected a JSON object')
  own = ('messages', 'max_completion_tokens') if chat else ('prompt',)
  for key, value in body.items():
    if key in NEUTRAL and value in (NEUTRAL[key], None):
      continue
    if key not in (*SHARED, *own, *IGNORED):
      raise bad(
        key, value, f'one of the keys {", ".join((*own, *SHARED))}', 'unsupported_parameter'
      )
  given = {k: v for k, v in body.items() if v is not None}
  model = _get(given, 'model', str, served[0])
  if model not in served:
    raise unknown_model(model, served)
  limit = 'max_completion_tokens' if 'max_completion_tokens' in given else 'max_tokens'
  ordinary = 0 if chat else defaults.max_new_tokens
  options = _get(given, 'stream_options', dict, {})
  if set(options) - {'include_usage'}:
    raise bad('stream_options', options, 'only include_usage', 'unsupported_parameter')
  logprobs = given.get('logprobs', False)
  if not isinstance(logprobs, int) or not 0 <= logprobs <= 1:  # a bool is an int
    raise bad('logprobs', logprobs, 'true, false, 0 or 1: those of the chosen tokens')
  return Asked(
    model=model,
    prompts=() if chat else _prompts(given.get('prompt')),
    messages=_messages(given.get('messages')) if chat else (),
    choices=_number(given, 'n', 1, 1, MAX_CHOICES),
    max_new_tokens=_number(given, limit, ordinary, 0 if limit not in given else 1, MAX_INTEGER),
    sampling=_sampling(given, defaults),
    stop=_stop(given['stop']) if 'stop' in given else defaults.stop,
    seed=_number(given, 'seed', -1, -(2**63), 2**63 - 1) % 2**31 if 'seed' in given else -1,
    stream=_get(given, 'stream', bool, False),
    usage=bool(options.get('include_usage', False)),
    logprobs=logprobs is not False,
  )


def _get(given: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
  value = given.get(key, default)
  if not isinstance(value, kind):
    raise bad(key, value, f'a value of type {kind.__name__}')
  return value


def _number(given: Mapping[str, Any], key: str, default: int, least: int, most: int) -> int:
  value = given.get(key, default)
  if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
    raise bad(key, value, f'an integer from {least} to {most}')
  return value


def _sampling(given: Mapping[str, Any], defaults: Options) -> Sampling:
  base = dataclasses.asdict(defaults.sampling)
  for key in base:
    value = given.get(key, base[key])
    if isinstance(value, bool) or not isinstance(value, int | float):
      raise bad(key, value, 'a number')
    if abs(value) > LARGEST or 0 < abs(value) < 1 / LARGEST:
      raise bad(key, value, f'0, or a number from {1 / LARGEST:g} to {LARGEST:g}')
    base[key] = value
  if not isinstance(base['top_k'], int) or base['top_k'] > MAX_INTEGER:
    raise bad('top_k', base['top_k'], f'an integer up to {MAX_INTEGER}')
  try:
    return Sampling(**base)
  except InputError as error:
    text = str(error).removeprefix('generate.')
    raise ApiError(400, text, param=text.partition('=')[0]) from None


def _stop(value: Any) -> tuple[str, ...]:
  texts = [value] if isinstance(value, str) else value
  valid = isinstance(texts, list | tuple) and all(isinstance(t, str) and t for t in texts)
  if not valid or len(texts) > MAX_STOPS:
    raise bad('stop', value, f'a text or at most {MAX_STOPS} texts, none of them empty')
  return tuple(texts)


def _prompts(value: Any) -> tuple[str | tuple[int, ...], ...]:
  """Returns prompts of the four shapes that the API allows."""
  is_ids = lambda x: isinstance(x, list) and x and all(type(i) is int for i in x)
  if isinstance(value, str):
    return (value,)
  if is_ids(value):
    return (tuple(value),)
  if isinstance(value, list) and value and all(isinstance(x, str) or is_ids(x) for x in value):
    return tuple(x if isinstance(x, str) else tuple(x) for x in value)
  raise bad('prompt', value, 'a text, token ids, or a list of either')


def _messages(value: Any) -> tuple[Mapping[str, str], ...]:
  """Returns messages with a role and a text; parts of type 'text' are joined."""
  if not isinstance(value, list) or not value:
    raise bad('messages', value, 'a list of at least one message')
  return tuple(_message(message, f'messages[{n}]') for n, message in enumerate(value))


def _message(message: Any, where: str) -> Mapping[str, str]:
  if not isinstance(message, dict) or set(message) - {'role', 'content', 'name'}:
    raise bad(where, message, 'an object with role and content')
  content = message.get('content')
  if isinstance(content, list):
    content = _joined(content, where)
  if not isinstance(message.get('role'), str) or not isinstance(content, str):
    raise bad(where, message, 'an object with role and content, both texts')
  return {'role': message['role'], 'content': content}


def _joined(parts: list[Any], where: str) -> str:
  """Returns the text of parts that are all of type 'text'."""
  texts = []
  for part in parts:
    text = part.get('text') if isinstance(part, dict) and part.get('type') == 'text' else None
    if not isinstance(text, str):
      raise bad(f'{where}.content', parts, "a text, or parts of type 'text'")
    texts.append(text)
  return ''.join(texts)


@dataclasses.dataclass(frozen=True)
class Answer:
  """Head of an answer: what all of its parts repeat.

  Attributes:
    model: name of the model.
    chat: of a chat completion.
    identity: unique.
    created: Unix time, seconds.
  """

  model: str
  chat: bool
  identity: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
  created: int = dataclasses.field(default_factory=lambda: int(time.time()))

  def whole(self, choices: Sequence[Mapping[str, Any]], usage: Mapping[str, int]) -> dict[str, Any]:
    """Returns an answer in one piece."""
    return {**self._head(''), 'choices': list(choices), 'usage': dict(usage)}

  def part(self, choices: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
    """Returns a part of a stream."""
    return {**self._head('.chunk'), 'choices': list(choices), **more}

  def _head(self, suffix: str) -> dict[str, Any]:
    kind, prefix = ('chat.completion', 'chatcmpl') if self.chat else ('text_completion', 'cmpl')
    return {
      'id': f'{prefix}-{self.identity}',
      'object': kind + (suffix if self.chat else ''),
      'created': self.created,
      'model': self.model,
    }


def choice(
  index: int, text: str, finish: str, chat: bool, stream: bool, logprobs: Any = None, first=False
) -> dict[str, Any]:
  """Returns one choice of an answer, or of a part of it.

  Args:
    index: of the choice.
    text: whole, or the new part.
    finish: '' while tokens may follow.
    chat: whether the text is a message.
    stream: whether it is a part.
    logprobs: see `token_logprobs`; None without.
    first: whether it is the first part.
  """
  common = {'index': index, 'finish_reason': finish or None, 'logprobs': logprobs}
  if not chat:
    return {**common, 'text': text}
  if not stream:
    return {**common, 'message': {'role': 'assistant', 'content': text}}
  role = {'role': 'assistant'} if first else {}
  return {**common, 'delta': {**role, 'content': text} if text or first else {}}


def token_logprobs(texts: Sequence[str], values: Sequence[float], chat: bool) -> dict[str, Any]:
  """Returns tokens with their log-probabilities.

  Args:
    texts: of the tokens.
    values: natural logarithms.
    chat: whether in the shape of a chat.
  """
  if chat:
    pairs = zip(texts, values, strict=True)
    content = [{'token': t, 'logprob': v, 'bytes': list(t.encode()), 'top_logprobs': []}
               for t, v in pairs]  # fmt: skip
    return {'content': content}
  return {'tokens': list(texts), 'token_logprobs': list(values), 'top_logprobs': None,
          'text_offset': None}  # fmt: skip
