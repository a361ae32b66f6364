"""The slice-wise gated-encoder classifier, its representation learning and its training."""
