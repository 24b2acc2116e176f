"""Many try-ons from files to files: what is there, what is done already, and doing the rest."""
