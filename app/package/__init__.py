"""The MONAI Application Package: its manifests, its files, and what it is made of."""
