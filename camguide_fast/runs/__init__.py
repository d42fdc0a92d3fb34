"""A run: its folder, its stages one after another, its scores, and its settings found again."""
