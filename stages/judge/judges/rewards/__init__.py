"""Judges whose score is a model's reward: of one trained to give it, or of a policy trained with preferences."""
