"""What SFT and RL share: log-probabilities, optimizers, memory, saved states."""
