"""Text: documents, tokenizers, corpora, and the rows that models read."""
