"""What the training recipes share: sources, synthetic lesions, augmentation and the loop."""
