"""Images: files, boxes and masks, augmentation, normalization."""
