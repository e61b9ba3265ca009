"""Calls an exported model in a process of its own, where bmx and flax cannot be imported.

python -I isolated.py KIND FOLDER INPUTS.npz OUTPUTS.npz

KIND is 'loader', of a package, or 'transformers', of a Hugging Face folder. INPUTS holds
'CALL/NAME' -> array; OUTPUTS the results by the same names. Imports no bmx.
"""

import importlib.util
import json
import pathlib
import sys

import numpy as np

BLOCKED = ('bmx', 'flax', 'optax', 'orbax', 'grain', 'ml_collections')


class Block:
  """A finder that refuses packages."""

  def find_spec(self, name, path=None, target=None):
    """Raises ImportError for a blocked package."""
    if name.partition('.')[0] in BLOCKED:
      raise ModuleNotFoundError(f'{name} is blocked: an export works without it', name=name)


def of_loader(folder: str):
  """Returns the model of a package, by its own loader."""
  spec = importlib.util.spec_from_file_location('loader', pathlib.Path(folder) / 'loader.py')
  assert spec
  assert spec.loader
  loader = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(loader)
  return loader.Model(folder)


def of_transformers(folder: str):
  """Returns a function of tokens and types, or images -> logits of a model of transformers.

  Of images and tokens, which CLIP reads: 'logits' are embeddings of images, 'logits_1' of texts.
  """
  import torch  # type: ignore
  import transformers  # type: ignore

  config = json.loads((pathlib.Path(folder) / 'config.json').read_text(encoding='utf-8'))
  model = getattr(transformers, config['architectures'][0]).from_pretrained(folder).eval()
  names = {'tokens': 'input_ids', 'types': 'token_type_ids'}

  def call(**inputs):
    image, given = inputs.pop('image', None), {}
    if image is not None:
      given['pixel_values'] = torch.from_numpy(image.transpose(0, 3, 1, 2))
    given |= {names[k]: torch.from_numpy(v.astype(np.int64)) for k, v in inputs.items()}
    with torch.no_grad():
      out = model(**given, return_dict=True)
      if 'image_embeds' in out and 'text_embeds' in out:
        return {'logits': out['image_embeds'].numpy(), 'logits_1': out['text_embeds'].numpy()}
      if 'start_logits' in out:
        return {'logits': torch.stack([out['start_logits'], out['end_logits']], -1).numpy()}
      return {'logits': out.to_tuple()[0].numpy()}

  return call


def main(kind: str, folder: str, inputs: str, outputs: str) -> None:
  """Calls a model with each group of inputs."""
  sys.dont_write_bytecode = True  # the folder stays as it is
  sys.meta_path.insert(0, Block())  # type: ignore
  model = {'loader': of_loader, 'transformers': of_transformers}[kind](folder)
  calls, results = {}, {}
  with np.load(inputs) as file:
    for key in file.files:
      call, _, name = key.partition('/')
      calls.setdefault(call, {})[name] = file[key]
  for call, arrays in calls.items():
    results |= {f'{call}/{name}': array for name, array in model(**arrays).items()}
  assert not set(BLOCKED) & set(sys.modules)
  np.savez(outputs, **results)


if __name__ == '__main__':
  main(*sys.argv[1:])
