"""A judge without a model: rules that an answer follows or breaks, each in a function of its own."""
