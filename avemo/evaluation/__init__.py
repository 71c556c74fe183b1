"""How good a trained model is, and what it makes of a clip."""
