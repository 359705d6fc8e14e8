"""A language model as a judge: questions to it, where they are answered, and what of that is kept."""
