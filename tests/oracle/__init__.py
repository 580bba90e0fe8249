"""An independent, naive reading of the specification: the product is judged against it.

Nothing in here imports the product's rooms; only ``driver`` calls it, through its command line.
"""
