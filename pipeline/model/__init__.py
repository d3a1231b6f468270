"""What is explained: models with their weights and layers, and the names of their classes."""
