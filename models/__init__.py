"""The networks, their weights and training recipes, and the relevance rules. Tensors only, no DICOM."""
