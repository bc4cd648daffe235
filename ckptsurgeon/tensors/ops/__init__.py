"""What happens to the values of one tensor, block by block: boxes, casts, interpolation. numpy, no files."""
