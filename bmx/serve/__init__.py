"""Generation with decoders: sampling, beam search, text, and training hooks."""
