"""The algorithms: where quantizers go, which ranges they get, and how a quantized model is built from them."""
