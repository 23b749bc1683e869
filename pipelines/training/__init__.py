"""Training: a few pictures -> a LoRA, an embedding or a checkpoint that knows what they show."""
