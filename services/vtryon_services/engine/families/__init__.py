"""Model families: all that is particular to a model, one module per family."""
