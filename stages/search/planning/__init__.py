"""A plan in seconds: which layers to quantize and how, from the noise and the time of each of them, by a knapsack."""
