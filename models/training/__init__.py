"""What the trainings share: settings, recipes, patches of volumes, the loop and its checkpoints."""
