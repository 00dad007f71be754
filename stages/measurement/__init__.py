"""What is measured of models: accuracy with its confidence, latency and throughput, and how far a model computes what it should."""
