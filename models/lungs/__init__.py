"""Lung segmentation: 3D DeepMedic."""
