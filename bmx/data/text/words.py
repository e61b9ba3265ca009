"""Words cut out of a text, encoded as the tokenizer encodes them inside it."""

from bmx.core.errors import InputError
from bmx.data.text.tokenizer import Subwords

PROBES = ('a', 'hi', '0', '.')
LETTERS = 20  # pieces of the vocabulary that are tried where these words decide nothing


def space_before(tokenizer: Subwords) -> str:
  """The text before each word of a list that gives it the ids that it has inside a text: ' ' or ''.

  Byte-level BPE reads the space before a word as a part of it. Transformers' examples of token
  classification set `add_prefix_space` for such models, RoBERTa and GPT-2. Other tokenizers add the
  mark of a new word themselves, or drop spaces.
  """
  vocab = tokenizer.inner.get_vocab()
  pieces = [piece for piece in sorted(vocab, key=lambda p: vocab[p]) if piece.isalpha()]
  for word in (*PROBES, *pieces[:LETTERS]):
    try:
      whole, first = (ids.tolist() for ids in tokenizer.encode([f'{word} {word}', word]))
      lists = tokenizer.encodings([[word], [f' {word}']], words=True)
    except InputError:  # the word has no encoding
      continue
    plain, spaced = (list(one.ids) for one in lists)
    if plain != spaced and whole in (first + plain, first + spaced):
      return ' ' if whole == first + spaced else ''
  return ''
