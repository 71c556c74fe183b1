"""What `accelerate.py` stands on: what can be served, what may be laid out in another way, and what is said of both."""
