"""What improves a quantized model with further inference: accurate bias correction and layer-wise tuning."""
