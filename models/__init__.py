"""The networks, their weights and training recipes, and the relevance rules. Tensors only, no DICOM."""

from models.cuda_runtime import load_cuda_runtime

load_cuda_runtime()
