"""Multi-class lesion segmentation: 3D U-Net."""
