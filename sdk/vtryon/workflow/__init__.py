"""ComfyUI's graphs as requests: what each node becomes, or why it can't be honoured."""
