"""The output: its layout, its companions, its signature."""
