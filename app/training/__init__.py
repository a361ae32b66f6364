"""Training of the models on a cohort."""
