"""Uses of a trained model: held-out evaluation, rejection sampling, answers to prompts, chat."""
