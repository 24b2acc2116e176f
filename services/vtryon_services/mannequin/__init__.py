"""The reference checkpoint that ships with vtryon, and the drawings it was made for.

A paper-doll person, a flat shirt and a prompt go in; the same person in that shirt comes out. It is
a reference for the machinery, not a product for photographs: see `checkpoint/README.md`.
"""
