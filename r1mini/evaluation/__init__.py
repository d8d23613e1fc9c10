"""What a model can do: held-out evaluation, rejection sampling, answers to prompts, chat."""
