"""What a plan and statistics come to: ranges, aligned channels, corrected biases."""
