"""Files from people: regular files, text, tensors, strict values, JSON."""
