"""Requests that a server must refuse or answer, never break by: seeded, as raw bytes.

`requests(seed, count, path, good)` yields (name of the kind, bytes of the connection). `send` sends
one and returns what came back; `verdict` judges it.
"""

import contextlib
import json
import random
import select
import socket
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

DEEP = 100_000
QUIET_SECONDS = 1.0  # after which a client has nothing more to say
JUNK: list[Any] = [
  None, True, False, 0, -1, 1.5, 10**30, -(10**400), 1e308, float('nan'), float('inf'), '',
  'x' * 5000, '\ud800', '\x00', '</script>', '../../etc/passwd', [], {}, [[]], [None], [1, 'a'],
  {'a': {'a': {}}}, [[[[[[[[1]]]]]]]], {'': ''}, {'__class__': 'x'}, {'call': 'os:system'},
  list(range(300)), '🤖' * 50,
]  # fmt: skip
METHODS = ('GET', 'PUT', 'DELETE', 'PATCH', 'HEAD', 'OPTIONS', 'TRACE', 'CONNECT', 'FOO', 'post')
PATHS = (
  '/../../etc/passwd', '/%2e%2e/%2e%2e/etc/passwd', '/v1/models/../../../etc/passwd',
  '//etc/passwd', '/v1/models/%00', '/v1/models/%ff%fe', '/v1/models/' + 'a' * 3000,
  '/' + 'b' * 70_000, '/v1//predict', '/v1/predict/', '/v1/completions?' + 'q=1&' * 500, '*',
  'http://other.example/', '/\u00e9', '/v1/models/%F0%9F%A4%96',
  '/v1/models/<script>', '/v1/\t', '/metrics/../v1/models', '/page.html', '/.git/config',
)  # fmt: skip


class Reply(NamedTuple):
  """What a server sent back; status 0: it closed the connection without an answer."""

  status: int
  text: str


def requests(seed: int, count: int, path: str, good: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
  """Yields `count` requests of all kinds in turn.

  Args:
    seed: of the draws.
    count: how many.
    path: of the route that most of them address.
    good: a body that the route accepts.
  """
  draw = random.Random(seed)
  for number in range(count):
    kind = KINDS[number % len(KINDS)]
    yield kind.__name__, kind(draw, path, good)


def send(port: int, raw: bytes, timeout: float = 60.0) -> Reply:
  """Sends bytes and reads all that comes back; closes that direction when nothing comes.

  Raises TimeoutError if the server neither answers nor closes.
  """
  with socket.create_connection(('127.0.0.1', port), timeout) as connection:
    with closed_by_peer():
      connection.sendall(raw)
    parts, is_open = [b''], True
    with closed_by_peer():
      while parts[-1] or is_open:
        if is_open and not select.select([connection], [], [], QUIET_SECONDS)[0]:
          connection.shutdown(socket.SHUT_WR)
          is_open = False
        parts.append(connection.recv(65536))
        is_open &= bool(parts[-1])
  text = b''.join(parts).decode('latin-1')
  first = text.split(' ', 2)
  is_answer = text.startswith('HTTP/') and len(first) > 1 and first[1].isdigit()
  return Reply(int(first[1]) if is_answer else 0, text)


@contextlib.contextmanager
def closed_by_peer() -> Iterator[None]:
  """Suppresses errors of a connection that the other side has closed; not a time-out."""
  try:
    yield
  except TimeoutError:
    raise
  except OSError:
    pass


def verdict(reply: Reply) -> str:
  """Returns the fault of a reply; '' without one."""
  if 'Traceback' in reply.text or '.py"' in reply.text:
    return 'a traceback'
  if reply.status >= 500:
    return f'status {reply.status}'
  body = reply.text.partition('\r\n\r\n')[2]
  if reply.status >= 400 and reply.text.lower().find('content-type: application/json') > 0 and body:
    error = json.JSONDecoder().raw_decode(body)[0].get('error', {})  # of the first answer
    if set(error) != {'message', 'type', 'param', 'code'} or len(error['message']) > 1000:
      return f'an error of another shape: {body[:200]}'
  return ''


def post(path: str, body: bytes, *headers: str, length: int | str | None = None) -> bytes:
  """Returns a POST as bytes."""
  size = len(body) if length is None else length
  lines = [f'POST {path} HTTP/1.1', 'Host: a', 'Connection: close', f'Content-Length: {size}']
  return '\r\n'.join((*lines, *headers, '', '')).encode('latin-1', 'replace') + body


def plain(value: Any) -> bytes:
  """Returns a value as JSON."""
  return json.dumps(value).encode()


def flipped_bytes(draw: random.Random, path: str, good: dict[str, Any]) -> bytes:
  """A body with other bytes at a few places."""
  body = bytearray(plain(good))
  for _ in range(draw.randint(1, 5)):
    body[draw.randrange(len(body))] = draw.randrange(256)
  return post(path, bytes(body))


def wrong_types(draw: random.Random, path: str, good: dict[str, Any]) -> bytes:
  """A body one of whose values is another one."""
  return post(path, plain(_with_junk(draw, good)))


def _with_junk(draw: random.Random, value: Any) -> Any:
  """A value with one of its parts replaced."""
  if isinstance(value, dict) and value and draw.random() < 0.8:
    key = draw.choice(list(value))
    return {**value, key: _with_junk(draw, value[key])}
  if isinstance(value, list) and value and draw.random() < 0.8:
    at = draw.randrange(len(value))
    return [*value[:at], _with_junk(draw, value[at]), *value[at + 1 :]]
  return draw.choice(JUNK)


def unknown_keys(draw: random.Random, path: str, good: dict[str, Any]) -> bytes:
  """A body with a key too many, or another value of a known one."""
  key = draw.choice(['\ud800', '', 'a' * 500, '__proto__', 'temperature', 'n', 'stream', 'logprobs',
                     'stop', 'seed', 'max_tokens', 'top_k', 'top_p', 'stream_options'])  # fmt: skip
  return post(path, plain({**good, key: draw.choice(JUNK)}))


def missing_keys(draw: random.Random, path: str, good: dict[str, Any]) -> bytes:
  """A body without some keys."""
  return post(path, plain({k: v for k, v in good.items() if draw.random() < 0.5}))


def other_json(draw: random.Random, path: str, good: dict[str, Any]) -> bytes:
  """A body that is another JSON value."""
  return post(path, plain(draw.choice(JUNK)))


def cut_json(draw: random.Random, path: str, good: dict[str, Any]) -> bytes:
  """The beginning of a body."""
  body = plain(good)
  return post(path, body[: draw.randrange(len(body))])


def deep_nesting(draw: random.Random, path: str, good: dict[str, Any]) -> bytes:
  """Lists and objects in each other."""
  depth = draw.choice((100, 900, 990, 5000, DEEP))
  inner = draw.choice(('[', '{"a":', '[{"instances":'))
  text = inner * depth
  if draw.random() < 0.5:
    text = '[' * depth + ']' * depth
  key = draw.choice(list(good))
  return post(path, draw.choice((text, f'{{"{key}": {text}}}')).encode())


def numbers_beyond(draw: random.Random, path: str, good: dict[str, Any]) -> bytes:
  """Numbers that no float or no integer of 64 bits holds."""
  number = draw.choice(
    ('9' * 5000, '1e99999', '-1e99999', 'NaN', '-Infinity', '0' * 50, '1' + '0' * 400)
  )
  key = draw.choice((*good, 'max_tokens', 'seed', 'n', 'top_k', 'temperature'))
  body = plain({k: v for k, v in good.items() if k != key})[:-1]
  return post(path, body + f', "{key}": {number}}}'.encode())


def other_encodings(draw: random.Random, path: str, good: dict[str, Any]) -> bytes:
  """Bytes that are not UTF-8."""
  text = json.dumps(good, ensure_ascii=False)
  encoded = draw.choice((text.encode('utf-16'), text.encode('utf-32'), b'\xff\xfe' + text.encode(),
                         text.encode('utf-8-sig'), b'\x80' * 50, b'\x00' * 100,
                         text.encode().replace(b'a', b'\xe9')))  # fmt: skip
  return post(path, encoded, 'Content-Type: application/json; charset=latin-1')


def empty_and_large(draw: random.Random, path: str, good: dict[str, Any]) -> bytes:
  """No body, or one beyond the limit."""
  return post(
    path, draw.choice((b'', b' ' * 10, b'"' + b'x' * 2_000_000 + b'"', plain(['a'] * 400_000)))
  )


def wrong_lengths(draw: random.Random, path: str, good: dict[str, Any]) -> bytes:
  """A Content-Length that is not that of the body."""
  body = plain(good)
  lengths = (len(body) + 100, len(body) - 5, -1, 'abc', 10**20, '', f'{len(body)}, 3', 0)
  return post(path, body, length=draw.choice(lengths))


def two_lengths(draw: random.Random, path: str, good: dict[str, Any]) -> bytes:
  """Headers that contradict each other or ask for another protocol."""
  more = draw.choice(('Content-Length: 3', 'Transfer-Encoding: chunked', 'Transfer-Encoding: gzip',
                      'Expect: 100-continue', 'Content-Encoding: gzip',
                      'Upgrade: websocket'))  # fmt: skip
  return post(path, plain(good), more)


def chunked(draw: random.Random, path: str, good: dict[str, Any]) -> bytes:
  """Chunks with wrong sizes."""
  head = (
    f'POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n'
  )
  body = plain(good)
  size = draw.choice((f'{len(body):x}', 'zz', '-1', 'ffffffffffffffff', f'{len(body) + 9:x}'))
  return (
    head.encode() + size.encode() + b'\r\n' + body + draw.choice((b'\r\n0\r\n\r\n', b'', b'\r\n'))
  )


def other_methods(draw: random.Random, path: str, good: dict[str, Any]) -> bytes:
  """Methods that the route does not have."""
  method, target = (
    draw.choice(METHODS),
    draw.choice((path, '/', '/health', '/metrics', '/v1/models')),
  )
  return post(target, plain(good)).replace(b'POST', method.encode(), 1)


def other_paths(draw: random.Random, path: str, good: dict[str, Any]) -> bytes:
  """Paths that lead elsewhere."""
  raw = post('PATH', plain(good), length=None)
  method = draw.choice((b'GET', b'POST'))
  return raw.replace(b'PATH', draw.choice(PATHS).encode('utf-8'), 1).replace(b'POST', method, 1)


def odd_headers(draw: random.Random, path: str, good: dict[str, Any]) -> bytes:
  """Headers that are many, long or malformed."""
  headers = draw.choice((
    [f'X-{n}: a' for n in range(1000)], ['X: ' + 'a' * 100_000], ['Authorization: Bearer \u00ff'],
    ['Authorization:'], ['Authorization: Basic ' + 'A' * 3000], ['X\x00: a'], ['no colon'],
    [' folded: a'], ['X: a\x0bb'], ['Host: b', 'Host: c'], ['Cookie: ' + 'a=b;' * 500],
    ['Content-Type: text/html'], ['X-Forwarded-For: ' + '1,' * 2000], ['Range: bytes=0-'],
    ['Accept: \x7f'],
  ))  # fmt: skip
  return post(path, plain(good), *headers)


def no_http(draw: random.Random, path: str, good: dict[str, Any]) -> bytes:
  """Bytes of other protocols."""
  return draw.choice((
    draw.randbytes(draw.randint(1, 3000)),
    b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03' + draw.randbytes(500),  # TLS
    b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', b'GET /\r\n', b'GET / HTTP/9.9\r\n\r\n',
    b'\r\n' * 1000, b'', b'POST ' + path.encode() + b' HTTP/1.1\r\nHost: a\r\nContent-Le',
    b'GET / HTTP/1.1\n\n', b'SSH-2.0-x\r\n',
  ))  # fmt: skip


def two_requests(draw: random.Random, path: str, good: dict[str, Any]) -> bytes:
  """Two requests in one connection, the second one broken."""
  first = post(path, plain(good)).replace(b'Connection: close\r\n', b'', 1)
  return first + draw.choice((post(path, b'{'), b'junk', post(path, plain(good), length=3)))


def random_json(draw: random.Random, path: str, good: dict[str, Any]) -> bytes:
  """A tree of arbitrary values."""

  def grown(depth: int) -> Any:
    if depth == 0 or draw.random() < 0.3:
      return draw.choice(JUNK)
    if draw.random() < 0.5:
      return [grown(depth - 1) for _ in range(draw.randint(0, 4))]
    return {draw.choice((*good, 'a', '')): grown(depth - 1) for _ in range(draw.randint(0, 4))}

  return post(path, plain(grown(4)))


Kind = Callable[[random.Random, str, dict[str, Any]], bytes]
KINDS: tuple[Kind, ...] = (
  flipped_bytes, wrong_types, unknown_keys, missing_keys, other_json, cut_json, deep_nesting,
  numbers_beyond, other_encodings, empty_and_large, wrong_lengths, two_lengths, chunked,
  other_methods, other_paths, odd_headers, no_http, two_requests, random_json, wrong_types,
)  # fmt: skip
