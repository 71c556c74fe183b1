"""A small web application around a trained model; needs the extra `serve`."""
