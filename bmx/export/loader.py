"""Runs the model of this folder with jax, numpy and flatbuffers alone, on CPU, GPU or TPU.

`model = loader.Model('.')` checks the SHA-256 of every file. `model.inputs` names the inputs with
shape and dtype; `model(x=numpy.zeros((3, 64)))` returns arrays by name, such as 'logits'.
"""

import hashlib
import json
import pathlib

import jax
import jax.export
import numpy as np

DTYPES = {'F64': 'float64', 'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16',
          'I64': 'int64', 'I32': 'int32', 'U32': 'uint32', 'U8': 'uint8'}  # fmt: skip


class Model:
  """A model: called with arrays by name, returns arrays by name; see `inputs` and `outputs`."""

  def __init__(self, folder):
    self.folder = pathlib.Path(folder)
    facts = json.loads((self.folder / 'package.json').read_text(encoding='utf-8'))
    files = {name: self._read(name, digest) for name, digest in facts['files'].items()}
    self.inputs, self.outputs, self.most = facts['inputs'], facts['outputs'], facts['most']
    weights = files['model.safetensors']
    begin = 8 + int.from_bytes(weights[:8], 'little')
    header = json.loads(weights[8:begin])
    header.pop('__metadata__', None)
    self.weights = {name: self._tensor(weights, begin, **x) for name, x in header.items()}
    self.program = jax.export.deserialize(bytearray(files['program.bin']))
    here = jax.default_backend()
    if {'gpu': 'cuda'}.get(here, here) not in self.program.platforms:
      raise ValueError(f'{here}: expected one of {self.program.platforms}; set JAX_PLATFORMS')

  def _read(self, name, digest):
    data = (self.folder / name).read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
      raise ValueError(f'{self.folder / name}: expected the file that was exported, found another')
    return data

  def _tensor(self, data, begin, dtype, shape, data_offsets):
    part = memoryview(data)[begin + data_offsets[0] : begin + data_offsets[1]]
    return jax.device_put(np.frombuffer(part, jax.numpy.dtype(DTYPES[dtype])).reshape(shape))

  def __call__(self, **inputs):
    if set(inputs) != set(self.inputs):
      raise ValueError(f'{sorted(inputs)}: expected the inputs {sorted(self.inputs)}')
    given = {k: np.asarray(v).astype(self.inputs[k]['dtype'], casting='same_kind')
             for k, v in inputs.items()}  # fmt: skip
    sizes = {}
    for name, array in given.items():
      shape = self.inputs[name]['shape']
      known = [sizes.setdefault(x, n) if x in self.most else x
               for x, n in zip(shape, array.shape, strict=False)]  # fmt: skip
      fits = array.ndim == len(shape) and all(1 <= n <= self.most[x] for x, n in sizes.items())
      if [*array.shape] != known or not fits:
        raise ValueError(f'{name} {array.shape}: expected {shape}, at most {self.most}')
    return {k: np.asarray(v) for k, v in self.program.call(self.weights, given).items()}  # type: ignore
