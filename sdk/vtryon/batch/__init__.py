"""Batches of try-ons from files to files: find entries, skip finished ones, run the rest."""
