"""From media files to batches: decoding, faces, features, the cache, the data module."""
