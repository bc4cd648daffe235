"""Rule operations: they change a source's tensors before any rule selects or renames them."""
