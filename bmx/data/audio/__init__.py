"""Audio: files, features, augmentation, transcripts, composed sequences."""
