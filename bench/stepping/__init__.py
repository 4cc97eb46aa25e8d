"""How fast a step is: against the forward passes it needs, the textbook, and memory itself.

One process a case (model, dtype, shape). Everything that is compared is measured in it in turns,
so that a busy machine or a slow minute falls on both sides of a ratio.
"""
