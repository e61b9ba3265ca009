"""An object store on loopback: what bmx's clients use of the JSON API of Google Cloud Storage.

Objects are kept in memory and have generations. There is no rename, no copy, no append and no
folder: a request for one of these is an error 501 that `Store.refused` lists.
"""

import base64
import contextlib
import hashlib
import http.server
import itertools
import json
import re
import threading
import urllib.parse


def environment(address: str) -> dict[str, str]:
  """Variables by which TensorStore and gcsfs use a store at an address, without credentials."""
  return {
    'TENSORSTORE_GCS_HTTP_URL': address,
    'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'none',
    'STORAGE_EMULATOR_HOST': address,
    'FSSPEC_GCS_TOKEN': 'anon',
    'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',  # asks another server for the bucket's kind
  }


class Store:
  """Buckets of one server.

  Attributes:
    objects: (bucket, name) -> (generation, content).
    requests: (method, name) of every request, oldest first.
    refused: requests for what an object store does not have.
    fails: (method, bucket, name) -> status of a request that fails; 0: it does not.
    loses: (method, name) -> whether the answer of a write is lost.
    history: `objects` after every change, once it is a list.
  """

  def __init__(self):
    self.objects: dict[tuple[str, str], tuple[int, bytes]] = {}
    self.uploads: dict[str, tuple[str, str, str | None]] = {}
    self.parts: dict[str, bytearray] = {}
    self.requests, self.refused, self.address = [], [], ''
    self.fails = lambda method, bucket, name: 0
    self.loses = lambda method, name: False
    self.history: list[dict] | None = None
    self.generations = itertools.count(1000)
    self.lock = threading.Lock()

  def names(self, bucket: str) -> list[str]:
    with self.lock:
      return sorted(name for b, name in self.objects if b == bucket)

  def get(self, bucket: str, name: str) -> bytes:
    return self.objects[bucket, name][1]

  def put(self, bucket, name, content, condition=None):
    """-> the generation; None if the object has another one than `condition` (0: there is none)."""
    with self.lock:
      if not self.holds(bucket, name, condition):
        return None
      self.objects[bucket, name] = next(self.generations), content
      self.note()
      return self.objects[bucket, name][0]

  def note(self):
    if self.history is not None:
      self.history.append(dict(self.objects))

  def holds(self, bucket, name, condition) -> bool:
    return condition is None or int(condition) == self.objects.get((bucket, name), (0,))[0]


class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  disable_nagle_algorithm, wbufsize = True, -1  # else each answer waits 40 ms
  store: Store

  def log_message(self, *_):
    pass

  def handle(self):
    with contextlib.suppress(ConnectionError):  # of a client that was killed
      super().handle()

  def answer(self, code, body=b'', kind='application/json', **headers):
    body = json.dumps(body).encode() if isinstance(body, dict | list) else body
    self.send_response(code)
    self.send_header('Content-Type', kind)
    self.send_header('Content-Length', str(len(body)))
    for key, value in headers.items():
      self.send_header(key.replace('_', '-'), value)
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(body)

  def missing(self):
    self.answer(404, {'error': {'code': 404, 'message': 'No such object'}})

  def describe(self, bucket, name):
    generation, content = self.store.objects[bucket, name]
    return {
      'kind': 'storage#object', 'name': name, 'bucket': bucket, 'size': str(len(content)),
      'generation': str(generation), 'metageneration': '1',
      'updated': '2026-01-01T00:00:00.000Z', 'timeCreated': '2026-01-01T00:00:00.000Z',
      'md5Hash': base64.b64encode(hashlib.md5(content).digest()).decode(),
    }  # fmt: skip

  def route(self):
    """-> (kind, bucket, object's name, query); kind: object, upload, bucket or other."""
    url = urllib.parse.urlsplit(self.path)
    self.query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
    match = re.fullmatch(r'(/upload|/download)?/storage/v1/b/([^/]+)(?:/o(?:/(.*))?)?', url.path)
    if not match:
      return url.path, '', ''
    kind, bucket, name = match.groups()
    name = urllib.parse.unquote(name or self.query.get('name', ''))
    self.store.requests.append((self.command, name))
    self.status = self.store.fails(self.command, bucket, name)
    if self.status:
      return 'fail', bucket, name
    if re.search(r'/(rewriteTo|copyTo|compose|moveTo)(/|$)', url.path):
      return 'refuse', bucket, name
    listing = '/o' in url.path and '/o/' not in url.path
    return (kind or ('list' if listing else 'object')), bucket, name

  def do_GET(self):
    kind, bucket, name = self.route()
    if kind == 'fail':
      return self.answer(self.status)
    if kind == 'list':
      return self.answer(200, self.listing(bucket))
    if not bucket:
      return self.missing()
    if not name:
      return self.answer(200, {'kind': 'storage#bucket', 'name': bucket, 'id': bucket})
    with self.store.lock:
      found = self.store.objects.get((bucket, name))
      if found is None:
        return self.missing()
      about = self.describe(bucket, name)
    if self.query.get('alt') != 'media' and kind != '/download':
      return self.answer(200, about)
    generation, content = found
    if self.query.get('ifGenerationNotMatch') == str(generation):
      return self.answer(304)
    if self.query.get('ifGenerationMatch', str(generation)) != str(generation):
      return self.answer(412)
    headers = {'x_goog_generation': str(generation), 'ETag': f'"{generation}"'}
    span = re.fullmatch(r'bytes=(\d*)-(\d*)', self.headers.get('Range', ''))
    if not span:
      return self.answer(200, content, 'application/octet-stream', **headers)
    size = len(content)
    if not span[1]:
      first, last = max(0, size - int(span[2])), size - 1
    else:
      first, last = int(span[1]), min(int(span[2] or size - 1), size - 1)
    if first >= size:
      return self.answer(416, Content_Range=f'bytes */{size}')
    headers['Content_Range'] = f'bytes {first}-{last}/{size}'
    return self.answer(206, content[first : last + 1], 'application/octet-stream', **headers)

  do_HEAD = do_GET

  def listing(self, bucket):
    prefix, delimiter = self.query.get('prefix', ''), self.query.get('delimiter')
    first = self.query.get('startOffset', '')
    last = self.query.get('endOffset')
    items, prefixes = [], []
    with self.store.lock:
      for name in sorted(name for b, name in self.store.objects if b == bucket):
        rest = name[len(prefix) :]
        if not name.startswith(prefix) or name < first or (last and name >= last):
          continue
        if delimiter and delimiter in rest:
          folder = prefix + rest.split(delimiter)[0] + delimiter
          prefixes += [folder] if folder not in prefixes else []
        else:
          items.append(self.describe(bucket, name))
    most = int(self.query.get('maxResults', 1 << 30))
    return {'kind': 'storage#objects', 'items': items[:most], 'prefixes': prefixes[:most]}

  def do_POST(self):
    kind, bucket, name = self.route()
    body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
    if 'chunked' in self.headers.get('Transfer-Encoding', ''):
      body = b''
      while size := int(self.rfile.readline(), 16):
        body += self.rfile.read(size)
        self.rfile.readline()
      self.rfile.readline()
    if kind == 'fail':
      return self.answer(self.status)
    if kind == '/batch/storage/v1':
      return self.batch(body)
    if kind != '/upload':
      self.store.refused.append(f'{self.command} {self.path}')
      return self.answer(501, {'error': {'code': 501, 'message': f'{self.path}: not implemented'}})
    if 'upload_id' in self.query:
      return self.chunk(body)
    how, condition = self.query.get('uploadType'), self.query.get('ifGenerationMatch')
    if how == 'multipart':
      boundary = re.search(r'boundary="?([^";]+)', self.headers['Content-Type'])[1].encode()
      about, content = re.split(b'\r?\n?--' + re.escape(boundary) + b'(?:--)?\r?\n?', body)[1:3]
      about = json.loads(re.split(b'\r?\n\r?\n', about, maxsplit=1)[1])
      name, body = about['name'], re.split(b'\r?\n\r?\n', content, maxsplit=1)[1]
      self.store.requests[-1] = (self.command, name)
      if status := self.store.fails(self.command, bucket, name):
        return self.answer(status)
    elif how == 'resumable':
      name = name or json.loads(body)['name']
      key = str(len(self.store.uploads))
      self.store.uploads[key] = bucket, name, condition
      place = f'http://{self.headers["Host"]}{self.path.split("?")[0]}?upload_id={key}'
      return self.answer(200, Location=place)
    if self.store.put(bucket, name, body, condition) is None:
      return self.answer(412, {'error': {'code': 412, 'message': 'conditionNotMet'}})
    if self.store.loses(self.command, name):
      return self.answer(503)
    with self.store.lock:
      self.answer(200, self.describe(bucket, name))

  def chunk(self, body):
    """A chunk of a resumable upload; the object is there after the last one."""
    bucket, name, condition = self.store.uploads[self.query['upload_id']]
    parts = self.store.parts.setdefault(self.query['upload_id'], bytearray())
    parts += body
    if self.headers['Content-Range'].endswith('*'):
      return self.answer(308, Range=f'bytes=0-{len(parts) - 1}')
    if self.store.put(bucket, name, bytes(parts), condition) is None:
      return self.answer(412)
    return self.answer(200, self.describe(bucket, name))

  def do_DELETE(self):
    kind, bucket, name = self.route()
    if kind == 'fail':
      return self.answer(self.status)
    code = self.delete(bucket, name, self.query.get('ifGenerationMatch'))
    return self.missing() if code == 404 else self.answer(code)

  def delete(self, bucket, name, condition=None) -> int:
    with self.store.lock:
      if not self.store.holds(bucket, name, condition):
        return 412
      if not self.store.objects.pop((bucket, name), None):
        return 404
      self.store.note()
      return 204

  def batch(self, body):
    """Deletions in one request."""
    text, parts = body.decode(), []
    for number, bucket, name in re.findall(
      r'Content-ID: <[^+>]*\+(\d+)>\s+DELETE /storage/v1/b/([^/]+)/o/(\S+?)(?:\?\S*)? HTTP', text
    ):
      code = self.delete(bucket, urllib.parse.unquote(name))
      parts.append(
        f'--b\r\nContent-Type: application/http\r\nContent-ID: <response-x+{number}>\r\n\r\n'
        f'HTTP/1.1 {code} {"No Content" if code == 204 else "No such object"}\r\n\r\n\r\n'
      )
    self.answer(200, (''.join(parts) + '--b--').encode(), 'multipart/mixed; boundary=b')


class _Server(http.server.ThreadingHTTPServer):
  request_queue_size = 128


@contextlib.contextmanager
def serve():
  """A store; `store.address` is http://127.0.0.1:PORT."""
  store = Store()
  server = _Server(('127.0.0.1', 0), type('Of', (Handler,), {'store': store}))
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    store.address = f'http://127.0.0.1:{server.server_port}'
    yield store
  finally:
    server.shutdown()
    server.server_close()
