"""Tokenizers of ten kinds in packed data, generation and export: ids and texts of transformers."""

import json

import jax
import numpy as np
import pytest

from bmx.adapt import hub, restore
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.data.text import special
from bmx.data.text.packing import packed
from bmx.data.text.tokenizer import frame, load
from bmx.data.text.windows import text
from bmx.parallel import Layout, make_mesh, unbox
from bmx.serve.text import Options, TextGenerator
from tests.data.text.kinds import MADE, SIZE, TEXTS, write

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

ONE = Layout(make_mesh({'data': 1}, jax.devices()[:1]))
ENDED = [kind for kind in MADE if kind != 'characters']  # kinds with a known end of text
MODEL = {'hidden_size': 16, 'intermediate_size': 16, 'num_hidden_layers': 1, 'vocab_size': SIZE,
         'num_attention_heads': 2, 'max_position_embeddings': 64,
         'initializer_range': 0.4}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """A Hugging Face folder of each kind: its tokenizer, and one Llama with random weights."""
  place = tmp_path_factory.mktemp('kinds')
  torch.manual_seed(0)
  model = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(**MODEL, bos_token_id=None, eos_token_id=None, pad_token_id=None)
  )
  made = {}
  for kind in MADE:
    made[kind] = write(kind, place / kind.replace(' ', '-'))
    eos = reference(made[kind]).eos_token_id
    model.config.eos_token_id = model.generation_config.eos_token_id = eos
    model.save_pretrained(made[kind])
  return made


def reference(folder):
  return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


def framed(theirs, document):
  """Its ids in transformers, and the end of text where the tokenizer adds none."""
  ids = theirs(document)['input_ids']
  ends = {theirs.eos_token_id, theirs.sep_token_id} - {None}
  return ids if ids[-1] in ends else [*ids, theirs.eos_token_id]


def documents(path, texts):
  lines = ''.join(json.dumps({'text': text}) + '\n' for text in texts)
  path.write_text(lines, 'utf-8')
  return str(path)


def segments(rows):
  """The ids of every packed document."""
  found = zip(rows['tokens'], rows['segment_ids'], strict=True)
  return sorted(t[s == n].tolist() for t, s in found for n in range(1, s.max() + 1))


@pytest.mark.parametrize('kind', ENDED)
def test_packed_documents(folders, tmp_path, kind):
  """Each stands within what transformers adds, and ends; one that spells the frame has one."""
  theirs, coder = reference(folders[kind]), load(str(folders[kind]))
  around = frame(coder)
  begin, end = (
    ''.join(theirs.convert_ids_to_tokens(ids)) for ids in (around.prefix, around.suffix)
  )
  spelled = [f'{begin}{TEXTS[0]}', f'{TEXTS[1]}{end}', f'{begin}{TEXTS[2]}{end}', TEXTS[3]]
  for texts in (TEXTS, spelled):
    path = documents(tmp_path / f'{len(texts[0])}.jsonl', texts)
    data = packed(160, (path,), 'all', tokenizer=coder)
    rows = data.rows(np.arange(data.size), np.arange(data.size))
    expected = [framed(theirs, text) for text in TEXTS]
    assert segments(rows) == sorted(expected)
    found = text(40, path, 'all', tokenizer=coder)
    assert found.tokens.tolist() == [i for ids in expected for i in ids]
    assert around.suffix[-1] in coder.ends


def test_documents_without_an_end_are_refused(folders, tmp_path):
  """One document has nothing to be separated from; a separator can be named."""
  theirs, coder = reference(folders['characters']), load(str(folders['characters']))
  path = documents(tmp_path / 'a.jsonl', TEXTS)
  for make in (lambda **words: packed(160, (path,), 'all', tokenizer=coder, **words),
               lambda **words: text(40, path, 'all', tokenizer=coder, **words)):  # fmt: skip
    with pytest.raises(InputError, match=r'data\.tokenizer: expected one with a known end of text'):
      make()
    with pytest.raises(InputError, match='expected a text of at least one token'):
      packed(9, (path,), tokenizer=load(str(folders['words'])), separator=' ')
  data = packed(160, (path,), 'all', tokenizer=coder, separator='\n')
  end = theirs('\n')['input_ids']
  rows = data.rows(np.arange(data.size), np.arange(data.size))
  assert segments(rows) == sorted(theirs(text)['input_ids'] + end for text in TEXTS)
  found = text(40, path, 'all', tokenizer=coder, separator='\n').tokens
  assert found.tolist() == [i for text in TEXTS for i in theirs(text)['input_ids'] + end]
  one = documents(tmp_path / 'b.jsonl', TEXTS[:1])
  assert packed(160, (one,), 'all', tokenizer=coder).size == 1


@pytest.fixture(scope='module')
def weights(folders):
  """Of the model in every folder."""
  folder = str(folders['GPT-2'])
  model = restore.model(folder)
  abstract = unbox(
    jax.eval_shape(model.init, jax.random.PRNGKey(0), jax.ShapeDtypeStruct((1, 4), np.int32))
  )['params']
  return model, tree.nested(hub.load(folder, abstract))


@pytest.mark.parametrize('kind', MADE)
def test_generated_texts(folders, weights, kind):
  """Greedy, from prompts with and without the begin of text that transformers adds."""
  theirs, coder = reference(folders[kind]), load(str(folders[kind]))
  model = transformers.LlamaForCausalLM.from_pretrained(folders[kind]).eval()
  around, ends = frame(coder), special.read_ids(folders[kind])['eos']
  options = Options(max_new_tokens=12, temperature=0.0, stream=False)
  generator = TextGenerator(*weights, ONE, coder, options, ends)
  begin = ''.join(theirs.convert_ids_to_tokens(list(around.prefix)))
  prompts = ['The cat', 'softly', f'{begin}The cat']
  expected = []
  for prompt in prompts[:2]:
    ids = theirs(prompt)['input_ids']
    ids = ids[: -len(coder.template.suffix) or None]  # a prompt does not end
    with torch.no_grad():
      out = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=False, max_new_tokens=12, pad_token_id=0,
      )[0].tolist()  # fmt: skip
    shown = [theirs.decode(i, skip_special_tokens=True, clean_up_tokenization_spaces=False)
             for i in (ids, out)]  # fmt: skip
    assert shown[1].startswith(shown[0])
    expected.append(shown[1][len(shown[0]) :])
  assert generator.generate(prompts) == [*expected, expected[0]]


@pytest.mark.parametrize('kind', MADE)
def test_exported_tokenizers(folders, weights, tmp_path, kind):
  """The same ids in transformers, also with special tokens, and the same ends and frame here."""
  theirs, coder = reference(folders[kind]), load(str(folders[kind]))
  hub.save(tmp_path / 'out', *weights, tokenizer=coder)
  found = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  texts = [*TEXTS, ' two  blanks ', '中文 🙂']
  for add in (False, True):
    expected = [theirs(text, add_special_tokens=add)['input_ids'] for text in texts]
    assert [found(text, add_special_tokens=add)['input_ids'] for text in texts] == expected
  again = load(str(tmp_path / 'out'))
  assert (frame(again), again.ends) == (frame(coder), coder.ends)
  assert again.special.items() >= coder.special.items()
  generation = transformers.GenerationConfig.from_pretrained(tmp_path / 'out')
  ends = generation.eos_token_id
  assert ([] if ends is None else np.atleast_1d(ends).tolist()) == list(coder.ends)


def test_flags_that_the_post_processor_contradicts_are_reported(folders, tmp_path, caplog):
  """Transformers 5 does not read them beside a tokenizer.json."""
  load(str(folders['DeepSeek']))
  assert 'is not read' not in caplog.text
  folder = write('GPT-2', tmp_path / 'a')
  file = folder / 'tokenizer_config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | {'add_bos_token': True}))
  coder = load(str(folder))
  assert 'add_bos_token=True is not read' in caplog.text
  assert reference(folder)('The cat')['input_ids'] == coder.encode(['The cat'])[0].tolist()
