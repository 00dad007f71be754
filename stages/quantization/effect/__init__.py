"""What each block of quantizers does to the outputs of the model."""
