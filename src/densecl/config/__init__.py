"""The settings of a pre-training run: their meaning, how they are composed, and what `auto` chooses. Free of torch.

asked (flags, file, preset) --compose--> Recipe --resolve, with the facts--> Resolved + reasons
"""
