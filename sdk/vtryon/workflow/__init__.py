"""ComfyUI graphs as requests: the meaning of each node, or why it can't be honoured."""
